"""What playing files at their least budgets adds to a process, whatever allocates it.

python -m tests.runtime.splats.play_peak WIDTH HEIGHT WARM FILE...

WARM is played first, so that code that is loaded for the first time, and what libraries keep, is
not counted. Prints a list with {"least", "added"} of each FILE, bytes.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
from pathlib import Path

from penstock.runtime.budget import peak_memory
from penstock.runtime.splats.camera import look_at
from penstock.runtime.splats.player import SplatPlayer

FRAMES = 12


def main() -> None:
    width, height = map(int, sys.argv[1:3])
    warm, *files = map(Path, sys.argv[3:])
    play(warm, None, width, height)
    print(json.dumps([measured(path, width, height) for path in files]))


def measured(path: Path, width: int, height: int) -> dict[str, int]:
    with SplatPlayer(path, threads=1, ahead=False) as player:
        least = player.least(width, height)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what is free is given back, or it would be taken again
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins at what there is now
    before = peak_memory()
    play(path, least, width, height)
    return {"least": least, "added": peak_memory() - before}


def play(path: Path, memory: int | None, width: int, height: int) -> None:
    camera = look_at((0.0, -0.5, -4.0), (0.0, 0.0, 0.0), width=width, height=height)
    with SplatPlayer(path, memory=memory, picture=(width, height), threads=1) as player:
        frame = None
        for number in range(FRAMES):  # the frame before is still there when the next is drawn
            at = player.start + (player.end - player.start) * number / FRAMES
            frame = player.render(camera, at)
        assert frame is not None


if __name__ == "__main__":
    main()

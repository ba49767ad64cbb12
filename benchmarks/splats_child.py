"""Plays a file to its end under a budget, in a process of its own; prints what it took.

python benchmarks/splats_child.py WARM FILE BUDGET WIDTH HEIGHT

WARM, a file of a few splats, is played first in pictures of 16 x 16, so that a process that plays
nothing else has all code that playing needs in memory.
BUDGET in bytes; 0: play nothing else, to know the bare process; -1: no budget.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from time import perf_counter

sys.path.append(str(Path(__file__).resolve().parent.parent))

from penstock.runtime.budget import peak_memory
from penstock.runtime.splats.camera import look_at
from penstock.runtime.splats.player import SplatPlayer

FPS = 10.0


def main() -> None:
    warm, path = Path(sys.argv[1]), Path(sys.argv[2])
    budget, width, height = map(int, sys.argv[3:6])
    play(warm, None, 16, 16)
    found: dict[str, object] = {}
    if budget:
        spent, counted = play(path, None if budget < 0 else budget, width, height)
        found = {"counted": counted, "ms": spent}
    print(json.dumps({**found, "resident": peak_memory()}))


def play(path: Path, memory: int | None, width: int, height: int) -> tuple[list[float], int]:
    """(milliseconds of each frame, the most bytes that the player counted)."""
    camera = look_at((0.0, -1.2, -4.0), (0.0, 0.0, 0.0), width=width, height=height)
    spent, counted = [], 0
    with SplatPlayer(path, memory=memory, threads=1, picture=(width, height)) as player:
        frame = None
        for n in range(int((player.end - player.start) * FPS)):
            begin = perf_counter()
            # The frame before is still there: a caller may have two, as the player counts.
            frame = player.render(camera, player.start + n / FPS)
            spent.append(1000 * (perf_counter() - begin))
            counted = max(counted, player.bytes)
        assert frame is not None
    return spent, counted


if __name__ == "__main__":
    main()

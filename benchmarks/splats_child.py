"""Plays a file to its end under a budget, in a process of its own; prints what it took.

python benchmarks/splats_child.py FILE BUDGET WIDTH HEIGHT

BUDGET in bytes; 0: only import, to know the bare process; -1: no budget.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from time import perf_counter

sys.path.append(str(Path(__file__).resolve().parent.parent))

from penstock.runtime.budget import memory_in_use, peak_memory
from penstock.runtime.splats.camera import look_at
from penstock.runtime.splats.player import SplatPlayer

FPS = 10.0


def main() -> None:
    path, budget, width, height = Path(sys.argv[1]), *map(int, sys.argv[2:5])
    camera = look_at((0.0, -1.2, -4.0), (0.0, 0.0, 0.0), width=width, height=height)
    bare = memory_in_use()
    if budget == 0:
        print(json.dumps({"bare": max(bare, peak_memory())}))
        return
    spent, counted = [], 0
    with SplatPlayer(
        path, memory=None if budget < 0 else budget, threads=1, picture=(width, height)
    ) as player:
        for n in range(int((player.end - player.start) * FPS)):
            begin = perf_counter()
            player.render(camera, player.start + n / FPS)
            spent.append(1000 * (perf_counter() - begin))
            counted = max(counted, player.bytes)
    print(json.dumps({"bare": bare, "peak": peak_memory(), "counted": counted, "ms": spent}))


if __name__ == "__main__":
    main()

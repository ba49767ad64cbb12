"""Captions one photo several times and prints what it took, as JSON; see captioner.py.

Run as: captioner_child.py FILE PHOTO THREADS RUNS MAX_TOKENS, or with FILE '-': the interpreter and
its libraries, and no captioner.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def status(name: str) -> int:
    """Bytes of a line of /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    return 0


def main(file: str, photo: str, threads: int, runs: int, max_tokens: int) -> None:
    """Greedy captions of at most so many tokens; the first is not counted."""
    bare = status("VmRSS")
    import onnxruntime  # noqa: F401
    from PIL import Image  # noqa: F401

    from penstock.runtime.caption.captioner import load_captioner
    from penstock.runtime.caption.photo import read_photo

    libraries = status("VmRSS")
    if file == "-":
        print(json.dumps({"bare": bare, "libraries": libraries}))
        return
    image = read_photo(Path(photo), shortest_side=256)
    times = []
    with load_captioner(file, threads=threads) as captioner:
        for run in range(runs + 1):
            made = captioner.caption(image, beams=1, max_tokens=max_tokens)
            if run:
                t = made.times
                parts = (t.preprocess_ms, t.encoder_ms, t.concepts_ms, t.decoding_ms)
                times.append([round(part, 3) for part in parts])
    print(
        json.dumps(
            {
                "bare": bare,
                "libraries": libraries,
                "peak": status("VmHWM"),
                "times": times,
                "tokens": made.tokens,
            }  # fmt: skip
        )
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *(int(word) for word in sys.argv[3:6]))

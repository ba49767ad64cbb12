"""A copy of the photos' folder with small photos, to take along to another machine."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from PIL import Image

SIDE, QUALITY = 320, 90


def shrink(source: Path, out: Path) -> None:
    """Photos with a longer side of at most SIDE; all other files as they are."""
    for path in sorted(p for p in source.rglob("*") if p.is_file()):
        copy = out / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() != ".jpg":
            shutil.copy(path, copy)
            continue
        with Image.open(path) as image:
            small = image.convert("RGB")
            small.thumbnail((SIDE, SIDE))
            small.save(copy, quality=QUALITY)


if __name__ == "__main__":
    shrink(Path(sys.argv[1]), Path(sys.argv[2]))

"""Files of what people say about photos, by the names of the photos' files."""

from __future__ import annotations

import csv
from pathlib import Path

from penstock.errors import FormatError, StorageError
from penstock.export.metrics.coco_captions import read_coco_references_by_name

COLUMNS = ("image", "caption")


def read_references(path: Path) -> dict[str, list[str]]:
    """Captions by photo: of COCO's annotations (`*.json`), or lines `image,caption` under that
    heading, as Kaggle's Flickr8k has them (any other name).

    Raises:
        StorageError: the file cannot be read.
        FormatError: it is neither.
    """
    if path.suffix.lower() == ".json":
        return read_coco_references_by_name(path)
    references: dict[str, list[str]] = {}
    try:
        with open(path, newline="", encoding="utf-8-sig") as lines:
            rows = csv.DictReader(lines)
            missing = [name for name in COLUMNS if name not in (rows.fieldnames or ())]
            if missing:
                raise FormatError(
                    f"{path}: the first line names no column '{missing[0]}'; expected "
                    f"{','.join(COLUMNS)}, or COCO's annotations in a file *.json"
                )
            for row in rows:
                image, caption = (row[name] for name in COLUMNS)
                if not image or caption is None:
                    raise FormatError(
                        f"{path}: line {rows.line_num} has no image and caption: {row!r:.80}"
                    )
                references.setdefault(image, []).append(caption)
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror or error}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise FormatError(f"{path} is not CSV in UTF-8: {error}") from None
    return references

"""Reads COCO's two files about captions: annotations, and a captioner's results.

Formats: cocodataset.org/#format-data ("image captioning") and cocodataset.org/#format-results.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from penstock.errors import FormatError, StorageError


def read_coco_references(path: Path) -> dict[int, list[str]]:
    """What people wrote about each image, in the order of the file.

    Raises:
        StorageError: the file cannot be read.
        FormatError: it is not a file of annotations with captions.
    """
    return _references(_read(path), path)


def read_coco_references_by_name(path: Path) -> dict[str, list[str]]:
    """The same by the `file_name` of each image; images without captions are left out.

    Raises:
        StorageError: the file cannot be read.
        FormatError: it is not a file of annotations with captions and images.
    """
    content = _read(path)
    references = _references(content, path)
    images = content.get("images")
    if not isinstance(images, list):
        raise FormatError(f'{path}: expected a list "images", which has the names of files')
    named: dict[str, list[str]] = {}
    for index, entry in enumerate(images):
        number = entry.get("id") if isinstance(entry, dict) else None
        name = entry.get("file_name") if isinstance(entry, dict) else None
        if not isinstance(number, int) or not isinstance(name, str):
            raise FormatError(f'{path}: image {index} has no "id" (a number) and "file_name"')
        if number in references:
            named[name] = references[number]
    return named


def read_coco_results(path: Path) -> dict[int, str]:
    """A captioner's caption of each image.

    Raises:
        StorageError: the file cannot be read.
        FormatError: it is not a list of captions, or has two of one image.
    """
    content = _read(path)
    if not isinstance(content, list):
        raise FormatError(f"{path}: expected a list of captions, not {type(content).__name__}")
    results: dict[int, str] = {}
    for image, caption in _records(content, path):
        if image in results:
            raise FormatError(f"{path} has two captions of image {image}; expected one each")
        results[image] = caption
    return results


def _references(content: Any, path: Path) -> dict[int, list[str]]:
    if not isinstance(content, dict) or not isinstance(content.get("annotations"), list):
        raise FormatError(f'{path}: expected an object with a list "annotations"')
    references: dict[int, list[str]] = {}
    for image, caption in _records(content["annotations"], path):
        references.setdefault(image, []).append(caption)
    return references


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise FormatError(f"{path} is not JSON: {error}") from error


def _records(entries: list[Any], path: Path) -> Iterator[tuple[int, str]]:
    for index, entry in enumerate(entries):
        image = entry.get("image_id") if isinstance(entry, dict) else None
        caption = entry.get("caption") if isinstance(entry, dict) else None
        if not isinstance(image, int) or not isinstance(caption, str):
            raise FormatError(
                f'{path}: entry {index} has no "image_id" (a number) and "caption" (a string)'
            )
        yield image, caption

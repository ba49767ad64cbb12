"""Windows from an npz file: `inputs` float [n, ...], and `labels` int or text [n] where there are.

The headers of all arrays are read first, so a small file that unpacks to a huge one is refused
before anything is unpacked. Pickled objects are never loaded.
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.errors import FormatError
from penstock.federated.client.labels import LabelCodes
from penstock.loaders.npz_parts import read_header

INPUTS, LABELS = "inputs", "labels"


def read_npz(
    path: Path, codes: LabelCodes, most_bytes: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The windows [n, *shape] and their labels [n], -1 where there is none.

    Raises:
        FormatError: not such a file, damaged, too large, other arrays, types or lengths, a value
            that is not finite, or a label that is not known: says which row.
    """
    _check_headers(path, most_bytes)
    try:
        with np.load(path, allow_pickle=False) as file:
            inputs = file[INPUTS]
            labels = file[LABELS] if LABELS in file.files else None
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise FormatError(f"{path}: damaged: {error}") from error
    with np.errstate(over="ignore"):  # what becomes infinite is refused next
        inputs = inputs.astype(np.float32, copy=False)
    bad = ~np.isfinite(inputs)
    if bad.any():
        at = tuple(int(i) for i in np.argwhere(bad)[0])
        raise FormatError(
            f"{path}: inputs{list(at)} is {inputs[at]}, expected a finite float32 value "
            f"({int(bad.sum())} such values); drop or repair the window"
        )
    if labels is None:
        return inputs, np.full(len(inputs), -1, np.int64)
    if labels.dtype.kind in "iu":
        numbers = [codes.from_number(int(v), f"{path}: labels[{i}]") for i, v in enumerate(labels)]
    else:
        numbers = [codes.from_text(str(v), f"{path}: labels[{i}]") for i, v in enumerate(labels)]
    return inputs, np.array(numbers, np.int64)


def _check_headers(path: Path, most_bytes: int) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            headers = {
                entry.filename.removesuffix(".npy"): _header(archive, entry, path)
                for entry in archive.infolist()
            }
    except FileNotFoundError:
        raise FormatError(f"{path}: there is no such file") from None
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, zlib.error) as error:
        raise FormatError(f"{path}: not an npz file: {error}") from error
    if INPUTS not in headers:
        raise FormatError(
            f"{path}: has the arrays {sorted(headers)[:6]}, expected '{INPUTS}' [n, ...] and, "
            f"where there are labels, '{LABELS}' [n]"
        )
    foreign = sorted(set(headers) - {INPUTS, LABELS})
    if foreign:
        raise FormatError(
            f"{path}: the array {foreign[0]!r} is not known; expected '{INPUTS}' and '{LABELS}'"
        )
    shape, dtype = headers[INPUTS]
    if dtype.kind not in "fiu" or len(shape) < 2 or 0 in shape:
        raise FormatError(
            f"{path}: inputs is {dtype} {shape}, expected numbers [windows, ...], none empty"
        )
    total = sum(int(np.prod(s, dtype=object)) * max(4, d.itemsize) for s, d in headers.values())
    if total > most_bytes:
        raise FormatError(
            f"{path}: unpacks to {total} bytes, at most {most_bytes} are taken at once; split it"
        )
    if LABELS in headers:
        shape_of_labels, dtype = headers[LABELS]
        if dtype.kind not in "iuU" or shape_of_labels != shape[:1]:
            raise FormatError(
                f"{path}: labels is {dtype} {shape_of_labels}, expected whole numbers or text "
                f"[{shape[0]}]"
            )


def _header(
    archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path
) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of one array, held against the size that the archive gives it."""
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise FormatError(f"{path}: {entry.filename} is packed in a way that npz files are not")
    if entry.flag_bits & 1:
        raise FormatError(f"{path}: {entry.filename} is encrypted")
    with archive.open(entry) as file:
        try:
            header = read_header(file)
        except (ValueError, zipfile.BadZipFile) as error:
            raise FormatError(f"{path}: {entry.filename} is not an array: {error}") from error
        if header.dtype.hasobject:
            raise FormatError(
                f"{path}: {entry.filename} holds Python objects, which are never loaded; save "
                "numbers"
            )
        want = header.nbytes + file.tell()
    if want != entry.file_size:
        raise FormatError(
            f"{path}: {entry.filename} has {entry.file_size} bytes, its header asks for {want}"
        )
    return header.shape, header.dtype

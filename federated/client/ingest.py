"""Add files of sensor windows to a device's store: all of a file, or nothing of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from penstock.errors import FormatError, UsageError
from penstock.federated.client.ingest_csv import CsvLayout, read_csv
from penstock.federated.client.ingest_npz import read_npz
from penstock.federated.client.labels import LabelCodes
from penstock.federated.client.store import Added, Store

MOST_BYTES = 1 << 30  # of values in one file


@dataclass(frozen=True)
class Ingested:
    """What became of one file."""

    path: Path
    windows: int
    shape: tuple[int, ...]
    labelled: int
    added: Added


def ingest(
    store: Store,
    path: Path,
    *,
    label_names: tuple[str, ...] = (),
    layout: CsvLayout | None = None,
    chunk: int | None = None,
    relabel: bool = False,
    most_bytes: int = MOST_BYTES,
) -> Ingested:
    """Add the windows of a .csv or .npz file.

    Args:
        store: to add them to.
        path: of the file.
        label_names: of the labels 0, 1, ...; needed when the file has names and the store has none
            yet.
        layout: of a CSV file.
        chunk: the time chunk they are for; None: the one open when they are first used.
        relabel: windows that are there with another label get the file's.
        most_bytes: of values that are taken from one file.

    Raises:
        FormatError: the file is not what it should be: says where.
        UsageError: it does not suit what the store has.
        StorageError: there is no room.
    """
    codes = LabelCodes(label_names or store.labels)
    inputs, labels = read_windows(path, codes, layout, most_bytes)
    try:
        added = store.add(inputs, labels, label_names=label_names, chunk=chunk, relabel=relabel)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    return Ingested(path, len(labels), inputs.shape[1:], int((labels >= 0).sum()), added)


def read_windows(
    path: Path,
    codes: LabelCodes,
    layout: CsvLayout | None = None,
    most_bytes: int = MOST_BYTES,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The windows [n, *shape] of a .csv or .npz file, and their labels [n], -1 where there is none.

    Raises:
        FormatError: the file is not what it should be: says where.
    """
    suffix = path.suffix.lower()
    if suffix == ".npz":
        return read_npz(path, codes, most_bytes)
    if suffix in (".csv", ".txt"):
        return read_csv(path, codes, layout or CsvLayout(), most_bytes)
    raise FormatError(f"{path}: expected a .csv or .npz file")

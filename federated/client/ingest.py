"""Add files of sensor windows to a device's store: all of a file, or nothing of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

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
        most_bytes: of values that are taken from one file.

    Raises:
        FormatError: the file is not what it should be: says where.
        UsageError: it does not suit what the store has.
        StorageError: there is no room.
    """
    codes = LabelCodes(label_names or store.labels)
    suffix = path.suffix.lower()
    if suffix == ".npz":
        inputs, labels = read_npz(path, codes, most_bytes)
    elif suffix in (".csv", ".txt"):
        inputs, labels = read_csv(path, codes, layout or CsvLayout(), most_bytes)
    else:
        raise FormatError(f"{path}: expected a .csv or .npz file")
    try:
        added = store.add(inputs, labels, label_names=label_names, chunk=chunk)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    return Ingested(path, len(labels), inputs.shape[1:], int((labels >= 0).sum()), added)

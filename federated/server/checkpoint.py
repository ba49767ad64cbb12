"""One file a round with all that the next round needs; a crash at any moment leaves a whole one.

    write_checkpoint(folder, checkpoint, keep=3)     temporary file, fsync, rename; old ones go
    read_newest(folder, note)                        a damaged one falls back to the one before

A file is safetensors: arrays of `Algorithm.state()` (global model, filters, aggregation weights),
and a JSON header with the run, the round, the ratios of the devices, the privacy ledger, the
journal's record, and a SHA-256 over all of it. What is random is drawn anew from seed and round, so
these two are the random state.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.errors import FormatError, StorageError, UsageError
from penstock.federated.arrays import Arrays, digest
from penstock.loaders.partial_file import partial_file

FORMAT = 1
NAME = re.compile(r"round-(\d{6,})\.safetensors")
KEY = "penstock"  # of the header in the file's metadata


@dataclass(frozen=True)
class Checkpoint:
    """The state after a round.

    Attributes:
        run: of the federation; round_number: the last that ended; 0: the initial model.
        algorithm, model: names and `ModelOptions.to_json()`; a resumed run must have the same.
        seed: of the run.
        ratios: device to the width it was given; seen: to the last round that it was ready for.
        record: of this round, as the journal's line; empty for round 0.
        ledger: of differential privacy, JSON; empty: none is used.
        state: arrays of the algorithm.
    """

    run: str
    round_number: int
    algorithm: str
    model: str
    seed: int
    ratios: Mapping[str, float] = field(default_factory=dict)
    seen: Mapping[str, int] = field(default_factory=dict)
    record: str = ""
    ledger: str = ""
    state: Mapping[str, NDArray[Any]] = field(default_factory=dict, repr=False)


def check_new_run(folder: Path) -> None:
    """A run begins in a folder without another's checkpoints, whole or not.

    Raises:
        UsageError: there is one.
    """
    if any(folder.glob("round-*.safetensors")):
        raise UsageError(
            f"{folder} holds a run already; go on with it by --resume, or name another folder"
        )


def check_same_run(
    folder: Path, found: Checkpoint, *, algorithm: str, model: str, seed: int, private: bool
) -> None:
    """A run goes on only with what it began with.

    Raises:
        UsageError: the folder's run has another algorithm, model or seed, or differential privacy
            where the settings have none, or the other way round.
    """
    word = {True: "with", False: "without"}
    for name, theirs, ours in (
        ("algorithm", found.algorithm, algorithm),
        ("model", found.model, model),
        ("seed", found.seed, seed),
        ("differential privacy", word[bool(found.ledger)], word[private]),
    ):
        if theirs != ours:
            raise UsageError(
                f"{folder}: the run there has {name} {theirs}, the settings say {ours}; resume it "
                "with the settings it began with, or name another folder"
            )


def write_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int = 3) -> Path:
    """Write one round's file, then remove all but the newest `keep`.

    Raises:
        StorageError: it cannot be written; earlier checkpoints are as they were.
    """
    from safetensors.numpy import save

    # safetensors writes the memory of an array as it lies: a transposed view would come back wrong
    state = {name: np.array(array, order="C") for name, array in checkpoint.state.items()}
    header = _header(checkpoint)
    metadata = {KEY: header, "sha256": _seal(header, state)}
    path = folder / f"round-{checkpoint.round_number:06d}.safetensors"
    with partial_file(path) as (file, _):
        file.write(save(state, metadata))
    for old in _files(folder)[keep:]:
        old.unlink(missing_ok=True)
    return path


def read_checkpoint(path: Path) -> Checkpoint:
    """One file.

    Raises:
        FormatError: it is damaged, of another format, or no checkpoint.
        StorageError: it cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        data = path.read_bytes()
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        state = load(data)
        length = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + length])["__metadata__"]
        header, seal = metadata[KEY], metadata["sha256"]
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise FormatError(f"{path}: not a whole checkpoint: {error}") from error
    if not isinstance(header, str) or seal != _seal(header, state):
        raise FormatError(f"{path}: its SHA-256 does not fit its content; it is damaged")
    fields = json.loads(header)
    if fields.pop("format", None) != FORMAT:
        raise FormatError(f"{path}: not of checkpoint format {FORMAT}, which is what is known")
    try:
        return Checkpoint(**fields, state=state)
    except TypeError as error:
        raise FormatError(f"{path}: {error}") from error


def read_newest(folder: Path, note: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint that is whole; None: there is no checkpoint file at all.

    Args:
        note: told in words about each damaged file that was passed over.

    Raises:
        FormatError: there are files, and every one is damaged.
    """
    files = _files(folder)
    for path in files:
        try:
            return read_checkpoint(path)
        except (FormatError, StorageError) as error:
            note(f"{error}; falling back to the round before")
    if files:
        raise FormatError(
            f"{folder}: all {len(files)} checkpoints are damaged; restore one from a backup, or "
            "start without --resume in an empty folder"
        )
    return None


def newest_round(folder: Path) -> int:
    """Of the newest checkpoint file, whole or not; -1: there is none."""
    files = _files(folder)
    return int(files[0].stem.removeprefix("round-")) if files else -1


def _files(folder: Path) -> list[Path]:
    """Checkpoint files, the newest round first."""
    if not folder.is_dir():
        return []
    found = [(NAME.fullmatch(path.name), path) for path in folder.iterdir()]
    rounds = [(int(match[1]), path) for match, path in found if match]
    return [path for _, path in sorted(rounds, reverse=True)]


def _header(checkpoint: Checkpoint) -> str:
    fields = asdict(Checkpoint(**{**vars(checkpoint), "state": {}}))
    del fields["state"]
    return json.dumps({"format": FORMAT} | fields, sort_keys=True)


def _seal(header: str, state: Arrays) -> str:
    return hashlib.sha256(f"{header}\0{digest(state)}".encode()).hexdigest()

"""The journal of a federated run: one line of JSON a round, which a crash cannot damage.

    append_record(folder / JOURNAL, record)     written and fsynced before the next round begins
    read_records(folder / JOURNAL)              a torn last line is dropped, with a note

The server writes a round's record after its checkpoint. A server that resumes a round writes that
round again; the last record of a round counts.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from penstock.errors import FormatError, StorageError

JOURNAL = "rounds.jsonl"
FORMAT = 1
CHUNK_F1 = "chunk_macro_f1/"  # figures: + chunk: the global model's on that chunk's test data


@dataclass(frozen=True)
class RoundRecord:
    """One round.

    Attributes:
        run: of the federation; round_number: from 1; chunk: of time, from 0.
        algorithm: its name.
        devices: whose updates were counted, sorted.
        refused: device to the reason why it has no update in this round.
        examples: windows that were trained on, of all devices.
        loss: of local training, mean weighted by examples; accuracy, macro_f1: of the devices'
            evaluation on their own data, weighted the same way; -1: there is none.
        global_accuracy, global_macro_f1: of the global model on the server's test data, by which
            nothing was chosen; -1: none.
        bytes_down, bytes_up: device to bytes of arrays, as they travel, without headers.
        server_seconds: of the round without waiting for devices; device_seconds: of training.
        device_peak_bytes: device to most resident memory of its process.
        epsilon: spent by differential privacy up to this round; -1: none is used.
        ratios: device to the width that it was asked to train; empty in older journals.
        figures: of the algorithm, by name. `chunk_macro_f1/3` is the global model's macro-F1 on
            the test data of chunk 3, from which forgetting is computed.
    """

    run: str
    round_number: int
    chunk: int
    algorithm: str
    devices: tuple[str, ...]
    refused: dict[str, str] = field(default_factory=dict)
    examples: int = 0
    loss: float = -1.0
    accuracy: float = -1.0
    macro_f1: float = -1.0
    global_accuracy: float = -1.0
    global_macro_f1: float = -1.0
    bytes_down: dict[str, int] = field(default_factory=dict)
    bytes_up: dict[str, int] = field(default_factory=dict)
    server_seconds: float = 0.0
    device_seconds: dict[str, float] = field(default_factory=dict)
    device_peak_bytes: dict[str, int] = field(default_factory=dict)
    ratios: dict[str, float] = field(default_factory=dict)
    epsilon: float = -1.0
    figures: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> str:
        """As one line; a number that is not finite is written as null."""
        plain = {"format": FORMAT} | _finite(asdict(self))
        return json.dumps(plain, ensure_ascii=False, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, line: str, source: str) -> RoundRecord:
        """Back from `to_json`.

        Args:
            source: file and line, for the message.

        Raises:
            FormatError: not JSON, another format, or a field that is missing, foreign or of
                another type.
        """
        try:
            found = json.loads(line)
        except ValueError as error:
            raise FormatError(f"{source}: not JSON: {error}") from error
        if not isinstance(found, dict):
            raise FormatError(f"{source}: is a {type(found).__name__}, expected an object")
        if found.pop("format", None) != FORMAT:
            raise FormatError(f"{source}: not a round of format {FORMAT}, which is what is known")
        found.setdefault("ratios", {})  # came after the first journals were written
        known = {entry.name: str(entry.type) for entry in fields(cls)}
        for name in [*(n for n in known if n not in found), *(n for n in found if n not in known)]:
            raise FormatError(
                f"{source}: field {name!r} is {'missing' if name in known else 'unknown'}"
            )
        return cls(**{name: _typed(found[name], known[name], source, name) for name in known})


def append_record(path: Path, record: RoundRecord) -> None:
    """Add a round to a journal; it is on storage when this returns.

    A torn line that a crash left at the end is cut off first, so that the journal stays readable.

    Raises:
        StorageError: it cannot be written; the journal is as it was before.
    """
    line = record.to_json().encode() + b"\n"
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StorageError(f"{path}: cannot be opened: {error.strerror}") from error
    try:
        size = _whole_lines(handle)
        os.ftruncate(handle, size)
        try:
            done = 0
            while done < len(line):
                done += os.pwrite(handle, line[done:], size + done)
            os.fsync(handle)
        except BaseException:
            os.ftruncate(handle, size)
            raise
    except OSError as error:
        raise StorageError(
            f"{path}: round {record.round_number} cannot be written: {error.strerror}"
        ) from error
    finally:
        os.close(handle)


def read_records(path: Path, note: Callable[[str], None] | None = None) -> tuple[RoundRecord, ...]:
    """The rounds of a journal, in order; of a round that was written twice, the last.

    Args:
        note: told in words when a torn last line was dropped; without it stderr is.

    Raises:
        StorageError: there is no such file, or it cannot be read.
        FormatError: a line is damaged: which, and how.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be read: {error.strerror}; give the folder of a federated run"
        ) from error
    *lines, rest = data.split(b"\n")
    if rest:
        tell = note or (lambda text: print(text, file=sys.stderr))
        tell(f"{path}: line {len(lines) + 1} is torn ({len(rest)} bytes) and was left out")
    records: dict[tuple[str, int], RoundRecord] = {}
    for number, line in enumerate(lines, 1):
        source = f"{path}, line {number}"
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            raise FormatError(f"{source}: not UTF-8 at byte {error.start}") from error
        record = RoundRecord.from_json(text, source)
        records[record.run, record.round_number] = record
    return tuple(records[key] for key in sorted(records, key=lambda key: key[1]))


def _whole_lines(handle: int) -> int:
    """Bytes up to the end of the last whole line."""
    end = os.fstat(handle).st_size
    while end:
        start = max(0, end - 65_536)
        found = os.pread(handle, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _typed(value: Any, kind: str, source: str, name: str) -> Any:
    """A field's value, of the type that its annotation names; null is NaN where a float goes."""
    if kind.startswith("dict[str, "):
        inner = kind[len("dict[str, ") : -1]
        if isinstance(value, dict):
            return {
                key: _typed(item, inner, source, f"{name}.{key}") for key, item in value.items()
            }
    elif kind.startswith("tuple["):
        if isinstance(value, list):
            return tuple(_typed(item, "str", source, name) for item in value)
    elif kind == "float":
        if value is None:
            return math.nan
        if type(value) in (int, float):
            return float(value)
    elif type(value) is {"str": str, "int": int}[kind]:
        return value
    raise FormatError(f"{source}: field {name!r} is {value!r}, expected {kind}")

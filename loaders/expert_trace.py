"""Recorded routers: which experts each pass chose in each layer, as a file. docs/expert-trace.md.

    magic "PENTRACE" | uint32 version | uint32 bytes of JSON | JSON | int32 arrays, little endian

Nothing of a file is believed before it is checked, as with every file that Penstock reads.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock import _native
from penstock.errors import FormatError, StorageError
from penstock.loaders.partial_file import partial_file

MAGIC = b"PENTRACE"
VERSION = 1
_START = struct.Struct("<8sII")
_MAX_HEADER = 64 << 10
_MOST_EXPERTS = 1 << 20  # of all layers; a replay takes some tens of bytes for each
_MOST = {"layers": 1 << 16, "experts": 1 << 14, "passes": 1 << 40, "chosen": 1 << 40}

Ints = NDArray[np.int32]


@dataclass(frozen=True)
class ExpertTrace:
    """What the routers of one run chose.

    Attributes:
        model: name of the file; arch: its architecture.
        layers: that have experts; experts: of each layer; used: of them, by a token.
        prompt: (passes,) 1 where tokens of a prompt ran together, 0 where one token ran.
        counts: (passes, layers) different experts that were chosen.
        ids: (chosen,) those experts, 0 to experts - 1, ascending in each layer of each pass.
    """

    model: str
    arch: str
    layers: int
    experts: int
    used: int
    prompt: Ints
    counts: Ints
    ids: Ints

    @property
    def passes(self) -> int:
        return len(self.prompt)

    @property
    def tokens(self) -> int:
        """Passes of a single token."""
        return int((self.prompt == 0).sum())

    def steps(self) -> tuple[Ints, NDArray[np.int64]]:
        """Of the single tokens: (ids, offsets); step s, one layer, is ids[offsets[s]:offsets[s+1]].

        Ids count through all layers.
        """
        per_step = self.counts.reshape(-1)
        wanted = np.repeat(self.prompt == 0, self.layers)
        layer = np.tile(np.arange(self.layers, dtype=np.int32), self.passes)
        ids = self.ids + np.repeat(layer * np.int32(self.experts), per_step)
        kept = ids[np.repeat(wanted, per_step)].astype(np.int32)
        offsets = np.concatenate([[0], np.cumsum(per_step[wanted], dtype=np.int64)])
        return kept, offsets.astype(np.int64)


class TraceRecorder:
    """Collects a trace, pass by pass. It grows by four bytes for each expert chosen."""

    def __init__(self, layers: int, experts: int) -> None:
        self._layers = layers
        self._experts = experts
        self._prompt: list[Ints] = []
        self._counts: list[Ints] = []
        self._ids: list[Ints] = []

    def add(self, pairs: Sequence[int], prompt: bool) -> None:
        """What `WeightStreamer.take_trace` gave for one call of the model."""
        rows = np.asarray(pairs, np.int32).reshape(-1, 2)
        begins = rows[:, 0] < 0
        passes = int(begins.sum())
        layer, expert = rows[~begins].T
        step = (np.cumsum(begins) - 1)[~begins] * self._layers + layer
        counts = np.bincount(step, minlength=passes * self._layers)
        self._prompt.append(np.full(passes, int(prompt), np.int32))
        self._counts.append(counts.reshape(passes, self._layers).astype(np.int32))
        self._ids.append(expert.copy())

    def trace(self, model: str, arch: str, used: int) -> ExpertTrace:
        """All that was added."""
        none = np.empty(0, np.int32)
        return ExpertTrace(
            model,
            arch,
            self._layers,
            self._experts,
            used,
            np.concatenate([none, *self._prompt]),
            np.concatenate([none.reshape(0, self._layers), *self._counts]),
            np.concatenate([none, *self._ids]),
        )


def write_trace(path: Path, trace: ExpertTrace) -> None:
    """Write a trace, whole or not at all.

    Raises:
        StorageError: the folder or the device does not take it; nothing is left behind.
    """
    arrays = [np.ascontiguousarray(a.reshape(-1), "<i4") for a in _arrays(trace)]
    payload = np.concatenate(arrays).view(np.uint8)
    header = {
        "model": trace.model,
        "arch": trace.arch,
        "layers": trace.layers,
        "experts": trace.experts,
        "used": trace.used,
        "passes": trace.passes,
        "chosen": len(trace.ids),
        "crc32c": _native.crc32c(payload),
    }
    text = json.dumps(header).encode()
    with partial_file(path) as (handle, _):
        handle.write(_START.pack(MAGIC, VERSION, len(text)))
        handle.write(text)
        handle.write(payload.data)


def _arrays(trace: ExpertTrace) -> tuple[Ints, Ints, Ints]:
    return trace.prompt, trace.counts, trace.ids


def read_trace(path: str | os.PathLike[str]) -> ExpertTrace:
    """Read a trace and check all of it.

    Raises:
        FormatError: not a trace, damaged, cut short, or of another version.
        StorageError: the file cannot be read.
    """
    file = Path(path)
    try:
        size = file.stat().st_size
        with open(file, "rb") as handle:
            start = handle.read(_START.size)
            length = _check_start(file, start, size)
            head = _check_header(file, handle.read(length))
            wanted = _START.size + length + 4 * _values(head)
            if size != wanted:
                raise FormatError(
                    f"{file}: it has {size} bytes; {head['passes']} passes and {head['chosen']} "
                    f"choices take {wanted}. The file is cut short or damaged; record it again"
                )
            payload = np.frombuffer(handle.read(), np.uint8)
    except OSError as error:
        raise StorageError(f"{file}: cannot be read: {error.strerror or error}") from None
    if len(payload) != 4 * _values(head):
        raise FormatError(f"{file}: it was cut while it was read; record it again")
    found = _native.crc32c(payload)
    if found != head["crc32c"]:
        raise FormatError(
            f"{file}: the choices from offset {_START.size + length} have checksum {found:08x}, "
            f"expected {head['crc32c']:08x}; the file is damaged, record it again"
        )
    return _check_choices(file, head, payload.view("<i4").astype(np.int32))


def _check_start(file: Path, start: bytes, size: int) -> int:
    if len(start) < _START.size or start[: len(MAGIC)] != MAGIC:
        raise FormatError(
            f"{file}: at offset 0: not a trace of experts (starts with {start[: len(MAGIC)]!r}, "
            f"expected {MAGIC!r}); `penstock run --record-trace` makes one"
        )
    _, version, length = _START.unpack(start)
    if version != VERSION:
        raise FormatError(
            f"{file}: at offset {len(MAGIC)}: trace version {version}, expected {VERSION}; use a "
            "newer Penstock or record it again"
        )
    if not 2 <= length <= min(_MAX_HEADER, size - _START.size):
        raise FormatError(
            f"{file}: at offset {len(MAGIC) + 4}: a header of {length} bytes, expected 2 to "
            f"{min(_MAX_HEADER, size - _START.size)}; the file is cut short or damaged"
        )
    return int(length)


def _check_header(file: Path, text: bytes) -> dict[str, Any]:
    try:
        head = json.loads(text.decode())
    except (ValueError, RecursionError):
        head = None
    if not isinstance(head, dict):
        raise FormatError(f"{file}: at offset {_START.size}: the header is no JSON object")
    for key in ("model", "arch"):
        if not isinstance(head.get(key), str):
            raise FormatError(f"{file}: '{key}' is {head.get(key)!r}, expected a string")
    limits = {
        "layers": (1, _MOST["layers"]),
        "experts": (1, _MOST["experts"]),
        "used": (0, _MOST["experts"]),
        "passes": (0, _MOST["passes"]),
        "chosen": (0, _MOST["chosen"]),
        "crc32c": (0, (1 << 32) - 1),
    }
    for key, (low, high) in limits.items():
        value = head.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise FormatError(
                f"{file}: '{key}' is {value!r}, expected a whole number from {low} to {high}"
            )
    if head["layers"] * head["experts"] > _MOST_EXPERTS:
        raise FormatError(
            f"{file}: {head['layers']} layers of {head['experts']} experts, expected "
            f"{_MOST_EXPERTS} experts at most; the file is damaged, record it again"
        )
    return head


def _values(head: dict[str, Any]) -> int:
    """Numbers after the header."""
    return int(head["passes"] * (1 + head["layers"]) + head["chosen"])


def _check_choices(file: Path, head: dict[str, Any], values: Ints) -> ExpertTrace:
    passes, layers, experts = head["passes"], head["layers"], head["experts"]
    prompt, counts, ids = np.split(values, [passes, passes * (1 + layers)])
    if ((prompt != 0) & (prompt != 1)).any():
        raise FormatError(f"{file}: a pass is marked {_odd(prompt, 0, 1)}, expected 0 or 1")
    if ((counts < 0) | (counts > experts)).any():
        raise FormatError(
            f"{file}: a pass chose {_odd(counts, 0, experts)} of a layer's {experts} experts"
        )
    if int(counts.sum(dtype=np.int64)) != len(ids):
        raise FormatError(
            f"{file}: its passes chose {int(counts.sum(dtype=np.int64))} experts together, the "
            f"file has {len(ids)}"
        )
    if ((ids < 0) | (ids >= experts)).any():
        raise FormatError(
            f"{file}: expert {_odd(ids, 0, experts - 1)} was chosen, expected 0 to {experts - 1}"
        )
    first = np.zeros(len(ids) + 1, bool)  # where a step begins
    first[np.cumsum(counts, dtype=np.int64)] = True
    if ((np.diff(ids) <= 0) & ~first[1:-1]).any():
        raise FormatError(f"{file}: the experts of a layer do not ascend; the file is damaged")
    return ExpertTrace(
        head["model"], head["arch"], layers, experts, head["used"], prompt,
        counts.reshape(passes, layers), ids,
    )  # fmt: skip


def _odd(values: Ints, low: int, high: int) -> int:
    """The first value out of range, for the message."""
    return int(values[(values < low) | (values > high)][0])

"""A run in figures: by round, by chunk of time, and by device.

Forgetting is Chaudhry et al.'s (ECCV 2018, section 3): after chunk k, of every earlier chunk j the
best macro-F1 that the global model ever had on j's test data at the end of a chunk before k, less
what it has now; the mean over j. Negative: the model got better on old data.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from penstock.errors import FormatError
from penstock.federated.report.records import CHUNK_F1, JOURNAL, RoundRecord, read_records


@dataclass(frozen=True)
class ChunkSummary:
    """The state at the end of one chunk of time.

    Attributes:
        chunk: from 0; rounds: that it took.
        accuracy, macro_f1: of the devices on their own data; global_accuracy, global_macro_f1: of
            the global model on the server's test data. None: nothing was measured.
        old_macro_f1: this chunk and earlier ones, to the global model's macro-F1 on its test data.
        forgetting: see above; None in the first chunk and where nothing was measured.
        server_seconds: of all its rounds.
    """

    chunk: int
    rounds: int
    accuracy: float | None
    macro_f1: float | None
    global_accuracy: float | None
    global_macro_f1: float | None
    old_macro_f1: dict[int, float]
    forgetting: float | None
    server_seconds: float


@dataclass(frozen=True)
class DeviceSummary:
    """One device over the whole run.

    Attributes:
        device: its identity.
        counted: rounds in which its update was counted; refused: in which it was asked and gave
            none; participation: counted as a share of all rounds.
        ratios: widths that it was asked to train, each once, the last at the end.
        bytes_down, bytes_up: of all rounds.
        seconds: of training in all rounds; peak_bytes: of memory, None: it never said.
        reasons: why it gave none, to how often.
    """

    device: str
    counted: int
    refused: int
    participation: float
    ratios: tuple[float, ...]
    bytes_down: int
    bytes_up: int
    seconds: float
    peak_bytes: int | None
    reasons: dict[str, int]


@dataclass(frozen=True)
class Summary:
    """A run.

    Attributes:
        run, algorithm: whose.
        rounds: in order.
        chunks: in order.
        devices: by identity.
        forgetting: after the last chunk; None where nothing was measured.
        final_accuracy, final_macro_f1: the last that were measured: the global model's on the
            server's test data, or else the devices' on their own.
        measured_on: "server" or "devices", which of these; "" where neither measured.
        epsilon: spent; None without differential privacy.
    """

    run: str
    algorithm: str
    rounds: tuple[RoundRecord, ...]
    chunks: tuple[ChunkSummary, ...]
    devices: tuple[DeviceSummary, ...]
    forgetting: float | None
    final_accuracy: float | None
    final_macro_f1: float | None
    measured_on: str
    epsilon: float | None

    @property
    def bytes_down(self) -> int:
        """To all devices, of all rounds."""
        return sum(device.bytes_down for device in self.devices)

    @property
    def bytes_up(self) -> int:
        """From all devices, of all rounds."""
        return sum(device.bytes_up for device in self.devices)

    @property
    def server_seconds(self) -> float:
        """Of all rounds, without waiting for devices."""
        return sum(record.server_seconds for record in self.rounds)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: NaN and "there is none" are null."""
        rounds = [asdict(record) | _measured(record) for record in self.rounds]
        made: dict[str, Any] = plain(
            asdict(self)
            | {
                "rounds": rounds,
                "bytes_down": self.bytes_down,
                "bytes_up": self.bytes_up,
                "server_seconds": self.server_seconds,
            }
        )
        return made


def summarise(records: Sequence[RoundRecord]) -> Summary:
    """A run's rounds, in order, as one summary.

    Raises:
        FormatError: there is no round, or they are of several runs.
    """
    if not records:
        raise FormatError("the journal holds no whole round yet; the run's first must end first")
    runs = sorted({record.run for record in records})
    if len(runs) > 1:
        raise FormatError(
            f"the journal holds rounds of {len(runs)} runs ({', '.join(runs[:3])}), expected one; "
            "give each run a folder of its own"
        )
    last = records[-1]
    chunks = _chunks(records)
    devices = _devices(records)
    accuracy, macro_f1, where = _final(records)
    epsilons = [record.epsilon for record in records if record.epsilon >= 0]
    return Summary(
        run=last.run,
        algorithm=last.algorithm,
        rounds=tuple(records),
        chunks=chunks,
        devices=devices,
        forgetting=chunks[-1].forgetting,
        final_accuracy=accuracy,
        final_macro_f1=macro_f1,
        measured_on=where,
        epsilon=epsilons[-1] if epsilons else None,
    )


def summarise_folder(folder: Path, note: Callable[[str], None] | None = None) -> Summary:
    """The summary of a run's folder.

    Args:
        note: see `read_records`.

    Raises:
        StorageError: there is no journal; FormatError: it is damaged, or holds no whole round.
    """
    path = folder / JOURNAL
    records = read_records(path, note)
    try:
        return summarise(records)
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from None


def known(value: float) -> float | None:
    """A measure of a record; None where -1 or NaN says that there is none."""
    return value if value >= 0 else None


def _measured(record: RoundRecord) -> dict[str, float | None]:
    names = ("loss", "accuracy", "macro_f1", "global_accuracy", "global_macro_f1", "epsilon")
    return {name: known(getattr(record, name)) for name in names}


def _final(records: Sequence[RoundRecord]) -> tuple[float | None, float | None, str]:
    for where, prefix in (("server", "global_"), ("devices", "")):
        for record in reversed(records):
            accuracy = known(getattr(record, f"{prefix}accuracy"))
            macro_f1 = known(getattr(record, f"{prefix}macro_f1"))
            if accuracy is not None or macro_f1 is not None:
                return accuracy, macro_f1, where
    return None, None, ""


def _chunks(records: Sequence[RoundRecord]) -> tuple[ChunkSummary, ...]:
    by_chunk: dict[int, list[RoundRecord]] = {}
    for record in records:
        by_chunk.setdefault(record.chunk, []).append(record)
    ends: dict[int, dict[int, float]] = {}  # chunk to old chunk to macro-F1 at its end
    made = []
    for chunk, own in sorted(by_chunk.items()):
        ends[chunk] = {
            int(name.removeprefix(CHUNK_F1)): value
            for record in own  # the last round's values win
            for name, value in record.figures.items()
            if name.startswith(CHUNK_F1) and name.removeprefix(CHUNK_F1).isdecimal()
        }
        made.append(
            ChunkSummary(
                chunk=chunk,
                rounds=len(own),
                accuracy=_last(own, "accuracy"),
                macro_f1=_last(own, "macro_f1"),
                global_accuracy=_last(own, "global_accuracy"),
                global_macro_f1=_last(own, "global_macro_f1"),
                old_macro_f1={old: v for old, v in sorted(ends[chunk].items()) if old <= chunk},
                forgetting=_forgetting(ends, chunk),
                server_seconds=sum(record.server_seconds for record in own),
            )
        )
    return tuple(made)


def _forgetting(ends: dict[int, dict[int, float]], chunk: int) -> float | None:
    lost = []
    for old in sorted(ends[chunk]):
        before = [ends[c][old] for c in ends if old <= c < chunk and old in ends[c]]
        if before:
            lost.append(max(before) - ends[chunk][old])
    return float(np.mean(lost)) if lost else None


def _last(records: Sequence[RoundRecord], name: str) -> float | None:
    found = [known(getattr(record, name)) for record in records]
    return next((value for value in reversed(found) if value is not None), None)


def _devices(records: Sequence[RoundRecord]) -> tuple[DeviceSummary, ...]:
    counted, down, up = Counter[str](), Counter[str](), Counter[str]()
    seconds: dict[str, float] = {}
    peaks: dict[str, int] = {}
    reasons: dict[str, Counter[str]] = {}
    ratios: dict[str, dict[float, None]] = {}  # in the order in which each came last
    for record in records:
        counted.update(record.devices)
        down.update(record.bytes_down)
        up.update(record.bytes_up)
        for device, reason in record.refused.items():
            reasons.setdefault(device, Counter())[reason] += 1
        for device, ratio in record.ratios.items():
            held = ratios.setdefault(device, {})
            held.pop(ratio, None)
            held[ratio] = None
        for device, spent in record.device_seconds.items():
            seconds[device] = seconds.get(device, 0.0) + spent
        for device, peak in record.device_peak_bytes.items():
            if peak > 0:
                peaks[device] = max(peak, peaks.get(device, 0))
    return tuple(
        DeviceSummary(
            device=device,
            counted=counted[device],
            refused=sum(reasons.get(device, {}).values()),
            participation=counted[device] / len(records),
            ratios=tuple(ratios.get(device, ())),
            bytes_down=down[device],
            bytes_up=up[device],
            seconds=seconds.get(device, 0.0),
            peak_bytes=peaks.get(device),
            reasons=dict(reasons.get(device, {})),
        )
        for device in sorted({*counted, *down, *up, *reasons, *seconds})
    )


def plain(value: Any) -> Any:
    """A value as JSON knows it: tuples are lists, keys are texts, NaN and infinity are None."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value

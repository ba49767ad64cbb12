"""What server and device say to each other: three messages, each a flat record of plain values.

    query     server -> device: `Notice` or nothing device -> server: `Capabilities`
    train     server -> device: `TrainTask` + arrays device -> server: `TrainResult` + arrays
    evaluate  server -> device: `TrainTask` + arrays device -> server: `TrainResult`

Flower carries them: arrays as one npz in an ArrayRecord named "arrays", the rest in a ConfigRecord
named "message". A record names its protocol; another version is refused by both sides, which say
where to update. Within a version a record may gain fields: each has a default, which stands for
"not said", and who does not know it passes it over. So a newer server goes on with older devices.
What cannot be passed over makes another version. `Notice` came so: an older device does not read
it, and an older server sends none, as does one that was just started and does not know yet.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar, TypeVar

from penstock.errors import RefusedUpdateError

PROTOCOL = 1
ARRAYS, MESSAGE = "arrays", "message"  # names of the records
MOST_BYTES = 256 << 20  # of the arrays of one message
MOST_TEXT = 65_536
MOST_INTEGER = (1 << 63) - 1  # Flower carries integers as sint64
MOST_NAME = 64  # letters of an identity, a version, a digest
MOST_REASON = 500  # letters of a device's reason that the server keeps
COUNT = (0, 10**12)  # of examples, steps, rounds

Plain = str | int | float | bool | bytes
_Record = TypeVar("_Record", bound="Record")


@dataclass(frozen=True)
class Record:
    """Base: to and from a flat dict, every field checked by its type and its range."""

    RANGES: ClassVar[Mapping[str, tuple[float, float]]] = {}
    NAMES: ClassVar[tuple[str, ...]] = ()  # printable texts of at most MOST_NAME letters

    def to_record(self) -> dict[str, Plain]:
        """Plain values by field name, and the protocol's version."""
        return {"protocol": PROTOCOL} | {
            entry.name: getattr(self, entry.name) for entry in fields(self)
        }

    @classmethod
    def from_record(cls: type[_Record], record: Mapping[str, Any], source: str) -> _Record:
        """Back from what came over the network.

        Raises:
            RefusedUpdateError: another protocol, a field that is missing or of another type, a
                number that is not finite or out of its range, a text beyond 64 KiB, a name beyond
                64 letters or with one that cannot be printed. Fields that are not known are passed
                over.
        """
        version = record.get("protocol")
        if type(version) is not int:
            raise RefusedUpdateError(f"{source} names no protocol: not a message of Penstock")
        if version != PROTOCOL:
            older = "this side" if version > PROTOCOL else source
            seen = version if abs(version) <= MOST_INTEGER else "beyond 64 bits"
            raise RefusedUpdateError(
                f"{source} speaks protocol {seen}, this Penstock speaks {PROTOCOL}: "
                f"{older} is the older one; install the newer Penstock there "
                "(pip install --upgrade penstock)"
            )
        known = {entry.name: entry for entry in fields(cls)}
        values: dict[str, Any] = {}
        for name, entry in known.items():
            if name not in record:
                if entry.default is MISSING:
                    raise RefusedUpdateError(f"{source}: {cls.__name__} lacks {name!r}")
                continue
            value = record[name]
            kinds = {"str": str, "int": int, "float": float, "bool": bool, "bytes": bytes}
            want = kinds[str(entry.type)]
            if want is float and type(value) is int and abs(value) <= MOST_INTEGER:
                value = float(value)
            if type(value) is not want:
                raise RefusedUpdateError(
                    f"{source}: {cls.__name__}.{name} is a {type(value).__name__}, "
                    f"expected {want.__name__}"
                )
            if isinstance(value, float) and not math.isfinite(value):
                raise RefusedUpdateError(f"{source}: {cls.__name__}.{name} is {value}")
            longest = MOST_NAME if name in cls.NAMES else MOST_TEXT
            if isinstance(value, (str, bytes)) and len(value) > longest:
                raise RefusedUpdateError(
                    f"{source}: {cls.__name__}.{name} is {len(value)} long, expected at most "
                    f"{longest}"
                )
            if name in cls.NAMES and isinstance(value, str) and not value.isprintable():
                raise RefusedUpdateError(
                    f"{source}: {cls.__name__}.{name} is {value!r}, which cannot be printed"
                )
            low, high = cls.RANGES.get(name, (-MOST_INTEGER, MOST_INTEGER))
            if isinstance(value, (int, float)) and not low <= value <= high:
                seen = f"{value:.6g}" if abs(value) <= MOST_INTEGER else "beyond 64 bits"
                raise RefusedUpdateError(
                    f"{source}: {cls.__name__}.{name} is {seen}, expected {low:g} to {high:g}"
                )
            values[name] = value
        return cls(**values)


@dataclass(frozen=True)
class Notice(Record):
    """What a query tells the device of its standing with the server, which only the server knows.

    An empty one says that all is well. Without one what was said before holds.

    Attributes:
        left_out: why it was given no task at the last chance; empty: it was not left out.
        refused: why its last update was not counted; empty: it was, or there was none.
    """

    left_out: str = ""
    refused: str = ""


@dataclass(frozen=True)
class Capabilities(Record):
    """A device's answer to a query: what it can do and whether it takes part now.

    Attributes:
        device: its stable identity: 16 hex letters, from its key.
        version: of Penstock.
        memory_bytes: that training may use; cores: that it may use.
        most_ratio: widest sub-model it accepts.
        battery: 0 to 1, or -1 where there is none; on_power: charging, or no battery.
        ready: it takes part; reason: why not, else empty.
        labelled, unlabelled: windows it holds.
        input_shape, labels: JSON lists: of its data; empty lists before any was ingested.
    """

    RANGES = {
        "memory_bytes": (0, MOST_INTEGER),
        "cores": (0, 65_536),
        "most_ratio": (0, 1),
        "battery": (-1, 1),
        "labelled": COUNT,
        "unlabelled": COUNT,
    }
    NAMES = ("device", "version")

    device: str
    version: str
    memory_bytes: int
    cores: int
    most_ratio: float
    battery: float
    on_power: bool
    ready: bool
    reason: str
    labelled: int
    unlabelled: int
    input_shape: str
    labels: str


@dataclass(frozen=True)
class TrainTask(Record):
    """What the server asks of a device for one round.

    Attributes:
        run: the federation's run, which survives a restart of the server: 16 hex letters.
        round_number: from 1; chunk: of time, from 0.
        algorithm: fedavg, heterofl, fedrolex, fedconv or fedmobile.
        model: `ModelOptions.to_json()`; ratio: width of the arrays.
        settings: JSON: of the algorithm (`FedMobileSettings`), else "{}".
        epochs, batch, learning_rate: of local training with Adam.
        seed: of this round; each device adds its identity.
        seconds: by then it should have answered; 0: no limit.
        chunk_round: of the chunk, from 1: in its first round devices are sent the model of the
            chunk before; 0: not said.
    """

    RANGES = {
        "round_number": COUNT,
        "chunk": COUNT,
        "ratio": (1e-6, 1),
        "epochs": (0, 100_000),
        "batch": (0, 1 << 20),
        "learning_rate": (0, 1000),
        "seconds": (0, 1e9),
        "chunk_round": COUNT,
    }

    run: str
    round_number: int
    chunk: int
    algorithm: str
    model: str
    ratio: float
    settings: str
    epochs: int
    batch: int
    learning_rate: float
    seed: int
    seconds: float
    chunk_round: int = 0


@dataclass(frozen=True)
class TrainResult(Record):
    """What a device answers.

    Attributes:
        device, run, round_number: whose answer, to what.
        refused: why there is none; empty: arrays (train) or figures (evaluate) are there.
        examples: windows it trained or evaluated on; labelled, confident: of these, no window in
            both.
        loss, accuracy, macro_f1: -1 where there is none.
        steps, seconds: of training; peak_bytes: most resident memory of the process.
        stopped: the time budget ended it before its last epoch.
        sha256: of the arrays (`arrays.digest`); empty without.
    """

    RANGES = {
        "round_number": COUNT,
        "examples": COUNT,
        "labelled": COUNT,
        "confident": COUNT,
        "loss": (-1, 1e30),
        "accuracy": (-1, 1),
        "macro_f1": (-1, 1),
        "steps": COUNT,
        "seconds": (0, 1e9),
        "peak_bytes": (0, MOST_INTEGER),
    }
    NAMES = ("device", "run", "sha256")

    device: str
    run: str
    round_number: int
    refused: str = ""
    examples: int = 0
    labelled: int = 0
    confident: int = 0
    loss: float = -1.0
    accuracy: float = -1.0
    macro_f1: float = -1.0
    steps: int = 0
    seconds: float = 0.0
    peak_bytes: int = 0
    stopped: bool = False
    sha256: str = ""

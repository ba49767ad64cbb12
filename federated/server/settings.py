"""The server's settings, from a TOML file; every value is checked before anything starts.

[run]        folder, rounds, rounds_per_chunk, seed, keep_checkpoints
[algorithm]  name, and what that algorithm takes
[model]      name, input_shape, classes, widths
[training]   epochs, batch, learning_rate
[devices]    fraction, least, ratios, deadline_s, wait_s, query_s, evaluate_every
[public]     file, hold_out, test, tune_epochs
[privacy]    clipping_norm, noise_multiplier, delta, population, most_epsilon
[superlink]  host, port, certificate, key, authority, node_keys,
                 database, restarts, insecure
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from penstock.errors import FormatError, PenstockError, StorageError, UsageError
from penstock.federated.models.registry import ModelOptions, model_spec
from penstock.federated.server.check_settings import at_least, between, check_type
from penstock.federated.toml_text import parse_toml

ALGORITHMS = ("fedavg", "heterofl", "fedrolex", "fedconv", "fedmobile")
MEANS = ("fedavg", "heterofl", "fedrolex")  # whose aggregation is a mean, and nothing else
_Section = TypeVar("_Section")


@dataclass(frozen=True)
class RunSettings:
    """`[run]`: how long, and where its files go.

    Attributes:
        folder: of checkpoints, journal, SuperLink's database; made when it is not there.
        rounds: in all. rounds_per_chunk: of one chunk of time; 0: there is one chunk.
        keep_checkpoints: newest that are kept; 2 at least, since one may be damaged.
        secure_aggregation: there only to be refused.
    """

    folder: str
    rounds: int = 10
    rounds_per_chunk: int = 0
    seed: int = 1
    keep_checkpoints: int = 3
    secure_aggregation: bool = False

    def __post_init__(self) -> None:
        between("run.rounds", self.rounds, 1, 1_000_000)
        between("run.rounds_per_chunk", self.rounds_per_chunk, 0, self.rounds)
        between("run.seed", self.seed, 0, 2**31 - 1)
        between("run.keep_checkpoints", self.keep_checkpoints, 2, 1000)


@dataclass(frozen=True)
class TrainingSettings:
    """`[training]`: on the device, with Adam."""

    epochs: int = 2
    batch: int = 32
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        between("training.epochs", self.epochs, 1, 1000)
        between("training.batch", self.batch, 1, 65_536)
        between("training.learning_rate", self.learning_rate, 1e-8, 10.0)


@dataclass(frozen=True)
class DeviceSettings:
    """`[devices]`: who takes part, how wide, and how long the server waits.

    Attributes:
        fraction: of the ready devices that a round asks. least: a round needs so many answers
            asked for; it waits `wait_s` for them to be ready.
        ratios: pairs of a ratio and the share of devices that get it; shares sum to 1.
        deadline_s: from the sending of a round's tasks on; what comes later is not counted.
        query_s: that a device has, before each round, to say what it can do.
        evaluate_every: rounds between evaluations on the devices; 0: none.
    """

    fraction: float = 1.0
    least: int = 1
    ratios: tuple[tuple[float, float], ...] = ((1.0, 1.0),)
    deadline_s: float = 600.0
    wait_s: float = 600.0
    query_s: float = 30.0
    evaluate_every: int = 0

    def __post_init__(self) -> None:
        between("devices.fraction", self.fraction, 1e-6, 1.0)
        at_least("devices.least", self.least, 1)
        between("devices.deadline_s", self.deadline_s, 0.1, 1e6)
        between("devices.wait_s", self.wait_s, 0.0, 1e7)
        between("devices.query_s", self.query_s, 0.1, 1e4)
        at_least("devices.evaluate_every", self.evaluate_every, 0)
        if not self.ratios:
            raise UsageError("devices.ratios is empty, expected pairs of ratio and share")
        for ratio, share in self.ratios:
            between("devices.ratios: a ratio", ratio, 1e-6, 1.0)
            between("devices.ratios: a share", share, 0.0, 1.0)
        if len({ratio for ratio, _ in self.ratios}) < len(self.ratios):
            raise UsageError("devices.ratios names a ratio twice")
        total = sum(share for _, share in self.ratios)
        if abs(total - 1) > 1e-6:
            raise UsageError(f"devices.ratios: the shares sum to {total:g}, expected 1")


@dataclass(frozen=True)
class PublicSettings:
    """`[public]`: the server's labelled samples.

    Attributes:
        file: npz with `inputs` and `labels`; empty: there are none.
        hold_out: share that is never trained on, by which fedconv and tuning choose; where nothing
            chooses by it, it measures the global model.
        test: share that measures the global model where the hold-out chooses; 0: nothing does.
        tune_epochs: over the training part after each round, for fedavg, heterofl and
            fedrolex; fedconv always trains on it; 0: none.
    """

    file: str = ""
    hold_out: float = 0.3
    test: float = 0.2
    tune_epochs: int = 0

    def __post_init__(self) -> None:
        between("public.tune_epochs", self.tune_epochs, 0, 1000)
        between("public.hold_out", self.hold_out, 0.01, 1.0)
        between("public.test", self.test, 0.0, 0.9)


@dataclass(frozen=True)
class PrivacySettings:
    """`[privacy]`: central differential privacy of whole devices.

    Attributes:
        noise_multiplier: standard deviation of the noise on the sum, in clipping norms; 0: off.
        clipping_norm: most L2 norm of one device's change.
        delta: for which epsilon is told. population: devices there are.
        most_epsilon: the run ends before it would be spent; 0: no limit.
    """

    noise_multiplier: float = 0.0
    clipping_norm: float = 1.0
    delta: float = 1e-5
    population: int = 0
    most_epsilon: float = 0.0

    def __post_init__(self) -> None:
        between("privacy.noise_multiplier", self.noise_multiplier, 0.0, 1000.0)
        between("privacy.clipping_norm", self.clipping_norm, 1e-6, 1e6)
        between("privacy.delta", self.delta, 1e-12, 0.5)
        between("privacy.most_epsilon", self.most_epsilon, 0.0, 1e6)
        at_least("privacy.population", self.population, 0)
        if self.noise_multiplier and not self.population:
            raise UsageError("privacy.population is missing: how many devices there are in all")


@dataclass(frozen=True)
class SuperLinkSettings:
    """`[superlink]`: Flower's server process.

    Attributes:
        host, port: where it listens.
        certificate, key, authority: PEM files for TLS; empty: `--make-certificates` made them in
            the run's folder.
        insecure: no TLS and no node keys; for a test on one machine. Beyond it there is a warning.
        node_keys: folder of `NAME.pub`, the public keys of devices that may take part.
        database: SuperLink keeps its state in a file. Without it a round takes half of the time
            on a small machine, and nothing is lost when SuperLink dies: keys are registered
            anew, the run goes on from its checkpoint, and devices keep their answers.
        restarts: how often a SuperLink or a run that died is started again, with no round ending
            in between.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    certificate: str = ""
    key: str = ""
    authority: str = ""
    insecure: bool = False
    node_keys: str = ""
    database: bool = False
    restarts: int = 10

    def __post_init__(self) -> None:
        between("superlink.port", self.port, 1, 65_535)
        between("superlink.restarts", self.restarts, 0, 1000)
        given = [bool(path) for path in (self.certificate, self.key, self.authority)]
        if any(given) and not all(given):
            raise UsageError("superlink: certificate, key and authority go together")


@dataclass(frozen=True)
class ServerSettings:
    """The whole file."""

    run: RunSettings
    model: ModelOptions
    algorithm: str = "fedavg"
    algorithm_settings: Mapping[str, Any] = field(default_factory=dict)
    training: TrainingSettings = TrainingSettings()
    devices: DeviceSettings = DeviceSettings()
    public: PublicSettings = PublicSettings()
    privacy: PrivacySettings = PrivacySettings()
    superlink: SuperLinkSettings = SuperLinkSettings()

    def __post_init__(self) -> None:
        if self.algorithm not in ALGORITHMS:
            raise UsageError(
                f"algorithm.name is {self.algorithm!r}, expected one of {', '.join(ALGORITHMS)}"
            )
        model_spec(self.model)
        if self.run.secure_aggregation:
            raise UsageError(
                "run.secure_aggregation: secure aggregation hides each device's weights from the "
                "server and needs them all of one shape; sub-models of several widths and FedConv, "
                "which trains on each device's weights, exclude it. Use [privacy] instead"
            )
        if self.privacy.noise_multiplier and self.algorithm not in MEANS:
            raise UsageError(
                f"privacy: what {self.algorithm} releases is more than a mean of the updates, so "
                f"no epsilon can be told for it; use {', '.join(MEANS)}"
            )
        if self.algorithm == "fedconv" and not self.public.file:
            raise UsageError("public.file is missing: fedconv trains its filters on public samples")
        if self.public.tune_epochs and self.algorithm not in MEANS:
            raise UsageError(f"public.tune_epochs: {self.algorithm} has its own ways")
        if self.public.tune_epochs and not self.public.file:
            raise UsageError("public.file is missing: public.tune_epochs needs samples")
        if self.chooses and self.public.hold_out + self.public.test >= 1:
            raise UsageError(
                f"public.hold_out {self.public.hold_out:g} and public.test {self.public.test:g} "
                "leave no sample to train on; together they must be less than 1"
            )
        if self.privacy.noise_multiplier and self.public.tune_epochs:
            raise UsageError("public.tune_epochs and [privacy] cannot be combined")
        if self.algorithm == "fedavg" and any(r < 1 for r, s in self.devices.ratios if s):
            raise UsageError("devices.ratios: fedavg has ratio 1 only; use heterofl or fedrolex")

    @property
    def chooses(self) -> bool:
        """Whether the server trains, and chooses by the hold-out what of it is kept."""
        return self.algorithm == "fedconv" or self.public.tune_epochs > 0


def read_settings(path: Path) -> ServerSettings:
    """Settings of a TOML file; relative paths in it start at its folder.

    Raises:
        StorageError: it cannot be read.
        FormatError: it is not TOML, or lacks a section or a value.
        UsageError: a value is unknown, of another type or out of its range.
    """
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: not UTF-8 at byte {error.start}") from error
    try:
        return parse_settings(parse_toml(text), path.resolve().parent)
    except PenstockError as error:
        raise type(error)(f"{path}: {error}") from error


def parse_settings(tables: Mapping[str, Any], base: Path) -> ServerSettings:
    """Settings of the tables of a file that lies in `base`.

    Raises:
        FormatError, UsageError: as `read_settings`.
    """
    known = ("run", "algorithm", "model", "training", "devices", "public", "privacy", "superlink")
    for name, table in tables.items():
        if name not in known:
            raise UsageError(f"[{name}] is not a section; there are {', '.join(known)}")
        if not isinstance(table, dict):
            raise UsageError(f"{name} is a {type(table).__name__}, expected a section [{name}]")
    for name in ("run", "model"):
        if name not in tables:
            raise FormatError(f"lacks the section [{name}]")
    model = dict(tables["model"])
    for key in ("input_shape", "widths"):
        model[key] = tuple(check_type(f"model.{key}", model.get(key, []), "tuple[int, ...]"))
    algorithm = dict(tables.get("algorithm", {}))
    devices = dict(tables.get("devices", {}))
    settings = ServerSettings(
        run=_section(RunSettings, "run", tables["run"], base, ("folder",)),
        model=_section(ModelOptions, "model", model, base),
        algorithm=check_type("algorithm.name", algorithm.pop("name", "fedavg"), "str"),
        algorithm_settings=algorithm,
        training=_section(TrainingSettings, "training", tables.get("training", {}), base),
        devices=_section(DeviceSettings, "devices", devices, base),
        public=_section(PublicSettings, "public", tables.get("public", {}), base, ("file",)),
        privacy=_section(PrivacySettings, "privacy", tables.get("privacy", {}), base),
        superlink=_section(
            SuperLinkSettings,
            "superlink",
            tables.get("superlink", {}),
            base,
            ("certificate", "key", "authority", "node_keys"),
        ),
    )
    return settings


def _section(
    kind: type[_Section],
    name: str,
    table: Mapping[str, Any],
    base: Path,
    paths: tuple[str, ...] = (),
) -> _Section:
    known = {entry.name: entry for entry in fields(kind)}  # type: ignore[arg-type]
    for key in table:
        if key not in known:
            raise UsageError(f"{name}.{key} is not known; there are {', '.join(known)}")
    values: dict[str, Any] = {}
    for key, entry in known.items():
        if key in table:
            value = check_type(f"{name}.{key}", table[key], str(entry.type))
            values[key] = str(base / value) if key in paths and value else value
        elif entry.default is MISSING and entry.default_factory is MISSING:
            raise FormatError(f"lacks {name}.{key}")
    return kind(**values)

"""The device's configuration: one TOML file, every field checked, unknown ones refused.

folder = "/var/lib/penstock"          # store, key, logs, status
[superlink]
address = "fl.example.org:8000"
certificates = "ca.crt"               # beside this file
[training]
memory = "512MiB"
[storage]
disk = "1GiB"
[conditions]
power = "require"
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from penstock.errors import FormatError, StorageError, UsageError
from penstock.federated.toml_text import parse_toml
from penstock.runtime.budget import format_size, parse_size

Condition = str | bool | float
LEAST_HEARTBEAT_S, MOST_HEARTBEAT_S = 10.0, 1800.0  # Flower's bounds
ENGINES = ("node", "supernode")
PUBLISH = ("never", "chunk", "round")
_Section = TypeVar("_Section")


@dataclass(frozen=True)
class SuperLinkConfig:
    """Where the federation is.

    Attributes:
        address: host and port.
        certificates: PEM file of the authorities that are trusted; empty: the system's.
        insecure: plain HTTP, for tests on one machine.
        heartbeat_s: from one sign of life to the next; the server waits for two. After a crash the
            server refuses this device until that time is over.
    """

    address: str = ""
    certificates: str = ""
    insecure: bool = False
    heartbeat_s: float = 15.0


@dataclass(frozen=True)
class TrainingConfig:
    """What training may take.

    Attributes:
        memory: beside the idle process; "0": no bound.
        threads: cores.
        most_ratio: widest sub-model.
        most_seconds: of one message, whatever the server asks.
        publish: when the global model is made live for inference, in the folder's "live": "never",
            "chunk": at the end of a chunk of time, or "round". Needs the exporter's libraries.
    """

    memory: str = "512MiB"
    threads: int = 1
    most_ratio: float = 1.0
    most_seconds: float = 3600.0
    publish: str = "never"

    @property
    def memory_bytes(self) -> int:
        """The memory as a number."""
        return parse_size(self.memory)


@dataclass(frozen=True)
class StorageConfig:
    """What the store may take.

    Attributes:
        disk: of the database; "0": no bound.
    """

    disk: str = "1GiB"

    @property
    def disk_bytes(self) -> int:
        """The disk as a number."""
        return parse_size(self.disk)


@dataclass(frozen=True)
class ConditionsConfig:
    """When the device takes part.

    Each is "require" (look, and refuse where it is not so), "ignore", or a fixed value that is
    taken as found: true, false.

    Attributes:
        power: charging, or no battery.
        battery: least charge, 0 to 1; "ignore".
        idle: load of the last minute below half of the cores.
        unmetered: the network connection is not paid by volume.
        free_memory: least free memory; "ignore".
    """

    power: Condition = "require"
    battery: Condition = 0.3
    idle: Condition = "ignore"
    unmetered: Condition = "require"
    free_memory: Condition = "256MiB"


@dataclass(frozen=True)
class DaemonConfig:
    """How the daemon runs.

    Attributes:
        engine: "node", one warm process that runs our code only; "supernode", Flower's own, which
            runs the code that the server sends.
        poll_busy_s, poll_idle_s: from one question for messages to the next: just after one came,
            and later.
        unload_after_s: idle time after which torch leaves the memory; 0: never.
        hang_s: without a sign of life from the node before it is killed.
        health_port: of the local health endpoint; 0: any free one, -1: none.
        log_bytes: of one log file; three are kept.
    """

    engine: str = "node"
    poll_busy_s: float = 0.2
    poll_idle_s: float = 3.0
    unload_after_s: float = 300.0
    hang_s: float = 300.0
    health_port: int = 0
    log_bytes: int = 1_000_000


@dataclass(frozen=True)
class DeviceConfig:
    """All of it. Paths are absolute."""

    folder: Path
    superlink: SuperLinkConfig = field(default_factory=SuperLinkConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    storage: StorageConfig = field(default_factory=StorageConfig)
    conditions: ConditionsConfig = field(default_factory=ConditionsConfig)
    daemon: DaemonConfig = field(default_factory=DaemonConfig)

    @property
    def store(self) -> Path:
        """The database."""
        return self.folder / "store.db"


SECTIONS: dict[str, type[Any]] = {
    "superlink": SuperLinkConfig,
    "training": TrainingConfig,
    "storage": StorageConfig,
    "conditions": ConditionsConfig,
    "daemon": DaemonConfig,
}


def default_folder() -> Path:
    """Where a device's files lie when the configuration does not say."""
    from platformdirs import user_data_path

    return user_data_path("penstock") / "federated"


def load_config(path: Path | None, *, superlink: str | None = None) -> DeviceConfig:
    """Read and check a configuration.

    Args:
        path: of the TOML file; None: everything at its default.
        superlink: replaces the address in the file.

    Raises:
        FormatError: no such file, not TOML, an unknown or ill-typed field: says which.
        UsageError: a value is out of its range: says which.
    """
    given = {} if path is None else _read_toml(path)
    source = "the configuration" if path is None else str(path)
    beside = Path.cwd() if path is None else path.resolve().parent
    foreign = sorted(set(given) - set(SECTIONS) - {"folder"})
    if foreign:
        raise FormatError(f"{source}: {foreign[0]!r} is not known; there are folder, {_names()}")
    folder = given.get("folder", "")
    if not isinstance(folder, str):
        raise FormatError(f"{source}: folder is {folder!r}, expected a path")
    sections = {
        name: _section(kind, given.get(name, {}), f"{source}: [{name}]")
        for name, kind in SECTIONS.items()
    }
    config = DeviceConfig(
        (beside / Path(folder).expanduser()) if folder else default_folder(), **sections
    )
    link = config.superlink
    if superlink is not None:
        link = replace(link, address=superlink)
    if link.certificates:
        link = replace(link, certificates=str(beside / Path(link.certificates).expanduser()))
    config = replace(config, superlink=link)
    _check(config, source)
    return config


def _names() -> str:
    return ", ".join(f"[{name}]" for name in SECTIONS)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return parse_toml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FormatError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: not TOML: {error}") from error
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from error


def _section(kind: type[_Section], given: Any, where: str) -> _Section:
    if not isinstance(given, dict):
        raise FormatError(f"{where} is {given!r}, expected a table")
    known = {entry.name: str(entry.type) for entry in fields(kind)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for name, value in given.items():
        if name not in known:
            raise FormatError(f"{where} {name} is not known; there are {', '.join(known)}")
        want = known[name]
        if want == "float" and type(value) is int:
            value = float(value)
        types = {"str": (str,), "int": (int,), "float": (float,), "bool": (bool,)}
        allowed = types.get(want, (str, bool, float, int))  # Condition
        if type(value) not in allowed:
            raise FormatError(f"{where} {name} is {value!r}, expected {want}")
        values[name] = value
    return kind(**values)


def _check(config: DeviceConfig, source: str) -> None:
    link, training, daemon = config.superlink, config.training, config.daemon
    for name, value, least, most in (
        ("[superlink] heartbeat_s", link.heartbeat_s, LEAST_HEARTBEAT_S, MOST_HEARTBEAT_S),
        ("[training] threads", training.threads, 1, 1024),
        ("[training] most_ratio", training.most_ratio, 0.01, 1.0),
        ("[training] most_seconds", training.most_seconds, 1, 7 * 86400),
        ("[daemon] poll_busy_s", daemon.poll_busy_s, 0.05, 60),
        ("[daemon] poll_idle_s", daemon.poll_idle_s, 0.05, 3600),
        ("[daemon] unload_after_s", daemon.unload_after_s, 0, 7 * 86400),
        ("[daemon] hang_s", daemon.hang_s, 5, 86400),
        ("[daemon] health_port", daemon.health_port, -1, 65535),
        ("[daemon] log_bytes", daemon.log_bytes, 10_000, 1 << 30),
    ):
        if not (math.isfinite(value) and least <= value <= most):
            raise UsageError(f"{source}: {name} is {value}, expected {least} to {most}")
    if daemon.engine not in ENGINES:
        raise UsageError(
            f"{source}: [daemon] engine is {daemon.engine!r}, expected {' or '.join(ENGINES)}"
        )
    if training.publish not in PUBLISH:
        raise UsageError(
            f"{source}: [training] publish is {training.publish!r}, expected one of "
            f"{', '.join(PUBLISH)}"
        )
    try:
        parse_size(training.memory), parse_size(config.storage.disk)
    except UsageError as error:
        raise UsageError(f"{source}: {error}") from error
    if 0 < config.storage.disk_bytes < 1 << 20:
        raise UsageError(f"{source}: [storage] disk is under {format_size(1 << 20)}")
    if link.insecure and link.certificates:
        raise UsageError(f"{source}: [superlink] has certificates and is insecure; choose one")
    if link.address:
        check_address(link.address, source)
    for entry in fields(ConditionsConfig):
        check_condition(entry.name, getattr(config.conditions, entry.name), source)


def read_certificates(config: DeviceConfig, source: Path | None) -> bytes | None:
    """The authorities that are trusted, PEM; None: the system's. Read when the daemon starts, not
    with the configuration: a status or an ingest needs none.

    Args:
        source: the file that the configuration is from.

    Raises:
        StorageError: the file is not there or cannot be read, now: trying again may help.
        UsageError: it holds no certificate.
    """
    path = config.superlink.certificates
    if not path:
        return None
    where = f"{source or 'the configuration'}: [superlink] certificates: {path}"
    try:
        found = Path(path).read_bytes()
    except OSError as error:
        raise StorageError(f"{where} cannot be read: {error.strerror}") from error
    if b"-----BEGIN CERTIFICATE-----" not in found:
        raise UsageError(f"{where} holds no certificate in PEM")
    return found


def check_address(address: str, source: str) -> None:
    """Refuse anything but host:port.

    Raises:
        UsageError: it is not.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536 or "/" in address:
        raise UsageError(
            f"{source}: the SuperLink's address is {address!r}, expected host:port, such as "
            "fl.example.org:8000"
        )


def check_condition(name: str, value: Condition, source: str) -> None:
    """Refuse a condition that cannot be looked up.

    Raises:
        UsageError: it cannot.
    """
    where = f"{source}: [conditions] {name} is {value!r}, expected"
    if value == "ignore" and isinstance(value, str):
        return
    if name == "battery":
        if isinstance(value, bool | str) or not 0 <= value <= 1:
            raise UsageError(f'{where} a charge from 0 to 1, or "ignore"')
    elif name == "free_memory":
        if not isinstance(value, str):
            raise UsageError(f'{where} a size such as "256MiB", or "ignore"')
        parse_size(value)
    elif not isinstance(value, bool) and value != "require":
        raise UsageError(f'{where} "require", "ignore", true or false')

"""The settings of a simulation: a server's TOML file with one section more.

[simulation]  data, devices, partition, alpha, least, labelled, test, actors, memory_bytes
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from penstock.errors import FormatError, PenstockError, StorageError, UsageError
from penstock.federated.server.check_settings import at_least, between, check_type
from penstock.federated.server.settings import ServerSettings, parse_settings
from penstock.federated.simulation.partition import PARTITIONS
from penstock.federated.toml_text import parse_toml
from penstock.loaders.cores import usable_cores

SECTION = "simulation"


@dataclass(frozen=True)
class SimulationSettings:
    """`[simulation]`.

    Attributes:
        data: npz with `inputs`, `labels` (-1: none) and, for by-user, `users`.
        devices: how many virtual ones.
        partition: iid, dirichlet or by-user; alpha: of dirichlet.
        least: samples of each device at the least, in dirichlet.
        labelled: share of the labels that devices keep.
        test: share of the labelled samples that no device gets, by which the global model is
            measured after each round, on all of them and by chunk of time; 0: none.
        actors: processes that train; 0: one a core.
        memory_bytes: that a device's training may use; 0: no limit.
    """

    data: str
    devices: int = 100
    partition: str = "dirichlet"
    alpha: float = 0.5
    least: int = 2
    labelled: float = 1.0
    test: float = 0.2
    actors: int = 0
    memory_bytes: int = 0

    def __post_init__(self) -> None:
        between("simulation.devices", self.devices, 1, 1_000_000)
        between("simulation.alpha", self.alpha, 1e-6, 1e9)
        between("simulation.labelled", self.labelled, 1e-9, 1.0)
        between("simulation.test", self.test, 0.0, 0.9)
        between("simulation.actors", self.actors, 0, 1024)
        at_least("simulation.least", self.least, 1)
        at_least("simulation.memory_bytes", self.memory_bytes, 0)
        if self.partition not in PARTITIONS:
            raise UsageError(
                f"simulation.partition is {self.partition!r}, expected one of "
                f"{', '.join(PARTITIONS)}"
            )

    @property
    def processes(self) -> int:
        """Actors that are started."""
        return min(self.actors or usable_cores(), self.devices)


def read_simulation(
    path: Path, changed: Mapping[str, Any] | None = None, rounds: int | None = None
) -> tuple[SimulationSettings, ServerSettings]:
    """Settings of a TOML file; relative paths in it start at its folder.

    Args:
        changed: values of `[simulation]` that the command line gave; rounds: in place of the
            file's.

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
        raise FormatError(f"{path}: not TOML: {error}") from error
    try:
        tables = parse_toml(text)
        own = tables.pop(SECTION, None)
        if not isinstance(own, dict):
            raise FormatError("lacks the section [simulation], with its `data`")
        if rounds is not None and isinstance(tables.get("run"), dict):
            tables["run"]["rounds"] = rounds
        base = path.resolve().parent
        return _simulation(own | dict(changed or {}), base), parse_settings(tables, base)
    except PenstockError as error:
        raise type(error)(f"{path}: {error}") from error


def _simulation(table: Mapping[str, Any], base: Path) -> SimulationSettings:
    known = {entry.name: str(entry.type) for entry in fields(SimulationSettings)}
    for key in table:
        if key not in known:
            raise UsageError(f"simulation.{key} is not known; there are {', '.join(known)}")
    if "data" not in table:
        raise FormatError("lacks simulation.data: an npz with inputs and labels")
    values = {
        name: check_type(f"simulation.{name}", table[name], kind)
        for name, kind in known.items()
        if name in table
    }
    return SimulationSettings(**(values | {"data": str(base / values["data"])}))

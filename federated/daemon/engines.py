"""What a supervisor starts: our warm node, or Flower's own SuperNode.

The stock SuperNode executes the Python that the SuperLink sends (a FAB), in a new process for each
message. Who wants that gets it with the same key, conditions and supervision.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from abc import ABC, abstractmethod
from pathlib import Path

from penstock.errors import BackendMissingError, UsageError
from penstock.federated.daemon.config import DeviceConfig
from penstock.federated.flower_env import QUIET

CONDITIONS_S = 30.0  # between two looks at power and network
CONFIG_VARIABLE = "PENSTOCK_FEDERATED_CONFIG"  # tells the app in a FAB which device it is on


class Engine(ABC):
    """Base.

    Attributes:
        name: for the log.
        reports: it says through its pipe that it lives.
    """

    name = ""
    reports = False

    def __init__(self, config: DeviceConfig, path: Path | None) -> None:
        self.config, self.path = config, path

    @abstractmethod
    def command(self, report: int, lifeline: int) -> list[str]:
        """What to execute, with the numbers of its ends of the pipes."""

    def environment(self) -> dict[str, str]:
        """Variables of the child: no calls home unless the user's environment allows them, and no
        more threads than configured."""
        threads = str(self.config.training.threads)
        wanted = QUIET | {
            "OMP_NUM_THREADS": threads,
            "OPENBLAS_NUM_THREADS": threads,
            "MALLOC_ARENA_MAX": "2",  # else each thread keeps freed memory of its own
            "PYTHONUNBUFFERED": "1",
            CONFIG_VARIABLE: "" if self.path is None else str(self.path),
        }
        return {name: value for name, value in wanted.items() if name not in os.environ}

    def waits(self) -> str:
        """Why it is not to run now; empty: it is."""
        return ""


class WarmNode(Engine):
    """Our node. It is in the federation also when it takes no part, and says so when asked."""

    name = "the warm node"
    reports = True

    def __init__(self, config: DeviceConfig, path: Path | None, superlink: str | None) -> None:
        super().__init__(config, path)
        self._superlink = superlink

    def command(self, report: int, lifeline: int) -> list[str]:
        """As the base says."""
        config = "-" if self.path is None else str(self.path)
        line = [sys.executable, "-m", "penstock.federated.daemon.node", config]
        line += ["--report", str(report), "--lifeline", str(lifeline)]
        return line + (["--superlink", self._superlink] if self._superlink else [])


class StockSuperNode(Engine):
    """Flower's SuperNode; it runs only while the conditions hold."""

    name = "Flower's SuperNode"

    def __init__(self, config: DeviceConfig, path: Path | None) -> None:
        super().__init__(config, path)
        self._looked, self._reason = -CONDITIONS_S, ""
        program = shutil.which("flower-supernode", path=Path(sys.executable).parent)
        program = program or shutil.which("flower-supernode")
        if program is None:
            raise BackendMissingError(
                "flower-supernode is not installed: pip install 'penstock[federated]'"
            )
        self._program = program

    def command(self, report: int, lifeline: int) -> list[str]:
        """As the base says; it hears neither pipe."""
        del report, lifeline
        link = self.config.superlink
        line = [self._program, "--superlink", link.address]
        if link.insecure:
            return [*line, "--insecure"]
        from penstock.federated.daemon.identity import load_identity

        line += ["--auth-supernode-private-key", str(load_identity(self.config.folder).private_key)]
        return line + (["--root-certificates", link.certificates] if link.certificates else [])

    def environment(self) -> dict[str, str]:
        """The base's, and a folder of its own for what Flower unpacks."""
        found = super().environment()
        if "FLWR_HOME" not in os.environ:
            found["FLWR_HOME"] = str(self.config.folder / "flower")
        return found

    def waits(self) -> str:
        """As the base says; looked up every half minute."""
        if time.monotonic() - self._looked > CONDITIONS_S:
            from penstock.federated.daemon.conditions import readiness

            self._looked = time.monotonic()
            self._reason = readiness(self.config.conditions).reason
        return self._reason


def choose_engine(config: DeviceConfig, path: Path | None, superlink: str | None) -> Engine:
    """The configured one.

    Raises:
        UsageError: no address of a SuperLink; BackendMissingError: Flower is not installed.
    """
    if not config.superlink.address:
        raise UsageError(
            "which SuperLink? Give --superlink HOST:PORT, or [superlink] address in the "
            "configuration"
        )
    if config.daemon.engine == "supernode":
        return StockSuperNode(config, path)
    return WarmNode(config, path, superlink)

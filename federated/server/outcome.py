"""How a run ended, told by the process that ran it to the one that watches over it: a small file.

Exit codes cannot tell it: the ServerApp is a grandchild, and `flwr run` gives 0 for a run that
failed.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from penstock import errors
from penstock.errors import FormatError, PenstockError, StorageError
from penstock.loaders.partial_file import partial_file

NAME = "outcome.json"


@dataclass(frozen=True)
class Outcome:
    """How one try ended.

    Attributes:
        attempt: what the watcher called this try.
        run: of the federation. rounds: that ended.
        error: a class of `penstock.errors`, another exception's name, or empty: all went well.
        message: the error's.
    """

    attempt: str
    run: str
    rounds: int
    error: str = ""
    message: str = ""

    @property
    def again(self) -> bool:
        """Whether another try may do better: a disk may be free again, a process that died
        starts anew. What the settings, the files or the devices lack stays so."""
        kind = getattr(errors, self.error, None)
        fixed = isinstance(kind, type) and issubclass(kind, PenstockError)
        return bool(self.error) and (not fixed or kind is StorageError)

    def raise_error(self) -> None:
        """Raise what the run raised.

        Raises:
            PenstockError: the run ended by an error.
        """
        if not self.error:
            return
        kind = getattr(errors, self.error, PenstockError)
        if not (isinstance(kind, type) and issubclass(kind, PenstockError)):
            kind = PenstockError
        known = kind.__name__ == self.error
        raise kind(self.message if known else f"the run failed: {self.error}: {self.message}")


def write_outcome(folder: Path, outcome: Outcome) -> None:
    """Raises:
    StorageError: it cannot be written.
    """
    with partial_file(folder / NAME) as (file, _):
        file.write(json.dumps(asdict(outcome)).encode())


def read_outcome(folder: Path, attempt: str) -> Outcome | None:
    """None: this try has not ended.

    Raises:
        FormatError: the file is none of ours.
    """
    path = folder / NAME
    try:
        found = Outcome(**json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise FormatError(f"{path}: not an outcome: {error}") from error
    return found if found.attempt == attempt else None

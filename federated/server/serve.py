"""A whole federated run over Flower: SuperLink, the run, and what is started again when it dies.

SuperLink killed: Flower calls the run failed. It is started again, and so is the run, from the
newest checkpoint; a start that fails is tried again as well. Only tries without a round in between
are counted against `restarts`. The verdict is what the run itself wrote, or else Flower's word for
it; never an exit code.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from penstock.errors import PenstockError, StorageError, UsageError
from penstock.federated.report.run_report import report_at_end
from penstock.federated.report.summary import Summary
from penstock.federated.server.checkpoint import newest_round
from penstock.federated.server.outcome import NAME, Outcome, read_outcome
from penstock.federated.server.preflight import check_folder, check_settings_fit, open_to_others
from penstock.federated.server.progress import Progress
from penstock.federated.server.settings import ServerSettings
from penstock.federated.server.superlink import SuperLink

WATCH_S = 0.5
ASK_FLOWER_S = 30.0  # `flwr list` takes two seconds of a core
MOST_PAUSE_S = 60.0


@dataclass(frozen=True)
class Served:
    """How it ended, how often something had to be started again, and what the report says."""

    outcome: Outcome
    restarts: int
    summary: Summary


def serve(
    settings_file: Path,
    settings: ServerSettings,
    *,
    resume: bool,
    note: Callable[[str], None],
    on_start: Callable[[SuperLink], None] = lambda link: None,
) -> Served:
    """Run to the end, however that comes, and leave the report.

    Args:
        settings_file: that the run reads again; settings: what was read from it.
        note: told a line for each round, and about everything out of the ordinary.
        on_start: told when devices can connect.

    Raises:
        UsageError: the folder holds a run and `resume` was not asked for, or it began with another
            algorithm, model or seed, or with differential privacy where there is none now, or the
            other way round (other settings are not compared); another server uses it, the public
            samples do not fit, or no device may take part. All before anything is started.
        PenstockError: SuperLink does not come up, the run ended by an error, or it was started
            again `restarts` times and no round ended.
    """
    folder, own = Path(settings.run.folder), settings.superlink
    check_settings_fit(settings)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{folder}: cannot be made: {error.strerror}") from error
    with only_one(folder / "server.lock"):
        check_folder(settings, resume=resume)
        link = SuperLink(own, folder / "flower", note)
        if own.insecure and open_to_others(own.host):
            note(
                f"superlink.insecure at {own.host}: whoever reaches this address may take part as "
                "any device, and models travel unencrypted; for a test in a network you trust"
            )
        progress = Progress(folder, settings.run.rounds, note)
        with report_at_end(folder, note) as report:
            try:
                outcome, restarts = _watch(
                    link, settings_file, settings, folder, resume, note, on_start, progress
                )
            except (KeyboardInterrupt, SystemExit):
                progress.look()
                note("stopping; resume with --resume")
                raise
            finally:
                link.stop()
        return Served(outcome, restarts, report.summary)


def _watch(
    link: SuperLink,
    settings_file: Path,
    settings: ServerSettings,
    folder: Path,
    resume: bool,
    note: Callable[[str], None],
    on_start: Callable[[SuperLink], None],
    progress: Progress,
) -> tuple[Outcome, int]:
    """How the run ended, and the restarts."""
    restarts = tries = 0  # in all, and since a round ended
    link.start()
    on_start(link)
    run, attempt = _submit(link, settings_file, folder, resume)
    asked, ended = time.monotonic(), newest_round(folder)
    while True:
        time.sleep(WATCH_S)
        outcome = read_outcome(folder, attempt)
        progress.look()  # after it: what came before the end is told
        if outcome is not None and not outcome.again:
            outcome.raise_error()
            return outcome, restarts
        trouble = f"{outcome.error}: {outcome.message}" if outcome is not None else ""
        if not link.alive():
            trouble = "SuperLink died"
        elif outcome is None and time.monotonic() - asked > ASK_FLOWER_S:
            asked = time.monotonic()
            link.trim_log()
            status = link.status(run)
            if status.startswith("finished") and read_outcome(folder, attempt) is None:
                trouble = f"the run is {status} and says nothing"
        if not trouble:
            continue
        begun = False
        pause = min(MOST_PAUSE_S, 2.0**tries) if outcome is not None else 0.0
        while not begun:
            if newest_round(folder) > ended:
                ended, tries = newest_round(folder), 0
            if tries >= settings.superlink.restarts:
                raise PenstockError(
                    f"{trouble}; it was started again {tries} times and no round ended: giving up"
                )
            restarts, tries = restarts + 1, tries + 1
            note(f"{trouble}; starting again after {pause:g} s, from the newest checkpoint")
            time.sleep(pause)
            try:
                if not link.alive():
                    link.stop()  # what it left behind
                    link.start()
                run, attempt = _submit(link, settings_file, folder, True)
                begun = True
            except PenstockError as error:
                link.stop()
                trouble, pause = f"it could not be started: {error}", min(MOST_PAUSE_S, 2.0**tries)
        asked = time.monotonic()


def _submit(link: SuperLink, settings_file: Path, folder: Path, resume: bool) -> tuple[str, str]:
    """Flower's identity of the run, and ours of this try.

    Raises:
        PenstockError: SuperLink did not take it, or the folder cannot be written.
    """
    try:
        (folder / NAME).unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"{folder}: cannot be written: {error.strerror}") from error
    attempt = secrets.token_hex(8)
    return link.submit(settings_file.resolve(), resume=resume, attempt=attempt), attempt


@contextmanager
def only_one(path: Path, wait_s: float = 0.0) -> Iterator[None]:
    """Hold a lock that ends with this process, however it ends.

    Raises:
        UsageError: another process holds it, and still does after `wait_s`.
        StorageError: the file cannot be made.
    """
    import fcntl

    until = time.monotonic() + wait_s
    try:
        file = open(path, "ab")
    except OSError as error:
        raise StorageError(f"{path}: cannot be made: {error.strerror}") from error
    with file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if time.monotonic() >= until:
                    raise UsageError(
                        f"{path}: another process uses this folder; end it, or name another"
                    ) from error
                time.sleep(0.1)
        yield

"""Penstock's Flower ServerApp: reads the settings that the run names, and does its rounds.

Imported by Flower's own process (see app_folder.py), never by Penstock: it makes the app at import.
"""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.errors import PenstockError, StorageError
from penstock.federated.flower_content import no_calls_home
from penstock.federated.server.app_folder import ATTEMPT, FOLDER, RESUME, SETTINGS
from penstock.federated.server.build import build_run
from penstock.federated.server.fleet import Fleet
from penstock.federated.server.grid_fleet import GridFleet
from penstock.federated.server.keyed_fleet import KeyedFleet
from penstock.federated.server.outcome import Outcome, write_outcome
from penstock.federated.server.progress import append_note
from penstock.federated.server.run import FederatedRun
from penstock.federated.server.serve import only_one
from penstock.federated.server.settings import ServerSettings, read_settings

if TYPE_CHECKING:
    from flwr.app import Context
    from flwr.serverapp import Grid, ServerApp


def server_app() -> ServerApp:
    """The app; its run configuration names the settings file and says whether to resume."""
    no_calls_home()
    from flwr.serverapp import ServerApp

    made = ServerApp()

    @made.main()
    def main(grid: Grid, context: Context) -> None:
        asked = context.run_config
        run_on_grid(
            grid,
            Path(str(asked[SETTINGS])),
            Path(str(asked[FOLDER])),
            resume=bool(asked[RESUME]),
            attempt=str(asked[ATTEMPT]),
        )

    return made


def run_on_grid(
    grid: Grid, settings_file: Path, folder: Path, *, resume: bool, attempt: str
) -> None:
    """All rounds; how it ended goes into the run's folder, and an error on to Flower.

    Args:
        folder: the run's, as the settings had it when they were read by whoever asks for the run.
    """
    run: FederatedRun | None = None
    try:
        settings = read_settings(settings_file)
        # After a crash of SuperLink the process of the run before may still be about to end.
        with only_one(folder / "run.lock", wait_s=60.0):
            run = build_run(settings, _fleet(grid, settings), lambda text: tell(folder, text))
            if resume:
                run.resume()
            else:
                run.begin()
            run.run()
    except Exception as error:
        if not isinstance(error, PenstockError):
            traceback.print_exc()
        _tell(folder, attempt, run, error)
        raise
    _tell(folder, attempt, run, None)


def _fleet(grid: Grid, settings: ServerSettings) -> Fleet:
    fleet = GridFleet(grid, settings.devices.query_s)
    if settings.superlink.insecure:  # keys are not checked, and a stock SuperNode makes one up
        return fleet
    return KeyedFleet(fleet, lambda: {node.node_id: node.public_key for node in grid.get_nodes()})


def tell(folder: Path, text: str) -> None:
    """Into Flower's log, and to whoever watches over the run."""
    print(f"penstock: {text}", flush=True)
    append_note(folder, text)


def _tell(folder: Path, attempt: str, run: FederatedRun | None, error: Exception | None) -> None:
    outcome = Outcome(
        attempt=attempt,
        run=run.run_id if run else "",
        rounds=run.algorithm.round_number if run else 0,
        error=type(error).__name__ if error else "",
        message=str(error) if error else "",
    )
    try:
        write_outcome(folder, outcome)
    except StorageError as full:  # the disk is full: the log has to do
        tell(folder, f"{outcome.error}: {outcome.message}; and {full}")


app = server_app()

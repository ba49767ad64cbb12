"""The Flower app that `flwr run` submits: a pyproject.toml and two modules of one line each.

Everything else is Penstock as installed on server and devices. Our daemon never executes what a
SuperLink sends; a stock SuperNode does, and these lines let it.
"""

from __future__ import annotations

import json
from pathlib import Path

from penstock.errors import StorageError

SERVER_MODULE = "penstock.federated.server.server_app"
CLIENT_MODULE = "penstock.federated.client.supernode_app"
# names in the run's configuration
SETTINGS, FOLDER, RESUME, ATTEMPT = "settings-file", "folder", "resume", "attempt"
MODULE = "from {} import app as made\n\napp = made\n"  # `flwr run` looks for an assignment
PROJECT = """\
[project]
name = "penstock-federation"
version = "1.0.0"
description = "A federated run of Penstock."
license = "Apache-2.0"
dependencies = ["penstock[federated]"]

[tool.flwr.app]
publisher = "penstock"

[tool.flwr.app.components]
serverapp = "penstock_app.server_app:app"
clientapp = "penstock_app.client_app:app"

[tool.flwr.app.config]
{settings} = {path}
{home} = {run_folder}
{resume} = {again}
{attempt} = "{token}"
"""


def write_app(
    folder: Path, settings_file: Path, run_folder: Path, *, resume: bool, attempt: str
) -> None:
    """Write the app; what was there is replaced.

    Args:
        run_folder: where the outcome goes.
        attempt: letters that the run's outcome repeats, so that it is not taken for another's.

    Raises:
        StorageError: the folder cannot be written.
    """
    package = folder / "penstock_app"
    try:
        package.mkdir(parents=True, exist_ok=True)
        (package / "__init__.py").write_text("")
        (package / "server_app.py").write_text(MODULE.format(SERVER_MODULE))
        (package / "client_app.py").write_text(MODULE.format(CLIENT_MODULE))
        project = PROJECT.format(
            settings=SETTINGS,
            path=json.dumps(str(settings_file), ensure_ascii=False),  # JSON is TOML here
            home=FOLDER,
            run_folder=json.dumps(str(run_folder), ensure_ascii=False),
            resume=RESUME,
            again="true" if resume else "false",
            attempt=ATTEMPT,
            token=attempt,
        )
        (folder / "pyproject.toml").write_text(project, "utf-8")
    except OSError as error:
        raise StorageError(f"{folder}: cannot be written: {error.strerror}") from error

"""The switches that keep Flower and Ray from calling home. Imports nothing of either."""

from __future__ import annotations

import os

QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def no_calls_home() -> None:
    """Switch telemetry, update check, run-time installation and usage statistics off, unless the
    environment says otherwise. Flower reads it when it is imported, so this comes before."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)

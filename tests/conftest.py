"""Shared fixtures: where the project's data and the shared data are."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The data folder beside the checkout; tests that need it skip where it is not there."""
    path = ROOT.parent / "shared"
    if not (path / "data" / "README.md").is_file():
        pytest.skip(f"the shared data folder {path} is not there")
    return path

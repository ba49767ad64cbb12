"""One server of the scripted model and one of the real one for each file of tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from penstock.runtime.embedded import embedded_model
from tests.runtime.server.processes import Client, ServerProcess, model_server, scripted_server


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with scripted_server() as running:
        yield running


@pytest.fixture
def client(server: ServerProcess) -> Client:
    """Of the scripted model."""
    return server.client


@pytest.fixture(scope="module")
def story_server() -> Iterator[ServerProcess]:
    with model_server(embedded_model(), "--dense", "--threads", "1") as running:
        yield running


@pytest.fixture
def story(story_server: ServerProcess) -> Client:
    """Of the embedded model."""
    return story_server.client

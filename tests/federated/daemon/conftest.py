"""One SuperLink for all tests of this folder: it takes seconds to start."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.federated.daemon.superlink import Hand, SuperLink


@pytest.fixture(scope="session")
def superlink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SuperLink]:
    pytest.importorskip("flwr")
    made = SuperLink(tmp_path_factory.mktemp("superlink"))
    yield made
    made.stop()


@pytest.fixture(scope="session")
def hand(superlink: SuperLink) -> Hand:
    return Hand(superlink.database)

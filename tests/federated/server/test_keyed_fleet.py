"""Devices are known by their keys, whatever they say."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path

import pytest

from penstock.errors import PenstockError, RefusedUpdateError
from penstock.federated.daemon.identity import load_identity
from penstock.federated.protocol import Capabilities
from penstock.federated.server.fleet import Node
from penstock.federated.server.keyed_fleet import KeyedFleet, name_of_pem
from tests.federated.server.fake_fleet import FakeFleet, capabilities, plan_of, run_of

pytest.importorskip("cryptography", reason="keys need cryptography")


def pem_and_name(folder: Path) -> tuple[bytes, str]:
    """As SuperLink has it, and as the device calls itself."""
    from cryptography.hazmat.primitives import serialization

    made = load_identity(folder)
    pem = made.key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return pem, made.device


@pytest.fixture
def known(tmp_path: Path) -> tuple[dict[Node, bytes], list[str]]:
    pairs = [pem_and_name(tmp_path / f"d{i}") for i in range(3)]
    return {10 + i: pem for i, (pem, _) in enumerate(pairs)}, [name for _, name in pairs]


def test_the_name_is_the_one_that_the_device_gives_itself(tmp_path: Path) -> None:
    pem, name = pem_and_name(tmp_path)
    assert name_of_pem(pem) == name
    encoded = b"".join(pem.splitlines()[1:-1])  # PEM is DER in base64 between two lines
    assert name == hashlib.sha256(base64.b64decode(encoded)).hexdigest()[:16]
    assert name_of_pem(b"") == name_of_pem(b"no key") == ""


def test_a_device_that_takes_others_names_silences_nobody_and_is_nobody(
    known: tuple[dict[Node, bytes], list[str]], tmp_path: Path
) -> None:
    keys, names = known
    fleet = FakeFleet({node: capabilities(name) for node, name in zip(keys, names, strict=True)})
    fleet.devices[12] = capabilities(names[0])
    run = run_of(tmp_path / "run", fleet, plan_of(rounds=2))
    run.fleet = KeyedFleet(fleet, lambda: keys)
    run.begin()
    for record in run.run():
        assert record.devices == tuple(sorted(names[:2]))
        assert record.refused == {
            "node 12": f"says it is '{names[0]}', by its key it is {names[2]}"
        }
    assert set(run.ratios) == set(names[:2])


def test_keys_are_asked_for_when_a_node_is_new(
    known: tuple[dict[Node, bytes], list[str]],
) -> None:
    keys, names = known
    asked: list[int] = []

    def online() -> Mapping[Node, bytes]:
        asked.append(len(fleet.devices))
        return {node: key for node, key in keys.items() if node in fleet.devices and node != 11}

    fleet = FakeFleet({10: capabilities(names[0])})
    keyed = KeyedFleet(fleet, online)
    assert keyed.query() == keyed.query() == [(10, fleet.devices[10])]
    assert asked == [1]
    fleet.devices[11] = capabilities(names[1])  # and went away at once
    fleet.devices[12] = RefusedUpdateError("speaks protocol 2")  # type: ignore[assignment]
    found: dict[Node, Capabilities | PenstockError] = dict(keyed.query())
    assert found[10] == fleet.devices[10] and found[12] is fleet.devices[12]
    assert "went away" in str(found[11])

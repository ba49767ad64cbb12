"""`penstock demo`, and that exact tells what dense tells."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Cli


@pytest.fixture(autouse=True)
def model(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the tests run on is the embedded model here."""
    monkeypatch.setattr("penstock.runtime.embedded.embedded_model", lambda: tiny_bundle)


def test_json(cli: Cli) -> None:
    result = cli("demo", "--max-tokens", "24", "--json")
    assert (result.code, result.err) == (0, "")
    document = result.json
    names = [run["name"] for run in document["runs"]]
    assert names == ["100% resident", "50% resident", "25% resident", "exact", "dense"]
    assert document["exact_equals_dense"] is True
    assert document["runs"][3]["text"] == document["runs"][4]["text"]
    read = [run["stats"]["per_token_bytes"] for run in document["runs"]]
    assert read[0] == read[4] == 0
    assert min(read[1:4]) > 0
    assert read[2] > read[1]  # less memory, more reading


def test_text_and_table(cli: Cli) -> None:
    result = cli("demo", "--max-tokens", "8", "--prompt", "The old king", "--memory", "48MiB")
    assert result.code == 0, result.err
    assert result.out.count("The old king") == 3
    for word in ("read per token", "hit rate", "time split", "tokens/s", "process peak"):
        assert word in result.out
    assert "the same text, to the last byte" in result.out


def test_an_installation_without_the_model(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr("penstock.runtime.embedded.files", lambda package: tmp_path)
    result = cli("demo", "--json")
    assert result.code == 1
    assert result.json["error"]["code"] == "StorageError"

"""`penstock chat`, with a stand-in for the model where the loop is what is tested."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from penstock.errors import StorageError
from tests.cli.conftest import Cli


class Parrot:
    """Answers with what it was told; 'fail' and 'interrupt' do so."""

    def __init__(self) -> None:
        self.heard: list[list[str]] = []
        self.resets = 0

    def chat(self, messages: Sequence[Mapping[str, str]], **_: object) -> Iterator[str]:
        self.heard.append([message["content"] for message in messages])
        said = messages[-1]["content"]
        yield said[:2]
        if said == "fail":
            raise StorageError("the disk is on fire")
        if said == "interrupt":
            raise KeyboardInterrupt
        yield said[2:].upper()

    def stats(self) -> str:
        return "statistics"

    def reset(self) -> None:
        self.resets += 1


@pytest.fixture
def parrot(monkeypatch: pytest.MonkeyPatch) -> Parrot:
    bird = Parrot()
    monkeypatch.setattr("penstock.runtime.load.load", lambda *args, **options: bird)
    return bird


def type_in(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))


def test_it_remembers(cli: Cli, parrot: Parrot, monkeypatch: pytest.MonkeyPatch) -> None:
    type_in(monkeypatch, "hello", "", "again")
    result = cli("chat", "x.gguf", "--system", "be brief")
    assert (result.code, result.out) == (0, "heLLO\nagAIN\n")
    assert parrot.heard == [["be brief", "hello"], ["be brief", "hello", "heLLO", "again"]]


def test_commands(cli: Cli, parrot: Parrot, monkeypatch: pytest.MonkeyPatch) -> None:
    type_in(monkeypatch, "hello", "/stats", "/reset", "/dance", "again", "/quit", "unheard")
    result = cli("chat", "x.gguf")
    assert result.code == 0
    assert parrot.heard == [["hello"], ["again"]]
    assert parrot.resets == 1
    assert "statistics" in result.err and "no /dance" in result.err


def test_a_failed_answer_is_forgotten_and_the_talk_goes_on(
    cli: Cli, parrot: Parrot, monkeypatch: pytest.MonkeyPatch
) -> None:
    type_in(monkeypatch, "fail", "hello")
    result = cli("chat", "x.gguf")
    assert result.code == 0
    assert "the disk is on fire" in result.err and "Traceback" not in result.err
    assert parrot.heard[-1] == ["hello"]


def test_an_interrupted_answer_is_kept_as_far_as_it_went(
    cli: Cli, parrot: Parrot, monkeypatch: pytest.MonkeyPatch
) -> None:
    type_in(monkeypatch, "interrupt", "hello")
    result = cli("chat", "x.gguf")
    assert (result.code, result.out) == (0, "in\nheLLO\n")
    assert parrot.heard[-1] == ["interrupt", "in", "hello"]


def test_with_a_model(process: Cli, tiny_bundle: Path) -> None:
    talk = "Tell me of the king.\nAnd then?\n/stats\n"
    result = process("chat", tiny_bundle, "--max-tokens", "8", "--seed", "1", stdin=talk)
    assert result.code == 0, result.err
    assert result.out.strip()
    assert "window hit rate" in result.err

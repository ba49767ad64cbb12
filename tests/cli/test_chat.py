"""`penstock chat`, with a stand-in for the model where the loop is what is tested."""

from __future__ import annotations

import io
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from penstock.errors import StorageError
from tests.cli.conftest import COMMAND, Cli


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


def read_until(terminal: int, wanted: bytes, seconds: float = 60.0) -> bytes:
    """What a terminal shows, up to and with `wanted`."""
    shown, end = b"", time.monotonic() + seconds
    while wanted not in shown:
        ready, _, _ = select.select([terminal], [], [], max(0.0, end - time.monotonic()))
        assert ready, f"no {wanted!r} in {shown!r}"
        shown += os.read(terminal, 4096)
    return shown


def test_at_a_terminal(tiny_bundle: Path) -> None:
    pty = pytest.importorskip("pty", reason="terminals of POSIX")
    ours, theirs = pty.openpty()
    args = [*COMMAND, "chat", str(tiny_bundle), "--max-tokens", "900", "--threads", "1"]
    child = subprocess.Popen(args, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    try:
        assert b"Ctrl-D ends" in read_until(ours, b"> ")
        os.write(ours, b"Tell me of the king.\n")
        read_until(ours, b"king.\r\n")
        read_until(ours, b" ")  # it answers
        child.send_signal(signal.SIGINT)
        read_until(ours, b"\r\n> ")
        os.write(ours, b"/reset\n")
        read_until(ours, b"forgotten.\r\n> ")
        os.write(ours, b"\x04")
        assert child.wait(timeout=60) == 0
    finally:
        child.kill()
        child.wait()
        os.close(ours)

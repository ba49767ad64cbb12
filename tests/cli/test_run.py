"""`penstock run`."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

import penstock
from tests.cli.conftest import Cli

PROMPT = "Once upon a time there was a king"
GREEDY = ("--temperature", "0", "--max-tokens", "12")


@pytest.fixture(scope="module")
def story(tiny_bundle: Path) -> str:
    """What the Python API says."""
    model = penstock.load(tiny_bundle)
    return "".join(model.generate(PROMPT, max_tokens=12, temperature=0.0))


def test_text_to_stdout_and_nothing_else(cli: Cli, tiny_bundle: Path, story: str) -> None:
    result = cli("run", tiny_bundle, PROMPT, *GREEDY)
    assert (result.code, result.out, result.err) == (0, story + "\n", "")


def test_statistics_to_stderr(cli: Cli, tiny_bundle: Path, story: str) -> None:
    result = cli("run", tiny_bundle, PROMPT, *GREEDY, "--stats")
    assert (result.code, result.out) == (0, story + "\n")
    assert "window hit rate" in result.err and "process peak" in result.err


def test_json(cli: Cli, tiny_bundle: Path, story: str) -> None:
    result = cli("run", tiny_bundle, PROMPT, *GREEDY, "--json")
    assert (result.code, result.err) == (0, "")
    document = result.json
    assert document["text"] == story and document["prompt"] == PROMPT
    assert document["finish_reason"] == "length"
    assert document["stats"]["generated"] == 12
    assert document["stats"]["peak_memory"] > 0


@pytest.mark.parametrize("argument", [["-"], []])
def test_prompt_from_stdin(
    cli: Cli, tiny_bundle: Path, story: str, argument: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(f"{PROMPT}\n".encode())))
    result = cli("run", tiny_bundle, *argument, *GREEDY)
    assert (result.code, result.out) == (0, story + "\n")


def test_no_prompt_at_a_terminal_is_wrong_usage(
    cli: Cli, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    result = cli("run", tiny_bundle)
    assert result.code == 2
    assert "PROMPT" in result.err


def test_a_seed_repeats_a_run(cli: Cli, tiny_bundle: Path) -> None:
    texts = [
        cli("run", tiny_bundle, PROMPT, "--seed", seed, "--max-tokens", "12").out
        for seed in ("5", "5", "6")
    ]
    assert texts[0] == texts[1] != texts[2]


def test_stop_ends_the_text(cli: Cli, tiny_bundle: Path, story: str) -> None:
    word = story.split()[-2]
    result = cli("run", tiny_bundle, PROMPT, *GREEDY, "--stop", word, "--json")
    assert result.json["text"] == story[: story.index(word)]
    assert result.json["finish_reason"] == "stop"


@pytest.mark.parametrize("mode", ["--exact", "--dense"])
def test_modes_and_shares(cli: Cli, tiny_bundle: Path, mode: str) -> None:
    result = cli("run", tiny_bundle, PROMPT, *GREEDY, "--ffn-resident", "70%", mode, "--json")
    assert result.code == 0
    assert result.json["mode"] == mode[2:]
    assert result.json["stats"]["read_bytes"] > 0


def test_too_small_a_budget_says_the_least(cli: Cli, tiny_bundle: Path) -> None:
    result = cli("run", tiny_bundle, PROMPT, "--memory", "1MiB", "--json")
    assert result.code == 1
    assert result.json["error"]["code"] == "BudgetError"
    assert result.json["error"]["least_bytes"] > 1 << 20


def test_a_budget_is_a_size(cli: Cli, tiny_bundle: Path) -> None:
    result = cli("run", tiny_bundle, PROMPT, "--memory", "lots")
    assert result.code == 2
    assert "512MiB" in result.err

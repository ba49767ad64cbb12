"""The policy of every command: exit codes, JSON, errors without tracebacks, help with examples."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
import typer
from typer.testing import CliRunner

import penstock
from penstock.cli.main import app
from tests.cli.conftest import Cli

COMMANDS = [
    "run", "chat", "serve", "caption", "plan", "probe", "inspect", "demo", "doctor", "bench replay",
    "export llm", "splat info", "splat compress", "splat render", "splat play", "splat view",
    "splat convert",
]  # fmt: skip


@pytest.mark.parametrize("command", ["", "export", "bench", "splat", *COMMANDS])
def test_help_ends_with_examples_to_paste(command: str) -> None:
    result = CliRunner().invoke(app, [*command.split(), "--help"])
    assert result.exit_code == 0
    usage, _, examples = result.stdout.partition("Examples:")
    assert usage.startswith(f"Usage: penstock {command}".rstrip())
    lines = [line.strip() for line in examples.strip().splitlines()]
    assert lines and all("penstock" in line for line in lines)
    assert "\\[" not in usage


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_explained(command: str) -> None:
    node = typer.main.get_command(app)
    for name in command.split():
        assert isinstance(node, click.Group)
        node = node.commands[name]
    for param in node.params:
        if isinstance(param, click.Option):
            assert param.help, f"{command}: {param.opts}"


@pytest.mark.parametrize("command", COMMANDS)
def test_examples_use_options_that_exist(command: str) -> None:
    text = CliRunner().invoke(app, [*command.split(), "--help"]).stdout
    usage, _, examples = text.partition("Examples:")
    known = set(re.findall(r"--[a-z-]+", usage))
    assert set(re.findall(r"--[a-z-]+", examples)) <= known


def test_version(cli: Cli) -> None:
    result = cli("--version")
    assert (result.code, result.out, result.err) == (0, f"penstock {penstock.__version__}\n", "")


def test_no_arguments_is_wrong_usage_and_shows_help(cli: Cli) -> None:
    result = cli()
    assert (result.code, result.out) == (2, "")
    assert "Commands:" in result.err


@pytest.mark.parametrize(
    "args",
    [
        ["frobnicate"],
        ["run"],
        ["run", "x.gguf", "text", "--frobnicate"],
        ["run", "x.gguf", "text", "--max-tokens", "0"],
        ["run", "x.gguf", "text", "--max-tokens", "many"],
        ["run", "x.gguf", "text", "--top-p", "3"],
        ["run", "x.gguf", "text", "--ffn-resident", "200%"],
        ["run", "x.gguf", "text", "--ffn-resident", "half"],
        ["run", "x.gguf", "text", "--exact", "--dense"],
        ["bench", "replay"],
        ["splat", "render", "scene.ply"],
        ["splat", "render", "scene.ply", "out.png", "--frames", "0"],
        ["splat", "render", "scene.ply", "out.png", "--footprint", "wide"],
        ["splat", "view", "scene.ply", "--footprint", "wide"],
        ["splat", "play", "scene.ply", "--fps", "0"],
        ["splat", "compress", "scene.ply", "out.psplat", "--keep", "200%"],
        ["splat", "compress", "scene.ply", "out.psplat", "--degree", "4"],
        ["bench", "replay", "run.trace", "--capacity", "many"],
        ["export", "llm", "here", "there", "--type", "Q2_K"],
        ["export", "llm", "here", "there", "--block", "100"],
        ["export", "llm", "here", "there", "--no-calibration", "--calibration", "x.txt"],
    ],
)
def test_wrong_usage(cli: Cli, args: list[str]) -> None:
    plain = cli(*args)
    assert (plain.code, plain.out) == (2, "")
    assert "Error: " in plain.err and "Traceback" not in plain.err
    machine = cli(*args, "--json")
    assert machine.code == 2
    assert machine.json["error"]["code"] == "UsageError"
    assert machine.json["error"]["message"]


def test_a_penstock_error_is_one_line_and_exit_1(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "page.gguf"
    path.write_text("<!doctype html>")
    result = cli("run", path, "text")
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("Error: ") and str(path) in result.err
    assert result.err.count("\n") == 1
    machine = cli("run", path, "text", "--json")
    assert machine.code == 1
    assert machine.json["error"]["code"] == "FormatError"
    assert f"Error: {machine.json['error']['message']}\n" == machine.err


def test_debug_adds_the_traceback(cli: Cli, tmp_path: Path) -> None:
    result = cli("run", tmp_path / "missing.gguf", "text", "--debug")
    assert result.code == 1
    assert "Traceback" in result.err and "Error: " in result.err


def test_a_fault_of_ours_asks_for_a_report(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise ZeroDivisionError("seven")

    monkeypatch.setattr("penstock.runtime.load.load", broken)
    result = cli("run", "x.gguf", "text", "--json")
    assert result.code == 1
    assert result.json["error"]["code"] == "InternalError"
    assert "ZeroDivisionError: seven" in result.err and "report" in result.err
    assert "Traceback" not in result.err


def test_an_interrupt_is_130(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("penstock.runtime.load.load", interrupted)
    result = cli("run", "x.gguf", "text", "--json")
    assert (result.code, result.json["error"]["code"]) == (130, "Interrupted")


def test_a_json_flag_after_the_double_dash_is_text(cli: Cli) -> None:
    result = cli("run", "missing.gguf", "--", "--json")
    assert (result.code, result.out) == (1, "")

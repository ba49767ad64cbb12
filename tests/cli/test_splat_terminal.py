"""`penstock splat play` in a terminal: pictures of characters, where it has the colours."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
from pathlib import Path

import pytest

from tests.cli.conftest import COMMAND
from tests.cli.splat_scenes import scene_files
from tests.conftest import ROOT

SMALL = ["--width", "64", "--height", "48", "--threads", "1"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return scene_files(tmp_path_factory.mktemp("splats"))


def in_terminal(
    line: list[str], environment: dict[str, str], interrupt_at: int | None = None
) -> tuple[str, bytes]:
    """What is shown on a terminal, and stderr. Ctrl-C comes after so many frames."""
    terminal, end = pty.openpty()
    kept = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLORTERM", "TERM")}
    child = subprocess.Popen(
        line, stdout=end, stderr=subprocess.PIPE, cwd=ROOT,
        env={**kept, "COLUMNS": "40", **environment},
    )  # fmt: skip
    os.close(end)
    shown = b""
    while True:
        try:
            data = os.read(terminal, 65536)
        except OSError:  # Linux says so when the other end is closed
            break
        if not data:
            break
        shown += data
        if interrupt_at is not None and shown.count(b"\x1b[H") > interrupt_at:
            child.send_signal(signal.SIGINT)
            interrupt_at = None
    os.close(terminal)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 0, err
    return shown.decode(), err


COLOURS = {"TERM": "xterm-256color", "COLORTERM": "truecolor"}


def test_pictures_in_a_terminal(files: dict[str, Path]) -> None:
    line = [*COMMAND, "splat", "play", str(files["moving"]), *SMALL, "--fast"]
    text, err = in_terminal(line, COLOURS)
    assert text.startswith("\x1b[?25l") and text.rstrip().endswith("\x1b[?25h")
    assert text.count("\x1b[H") == 20 and "\u2580" in text and "\x1b[38;2;" in text
    assert b"20 frames in" in err


@pytest.mark.parametrize(
    "environment",
    [{"TERM": "dumb"}, {"TERM": "xterm-256color"}, {**COLOURS, "NO_COLOR": "1"}],
    ids=["dumb", "256 colours", "no colours"],
)
def test_no_pictures_where_a_terminal_has_not_the_colours(
    files: dict[str, Path], environment: dict[str, str]
) -> None:
    line = [*COMMAND, "splat", "play", str(files["moving"]), *SMALL, "--fast"]
    text, err = in_terminal(line, environment)
    assert "38;2" not in text
    assert b"No pictures" in err and b"20 frames in" in err


def test_an_interrupt_ends_playing_with_its_figures(files: dict[str, Path]) -> None:
    line = [*COMMAND, "splat", "play", str(files["moving"]), *SMALL, "--loops", "1000"]
    text, err = in_terminal(line, COLOURS, interrupt_at=5)
    assert text.rstrip().endswith("\x1b[?25h")
    found = re.search(rb"(\d+) frames in", err)
    assert found is not None and 5 <= int(found[1]) < 2000 and b"ms to draw a frame" in err

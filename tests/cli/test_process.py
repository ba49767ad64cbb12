"""What only a process of its own can show: stdin, signals, closed pipes, exit codes, startup."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import COMMAND, Cli

PROMPT = "Once upon a time there was a king"


def test_prompt_through_a_pipe(process: Cli, tiny_bundle: Path) -> None:
    args = ("run", tiny_bundle, "--temperature", "0", "--max-tokens", "10", "--json")
    piped = process(*args, stdin=f"{PROMPT}\n")
    given = process(*args[:2], PROMPT, *args[2:])
    assert piped.code == given.code == 0
    assert piped.json["text"] == given.json["text"]
    assert piped.json["prompt"] == PROMPT


def test_stdin_that_is_no_text(tiny_bundle: Path) -> None:
    args = [*COMMAND, "run", str(tiny_bundle), "-", "--max-tokens", "4", "--json"]
    done = subprocess.run(args, input=b"caf\xe9 \xff", capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["prompt"] == "caf\ufffd \ufffd"


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_ctrl_c_is_130_without_a_traceback(tiny_bundle: Path) -> None:
    args = [*COMMAND, "run", str(tiny_bundle), PROMPT, "--max-tokens", "1000", "--threads", "1"]
    with subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.read(1)  # it is generating
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=60)
    assert child.returncode == 130
    assert err == b"Error: interrupted\n"


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_export_leaves_nothing(
    shared_dir: Path, tmp_path: Path, number: int, code: int
) -> None:
    source = shared_dir / "models" / "storyteller-start"
    options = ["--no-calibration", "--no-eval"]
    program = (
        "import sys, time, penstock.export.llm as llm, penstock.export.bundle_writer as writer\n"
        "from penstock.cli.main import main\n"
        "convert = llm._Clock.tick\n"
        "def slow(self, count):\n"
        "    convert(self, count)\n"
        "    print('busy', file=sys.stderr, flush=True)\n"
        "    time.sleep(0.1)\n"
        "llm._Clock.tick = slow\n"
        "sys.exit(main())\n"
    )
    args = ["export", "llm", str(source), str(tmp_path / "out.gguf"), *options]
    child = subprocess.Popen([sys.executable, "-c", program, *args], stderr=subprocess.PIPE)
    try:
        assert child.stderr is not None
        for _ in range(6):
            assert child.stderr.readline() == b"busy\n"
        assert list(tmp_path.iterdir()) != []
        child.send_signal(number)
        err = child.stderr.read()
        assert child.wait(timeout=60) == code
        assert b"Traceback" not in err
    finally:
        child.kill()
        child.wait()
        assert child.stderr is not None
        child.stderr.close()
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_leaves_early(tiny_bundle: Path) -> None:
    args = [*COMMAND, "run", str(tiny_bundle), PROMPT, "--max-tokens", "400"]
    with subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stderr is not None
        assert child.stdout.read(1)
        child.stdout.close()
        err = child.stderr.read()
        assert child.wait(timeout=60) == 0
    assert err == b""


def test_a_table_into_a_closed_pipe(tiny_bundle: Path) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    args = [*COMMAND, "inspect", str(tiny_bundle), "--tensors"]
    done = subprocess.run(args, stdout=write_end, stderr=subprocess.PIPE, timeout=60)
    os.close(write_end)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_terminal_that_knows_ascii_only(tiny_bundle: Path) -> None:
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    args = [*COMMAND, "plan", str(tiny_bundle)]
    done = subprocess.run(args, capture_output=True, env=env, timeout=60)
    assert done.returncode == 0, done.stderr
    assert b"together" in done.stdout


def test_the_installed_command(tiny_bundle: Path) -> None:
    command = Path(sys.executable).with_name("penstock")
    if not command.exists():
        pytest.skip("the console script is not beside this Python")
    done = subprocess.run(
        [str(command), "plan", str(tiny_bundle), "--memory", "1MiB"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: ") and "Traceback" not in done.stderr


def test_help_loads_no_engine_and_comes_quickly() -> None:
    code = (
        "import sys; from penstock.cli.main import main; main(['run', '--help']); "
        "sys.exit(str({'numpy', 'torch', 'tokenizers', 'penstock._native'} & set(sys.modules)))"
    )
    best = 9.0  # of the processor's seconds, since other tests run beside it
    for _ in range(3):
        before = os.times()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        after = os.times()
        spent = after.children_user + after.children_system
        best = min(best, spent - before.children_user - before.children_system)
        assert done.stderr.strip() == "set()"
    assert best < 1.5  # 0.2 s on an idle core

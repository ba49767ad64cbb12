"""`penstock serve`: the ready line, ports, keys, signals and exit codes."""

from __future__ import annotations

import builtins
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import COMMAND, Cli
from tests.runtime.server.processes import CHAT, COMPLETIONS, HOST, ServerProcess, model_server

ROOT = Path(__file__).resolve().parent.parent.parent
STOPS = [signal.SIGINT, signal.SIGTERM]


@pytest.fixture(scope="module")
def server(tiny_bundle: Path) -> Iterator[ServerProcess]:
    """One for the tests that pass no options and do not stop it."""
    with model_server(tiny_bundle, "--threads", "1") as running:
        yield running


@pytest.mark.parametrize("number", STOPS)
def test_ready_then_answers_then_ends_well(tiny_bundle: Path, number: signal.Signals) -> None:
    with model_server(tiny_bundle, "--threads", "1") as server:
        port = server.client.port
        assert server.first_line == f"Serving {tiny_bundle.stem} at http://{HOST}:{port}/v1\n"
        assert server.client.get("/health").status == 200  # at once, without a retry
        assert server.client.post(COMPLETIONS, {"prompt": "Once"}).status == 200
        assert server.stop(number) == 0
        assert server.errors == "Stopped.\n"


BUSY = """
import atexit, os, sys, threading
from penstock.cli import option_groups
from penstock.cli.main import main
from penstock.runtime.server import serve
from tests.runtime.server.scripted_model import ScriptedModel

serve.WORKER_SECONDS = 0.2
option_groups.Loading.load = lambda self, model: ScriptedModel()
atexit.register(os._exit, 139)  # what the end of libraries in use comes to
sys.exit(main(["serve", "busy.gguf", "--port", "0"]))
"""


def test_a_batch_that_goes_on_does_not_harm_the_end() -> None:
    with ServerProcess(["-c", BUSY], PYTHONPATH=str(ROOT)) as server:
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(server.client.post, COMPLETIONS, {"prompt": "count 1 30"})
            server.client.wait_for(lambda numbers: numbers["in_flight"] == 1)
            server.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            assert server.stop(signal.SIGTERM) == 0
            assert server.errors == "Stopped.\n"
            assert asked.exception() is not None


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_the_ready_line_as_json(tiny_bundle: Path, unbuffered: str) -> None:
    args = [*COMMAND, "serve", str(tiny_bundle), "--port", "0", "--json", "--context", "300"]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    child = subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    with child:  # which closes both before it has ended
        assert child.stdout is not None
        lines = [child.stdout.readline() for _ in range(5)]
        child.terminate()
    document = json.loads(b"".join(lines))
    assert document["model"] == tiny_bundle.stem and document["context_tokens"] == 300
    assert re.fullmatch(rf"http://{HOST}:\d+", document["url"])
    assert child.returncode == 0


def test_two_servers_on_a_port(process: Cli, tiny_bundle: Path, server: ServerProcess) -> None:
    begin, port = time.monotonic(), server.client.port
    second = process("serve", tiny_bundle, "--port", port)
    assert (second.code, second.out) == (1, "")
    assert second.err.count("\n") == 1
    assert f"{HOST}:{port}: Address already in use" in second.err
    assert "--port" in second.err
    assert time.monotonic() - begin < 30
    assert server.client.get("/health").status == 200


def test_a_port_is_free_again_at_once(tiny_bundle: Path) -> None:
    with model_server(tiny_bundle, "--threads", "1") as first:
        port = first.client.port
        assert first.client.post(COMPLETIONS, {"prompt": "Once"}).status == 200
    with model_server(tiny_bundle, "--threads", "1", "--port", str(port)) as again:
        assert again.client.port == port


def test_a_key_from_the_environment(tiny_bundle: Path) -> None:
    with model_server(tiny_bundle, "--threads", "1", PENSTOCK_API_KEY="sk-1") as server:
        assert server.client.post(COMPLETIONS, {"prompt": "Once"}).status == 200
        server.client.headers.clear()
        assert server.client.post(COMPLETIONS, {"prompt": "Once"}).status == 401


def test_limits_from_the_command_line(tiny_bundle: Path) -> None:
    options = ("--threads", "1", "--max-body", "2KiB", "--max-queue", "1")
    with model_server(tiny_bundle, *options) as server:
        messages = [{"role": "user", "content": "x" * 2048}]
        reply = server.client.post(CHAT, {"messages": messages})
        assert (reply.status, reply.error["code"]) == (413, "request_too_large")


def test_other_machines_need_a_key(
    cli: Cli, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PENSTOCK_API_KEY", raising=False)
    result = cli("serve", tiny_bundle, "--host", "0.0.0.0", "--port", 0, "--json")
    assert (result.code, result.json["error"]["code"]) == (2, "UsageError")
    assert "PENSTOCK_API_KEY" in result.err
    monkeypatch.setenv("PENSTOCK_API_KEY", "")
    assert cli("serve", tiny_bundle, "--host", "0.0.0.0", "--port", 0).code == 2


@pytest.mark.parametrize(
    "options", [("--port", "65536"), ("--max-queue", "0"), ("--max-body", "much"),
                ("--max-body", "50%"), ("--api-key", "two words")],
)  # fmt: skip
def test_wrong_usage(cli: Cli, tiny_bundle: Path, options: tuple[str, str]) -> None:
    assert cli("serve", tiny_bundle, *options).code == 2


def test_a_model_that_is_not_there(cli: Cli, tmp_path: Path) -> None:
    result = cli("serve", tmp_path / "missing.gguf", "--port", 0, "--json")
    assert result.code == 1
    assert result.json["error"]["code"] == "StorageError"


def test_without_the_extra(cli: Cli, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import_module = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] in ("starlette", "uvicorn"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return import_module(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    result = cli("serve", tiny_bundle, "--port", 0, "--json")
    assert (result.code, result.json["error"]["code"]) == (1, "BackendMissingError")
    assert "pip install 'penstock[serve]'" in result.err


def test_the_clients_example_runs_as_it_is_written(
    tiny_bundle: Path, server: ServerProcess
) -> None:
    page = (ROOT / "docs" / "server.md").read_text()
    (code,) = re.findall(r"```py\n(.*?)```", page, re.DOTALL)
    (curl,) = re.findall(r"-d '(.*?)'", page, re.DOTALL)
    assert "127.0.0.1:8080/v1" in code and 'model="model"' in code
    reply = server.client.post(CHAT, json.loads(curl))
    assert reply.json["choices"][0]["message"]["content"]
    code = code.replace(":8080", f":{server.client.port}")
    code = code.replace('"model"', f'"{tiny_bundle.stem}"')
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_the_page_names_every_metric(server: ServerProcess) -> None:
    page = (ROOT / "docs" / "server.md").read_text()
    text = server.client.get("/metrics").body.decode()
    served = set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))
    assert served == set(re.findall(r"^\| `(penstock_\w+)", page, re.MULTILINE))

"""A real bundle for the commands, and two ways to run them: in this process and in another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from penstock.errors import PenstockError

with warnings.catch_warnings():
    # Typer 0.20, which Flower holds us to, imports names that click 8.5 deprecates.
    warnings.simplefilter("ignore", DeprecationWarning)
    from penstock.cli.main import main

COMMAND = [sys.executable, "-m", "penstock.cli.main"]


@dataclass(frozen=True)
class Result:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """stdout, which must be one JSON document and nothing else."""
        return json.loads(self.out)


Cli = Callable[..., Result]


@pytest.fixture(autouse=True, scope="session")
def cache_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Profiles and stamps of these tests stay out of the person's own cache."""
    path = tmp_path_factory.mktemp("cache")
    os.environ["XDG_CACHE_HOME"] = str(path)
    return path


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """The embedded model; without one, the starting model as a bundle without predictors."""
    from penstock.runtime.embedded import embedded_model

    try:
        return embedded_model()
    except PenstockError:
        pass
    shared: Path = request.getfixturevalue("shared_dir")
    from penstock.export.llm import export_llm

    out = tmp_path_factory.mktemp("bundle") / "story.gguf"
    source = shared / "models" / "storyteller-start"
    export_llm(source, out, calibrate=False, evaluate=False)
    return out


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str]) -> Cli:
    """Run a command line in this process."""

    def run(*args: object) -> Result:
        capfd.readouterr()
        code = main([str(arg) for arg in args])
        return Result(code, *capfd.readouterr())

    return run


@pytest.fixture
def process() -> Cli:
    """Run a command line in a process of its own."""

    def run(*args: object, stdin: str = "") -> Result:
        done = subprocess.run(
            [*COMMAND, *map(str, args)], input=stdin, capture_output=True, text=True, timeout=120
        )
        return Result(done.returncode, done.stdout, done.stderr)

    return run

"""`penstock federated simulate`: what is wrong is said before Ray starts.

A whole simulation is in tests/federated/simulation/test_simulate.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.federated.report.records import JOURNAL, RoundRecord, append_record
from penstock.federated.simulation import simulate as simulation
from tests.cli.conftest import Cli

SETTINGS = """
[run]
folder = "run"
rounds = 2
[model]
name = "sensing-mlp"
input_shape = [5]
classes = 3
[simulation]
data = "windows.npz"
devices = 4
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(40, 5)).astype(np.float32)
    np.savez(tmp_path / "windows.npz", inputs=inputs, labels=np.arange(40) % 3)
    path = tmp_path / "simulation.toml"
    path.write_text(SETTINGS)
    return path


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--clients", "33"], 2, "take 16 devices at most"),
        (["--clients", "0"], 2, "--clients"),
        (["--partition", "by-user"], 2, "array `users`"),
        (["--partition", "zipf"], 2, "expected one of iid, dirichlet, by-user"),
        (["--alpha", "0"], 2, "simulation.alpha"),
        (["--rounds", "0"], 2, "--rounds"),
    ],
)
def test_wrong_usage(cli: Cli, config: Path, options: list[str], code: int, said: str) -> None:
    result = cli("federated", "simulate", "--config", config, *options)
    assert result.code == code and said in result.err
    assert not (config.parent / "run").exists()


def test_data_that_does_not_fit_the_model(cli: Cli, config: Path) -> None:
    config.write_text(SETTINGS.replace("classes = 3", "classes = 2"))
    result = cli("federated", "simulate", "--config", config, "--json")
    assert result.code == 1 and result.json["error"]["code"] == "RefusedUpdateError"
    assert "label 2" in result.json["error"]["message"]


def test_a_page_that_cannot_be_written_is_found_before_the_work(cli: Cli, config: Path) -> None:
    page = config.parent / "no" / "run.html"
    result = cli("federated", "simulate", "--config", config, "--html", page)
    assert result.code == 1 and "run.html: cannot be written" in result.err
    assert "virtual devices" not in result.err and not (config.parent / "run").exists()


def test_a_page_in_the_folder_that_the_run_is_about_to_make(
    cli: Cli, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = config.parent / "run"

    def played(*_: Any, **__: Any) -> None:
        folder.mkdir()
        append_record(folder / JOURNAL, RoundRecord("a" * 16, 1, 0, "fedavg", ("d",)))

    monkeypatch.setattr(simulation, "simulate", played)
    result = cli("federated", "simulate", "--config", config, "--html", folder / "page.html")
    assert result.code == 0, result.err
    assert (folder / "page.html").read_text().startswith("<!DOCTYPE html>")


def test_another_run_s_folder_stays_as_it_is(cli: Cli, config: Path) -> None:
    folder = config.parent / "run"
    folder.mkdir()
    (folder / "round-000001.safetensors").write_bytes(b"")
    (folder / "rounds.jsonl").write_text("")
    result = cli("federated", "simulate", "--config", config)
    assert result.code == 2 and "holds a run already" in result.err
    assert "Ray" not in result.err and len(list(folder.iterdir())) == 2


def test_a_missing_file_is_named(cli: Cli, config: Path) -> None:
    (config.parent / "windows.npz").unlink()
    result = cli("federated", "simulate", "--config", config)
    assert result.code == 1 and "windows.npz: cannot be read" in result.err
    result = cli("federated", "simulate", "--config", config.parent / "none.toml")
    assert result.code == 1 and "none.toml: cannot be read" in result.err


def test_exemplars_are_refused(cli: Cli, config: Path) -> None:
    config.write_text(SETTINGS + '[algorithm]\nname = "fedmobile"\nexemplars_per_class = 3\n')
    result = cli("federated", "simulate", "--config", config)
    assert result.code == 2 and "exemplars_per_class" in result.err

"""What would end a run is found before anything is started, and without torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from penstock.errors import FormatError, PenstockError, UsageError
from penstock.federated.server.checkpoint import Checkpoint, write_checkpoint
from penstock.federated.server.preflight import check_folder, check_settings_fit, open_to_others
from penstock.federated.server.settings import ServerSettings, read_settings

TEXT = """
[run]
folder = "run"
[algorithm]
{algorithm}
[model]
name = "sensing-mlp"
input_shape = [4]
classes = 2
[public]
file = "public.npz"
{public}
"""


def settings(folder: Path, algorithm: str = 'name = "fedavg"', public: str = "") -> ServerSettings:
    path = folder / "server.toml"
    path.write_text(TEXT.format(algorithm=algorithm, public=public))
    return read_settings(path)


def samples(folder: Path, features: int = 4, count: int = 20) -> None:
    inputs = np.zeros((count, features), np.float32)
    np.savez(folder / "public.npz", inputs=inputs, labels=np.arange(count) % 2)


def test_public_samples_that_are_not_there_or_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"public\.file: .*public\.npz: cannot be read"):
        check_settings_fit(settings(tmp_path))
    samples(tmp_path, features=5)
    with pytest.raises(UsageError, match=r"public\.file: .*shape \(4,\)"):
        check_settings_fit(settings(tmp_path))
    samples(tmp_path)
    check_settings_fit(settings(tmp_path))
    with pytest.raises(UsageError, match="one of the parts is empty"):
        check_settings_fit(settings(tmp_path, public="hold_out = 0.01"))
    samples(tmp_path, count=6)
    with pytest.raises(UsageError, match="training set has 1 samples"):
        check_settings_fit(settings(tmp_path, public="hold_out = 0.7\ntune_epochs = 1"))


@pytest.mark.parametrize(
    ("algorithm", "words"),
    [
        ('name = "fedavg"\nmomentum = 1', "fedavg has no settings"),
        ('name = "fedconv"\nepochs = 3', "fedconv has no such setting"),
        ('name = "fedmobile"\ntau = 1', "no setting 'tau'"),
    ],
)
def test_settings_of_an_algorithm(algorithm: str, words: str, tmp_path: Path) -> None:
    samples(tmp_path)
    with pytest.raises(PenstockError) as raised:
        check_settings_fit(settings(tmp_path, algorithm))
    assert words in str(raised.value)


def test_a_folder_that_holds_another_run(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    mine = settings(tmp_path)
    folder = tmp_path / "run"
    check_folder(mine, resume=False)
    check_folder(mine, resume=True)
    folder.mkdir()
    held = Checkpoint("ab", 3, "fedavg", mine.model.to_json(), mine.run.seed, state={})
    write_checkpoint(folder, held)
    check_folder(mine, resume=True)
    with pytest.raises(UsageError, match="holds a run already; go on with it by --resume"):
        check_folder(mine, resume=False)
    for other, words in (
        (replace(mine, algorithm="heterofl"), "has algorithm fedavg, the settings say heterofl"),
        (replace(mine, run=replace(mine.run, seed=9)), "has seed 1, the settings say 9"),
        (replace(mine, model=replace(mine.model, classes=3)), "has model"),
    ):
        with pytest.raises(UsageError, match=words):
            check_folder(other, resume=True)
    write_checkpoint(folder, replace(held, ledger="{}"))
    with pytest.raises(UsageError, match="has differential privacy with, the settings say without"):
        check_folder(mine, resume=True)
    write_checkpoint(folder, held)
    tuned = replace(mine, public=replace(mine.public, tune_epochs=2))
    with pytest.raises(UsageError, match=r"the settings say fedavg \+ public fine-tuning"):
        check_folder(tuned, resume=True)
    write_checkpoint(folder, replace(held, algorithm="fedavg + public fine-tuning"))
    check_folder(tuned, resume=True)
    (folder / "round-000003.safetensors").write_bytes(b"torn")
    with pytest.raises(FormatError, match="all 1 checkpoints are damaged"):
        check_folder(mine, resume=True)


@pytest.mark.parametrize(
    ("host", "others"),
    [
        ("127.0.0.1", False), ("127.5.0.1", False), ("::1", False), ("localhost", False),
        ("0.0.0.0", True), ("::", True), ("10.0.0.5", True), ("fl.example.org", True),
    ],
)  # fmt: skip
def test_addresses_that_others_reach(host: str, others: bool) -> None:
    assert open_to_others(host) is others

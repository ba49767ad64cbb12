"""From a settings file to a run that trains: public samples, every algorithm, the score."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from penstock.errors import FormatError, PenstockError, StorageError, UsageError
from penstock.federated.arrays import digest
from penstock.federated.fedconv.fedconv import FedConv
from penstock.federated.models import ModelOptions
from penstock.federated.public_tuning import PublicTuning
from penstock.federated.report.records import CHUNK_F1
from penstock.federated.server import build
from penstock.federated.server.build import build_run, initial_model, score_on
from penstock.federated.server.preflight import check_folder
from penstock.federated.server.public_set import read_public_set, split_public_set
from penstock.federated.server.settings import read_settings
from penstock.federated.training.data import TrainingData
from tests.federated.server.fake_fleet import MODEL, fleet_of

pytest.importorskip("torch")
TEXT = """
[run]
folder = "run"
rounds = 2
[algorithm]
{algorithm}
[model]
name = "sensing-mlp"
input_shape = [11]
classes = 6
widths = [9, 4]
[devices]
ratios = [[1.0, {full}], [0.5, {half}]]
[public]
file = "public.npz"
{public}
"""


def write(folder: Path, algorithm: str, public: str = "", full: float = 0.5) -> Path:
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 6
    inputs = rng.normal(0, 1, (60, 11)) + labels[:, None]
    np.savez(folder / "public.npz", inputs=inputs.astype(np.float32), labels=labels)
    path = folder / "server.toml"
    path.write_text(TEXT.format(algorithm=algorithm, public=public, full=full, half=1 - full))
    return path


@pytest.mark.parametrize(
    ("algorithm", "public", "full"),
    [
        ('name = "fedavg"', "", 1.0),
        ('name = "heterofl"', "tune_epochs = 1", 0.5),
        ('name = "fedrolex"', "", 0.5),
        ('name = "fedmobile"\nthreshold = 0.9', "", 0.5),
        ('name = "fedconv"\nserver_epochs = 1\nfilter_epochs = 1', "", 0.5),
    ],
)
def test_every_algorithm_runs_and_resumes(
    algorithm: str, public: str, full: float, tmp_path: Path
) -> None:
    settings = read_settings(write(tmp_path, algorithm, public, full))
    fleet = fleet_of(4)
    run = build_run(settings, fleet, lambda text: None)
    run.begin()
    records = run.run()
    assert [len(record.devices) for record in records] == [4, 4]
    assert all(0 <= record.global_accuracy <= 1 for record in records)
    assert all(record.figures["test_loss"] > 0 for record in records)
    assert {task.algorithm for _, task, _ in fleet.tasks} == {settings.algorithm}
    check_folder(settings, resume=True)  # says the same as the run, but before anything starts
    again = build_run(settings, fleet, lambda text: None)
    again.resume()
    assert digest(again.algorithm.arrays) == digest(run.algorithm.arrays)


@pytest.mark.parametrize(
    ("algorithm", "words"),
    [
        ('name = "fedavg"\nmomentum = 1', "algorithm.momentum: fedavg has no settings"),
        ('name = "fedconv"\nepochs = 3', "algorithm.epochs: fedconv has no such setting"),
        ('name = "fedconv"\nstart = "zero"', "algorithm.start is 'zero'"),
        ('name = "fedmobile"\ntau = 1', "no setting 'tau'"),
    ],
)
def test_unknown_settings_of_an_algorithm_are_refused(
    algorithm: str, words: str, tmp_path: Path
) -> None:
    settings = read_settings(write(tmp_path, algorithm, full=1.0))
    with pytest.raises(PenstockError, match="algorithm|fedmobile") as raised:
        build_run(settings, fleet_of(2))
    assert words in str(raised.value)


def test_a_missing_public_file_is_of_the_settings_and_not_tried_again(tmp_path: Path) -> None:
    settings = read_settings(write(tmp_path, 'name = "fedavg"', full=1.0))
    (tmp_path / "public.npz").unlink()
    with pytest.raises(UsageError, match=r"public\.file: .*cannot be read"):
        build_run(settings, fleet_of(2))


def test_the_initial_model_depends_on_the_seed_only() -> None:
    import torch

    torch.manual_seed(99)
    state = torch.get_rng_state()
    one = initial_model(MODEL, 5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert digest(initial_model(MODEL, 5)) == digest(one) != digest(initial_model(MODEL, 6))


def test_the_public_set_is_split_once_and_for_all(tmp_path: Path) -> None:
    write(tmp_path, "")
    data = read_public_set(tmp_path / "public.npz", MODEL)
    train, held, test = split_public_set(data, 0.25, 3)
    assert (len(train), len(held), len(test)) == (45, 15, 0)
    rows = {row.tobytes() for row in train.inputs} | {row.tobytes() for row in held.inputs}
    assert len(rows) == 60
    again = split_public_set(data, 0.25, 3)
    np.testing.assert_array_equal(again[1].inputs, held.inputs)
    with pytest.raises(UsageError, match="one of the parts is empty"):
        split_public_set(data, 0.001, 3)
    three = split_public_set(data, 0.25, 3, test=0.2)
    assert [len(part) for part in three] == [33, 15, 12]
    np.testing.assert_array_equal(three[1].inputs, held.inputs)
    assert len({row.tobytes() for part in three for row in part.inputs}) == 60
    with pytest.raises(UsageError, match="public.test 0.8 of 60 samples: one of the parts"):
        split_public_set(data, 0.25, 3, test=0.8)


@pytest.mark.parametrize(
    ("algorithm", "public", "sizes"),
    [
        ('name = "fedavg"', "", None),
        ('name = "fedavg"', "tune_epochs = 1", (30, 18, 12)),
        ('name = "fedconv"\nfilter_epochs = 1', "test = 0.3", (24, 18, 18)),
        ('name = "fedconv"\nfilter_epochs = 1', "test = 0", (42, 18, 0)),
    ],
)
def test_what_the_algorithm_chooses_by_does_not_measure(
    algorithm: str,
    public: str,
    sizes: tuple[int, int, int] | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scored: list[TrainingData] = []
    monkeypatch.setattr(build, "score_on", lambda test, model: scored.append(test))
    settings = read_settings(write(tmp_path, algorithm, public, 1.0))
    run = build_run(settings, fleet_of(2))
    if sizes is None:  # nothing chooses: the hold-out measures
        assert [len(test) for test in scored] == [18]
        return
    assert isinstance(run.algorithm, (FedConv, PublicTuning))
    parts = [run.algorithm.trainer._train[0].numpy(), run.algorithm.trainer._held[0].numpy()]
    assert tuple(map(len, parts)) == sizes[:2]
    assert [len(test) for test in scored] == ([sizes[2]] if sizes[2] else [])
    seen = {row.tobytes() for part in parts for row in part}
    assert not seen & {row.tobytes() for test in scored for row in test.inputs}


def test_the_score_tells_of_each_chunk_up_to_now() -> None:
    rng = np.random.default_rng(0)
    test = TrainingData(rng.normal(size=(30, 11)).astype(np.float32), np.arange(30) % 6)
    chunks = np.arange(30) % 3
    arrays = initial_model(MODEL, 1)
    score = score_on(test, MODEL, chunks)
    assert set(score(arrays, 0).figures) == {"test_loss", f"{CHUNK_F1}0"}
    found = score(arrays, 1)
    own = score_on(test.subset(np.flatnonzero(chunks == 1)), MODEL)(arrays, 1)
    assert found.figures[f"{CHUNK_F1}1"] == own.macro_f1
    assert found.accuracy == score_on(test, MODEL)(arrays, 1).accuracy
    assert set(score_on(test, MODEL, np.zeros(30, np.int64))(arrays, 0).figures) == {"test_loss"}


def test_bad_public_sets_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.npz"
    good = np.zeros((4, 11), np.float32)
    cases: list[tuple[dict[str, object], type[PenstockError], str]] = [
        ({"inputs": good}, FormatError, "lacks 'labels'"),
        ({"inputs": good, "labels": np.array([0, 1, 2, 6])}, PenstockError, "label 6"),
        ({"inputs": good, "labels": np.array([0, 1, 2, -1])}, UsageError, "have no label"),
        ({"inputs": good[:3], "labels": np.arange(4)}, UsageError, "3 inputs but 4 labels"),
        ({"inputs": good[:, :9], "labels": np.arange(4)}, PenstockError, "shape"),
        ({"inputs": good * np.nan, "labels": np.arange(4)}, UsageError, "finite"),
        ({"inputs": good, "labels": np.ones(4)}, FormatError, "whole numbers"),
        ({"inputs": good, "labels": np.array([{}] * 4)}, FormatError, "not an npz"),
    ]
    for arrays, kind, words in cases:
        np.savez(path, **arrays)  # type: ignore[arg-type]
        with pytest.raises(kind) as raised:
            read_public_set(path, ModelOptions("sensing-mlp", (11,), 6))
        assert words in str(raised.value)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(FormatError, match="not an npz"):
        read_public_set(path, MODEL)
    with pytest.raises(StorageError, match="cannot be read"):
        read_public_set(tmp_path / "nowhere.npz", MODEL)

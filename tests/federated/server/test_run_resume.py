"""A run that was cut off goes on as if nothing had been, or says why it cannot."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from penstock.errors import StorageError, UsageError
from penstock.federated.algorithm import Algorithm, FedAvg
from penstock.federated.arrays import Arrays, digest
from penstock.federated.protocol import TrainResult, TrainTask
from penstock.federated.report.records import JOURNAL, read_records
from penstock.federated.server import run as run_module
from penstock.federated.server.fleet import Answer
from tests.federated.server.fake_fleet import (
    KINDS,
    capabilities,
    finished,
    fleet_of,
    plan_of,
    run_of,
    same_records,
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("crash_in", [1, 3])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_by_bit(
    kind: type[Algorithm], crash_in: int, tmp_path: Path
) -> None:
    whole = finished(tmp_path / "whole", kind=kind)
    fleet = fleet_of(5)

    class KilledError(BaseException):
        """As SIGKILL: nothing after it runs."""

    def die(task: TrainTask, result: TrainResult, arrays: Arrays) -> Answer:
        raise KilledError

    fleet.behaviours[("d2", crash_in)] = die
    cut = run_of(tmp_path / "cut", fleet, kind=kind)
    cut.begin()
    with pytest.raises(KilledError):
        cut.run()
    fleet.behaviours.clear()
    resumed = run_of(tmp_path / "cut", fleet, kind=kind)
    resumed.resume()
    resumed.run()
    assert resumed.run_id == cut.run_id
    assert digest(resumed.algorithm.arrays) == digest(whole.algorithm.arrays)
    same_records(resumed, whole)


def test_a_crash_in_the_evaluation_keeps_the_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(BaseException):
        """As SIGKILL: nothing after it runs."""

    def die(*_: Any) -> Any:
        raise KilledError

    plan = plan_of(rounds=2, evaluate_every=1)
    run = run_of(tmp_path, plan=plan)
    monkeypatch.setattr(run, "_evaluate", die)
    run.begin()
    with pytest.raises(KilledError):
        run.run()
    fleet = fleet_of(5)
    again = run_of(tmp_path, fleet, plan)
    again.resume()
    assert digest(again.algorithm.arrays) == digest(run.algorithm.arrays)
    assert [record.accuracy for record in again.run()] == [-1.0, 0.5]
    assert {task.round_number for _, task, kind in fleet.tasks if kind == "train"} == {2}
    assert read_records(tmp_path / JOURNAL) == tuple(again.records)


def test_a_record_that_a_crash_kept_from_the_journal_comes_from_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(tmp_path)
    run.begin()

    def full(path: Path, record: object) -> None:
        raise StorageError(f"{path}: no space left")

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "append_record", full)
        with pytest.raises(StorageError, match="no space"):
            run.run()
    again = run_of(tmp_path)
    again.resume()
    again.run()
    records = read_records(tmp_path / JOURNAL)
    assert [record.round_number for record in records] == [1, 2, 3, 4]
    assert again.records == list(records)


def test_a_folder_with_a_run_is_not_begun_again(tmp_path: Path) -> None:
    finished(tmp_path)
    with pytest.raises(UsageError, match="--resume"):
        run_of(tmp_path).begin()


def test_resuming_nothing_begins(tmp_path: Path) -> None:
    notes: list[str] = []
    run = run_of(tmp_path / "new", notes=notes)
    run.resume()
    assert "nothing to resume" in notes[0]
    assert len(run.run()) == 4


def test_another_algorithm_model_or_seed_is_not_resumed(tmp_path: Path) -> None:
    finished(tmp_path)
    with pytest.raises(UsageError, match="algorithm fedrolex"):
        run_of(tmp_path, kind=FedAvg).resume()
    with pytest.raises(UsageError, match="seed 7"):
        run_of(tmp_path, plan=plan_of(seed=8)).resume()
    wider = replace(plan_of(), model=replace(plan_of().model, widths=(9, 5)))
    with pytest.raises(UsageError, match="model"):
        run_of(tmp_path, plan=wider).resume()


def test_a_damaged_newest_checkpoint_falls_back_to_the_round_before(tmp_path: Path) -> None:
    run = finished(tmp_path)
    newest = tmp_path / "round-000004.safetensors"
    data = bytearray(newest.read_bytes())
    data[-5] ^= 0x40
    newest.write_bytes(data)
    notes: list[str] = []
    again = run_of(tmp_path, notes=notes)
    again.resume()
    assert again.algorithm.round_number == 3
    assert "round-000004" in notes[0] and "damaged" in notes[0]
    again.run()
    assert digest(again.algorithm.arrays) == digest(run.algorithm.arrays)
    assert [r.round_number for r in read_records(tmp_path / JOURNAL)] == [1, 2, 3, 4]
    assert len(again.records) == 4


def test_devices_keep_their_ratio_over_a_resume(tmp_path: Path) -> None:
    first = finished(tmp_path, plan=plan_of(rounds=2))
    fleet = fleet_of(8)
    again = run_of(tmp_path, fleet, plan_of(rounds=3))
    again.resume()
    again.run()
    assert {d: again.ratios[d] for d in first.ratios} == first.ratios
    assert len(again.ratios) == 8


def test_devices_that_were_away_for_long_are_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "FORGET_ROUNDS", 2)
    mix = ((1.0, 0.5), (0.5, 0.5))
    finished(tmp_path, fleet=fleet_of(2), plan=plan_of(rounds=1, ratios=mix))
    fleet = fleet_of(4)
    del fleet.devices[100], fleet.devices[101]
    again = run_of(tmp_path, fleet, plan_of(rounds=3, ratios=mix))
    again.resume()
    again.run()
    assert set(again.ratios) == set(again.seen) == {"d0", "d1", "d2", "d3"}
    fleet.devices[104] = capabilities("d4")
    last = run_of(tmp_path, fleet, plan_of(rounds=4, ratios=mix))
    last.resume()
    last.run()
    assert last.seen == {"d2": 4, "d3": 4, "d4": 4}
    assert last.ratios["d4"] == 1.0  # d0, of that width, is not counted any more

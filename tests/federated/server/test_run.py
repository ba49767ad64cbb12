"""A run: who takes part, what is counted, what is kept, and that a crash changes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.errors import RefusedUpdateError
from penstock.federated.algorithm import Algorithm, FedAvg, HeteroFL
from penstock.federated.arrays import Arrays, digest
from penstock.federated.protocol import TrainResult, TrainTask
from penstock.federated.report.records import JOURNAL, read_records
from penstock.federated.server import run as run_module
from penstock.federated.server.checkpoint import read_newest
from penstock.federated.server.fleet import Answer, Kind, Node, Request
from penstock.federated.server.run import GlobalScore
from tests.federated.server.fake_fleet import (
    KINDS,
    Behaviour,
    algorithm_of,
    capabilities,
    finished,
    fleet_of,
    plan_of,
    refuse,
    run_of,
    same_records,
)


@pytest.mark.parametrize("kind", KINDS)
def test_the_global_model_is_the_mean_of_what_came_back(
    kind: type[Algorithm], tmp_path: Path
) -> None:
    run = finished(tmp_path, kind=kind)
    assert run.algorithm.round_number == 4
    assert digest(run.algorithm.arrays) != digest(algorithm_of(kind).arrays)
    record = run.records[-1]
    assert record.devices == ("d0", "d1", "d2", "d3", "d4")
    assert record.refused == {}
    assert record.loss == pytest.approx(0.5)
    assert record.examples == sum(10 + n for n in _extra_examples(record.devices))
    assert all(record.bytes_up[d] == record.bytes_down[d] > 0 for d in record.devices)
    held = dict.fromkeys(run.ratios, 1.0) if kind is FedAvg else run.ratios
    assert record.ratios == held
    assert read_records(tmp_path / JOURNAL) == tuple(run.records)


def _extra_examples(devices: tuple[str, ...]) -> list[int]:
    import zlib

    return [zlib.crc32(device.encode()) % 7 for device in devices]


def test_a_run_of_one_full_width_device_follows_it_exactly(tmp_path: Path) -> None:
    fleet, plan = fleet_of(1), plan_of(rounds=1, ratios=((1.0, 1.0),))
    run = finished(tmp_path, fleet=fleet, plan=plan, kind=HeteroFL)
    from tests.federated.server.fake_fleet import trained_by

    [(device, task, _)] = fleet.tasks
    _, expected = trained_by(device, task, algorithm_of().arrays)
    for name, array in run.algorithm.arrays.items():
        np.testing.assert_array_equal(array, expected[name])


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_nodes_and_answers_does_not_matter(
    kind: type[Algorithm], tmp_path: Path
) -> None:
    forwards = finished(tmp_path / "a", kind=kind)
    fleet = fleet_of(5)
    fleet.backwards = True
    fleet.devices = {200 - node: able for node, able in fleet.devices.items()}
    backwards = finished(tmp_path / "b", fleet=fleet, kind=kind)
    assert digest(forwards.algorithm.arrays) == digest(backwards.algorithm.arrays)
    same_records(forwards, backwards)


def test_a_device_that_fails_changes_nothing_but_its_own_part(tmp_path: Path) -> None:
    plan = plan_of(rounds=1)
    silent, absent = fleet_of(5), fleet_of(5)
    silent.behaviours[("d3", 1)] = lambda *_: None
    absent.behaviours[("d3", 1)] = refuse("connection lost")
    one = finished(tmp_path / "a", fleet=silent, plan=plan)
    other = finished(tmp_path / "b", fleet=absent, plan=plan)
    assert digest(one.algorithm.arrays) == digest(other.algorithm.arrays)
    assert one.records[0].refused == {"d3": "no answer within 600 s"}
    assert other.records[0].refused == {"d3": "connection lost"}
    assert "d3" not in one.records[0].devices


def _spoil(name: str) -> Behaviour:
    def behave(task: TrainTask, result: TrainResult, arrays: Arrays) -> Answer | None:
        arrays = dict(arrays)
        first = next(iter(arrays))
        if name == "nan":
            arrays[first] = np.full_like(arrays[first], np.nan)
        elif name == "shape":
            arrays[first] = arrays[first][:1]
        elif name == "type":
            arrays[first] = arrays[first].astype(np.float64)
        elif name == "missing":
            del arrays[first]
        elif name == "foreign":
            arrays["backdoor"] = arrays[first]
        elif name == "corrupt":
            arrays[first] = arrays[first] + np.float32(0.5)
            return result, arrays
        elif name == "none":
            return result, None
        else:
            changes: dict[str, dict[str, Any]] = {
                "round": {"round_number": task.round_number - 1},
                "run": {"run": "0123456789abcdef"},
                "device": {"device": "d1"},
                "claims": {"examples": 10**9},
                "nothing": {"examples": 0},
                "labels": {"labelled": 10**12},
                "guesses": {"labelled": 3, "confident": result.examples},
                "chatter": {"refused": "x" * 60_000},
                "refuses": {"refused": "battery at 4 %"},
                "steers": {"refused": "\x1b[2Jbattery\nat 4 %"},
                "unsigned": {"sha256": ""},
            }
            return replace(result, **changes[name]), arrays
        return replace(result, sha256=digest(arrays)), arrays

    return behave


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nan", "expected a finite number"),
        ("shape", "expected (9, 11)"),
        ("type", "expected float32"),
        ("missing", "other arrays than asked"),
        ("foreign", "backdoor"),
        ("corrupt", "damaged on the way"),
        ("none", "holds no arrays"),
        ("round", "answers for round 1, this is round 2"),
        ("run", "answers for run '0123456789abcdef'"),
        ("device", "answers as device 'd1'"),
        ("claims", "1000000000 examples"),
        ("nothing", "0 examples"),
        ("labels", "1000000000000 have a label"),
        ("guesses", "3 have a label and it was sure of"),
        ("chatter", "the device refused: xxx"),
        ("refuses", "the device refused: battery at 4 %"),
        ("steers", "the device refused: [2Jbattery at 4 %"),
        ("unsigned", "the device said none"),
    ],
)
def test_a_bad_answer_is_refused_and_recorded_and_the_rest_goes_on(
    name: str, words: str, tmp_path: Path
) -> None:
    fleet, without = fleet_of(4), fleet_of(4)
    plan = plan_of(rounds=3, ratios=((1.0, 1.0),))
    fleet.behaviours[("d0", 2)] = _spoil(name)
    without.behaviours[("d0", 2)] = lambda *_: None
    run = finished(tmp_path / "bad", fleet=fleet, plan=plan)
    clean = finished(tmp_path / "clean", fleet=without, plan=plan)
    assert words in run.records[1].refused["d0"]
    assert len(run.records[1].refused["d0"]) <= 500
    assert run.records[1].devices == ("d1", "d2", "d3")
    assert run.records[2].devices == ("d0", "d1", "d2", "d3")
    assert digest(run.algorithm.arrays) == digest(clean.algorithm.arrays)


def test_answers_of_nobody_that_was_asked_are_recorded_and_not_counted(tmp_path: Path) -> None:
    fleet = fleet_of(2)
    fleet.strangers[999] = RefusedUpdateError("hello")
    run = finished(tmp_path / "a", fleet=fleet)
    clean = finished(tmp_path / "b", fleet=fleet_of(2))
    assert run.records[0].refused == {"node 999": "answered without having been asked"}
    assert digest(run.algorithm.arrays) == digest(clean.algorithm.arrays)


def test_a_round_without_any_update_keeps_the_model_and_the_run_goes_on(tmp_path: Path) -> None:
    fleet = fleet_of(3)
    for device in ("d0", "d1", "d2"):
        fleet.behaviours[(device, 1)] = refuse("offline")
    run = finished(tmp_path, fleet=fleet, plan=plan_of(rounds=1))
    assert digest(run.algorithm.arrays) == digest(algorithm_of().arrays)
    assert run.records[0].devices == () and run.records[0].loss == -1.0


def test_who_is_not_ready_sits_out_with_the_reason(tmp_path: Path) -> None:
    fleet = fleet_of(2)
    fleet.devices |= {
        1: capabilities("low", ready=False, reason="battery at 12 %"),
        2: capabilities("empty", labelled=0),
        3: capabilities("other", input_shape="[9, 128]"),
        4: capabilities("many", labels='["a","b","c","d","e","f","g"]'),
        5: capabilities("broken", labels="["),
        6: capabilities("twin"),
        7: capabilities("twin"),
        8: capabilities("twin"),
        10: capabilities("chatter", ready=False, reason="x" * 60_000),
        11: capabilities("steers", ready=False, reason="\x1b[2Jon\nbattery\u202e"),
        12: RefusedUpdateError("its app failed: \x1b]0;owned\x07"),  # type: ignore[dict-item]
        9: RefusedUpdateError("speaks protocol 2"),  # type: ignore[dict-item]
    }
    run = finished(tmp_path, fleet=fleet, plan=plan_of(rounds=1))
    record = run.records[0]
    assert record.devices == ("d0", "d1")
    assert record.refused == {
        "low": "battery at 12 %",
        "empty": "holds no samples; add some with `penstock federated ingest`",
        "other": "its data has shape [9, 128], the model takes [11]",
        "many": "its data has 7 labels, the model has 6 classes",
        "broken": "input_shape and labels are not JSON lists",
        "twin": "two nodes answer as this device; each device needs a key of its own",
        "node 9": "speaks protocol 2",
        "steers": "[2Jon battery",
        "node 12": "its app failed: ]0;owned",
        "chatter": "x" * 500,
    }


def test_too_few_devices_end_the_run_with_their_reasons_and_it_can_be_resumed(
    tmp_path: Path,
) -> None:
    fleet, notes = fleet_of(2), list[str]()
    fleet.devices[101] = capabilities("d1", ready=False, reason="on battery")
    run = run_of(tmp_path, fleet, plan_of(least=2), notes=notes)
    run.begin()
    with pytest.raises(RefusedUpdateError, match="d1: on battery"):
        run.run()
    fleet.devices[101] = capabilities("d1")
    again = run_of(tmp_path, fleet, plan_of(least=2))
    again.resume()
    assert [record.round_number for record in again.run()] == [1, 2, 3, 4]


def test_the_server_waits_for_devices(tmp_path: Path) -> None:
    fleet, notes = fleet_of(1), list[str]()
    run = run_of(tmp_path, fleet, plan_of(rounds=1, least=2, wait_s=60.0), notes=notes)

    def arrive(seconds: float) -> None:
        assert seconds > 0
        if fleet.queries == 3:
            fleet.devices[300] = capabilities("late")

    run.sleep = arrive
    run.begin()
    assert run.run()[0].devices == ("d0", "late")
    assert fleet.queries == 4
    assert notes == ["1 of 2 devices are ready (d0); waiting"]


def test_who_is_waited_for_is_told_again_when_it_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the first look no device has joined yet, least of all one that fits nothing."""
    monkeypatch.setattr(run_module, "TELL_S", 0.0)
    fleet, notes = fleet_of(0), list[str]()
    run = run_of(tmp_path, fleet, plan_of(rounds=1, least=7, wait_s=60.0), notes=notes)

    def arrive(seconds: float) -> None:
        if fleet.queries == 2:
            fleet.devices = fleet_of(6).devices
            for node in range(7):
                fleet.devices[node] = capabilities(f"w{node}", input_shape="[3]")
        elif fleet.queries == 4:
            fleet.devices[200] = capabilities("late")

    run.sleep = arrive
    run.begin()
    run.run()
    why = "its data has shape [3], the model takes [11]"
    named = "; ".join(f"w{node}: {why}" for node in range(5))
    assert notes == [
        "0 of 7 devices are ready; waiting",
        f"6 of 7 devices are ready (d0, d1, d2, d3, d4, and 1 more); waiting; {named}; and 2 more",
    ]


def test_it_is_not_told_again_at_once(tmp_path: Path) -> None:
    """A reason may hold a measured number, which is another at each look."""
    fleet, notes = fleet_of(0), list[str]()
    run = run_of(tmp_path, fleet, plan_of(rounds=1, wait_s=60.0), notes=notes)

    def on(seconds: float) -> None:
        load = f"load {fleet.queries}"
        fleet.devices[1] = capabilities("d1", ready=fleet.queries == 9, reason=load)

    run.sleep = on
    run.begin()
    run.run()
    assert notes == ["0 of 1 devices are ready; waiting"]


def test_an_evaluation_is_one_note_however_many_devices_refuse(tmp_path: Path) -> None:
    fleet, notes = fleet_of(8), list[str]()
    run = run_of(tmp_path, fleet, plan_of(rounds=1, evaluate_every=1), notes=notes)
    exchange = fleet.exchange

    def refuse_to_be_measured(
        requests: Mapping[Node, Request], deadline_s: float, kind: Kind = "train"
    ) -> Mapping[Node, Answer]:
        answers = dict(exchange(requests, deadline_s, kind))
        if kind == "evaluate":
            for node, answer in list(answers.items())[:7]:
                assert isinstance(answer, tuple)
                answers[node] = replace(answer[0], refused="\x1b[2Jno label"), None
        return answers

    fleet.exchange = refuse_to_be_measured  # type: ignore[method-assign]
    run.begin()
    [record] = run.run()
    assert record.accuracy == 0.5
    named = "; ".join(f"d{i}: the device refused: [2Jno label" for i in range(5))
    assert notes == [f"evaluation of round 1 without {named}; and 2 more"]


def test_a_part_of_the_devices_is_asked_and_it_varies(tmp_path: Path) -> None:
    run = finished(tmp_path, fleet=fleet_of(6), plan=plan_of(rounds=8, fraction=0.3))
    asked = [record.devices for record in run.records]
    assert all(len(devices) == 2 for devices in asked)
    assert len(set(asked)) > 2


def test_chunks_and_scores_and_local_evaluation_are_recorded(tmp_path: Path) -> None:
    seen: list[int] = []

    def score(arrays: Arrays, chunk: int) -> GlobalScore:
        seen.append(chunk)
        return GlobalScore(0.75, 0.5, {"chunk_macro_f1/0": 0.5})

    run = run_of(tmp_path, plan=replace(plan_of(evaluate_every=2), rounds_per_chunk=2))
    run.score = score
    run.begin()
    records = run.run()
    assert seen == [record.chunk for record in records] == [0, 0, 1, 1]
    assert [record.accuracy for record in records] == [-1.0, 0.5, -1.0, 0.5]
    assert records[1].macro_f1 == 0.25
    assert records[0].global_accuracy == 0.75
    assert records[0].figures["chunk_macro_f1/0"] == 0.5


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    finished(tmp_path, plan=plan_of(rounds=6, keep=2))
    names = sorted(path.name for path in tmp_path.glob("round-*"))
    assert names == ["round-000005.safetensors", "round-000006.safetensors"]
    newest = read_newest(tmp_path, print)
    assert newest is not None and newest.round_number == 6

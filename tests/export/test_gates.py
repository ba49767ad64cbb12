"""What is held against a written artifact, and what passes for held."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from penstock.errors import UsageError
from penstock.export.artifact_report import ArtifactReport, Gate, Metric
from penstock.export.gates import Floors, GateError, change_gate, parse_floors, with_gates

MADE = ArtifactReport(
    source="a.onnx", artifact="b.onnx", target="onnx", recipe="int8",
    source_bytes=1000, artifact_bytes=400,
    metrics=(
        Metric("accuracy", 0.9, 0.88, 100),
        Metric("mean_kl", None, 0.02, 100, higher_is_better=False),
        Metric("broken", None, math.nan, 100),
    ),
)  # fmt: skip


def failed(report: ArtifactReport) -> list[str]:
    return [gate.name for gate in report.gates if not gate.passed]


@pytest.mark.parametrize(
    ("metrics", "wrong"),
    [
        ({"accuracy": 0.88, "mean_kl": 0.02}, []),
        ({"accuracy": 0.8801}, ["accuracy"]),
        ({"mean_kl": 0.0199}, ["mean_kl"]),
        ({"broken": -1e9}, ["broken"]),
    ],
)
def test_floors_of_metrics(metrics: dict[str, float], wrong: list[str]) -> None:
    report = with_gates(MADE, Floors(metrics))
    assert failed(report) == wrong
    assert {gate.name for gate in report.gates} == {"smaller", *metrics}


def test_sizes() -> None:
    assert failed(with_gates(MADE, Floors(min_ratio=2.5))) == []
    assert failed(with_gates(MADE, Floors(min_ratio=2.51))) == ["min-ratio"]
    same = replace(MADE, artifact_bytes=1000)
    assert failed(with_gates(same, Floors())) == ["smaller"]
    assert with_gates(same, Floors(), shrinks=False).gates == ()
    assert failed(with_gates(same, Floors(min_ratio=1.1), shrinks=False)) == ["min-ratio"]


@pytest.mark.parametrize("ratio", [-1.0, 0.0, math.nan, math.inf])
def test_ratios_that_hold_nothing(ratio: float) -> None:
    with pytest.raises(UsageError, match="the least ratio .* is .*, expected a number above 0"):
        Floors(min_ratio=ratio)


def test_what_changed_nothing_did_nothing() -> None:
    assert not change_gate(0, 7).passed and change_gate(1, 7).passed
    assert change_gate(0, 7).detail == "0 of 7 weighted layers quantized"


def test_a_metric_that_was_not_taken() -> None:
    """A file that does not load has none: that is what is said, not that one is missing."""
    with pytest.raises(UsageError, match="no metric 'sqnr_db' to hold at 30.*taken: accuracy, mea"):
        with_gates(MADE, Floors({"sqnr_db": 30}))
    broken = replace(MADE, metrics=(), gates=(Gate("loads", False, "b.onnx: cut short"),))
    report = with_gates(broken, Floors({"sqnr_db": 30}))
    assert failed(report) == ["loads"]
    message = str(GateError(report))
    assert message == "b.onnx: refused, nothing was written: loads: b.onnx: cut short"
    assert json.loads(json.dumps(report.to_dict()))["passed"] is False


def test_floors_in_words() -> None:
    assert parse_floors(["accuracy=0.85", " sqnr_db = 3e1"]) == {"accuracy": 0.85, "sqnr_db": 30}
    for wrong in ("accuracy", "=0.5", "accuracy=", "accuracy=high", "accuracy=nan", "a=inf"):
        with pytest.raises(UsageError, match=f"'{wrong}' is not METRIC=VALUE; write for example"):
            parse_floors([wrong])

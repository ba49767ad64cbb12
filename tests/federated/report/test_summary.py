"""The figures of a run, held against ones worked out by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from penstock.errors import FormatError, StorageError
from penstock.federated.report.records import JOURNAL, RoundRecord, append_record
from penstock.federated.report.summary import summarise, summarise_folder


def record(number: int, chunk: int = 0, **more: Any) -> RoundRecord:
    fields: dict[str, Any] = {"devices": ("a", "b")} | more
    return RoundRecord("f" * 16, number, chunk, "fedmobile", **fields)


def scores(**by_chunk: float) -> dict[str, float]:
    return {f"chunk_macro_f1/{name[1:]}": value for name, value in by_chunk.items()}


def test_forgetting_is_the_best_before_less_now_mean_over_earlier_chunks() -> None:
    summary = summarise(
        [
            record(1, 0, figures=scores(c0=0.95)),  # not the end of its chunk: does not count
            record(2, 0, figures=scores(c0=0.80)),
            record(3, 1, figures=scores(c0=0.85, c1=0.70)),
            record(4, 2, figures=scores(c0=0.60, c1=0.75, c2=0.9)),
        ]
    )
    first, second, third = summary.chunks
    assert first.forgetting is None
    assert second.forgetting == pytest.approx(0.80 - 0.85)
    assert third.forgetting == pytest.approx(((0.85 - 0.60) + (0.70 - 0.75)) / 2)
    assert summary.forgetting == third.forgetting
    assert third.old_macro_f1 == {0: 0.60, 1: 0.75, 2: 0.9}
    assert [c.rounds for c in summary.chunks] == [2, 1, 1]


def test_without_scores_of_chunks_forgetting_is_unknown() -> None:
    summary = summarise([record(1, 0), record(2, 1)])
    assert summary.forgetting is None and summary.epsilon is None
    assert summary.final_accuracy is None and summary.measured_on == ""


def test_devices_are_counted_over_all_rounds() -> None:
    summary = summarise(
        [
            record(
                1,
                devices=("a",),
                refused={"b": "late"},
                bytes_down={"a": 10, "b": 10},
                bytes_up={"a": 7},
                device_seconds={"a": 1.0},
                device_peak_bytes={"a": 100},
                ratios={"a": 1.0, "b": 0.5},
            ),
            record(
                2,
                bytes_down={"a": 10, "b": 5},
                bytes_up={"a": 7, "b": 3},
                device_seconds={"a": 0.5, "b": 2.0},
                device_peak_bytes={"a": 90, "b": 0},
                ratios={"a": 0.75, "b": 0.5},
            ),
        ]
    )
    a, b = summary.devices
    assert (a.counted, a.refused, a.participation, a.seconds, a.peak_bytes) == (2, 0, 1.0, 1.5, 100)
    assert (b.counted, b.refused, b.participation, b.reasons) == (1, 1, 0.5, {"late": 1})
    assert b.peak_bytes is None
    assert (a.ratios, b.ratios) == ((1.0, 0.75), (0.5,))
    assert (summary.bytes_down, summary.bytes_up) == (35, 17)


def test_the_server_s_measure_goes_before_the_devices() -> None:
    both = record(1, accuracy=0.5, macro_f1=0.4, global_accuracy=0.9, global_macro_f1=0.8)
    devices = record(2, accuracy=0.6, macro_f1=0.3)
    summary = summarise([both, devices])
    assert (summary.final_accuracy, summary.final_macro_f1) == (0.9, 0.8)
    assert summary.measured_on == "server"
    assert summarise([devices]).measured_on == "devices"
    assert summarise([devices]).final_accuracy == 0.6


def test_json_knows_null_and_no_nan() -> None:
    made = summarise([record(1, loss=math.nan, epsilon=0.5)]).to_dict()
    text = json.dumps(made, allow_nan=False)
    assert json.loads(text)["rounds"][0]["loss"] is None
    assert made["rounds"][0]["accuracy"] is None and made["epsilon"] == 0.5


def test_rounds_of_two_runs_or_none_are_refused(tmp_path: Path) -> None:
    append_record(tmp_path / JOURNAL, record(1))
    other = RoundRecord("e" * 16, 2, 0, "fedavg", ())
    append_record(tmp_path / JOURNAL, other)
    with pytest.raises(FormatError, match="rounds of 2 runs") as caught:
        summarise_folder(tmp_path)
    assert str(tmp_path) in str(caught.value)
    with pytest.raises(FormatError, match="no whole round yet"):
        summarise([])
    with pytest.raises(StorageError, match="give the folder"):
        summarise_folder(tmp_path / "none")

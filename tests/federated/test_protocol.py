"""Messages: they come back as they were, and nothing else gets through as one."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import RefusedUpdateError
from penstock.federated.protocol import (
    MOST_TEXT,
    PROTOCOL,
    Capabilities,
    Record,
    TrainResult,
    TrainTask,
)

CAPABILITIES = Capabilities(
    "0123456789abcdef", "0.1.0", 1 << 28, 2, 0.75, -1.0, True, True, "", 12, 3000, "[43]", "[0]"
)
TASK = TrainTask("00ff", 3, 0, "fedconv", "{}", 0.5625, "{}", 2, 32, 1e-3, 7, 30.0)
RESULT = TrainResult("0123456789abcdef", "00ff", 3, examples=5, loss=0.25, sha256="00")
RECORDS: tuple[Record, ...] = (CAPABILITIES, TASK, RESULT)
KINDS = [type(record) for record in RECORDS]

VALUES = st.one_of(
    st.text(max_size=5), st.integers(), st.floats(), st.booleans(), st.binary(max_size=5),
    st.none(), st.lists(st.integers(), max_size=2), st.just(10**400), st.just("x" * 70_000),
)  # fmt: skip


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: type(r).__name__)
def test_there_and_back(record: Record) -> None:
    plain = record.to_record()
    assert plain["protocol"] == PROTOCOL
    assert type(record).from_record(plain, "the server") == record


def test_a_whole_number_passes_for_a_fraction_and_defaults_may_be_left_out() -> None:
    task = TrainTask.from_record(TASK.to_record() | {"seconds": 30}, "the server")
    assert task == TASK and type(task.seconds) is float
    short = {"protocol": PROTOCOL, "device": "d", "run": "r", "round_number": 1}
    assert TrainResult.from_record(short, "device d") == TrainResult("d", "r", 1)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"protocol": 2}, "this side is the older one; install the newer"),
        ({"protocol": 0}, "the server is the older one; install the newer"),
        ({"protocol": 10**5000}, "protocol beyond 64 bits"),
        ({"protocol": True}, "names no protocol"),
        ({"protocol": None}, "names no protocol"),
        ({"ratio": None}, "ratio is a NoneType, expected float"),
        ({"ratio": float("nan")}, "ratio is nan"),
        ({"ratio": 1.5}, "ratio is 1.5, expected 1e-06 to 1"),
        ({"ratio": 10**400}, "ratio is a int, expected float"),
        ({"epochs": True}, "epochs is a bool"),
        ({"epochs": 2.0}, "epochs is a float"),
        ({"epochs": 10**9}, "epochs is 1e"),
        ({"batch": -1}, "batch"),
        ({"chunk_round": -1}, "chunk_round is -1"),
        ({"seed": 10**5000}, "beyond 64 bits"),
        ({"seconds": float("inf")}, "seconds is inf"),
        ({"model": "x" * (MOST_TEXT + 1)}, "65537 long"),
        ({"settings": b"{}"}, "bytes"),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, str) else "",
)
def test_what_is_refused(change: dict[Any, Any], says: str) -> None:
    with pytest.raises(RefusedUpdateError, match=says) as caught:
        TrainTask.from_record(TASK.to_record() | change, "the server")
    assert len(str(caught.value)) < 300


def test_fields_of_a_newer_version_are_passed_over() -> None:
    newer = TASK.to_record() | {"extra" * 1000: 1, "chunk_share": b"?"}
    newer |= {7: 1}  # type: ignore[dict-item]
    assert TrainTask.from_record(newer, "the server") == TASK


@pytest.mark.parametrize(
    ("record", "name"),
    [
        (CAPABILITIES, "device"),
        (CAPABILITIES, "version"),
        (RESULT, "device"),
        (RESULT, "run"),
        (RESULT, "sha256"),
    ],
)
def test_a_name_of_any_length_is_refused(record: Record, name: str) -> None:
    kind = type(record)
    assert kind.from_record(record.to_record() | {name: "x" * 64}, "a device")
    with pytest.raises(RefusedUpdateError, match=f"{name} is 65 long, expected at most 64"):
        kind.from_record(record.to_record() | {name: "x" * 65}, "a device")


def test_a_name_that_would_steer_a_terminal_is_refused() -> None:
    for name in ("a\x1b[2J", "a\nround 3 of 3", "\u202eabc", "\x9b2J"):
        with pytest.raises(RefusedUpdateError, match="device is .*cannot be printed") as caught:
            Capabilities.from_record(CAPABILITIES.to_record() | {"device": name}, "a device")
        assert str(caught.value).isprintable()


def test_a_missing_field_is_refused() -> None:
    for name in TASK.to_record().keys() - {"chunk_round"}:  # 0: not said
        plain = TASK.to_record()
        del plain[name]
        with pytest.raises(RefusedUpdateError, match=name):
            TrainTask.from_record(plain, "the server")


@settings(max_examples=150, deadline=None)
@given(st.data(), st.sampled_from(KINDS))
def test_fuzzed_records_give_well_typed_messages_or_a_refusal(
    data: st.DataObject, kind: type[Record]
) -> None:
    original = RECORDS[KINDS.index(kind)].to_record()
    names = st.one_of(st.sampled_from(sorted(original)), st.text(max_size=4))
    record: dict[str, Any] = original | data.draw(st.dictionaries(names, VALUES, max_size=3))
    for name in data.draw(st.lists(st.sampled_from(sorted(original)), max_size=1)):
        record.pop(name, None)
    try:
        message = kind.from_record(record, "a device")
    except RefusedUpdateError:
        return
    for entry in fields(message):
        value = getattr(message, entry.name)
        assert type(value).__name__ == entry.type
        assert not isinstance(value, float) or math.isfinite(value)
    assert kind.from_record(message.to_record(), "a device") == message

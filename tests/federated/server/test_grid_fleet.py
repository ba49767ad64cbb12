"""The fleet over Flower's own grid, handlers and state, all in this process."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pytest import MonkeyPatch

from penstock.errors import PenstockError
from penstock.federated.arrays import Arrays, digest
from penstock.federated.daemon.flower_messages import Outgoing
from penstock.federated.flower_content import from_content, no_calls_home
from penstock.federated.protocol import Notice, TrainResult, TrainTask
from penstock.federated.server import grid_fleet, pulling
from penstock.federated.server.grid_fleet import GridFleet
from tests.federated.server.fake_fleet import capabilities, trained_by
from tests.federated.server.link_in_process import (
    Answer,
    Device,
    Link,
    failing,
    forged,
    replying,
    silent,
)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Flower's, of click
ARRAYS: Arrays = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.array(3, np.int64)}
TASK = TrainTask(
    run="00", round_number=2, chunk=0, algorithm="fedavg", model="{}", ratio=1.0, settings="{}",
    epochs=1, batch=1, learning_rate=0.1, seed=5, seconds=9.0,
)  # fmt: skip


@pytest.fixture
def link() -> Iterable[Link]:
    """Flower makes messages within a task only; its identity is a private class."""
    no_calls_home()
    pytest.importorskip("flwr")
    from flwr.supercore.task_identity import TaskIdentity

    made = Link()
    with made.identity():
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = made.run, 1, 1
        yield made


def good(device: str = "d") -> Answer:
    """An answer of this device, with arrays that no other sends."""
    arrays = ARRAYS | {"n": np.frombuffer(device.encode().ljust(8), np.int64)[0].reshape(())}
    return replying(TrainResult(device, "00", 2, examples=1), arrays)


def pausing(monkeypatch: MonkeyPatch, pause: Callable[[float], None]) -> None:
    """Something else instead of the pause between two looks."""
    monkeypatch.setattr(grid_fleet, "time", SimpleNamespace(sleep=pause, monotonic=time.monotonic))


def exchange(
    link: Link, deadline_s: float = 5.0, clock: Callable[[], float] = time.monotonic, **kind: Any
) -> dict[Device, Any]:
    """One task to each device; the answers by device."""
    asked = {device.node: (TASK, ARRAYS) for device in link.devices}
    answers = GridFleet(link.grid(), clock=clock).exchange(asked, deadline_s, **kind)
    return {device: answers[device.node] for device in link.devices if device.node in answers}


def test_tasks_and_arrays_go_out_and_results_come_back(link: Link) -> None:
    def train(message: Any) -> Any:
        record, arrays = from_content(message.content, "the server")
        task = TrainTask.from_record(record, "the server")
        assert task == TASK and arrays is not None
        assert arrays["n"].shape == () and arrays["n"].dtype == np.int64
        return replying(*trained_by("d7", task, arrays))(message)

    device = link.join(train)
    result, arrays = exchange(link)[device]
    expected, trained = trained_by("d7", TASK, ARRAYS)
    assert arrays is not None
    assert result == expected and digest(arrays) == digest(trained) == result.sha256
    assert len(link.store) == 0, "SuperLink keeps nothing of what was answered"


def test_what_fails_is_an_error_of_its_node_and_the_rest_is_there(link: Link) -> None:
    def alien(message: Any) -> Any:
        reply = good()(message)
        reply.content["message"]["protocol"] = 2
        return reply

    def empty(message: Any) -> Any:
        from flwr.app import Message, RecordDict

        return Message(RecordDict(), reply_to=message)

    whole = [link.join(good("a")), link.join(good("b"))]
    gone, never = link.join(silent), link.join(silent)
    gone.leave()
    words = {
        gone: "the device is gone",
        link.join(failing(2, "no room")): "the device's ClientApp failed: no room",
        link.join(alien): "speaks protocol 2",
        link.join(empty): "not a message of Penstock",
    }
    answers = exchange(link, 0.5)
    assert set(answers) == {*whole, *words}
    assert [answers[device][0].device for device in whole] == ["a", "b"]
    assert never not in answers
    for device, text in words.items():
        assert isinstance(answers[device], PenstockError) and text in str(answers[device])


def test_a_query_carries_what_is_to_be_told_to_its_node_and_nothing_to_the_others(
    link: Link,
) -> None:
    heard: dict[str, Any] = {}

    def named(name: str) -> Answer:
        def answer(message: Any) -> Any:
            heard[name] = dict(message.content.get("message") or {})
            return replying(capabilities(name))(message)

        return answer

    fleet, told = GridFleet(link.grid()), link.join(named("told"))
    link.join(named("well"))
    fleet.tell({told.node: Notice(left_out="its data has shape [3]")})
    assert len(fleet.query()) == 2
    assert Notice.from_record(heard["told"], "it") == Notice(left_out="its data has shape [3]")
    assert heard["well"] == {}


def npz(_: bytes) -> bytes:
    file = io.BytesIO()
    np.savez(file, w=np.zeros(2))
    return file.getvalue()


def huge(_: bytes) -> bytes:
    header: Any = {"descr": "<f8", "fortran_order": False, "shape": (1 << 45,)}
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue()


def other_arrays(change: Callable[[bytes], bytes]) -> Answer:
    """Another text in the place of the npy file."""

    def answer(message: Any) -> Any:
        from flwr.app import Array, ArrayRecord

        reply = good()(message)
        data = change(b"")
        reply.content["arrays"] = ArrayRecord(
            {"npz": Array(dtype="uint8", shape=(len(data),), stype="numpy.ndarray", data=data)}
        )
        return reply

    return answer


@pytest.mark.parametrize("change", [npz, huge, lambda _: b"PK\3\4 but no zip", lambda _: b""])
def test_arrays_that_cannot_be_read_are_refused(
    link: Link, change: Callable[[bytes], bytes]
) -> None:
    """AttributeError, MemoryError, BadZipFile, EOFError: whatever np.load raises."""
    bad, whole = link.join(other_arrays(change)), link.join(good())
    answers = exchange(link)
    assert isinstance(answers[bad], PenstockError) and "sent no arrays" in str(answers[bad])
    assert answers[whole][0].examples == 1


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("ConfigRecord", b"\xff\xff\xff no protobuf"),
        ("RecordDict", b"\xff no JSON either"),
        ("ArrayRecord", b"{}"),
        ("Message", b"\xff\xff\xff"),
    ],
)
def test_a_message_that_cannot_be_put_together_takes_no_other_with_it(
    link: Link, kind: str, body: bytes
) -> None:
    """SuperLink has deleted all of them when the first of them is looked into."""

    def torn(reply: Outgoing) -> Outgoing:
        return forged(reply, kind, lambda _: body)

    whole = [link.join(good(str(number))) for number in range(2)]
    bad = link.join(good(), forge=torn)
    whole += [link.join(good(str(number))) for number in range(2, 5)]
    answers = exchange(link)
    assert "cannot be put together" in str(answers[bad])
    assert [answers[device][0].device for device in whole] == ["0", "1", "2", "3", "4"]
    assert len(link.store) == 0


def test_the_content_does_not_say_whose_answer_it_is(link: Link) -> None:
    """A device that knows another's message cannot answer in its place."""
    whole = link.join(good("a"))
    theirs: list[str] = []

    def answer(message: Any) -> Any:
        theirs.append(message.metadata.message_id)
        return good("a")(message)

    whole.answer = answer

    def pose(reply: Outgoing) -> Outgoing:
        from flwr.proto.message_pb2 import Message

        own = Message.FromString(reply.head).metadata.reply_to_message_id.encode()
        changed = forged(reply, "Message", lambda body: body.replace(own, theirs[0].encode()))
        return Outgoing(changed.head, changed.tree, changed.parts)

    other = link.join(good("b"), forge=pose)
    answers = exchange(link)
    assert answers[whole][0].device == "a" and answers[other][0].device == "b"


def test_an_upload_that_stops_holds_nobody_up(link: Link, monkeypatch: MonkeyPatch) -> None:
    torn, late = link.join(good("x"), parts=2), link.join(good("y"))
    late.fetches = False
    clock = [0.0]

    def wake(seconds: float) -> None:
        late.fetches = True
        clock[0] += seconds

    pausing(monkeypatch, wake)
    started = time.monotonic()
    answers = exchange(link, 1.0, lambda: clock[0])
    assert clock[0] == pytest.approx(1.0), "the deadline is kept"
    # And nothing waits by another clock, as Flower does: 3 s between two looks for replies
    # (`send_and_receive`), 1, 2, 4 s and so on for a part that is missing (`pull_objects`).
    assert time.monotonic() - started < 2.5
    assert answers[late][0].device == "y", "it came while the other's parts were missing"
    assert "only 2 of the 6 parts of its answer had come" in str(answers[torn])
    assert len(link.store) == 0, "the begun upload is let go"


def test_an_upload_that_goes_on_is_taken_as_it_comes(link: Link, monkeypatch: MonkeyPatch) -> None:
    slow = link.join(good("x"), parts=2)

    def on(_: float) -> None:
        slow.go_on(1)

    pausing(monkeypatch, on)
    assert exchange(link, 5.0)[slow][0].device == "x"


def test_what_has_come_by_the_deadline_is_taken(link: Link) -> None:
    """A look may take long; another one begins after the deadline."""
    late = link.join(good("late"))
    late.fetches = False
    clock = [0.0]

    def during_the_look(message: Any) -> Any:
        clock[0], late.fetches = 11.0, True
        return good("slow")(message)

    slow = link.join(during_the_look)
    assert set(exchange(link, 10.0, lambda: clock[0])) == {late, slow}


@pytest.mark.parametrize("limit", ["MOST_PARTS", "MOST_REPLY_BYTES"])
def test_a_reply_beyond_all_bounds_is_refused(
    link: Link, monkeypatch: MonkeyPatch, limit: str
) -> None:
    small, large = link.join(failing(2, "no room")), link.join(good())
    monkeypatch.setattr(pulling, limit, 5 if limit == "MOST_PARTS" else 1000)
    answers = exchange(link)
    assert "no room" in str(answers[small])
    assert "answers in" in str(answers[large])
    assert len(link.store) == 0


def test_superlink_lets_go_of_what_was_not_fetched_or_comes_late(
    link: Link, monkeypatch: MonkeyPatch
) -> None:
    monkeypatch.setattr(pulling, "SWEEP_S", 0.05)
    away, late = link.join(good()), link.join(silent)
    away.fetches = False
    assert exchange(link, 0.2) == {}
    assert late.kinds == ["train"] and away.kinds == []
    assert len(link.store) == 0, "the task that was not fetched is gone"
    late.answer = good()
    late.answer_late()
    assert len(link.store) > 0, "SuperLink took the late answer"
    until = time.monotonic() + 10
    while len(link.store):
        assert time.monotonic() < until, "the late answer is still there"
        time.sleep(0.05)


def test_a_grid_that_was_closed_stays_closed(link: Link, monkeypatch: MonkeyPatch) -> None:
    """Flower ends the process at a call after the run's end."""
    monkeypatch.setattr(pulling, "SWEEP_S", 0.05)
    device, grid = link.join(silent), link.grid()
    opened: list[bool] = []
    grid._connect = lambda: opened.append(True)
    link.close = lambda request=None: None  # type: ignore[attr-defined]
    assert GridFleet(grid).exchange({device.node: (TASK, ARRAYS)}, 0.1) == {}
    grid.close()
    time.sleep(0.3)
    assert opened == []


def test_an_error_reply_names_its_cause_by_its_last_line(link: Link) -> None:
    trace = "Traceback (most recent call last):\n  File x\nZeroDivisionError: division by zero"
    device = link.join(failing(2, trace))
    answer = exchange(link)[device]
    assert str(answer) == "the device's ClientApp failed: ZeroDivisionError: division by zero"


def test_a_node_that_was_silent_is_asked_again_but_not_waited_for(link: Link) -> None:
    one, two = link.join(replying(capabilities("d1"))), link.join(silent)
    over = GridFleet(link.grid(), query_s=2.0)
    started = time.monotonic()
    assert [node for node, _ in over.query()] == [one.node]
    assert time.monotonic() - started >= 2.0
    started = time.monotonic()
    assert [node for node, _ in over.query()] == [one.node]
    assert time.monotonic() - started < 1.8
    two.answer = replying(capabilities("d2"))
    time.sleep(2.0)
    assert {able.device for _, able in over.query()} == {"d1", "d2"}  # type: ignore[union-attr]
    assert {*one.kinds, *two.kinds} == {"query"}


def test_nodes_that_were_all_silent_are_waited_for(link: Link, monkeypatch: MonkeyPatch) -> None:
    """A device that is busy for longer than a query, or alone, must get a second chance."""
    device = link.join(replying(capabilities("d1")))
    device.fetches = False
    over = GridFleet(link.grid(), query_s=0.3)
    assert over.query() == []

    def wake(seconds: float) -> None:
        time.sleep(seconds)
        device.fetches = True

    pausing(monkeypatch, wake)
    assert [node for node, _ in over.query()] == [device.node]


def test_queries_do_not_pile_up_at_a_busy_node(link: Link, monkeypatch: MonkeyPatch) -> None:
    busy, other = link.join(replying(capabilities("d1"))), link.join(replying(capabilities("d2")))
    busy.fetches = False
    clock = [0.0]
    over = GridFleet(link.grid(), query_s=30.0, clock=lambda: clock[0])

    def pass_by(seconds: float) -> None:
        clock[0] += seconds

    pausing(monkeypatch, pass_by)
    for _ in range(10):
        assert [node for node, _ in over.query()] == [other.node]
        clock[0] += 1.0
    busy.fetches = True
    assert {node for node, _ in over.query()} == {busy.node, other.node}
    assert len(busy.kinds) == 2, "one from the time before the others answered, one a query_s later"
    assert len(link.store) == 0


def test_more_nodes_than_are_pushed_at_once(link: Link) -> None:
    for number in range(40):
        link.join(replying(TrainResult(f"d{number}", "00", 2, examples=1)))
    answers = exchange(link, kind="evaluate")
    assert set(answers) == set(link.devices)
    assert [device.kinds for device in link.devices] == [["evaluate"]] * 40


def test_another_grid_than_superlinks(link: Link) -> None:
    """Flower's simulation has one of its own."""
    del link

    class OneReply:
        def __init__(self) -> None:
            self.asked: list[Any] = []

        def push_messages(self, messages: Any) -> list[str]:
            self.asked = list(messages)
            for number, message in enumerate(self.asked):
                message.metadata.__dict__["_message_id"] = str(number)
            return [str(number) for number in range(len(self.asked))]

        def pull_messages(self, ids: Any) -> list[Any]:
            assert ids == ["0"]
            return [good("d1")(self.asked[0])]

    answers = GridFleet(OneReply()).exchange({7: (TASK, ARRAYS)}, 5.0)  # type: ignore[arg-type]
    assert answers[7][0].device == "d1"  # type: ignore[index]

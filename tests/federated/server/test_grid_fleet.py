"""The fleet over a Grid that lives in this process: real Flower messages, real records."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest

from penstock.errors import PenstockError
from penstock.federated.arrays import Arrays, digest
from penstock.federated.flower_content import from_content, no_calls_home, to_content
from penstock.federated.protocol import Record, TrainResult, TrainTask
from penstock.federated.server.grid_fleet import GridFleet
from tests.federated.server.fake_fleet import capabilities, trained_by

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Flower's, of click
ARRAYS: Arrays = {
    "w": np.arange(6, dtype=np.float32).reshape(2, 3),
    "n": np.array(3, np.int64),
}
TASK = TrainTask(
    run="00", round_number=2, chunk=0, algorithm="fedavg", model="{}", ratio=1.0, settings="{}",
    epochs=1, batch=1, learning_rate=0.1, seed=5, seconds=9.0,
)  # fmt: skip
Answer = Callable[[Any], Any]  # a Flower message to a reply, or to None: later than the deadline


class FakeGrid:
    """Answers as `answers` says, by node. A reply has the identity of the message."""

    def __init__(self, answers: dict[int, Answer]) -> None:
        self.answers = answers
        self.waiting: dict[str, Any] = {}
        self.kinds: list[str] = []
        self.gone: set[int] = set()

    def get_node_ids(self) -> Iterable[int]:
        return list(self.answers)

    def push_messages(self, messages: Iterable[Any]) -> Iterable[str | None]:
        ids: list[str | None] = []
        for message in messages:
            node = message.metadata.dst_node_id
            if node in self.gone:
                ids.append(None)
                continue
            name = f"m{len(self.kinds)}-{node}"
            self.kinds.append(message.metadata.message_type)
            message.metadata.__dict__["_message_id"] = name
            self.waiting[name] = message
            ids.append(name)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Any]:
        replies = []
        for name in message_ids:
            message = self.waiting[name]
            reply = self.answers[message.metadata.dst_node_id](message)
            if reply is not None:
                replies.append(reply)
        return replies


@pytest.fixture(autouse=True)
def flower_task() -> Iterable[None]:
    """Flower makes messages within a task only; its identity is a private class."""
    no_calls_home()
    from flwr.supercore.task_identity import TaskIdentity

    before = vars(TaskIdentity).copy()
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    yield
    for name in ("_run_id", "_node_id", "_task_id"):
        setattr(TaskIdentity, name, before[name])


def replying(record: Record, arrays: Arrays | None = None) -> Answer:
    from flwr.app import Message

    return lambda message: Message(to_content(record, arrays), reply_to=message)


def failing(code: int, reason: str) -> Answer:
    from flwr.app import Error, Message

    return lambda message: Message(Error(code, reason), reply_to=message)


def silent(message: Any) -> None:
    del message


def fleet(grid: FakeGrid, query_s: float = 0.3) -> GridFleet:
    return GridFleet(grid, query_s)  # type: ignore[arg-type]


def test_tasks_and_arrays_go_out_and_results_come_back() -> None:
    def train(message: Any) -> Any:
        record, arrays = from_content(message.content, "the server")
        task = TrainTask.from_record(record, "the server")
        assert task == TASK and arrays is not None
        assert arrays["n"].shape == () and arrays["n"].dtype == np.int64
        return replying(*trained_by("d7", task, arrays))(message)

    answers = fleet(FakeGrid({7: train})).exchange({7: (TASK, ARRAYS)}, 5.0)
    result, arrays = answers[7]  # type: ignore[misc]
    expected, trained = trained_by("d7", TASK, ARRAYS)
    assert arrays is not None
    assert result == expected and digest(arrays) == digest(trained) == result.sha256


def test_what_fails_is_an_error_of_its_node_and_the_rest_is_there() -> None:
    good = replying(TrainResult("d", "00", 2, examples=1))

    def torn(message: Any) -> Any:
        raise ValueError("object is not of this hash")

    def alien(message: Any) -> Any:
        reply = good(message)
        reply.content["message"]["protocol"] = 2
        return reply

    def empty(message: Any) -> Any:
        from flwr.app import Message, RecordDict

        return Message(RecordDict(), reply_to=message)

    grid = FakeGrid(
        {
            1: good, 2: failing(5, "Node Unavailable"), 3: torn, 4: alien, 5: empty, 6: silent,
            7: good, 8: good,
        }
    )  # fmt: skip
    grid.gone.add(8)
    answers = fleet(grid).exchange({node: (TASK, ARRAYS) for node in grid.answers}, 0.5)
    assert set(answers) == {1, 2, 3, 4, 5, 7}
    words = {
        2: "the device is gone",
        3: "cannot be put together: object is not of this hash",
        4: "speaks protocol 2",
        5: "not a message of Penstock",
    }
    for node, text in words.items():
        answer = answers[node]
        assert isinstance(answer, PenstockError) and text in str(answer)


def test_an_error_reply_names_its_cause_by_its_last_line() -> None:
    trace = "Traceback (most recent call last):\n  File x\nZeroDivisionError: division by zero"
    answer = fleet(FakeGrid({1: failing(2, trace)})).exchange({1: (TASK, ARRAYS)}, 5.0)[1]
    assert str(answer) == "the device's ClientApp failed: ZeroDivisionError: division by zero"


def test_a_node_that_was_silent_is_asked_again_but_not_waited_for() -> None:
    import time

    grid = FakeGrid({1: replying(capabilities("d1")), 2: silent})
    over = fleet(grid, query_s=1.0)
    started = time.monotonic()
    assert [node for node, _ in over.query()] == [1]
    assert time.monotonic() - started >= 1.0
    started = time.monotonic()
    assert [node for node, _ in over.query()] == [1]
    assert time.monotonic() - started < 0.5
    grid.answers[2] = replying(capabilities("d2"))
    assert [able.device for _, able in over.query()] == ["d1", "d2"]  # type: ignore[union-attr]
    assert set(grid.kinds) == {"query"}


def test_more_nodes_than_are_pushed_at_once() -> None:
    grid = FakeGrid({n: replying(TrainResult(f"d{n}", "00", 2, examples=1)) for n in range(1, 41)})
    answers = fleet(grid).exchange({node: (TASK, ARRAYS) for node in grid.answers}, 5.0, "evaluate")
    assert set(answers) == set(grid.answers)
    assert grid.kinds == ["evaluate"] * 40

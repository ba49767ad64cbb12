"""What the ClientApp gives a device of a message."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest

from penstock.federated.arrays import Arrays
from penstock.federated.client.client_app import client_app
from penstock.federated.flower_content import to_content
from penstock.federated.protocol import TrainResult, TrainTask

pytest.importorskip("flwr")

TASK = TrainTask("f" * 16, 1, 0, "fedavg", "{}", 1.0, "{}", 2, 8, 0.01, seed=5, seconds=60.0)


@pytest.mark.parametrize(
    ("age", "seconds", "expected"),
    [(0, 60, 60), (20, 60, 40), (-100, 60, 60), (500, 60, 0.001), (500, 0, 0)],
)
def test_the_seconds_of_a_task_count_from_when_it_was_asked(
    age: float, seconds: float, expected: float
) -> None:
    """It may have lain here while the process was started anew."""
    from flwr.app import Context, Message, RecordDict
    from flwr.supercore.task_identity import TaskIdentity

    identity: Any = TaskIdentity
    identity.run_id, identity.node_id, identity.task_id = 1, 2, 0
    asked: list[TrainTask] = []

    class Asked:
        device = "0123456789abcdef"

        def train(self, task: TrainTask, arrays: Arrays) -> tuple[TrainResult, None]:
            asked.append(task)
            return TrainResult(self.device, task.run, 1), None

    task = replace(TASK, seconds=seconds)
    message = Message(to_content(task, {}), 2, "train", ttl=3600)
    message.metadata.__dict__["_created_at"] = time.time() - age
    message.metadata.__dict__["_message_id"] = "m"
    context = Context(run_id=1, node_id=2, node_config={}, state=RecordDict(), run_config={})
    client_app(lambda: Asked())(message, context)  # type: ignore[arg-type, return-value]
    assert len(asked) == 1 and asked[0].seconds == pytest.approx(expected, abs=2.0 if age else 0.1)
    assert replace(asked[0], seconds=seconds) == task

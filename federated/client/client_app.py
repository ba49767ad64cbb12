"""A device as a Flower ClientApp: what the daemon runs for each message, in its own process.

It can also be named in a Flower app's pyproject, for the stock SuperNode:

    [tool.flwr.app.components]
    clientapp = "penstock.federated.client.supernode_app:app"
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from penstock.errors import PenstockError, RefusedUpdateError
from penstock.federated.arrays import Arrays
from penstock.federated.flower_content import from_content, to_content
from penstock.federated.flower_env import no_calls_home
from penstock.federated.protocol import Capabilities, Notice, TrainResult, TrainTask

if TYPE_CHECKING:
    from flwr.app import Context, Message
    from flwr.clientapp import ClientApp


class Answering(Protocol):
    """Who answers: a `Participant`, or a simulation's `VirtualDevice`."""

    device: str

    def capabilities(self, notice: Notice | None = None) -> Capabilities:
        """To a query."""

    def train(
        self, task: TrainTask, arrays: Arrays, asked_at: float = 0.0
    ) -> tuple[TrainResult, Arrays | None]:
        """To a task."""

    def evaluate(self, task: TrainTask, arrays: Arrays) -> TrainResult:
        """To a model that is to be measured."""

    def cannot(self, reason: str) -> None:
        """A task came that is none, and was refused for this reason."""


def client_app(participant: Callable[[], Answering]) -> ClientApp:
    """The ClientApp of a device.

    Args:
        participant: gives the device; called with each message, so that it can be made at the
            first.
    """
    no_calls_home()
    from flwr.app import Message
    from flwr.clientapp import ClientApp

    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        del context
        said = participant().capabilities(_notice(message))
        return Message(to_content(said, None), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        del context
        device = participant()
        task = _task(message, device.device)
        if isinstance(task, TrainResult):
            device.cannot(task.refused)
            return Message(to_content(task, None), reply_to=message)
        result, arrays = device.train(*task, asked_at=message.metadata.created_at)
        return Message(to_content(result, arrays), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        del context
        device = participant()
        task = _task(message, device.device)
        result = task if isinstance(task, TrainResult) else device.evaluate(*task)
        return Message(to_content(result, None), reply_to=message)

    return app


def _notice(message: Message) -> Notice | None:
    """What the server says with a query; None where it has nothing to say that can be read."""
    try:
        return Notice.from_record(from_content(message.content, "the server")[0], "the server")
    except (PenstockError, ValueError):
        return None


def _task(message: Message, device: str) -> tuple[TrainTask, Arrays] | TrainResult:
    """The task and its arrays, or the refusal of what is none."""
    try:
        record, arrays = from_content(message.content, "the server")
        task = TrainTask.from_record(record, "the server")
        if arrays is None:
            raise RefusedUpdateError("the server sent no arrays")
        return task, arrays
    except (PenstockError, ValueError) as error:
        return TrainResult(device, "", 0, refused=str(error)[:4000])

"""Which answers of devices are counted: every check before an update may touch the global model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from penstock.errors import PenstockError, RefusedUpdateError
from penstock.federated.aggregation import Update, check_update
from penstock.federated.algorithm import Algorithm, Sent
from penstock.federated.arrays import check_arrays, digest, nbytes
from penstock.federated.printable import printable
from penstock.federated.protocol import MOST_BYTES, TrainResult, TrainTask
from penstock.federated.server.fleet import Answer, Node

MOST_EXAMPLES = 10_000_000  # of one device in one round: a guard against nonsense, not malice


@dataclass(frozen=True)
class Asked:
    """What one device was asked in this round."""

    device: str
    task: TrainTask
    sent: Sent


def accept(
    asked: Mapping[Node, Asked],
    answers: Mapping[Node, Answer],
    algorithm: Algorithm,
    deadline_s: float,
) -> tuple[list[tuple[Update, TrainResult]], dict[str, str]]:
    """Updates that count, sorted by device, and the reason for each device that has none."""
    taken: list[tuple[Update, TrainResult]] = []
    refused: dict[str, str] = {}
    for node, question in asked.items():
        answer = answers.get(node)
        try:
            if answer is None:
                raise RefusedUpdateError(f"no answer within {deadline_s:g} s")
            if isinstance(answer, PenstockError):
                raise answer
            taken.append(_accept(question, answer, algorithm))
        except PenstockError as error:
            refused[question.device] = printable(str(error))
    for node in answers:
        if node not in asked:
            refused[f"node {node}"] = "answered without having been asked"
    taken.sort(key=lambda pair: pair[0].device)
    return taken, refused


def check_result(result: TrainResult, device: str, task: TrainTask) -> None:
    """Whether a result is this device's answer to this task.

    Raises:
        RefusedUpdateError: it is another's, of another run or round, its numbers of examples are
            not to be believed, or the device refused.
    """
    if result.device != device:
        raise RefusedUpdateError(f"answers as device {result.device!r}, it was asked as {device}")
    if result.refused:
        raise RefusedUpdateError(f"the device refused: {result.refused}")
    if result.run != task.run:
        raise RefusedUpdateError(f"answers for run {result.run!r}, this is run {task.run}")
    if result.round_number != task.round_number:
        raise RefusedUpdateError(
            f"answers for round {result.round_number}, this is round {task.round_number}"
        )
    if not 0 < result.examples <= MOST_EXAMPLES:
        raise RefusedUpdateError(
            f"says it used {result.examples} examples, expected 1 to {MOST_EXAMPLES}"
        )
    # An algorithm may weigh by either of them, so that they are bounded with the examples.
    if result.labelled + result.confident > result.examples:
        raise RefusedUpdateError(
            f"says that of {result.examples} examples {result.labelled} have a label and it was "
            f"sure of {result.confident} others"
        )


def _accept(
    question: Asked, answer: tuple[TrainResult, object], algorithm: Algorithm
) -> tuple[Update, TrainResult]:
    result, arrays = answer
    source = f"device {question.device}"
    check_result(result, question.device, question.task)
    if not isinstance(arrays, dict) or not arrays:
        raise RefusedUpdateError(f"{source}: the answer holds no arrays")
    size = nbytes(arrays)
    if size > MOST_BYTES:
        raise RefusedUpdateError(f"{source}: sent {size} bytes, expected at most {MOST_BYTES}")
    checked = check_arrays(arrays, question.sent.arrays, source)
    found = digest(checked)
    if found != result.sha256:
        raise RefusedUpdateError(
            f"{source}: the arrays have SHA-256 {found[:12]}..., the device said "
            f"{result.sha256[:12] or 'none'}...; they were damaged on the way"
        )
    weight = algorithm.weight(result)
    update = Update(question.device, checked, question.sent.channels, weight)
    check_update(update, algorithm.spec)
    return update, result

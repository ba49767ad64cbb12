"""What the server tells a device of its standing: why it was left out, or its update not counted.

A device that fits nothing looks well on its own side: it is here, it answers, and no task comes. So
the next query says why. What the device has said itself is not said back. All of this is forgotten
when the server ends; so a device is told that all is well, by an empty notice, once this is known,
and nothing before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from penstock.errors import PenstockError
from penstock.federated.protocol import Capabilities, Notice
from penstock.federated.server.acceptance import Asked
from penstock.federated.server.fleet import Answer, Fleet, Node


@runtime_checkable
class Telling(Protocol):
    """A fleet whose queries carry notices; simulated devices have nobody who looks at them."""

    def tell(self, notices: Mapping[Node, Notice]) -> None:
        """What every query says from now on; a node without an entry hears nothing."""


class Notices:
    """What every node is to hear, from the answers to queries and tasks."""

    def __init__(self) -> None:
        self._left_out: dict[Node, str] = {}
        self._refused: dict[Node, str] = {}
        self._fit: set[Node] = set()  # at the last query
        self._asked: set[Node] = set()  # in the last round
        self._judged: set[Node] = set()  # since this server started, they or their last updates

    def after_query(
        self,
        answers: Sequence[tuple[Node, Capabilities | PenstockError]],
        out: Mapping[str, str],
    ) -> None:
        """Devices were sorted out.

        Args:
            answers: to the query.
            out: reasons by device, or by "node N" where the answer was refused.
        """
        here = {node for node, _ in answers} | self._asked
        self._refused = {node: why for node, why in self._refused.items() if node in here}
        self._judged = (self._judged | set(self._left_out)) & here
        self._left_out, self._fit = {}, set()
        for node, answer in answers:
            name = answer.device if isinstance(answer, Capabilities) else f"node {node}"
            if name not in out:
                self._fit.add(node)
            elif isinstance(answer, PenstockError) or answer.ready:
                self._left_out[node] = out[name]

    def after_round(
        self,
        asked: Mapping[Node, Asked],
        answers: Mapping[Node, Answer],
        refused: Mapping[str, str],
    ) -> None:
        """Updates were counted or refused. Who was not asked keeps what it was told."""
        self._asked = set(asked)
        self._judged |= self._asked
        for node, question in asked.items():
            self._refused.pop(node, None)
            answer = answers.get(node)
            says_so = isinstance(answer, tuple) and bool(answer[0].refused)
            if question.device in refused and not says_so:
                self._refused[node] = refused[question.device]

    def give(self, fleet: Fleet) -> None:
        """Have the fleet's next query say it."""
        if isinstance(fleet, Telling):
            nodes = {*self._left_out, *self._refused} | self._fit & self._judged
            fleet.tell(
                {n: Notice(self._left_out.get(n, ""), self._refused.get(n, "")) for n in nodes}
            )

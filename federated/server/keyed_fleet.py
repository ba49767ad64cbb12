"""A fleet whose devices are who their keys say they are.

What a device calls itself follows from its public key (`device_name.py`), and SuperLink has
checked each node's key. A node that calls itself otherwise is refused: it could silence the device
whose name it takes, and be another one in every round.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from penstock.errors import PenstockError, RefusedUpdateError
from penstock.federated.device_name import device_name
from penstock.federated.protocol import Capabilities, Notice
from penstock.federated.server.fleet import Answer, Fleet, Kind, Node, Request
from penstock.federated.server.notices import Telling


class KeyedFleet:
    """See `fleet.Fleet`.

    Args:
        fleet: that carries the messages.
        keys: gives the public key of every node that is online, PEM. A node's never changes.
    """

    def __init__(self, fleet: Fleet, keys: Callable[[], Mapping[Node, bytes]]) -> None:
        self.fleet, self.keys = fleet, keys
        self._names: dict[Node, str] = {}

    def query(self) -> Sequence[tuple[Node, Capabilities | PenstockError]]:
        """Every node that answers; one that says it is another device, with the reason."""
        answers = self.fleet.query()
        if any(node not in self._names for node, _ in answers):
            self._names |= {node: name_of_pem(key) for node, key in self.keys().items()}
        return [(node, self._checked(node, answer)) for node, answer in answers]

    def tell(self, notices: Mapping[Node, Notice]) -> None:
        """See `notices.Telling`."""
        if isinstance(self.fleet, Telling):
            self.fleet.tell(notices)

    def exchange(
        self, requests: Mapping[Node, Request], deadline_s: float, kind: Kind = "train"
    ) -> Mapping[Node, Answer]:
        """As of the other fleet."""
        return self.fleet.exchange(requests, deadline_s, kind)

    def _checked(
        self, node: Node, answer: Capabilities | PenstockError
    ) -> Capabilities | PenstockError:
        if isinstance(answer, PenstockError):
            return answer
        name = self._names.get(node)
        if name is None:
            return RefusedUpdateError("went away before its key was known")
        if answer.device != name:
            return RefusedUpdateError(f"says it is {answer.device!r}, by its key it is {name}")
        return answer


def name_of_pem(public_key: bytes) -> str:
    """What the owner of this key, PEM, is called; empty: it is no key."""
    from cryptography.hazmat.primitives import serialization

    try:
        return device_name(serialization.load_pem_public_key(public_key))
    except ValueError:
        return ""

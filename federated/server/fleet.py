"""The devices as the server sees them: asked what they can do, then given one task each.

`FederatedRun` knows nothing but this. Flower's Grid is behind `GridFleet`, Ray's simulated devices
are behind the simulation's, and tests have one that answers in process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol, TypeAlias

from penstock.errors import PenstockError
from penstock.federated.arrays import Arrays
from penstock.federated.protocol import Capabilities, TrainResult, TrainTask

Node: TypeAlias = int  # the transport's address of a device; a restart may change it
Request: TypeAlias = tuple[TrainTask, Arrays]
Answer: TypeAlias = "tuple[TrainResult, Arrays | None] | PenstockError"
Kind: TypeAlias = Literal["train", "evaluate"]


class Fleet(Protocol):
    """What carries messages."""

    def query(self) -> Sequence[tuple[Node, Capabilities | PenstockError]]:
        """Every node that answers, with what its device can do, or why its answer was refused."""

    def exchange(
        self, requests: Mapping[Node, Request], deadline_s: float, kind: Kind = "train"
    ) -> Mapping[Node, Answer]:
        """Send each node its task, and wait for answers until all are there or time is up.

        A node without an entry did not answer in time. An answer may be of another round than the
        one asked for; it is the caller that refuses it.
        """

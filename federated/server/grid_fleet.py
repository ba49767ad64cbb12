"""The fleet over Flower's Grid: messages pushed to nodes, replies pulled until the deadline.

Replies are looked for every 0.2 s at first, and less often the longer the wait is already; Flower's
own `send_and_receive` looks every 3 s, which is most of an empty round. What has come by the
deadline is taken; a reply that comes later is thrown away.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from penstock.errors import PenstockError, RefusedUpdateError
from penstock.federated.arrays import Arrays
from penstock.federated.flower_content import from_content, to_content
from penstock.federated.protocol import Capabilities, Notice, Record, TrainResult
from penstock.federated.server.fleet import Answer, Kind, Node, Request
from penstock.federated.server.pulling import Reply, replies_of

if TYPE_CHECKING:
    from flwr.app import RecordDict
    from flwr.serverapp import Grid

POLL_S, MOST_POLL_S, POLL_SHARE = 0.2, 2.0, 0.05  # each look costs SuperLink 20 ms of a core
AT_ONCE = 16  # messages pushed together: their arrays are in memory twice meanwhile
GRACE_S = 30.0  # that a message lives longer than its deadline
LOOK_S = 5.0  # of one look, before messages' replies are asked for anew
# flwr.common.constant.ErrorCode, which has no public name
ERRORS = {
    1: "the device could not load its ClientApp",
    2: "the device's ClientApp failed",
    3: "the message was lost, or its time was over",
    4: "the reply was lost, or its time was over",
    5: "the device is gone: it sent no heartbeat",
    6: "a mod of the ClientApp refused",
    7: "the device refused the app",
    8: "the device's ClientApp crashed",
}
_Record = TypeVar("_Record", bound=Record)


class GridFleet:
    """See `fleet.Fleet`.

    Args:
        query_s: that a node has to say what it can do. A node that was silent once is asked again
            after this time, and only waited for as long as others are; when all were silent, they
            are waited for.
    """

    def __init__(
        self, grid: Grid, query_s: float = 30.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.grid, self.query_s, self.clock = grid, query_s, clock
        self._replies = replies_of(grid)
        self._silent: set[Node] = set()
        self._notices: Mapping[Node, Notice] = {}
        self._open: dict[str, tuple[Node, float]] = {}  # queries without an answer, asked when

    def tell(self, notices: Mapping[Node, Notice]) -> None:
        """See `notices.Telling`."""
        self._notices = dict(notices)

    def query(self) -> Sequence[tuple[Node, Capabilities | PenstockError]]:
        """Every node that is online and answers."""
        nodes = sorted(self.grid.get_node_ids())
        now = self.clock()
        over = [name for name, (_, at) in self._open.items() if now - at > self.query_s + GRACE_S]
        self._replies.give_up(over, late=False)
        for name in over:
            del self._open[name]
        # A node that is busy answers every query it got before it turns to its task.
        asked = {node for node, at in self._open.values() if now - at < self.query_s}
        content = {n: to_content(self._notices.get(n), None) for n in nodes if n not in asked}
        awaited = set(nodes) - self._silent or set(nodes)
        waiting = {name: node for name, (node, _) in self._open.items()}
        replies = self._exchange(content, "query", self.query_s, "handshake", awaited, waiting)
        self._silent = set(nodes) - set(replies)
        self._open = {name: self._open.get(name, (node, now)) for name, node in waiting.items()}
        found: list[tuple[Node, Capabilities | PenstockError]] = []
        for node, reply in replies.items():
            if node in nodes:  # else it left, and what is here tells just that
                answer = _read(reply, Capabilities, f"node {node}")
                found.append((node, answer[0] if isinstance(answer, tuple) else answer))
        return found

    def exchange(
        self, requests: Mapping[Node, Request], deadline_s: float, kind: Kind = "train"
    ) -> Mapping[Node, Answer]:
        """Tasks and arrays out, results and arrays in."""
        group = next((str(task.round_number) for task, _ in requests.values()), "")
        content = {node: to_content(task, arrays) for node, (task, arrays) in requests.items()}
        waiting: dict[str, Node] = {}
        replies = self._exchange(content, kind, deadline_s, group, set(content), waiting)
        for name, error in self._replies.give_up(waiting, late=True).items():
            replies[waiting[name]] = error
        return {node: _read(reply, TrainResult, f"node {node}") for node, reply in replies.items()}

    def _exchange(
        self,
        content: dict[Node, RecordDict],
        kind: str,
        deadline_s: float,
        group: str,
        awaited: set[Node],
        waiting: dict[str, Node],
    ) -> dict[Node, Reply]:
        """Replies by node. Ends when all `awaited` nodes replied, or with a look at the deadline.

        Args:
            waiting: messages whose replies are looked for beside those of `content`; afterwards
                all that have none.
        """
        started = self.clock()
        until = started + deadline_s
        while content:
            nodes = list(content)[:AT_ONCE]
            some = {node: content.pop(node) for node in nodes}  # what is pushed is let go
            waiting |= self._push(some, kind, deadline_s + GRACE_S, group)
        replies: dict[Node, Reply] = {}
        while waiting:
            last = self.clock() >= until
            for message_id, reply in self._replies.look(waiting, math.inf if last else LOOK_S):
                node = waiting.pop(message_id, None)
                if node is not None:  # else a second reply to the same message
                    replies[node] = reply
            if last or not awaited & set(waiting.values()):
                break
            now = self.clock()
            pause = min(max(POLL_S, POLL_SHARE * (now - started)), MOST_POLL_S)
            time.sleep(max(min(pause, until - now), 0.0))
        return replies

    def _push(
        self, content: Mapping[Node, RecordDict], kind: str, ttl: float, group: str
    ) -> dict[str, Node]:
        from flwr.app import Message

        messages = [
            Message(some, dst_node_id=node, message_type=kind, ttl=ttl, group_id=group)
            for node, some in content.items()
        ]
        # A node that went away meanwhile gives None in its place.
        ids: Iterable[str | None] = self.grid.push_messages(messages)
        pairs = zip(ids, content, strict=False)
        return {message_id: node for message_id, node in pairs if message_id}


def _read(
    reply: Reply, kind: type[_Record], source: str
) -> tuple[_Record, Arrays | None] | PenstockError:
    """What a reply says, or why it is refused: whatever a node sends harms its own answer only."""
    try:
        record, arrays = from_content(_content(reply), source)
        return kind.from_record(record, source), arrays
    except PenstockError as error:
        return error
    except Exception as error:  # of foreign bytes no list of errors is complete
        return RefusedUpdateError(
            f"{source}: its answer cannot be read: {type(error).__name__}: {error}"[:300]
        )


def _content(reply: Reply) -> RecordDict:
    """What the reply carries.

    Raises:
        PenstockError: there is none, and why.
    """
    if isinstance(reply, PenstockError):
        raise reply
    if reply.has_error():
        reason = ERRORS.get(reply.error.code, f"error {reply.error.code}")
        detail = (reply.error.reason or "").strip().splitlines()
        raise RefusedUpdateError(f"{reason}: {detail[-1][:300]}" if detail else reason)
    return reply.content

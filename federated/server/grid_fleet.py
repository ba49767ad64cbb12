"""The fleet over Flower's Grid: messages pushed to nodes, replies pulled until the deadline.

Replies are looked for every 0.2 s at first, and less often the longer the wait is already; Flower's
own `send_and_receive` looks every 3 s, which is most of an empty round. A reply that comes after
the deadline is never pulled, and its message's time to live ends soon after, so that SuperLink
drops it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from penstock.errors import PenstockError, RefusedUpdateError
from penstock.federated.flower_content import from_content, to_content
from penstock.federated.protocol import Capabilities, TrainResult
from penstock.federated.server.fleet import Answer, Kind, Node, Request

if TYPE_CHECKING:
    from flwr.app import Message, RecordDict
    from flwr.serverapp import Grid

POLL_S, MOST_POLL_S, POLL_SHARE = 0.2, 2.0, 0.05  # each look costs SuperLink 20 ms of a core
AT_ONCE = 16  # messages pushed together: their arrays are in memory twice meanwhile
GRACE_S = 30.0  # that a message lives longer than its deadline
UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, AssertionError)
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


class GridFleet:
    """See `fleet.Fleet`.

    Args:
        query_s: that a node has to say what it can do. A node that was silent once is asked again,
            but only waited for as long as others are.
    """

    def __init__(
        self, grid: Grid, query_s: float = 30.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.grid, self.query_s, self.clock = grid, query_s, clock
        self._silent: set[Node] = set()

    def query(self) -> Sequence[tuple[Node, Capabilities | PenstockError]]:
        """Every node that is online and answers."""
        nodes = sorted(self.grid.get_node_ids())
        content = {node: to_content(None, None) for node in nodes}
        awaited = set(nodes) - self._silent
        replies = self._exchange(content, "query", self.query_s, "handshake", awaited)
        self._silent = set(nodes) - set(replies)
        found: list[tuple[Node, Capabilities | PenstockError]] = []
        for node, reply in replies.items():
            try:
                record, _ = from_content(_content(reply), f"node {node}")
                found.append((node, Capabilities.from_record(record, f"node {node}")))
            except PenstockError as error:
                found.append((node, error))
        return found

    def exchange(
        self, requests: Mapping[Node, Request], deadline_s: float, kind: Kind = "train"
    ) -> Mapping[Node, Answer]:
        """Tasks and arrays out, results and arrays in."""
        group = next((str(task.round_number) for task, _ in requests.values()), "")
        content = {node: to_content(task, arrays) for node, (task, arrays) in requests.items()}
        replies = self._exchange(content, kind, deadline_s, group, set(content))
        answers: dict[Node, Answer] = {}
        for node, reply in replies.items():
            try:
                record, arrays = from_content(_content(reply), f"node {node}")
                answers[node] = TrainResult.from_record(record, f"node {node}"), arrays
            except PenstockError as error:
                answers[node] = error
        return answers

    def _exchange(
        self,
        content: dict[Node, RecordDict],
        kind: str,
        deadline_s: float,
        group: str,
        awaited: set[Node],
    ) -> dict[Node, Message | PenstockError]:
        """Replies by node. Ends when all `awaited` nodes replied, or at the deadline."""
        started = self.clock()
        until = started + deadline_s
        waiting: dict[str, Node] = {}
        while content:
            nodes = list(content)[:AT_ONCE]
            some = {node: content.pop(node) for node in nodes}  # what is pushed is let go
            waiting |= self._push(some, kind, deadline_s + GRACE_S, group)
        replies: dict[Node, Message | PenstockError] = {}
        while waiting:
            for message_id, reply in self._pull(list(waiting)):
                node = waiting.pop(message_id, None)
                if node is not None:  # else a second reply to the same message
                    replies[node] = reply
            now = self.clock()
            left = until - now
            if left <= 0 or not awaited & set(waiting.values()):
                break
            pause = min(max(POLL_S, POLL_SHARE * (now - started)), MOST_POLL_S)
            time.sleep(min(pause, left))
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

    def _pull(self, ids: list[str]) -> list[tuple[str, Message | PenstockError]]:
        """Replies that are there. One that Flower cannot put together is an error of its own: it
        must not take the others, or the run, with it."""
        try:
            replies = self.grid.pull_messages(ids)
            return [(reply.metadata.reply_to_message_id, reply) for reply in replies]
        except UNREADABLE as error:
            if len(ids) == 1:
                text = f"sent a message that cannot be put together: {error}"
                return [(ids[0], RefusedUpdateError(text))]
        return [pair for message_id in ids for pair in self._pull([message_id])]


def _content(reply: Message | PenstockError) -> RecordDict:
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

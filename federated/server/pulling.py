"""Replies out of SuperLink, each for itself.

`HttpGrid.pull_messages` has SuperLink delete every message that it hands out, then waits for each
reply's parts in turn, and one reply that cannot be put together ends the call: the others are lost.
Here nothing waits. What is there of a reply is taken, the rest at the next look; what is wrong with
a reply is an error of its own; and what nobody wants any more is taken out of SuperLink, which else
keeps it until the run's end.

The private names of Flower's `HttpGrid` are used here and nowhere else.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from penstock.errors import RefusedUpdateError
from penstock.federated.protocol import MOST_BYTES

if TYPE_CHECKING:
    from flwr.app import Message
    from flwr.serverapp import Grid

Reply: TypeAlias = "Message | RefusedUpdateError"
MOST_REPLY_BYTES = MOST_BYTES + MOST_BYTES // 10  # with heads, records and an npz's own
PART_BYTES = 5 << 20  # of an array: Flower cuts it into such
MOST_PARTS = MOST_BYTES // PART_BYTES + 64
SWEEP_S = 2.0  # between two looks for replies that come too late


class Replies(Protocol):
    """Where the replies to pushed messages come from."""

    def look(self, questions: Collection[str], most_s: float = math.inf) -> list[tuple[str, Reply]]:
        """The replies that are whole by now, by the message that each answers, and why another
        will never be one. Each is given once.

        Args:
            most_s: after so long, what is left is for the next look.
        """

    def give_up(self, questions: Collection[str], *, late: bool) -> Mapping[str, Reply]:
        """Nothing more is wanted of these messages; why, for those whose reply had begun to come.

        Args:
            late: replies may still come, with arrays.
        """


def replies_of(grid: Grid) -> Replies:
    """Those of this grid."""
    from flwr.superlink.grid.http_grid import HttpGrid

    return SuperLinkReplies(grid) if isinstance(grid, HttpGrid) else GridReplies(grid)


class GridReplies:
    """Of a grid in this process, such as that of Flower's simulation: replies are always whole."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

    def look(self, questions: Collection[str], most_s: float = math.inf) -> list[tuple[str, Reply]]:
        """See `Replies`."""
        replies = self._grid.pull_messages(list(questions))
        return [(reply.metadata.reply_to_message_id, reply) for reply in replies]

    def give_up(self, questions: Collection[str], *, late: bool) -> Mapping[str, Reply]:
        """See `Replies`; there is nothing to be done."""
        return {}


@dataclass
class _Upload:
    """A reply whose head is here.

    Attributes:
        id: its own. wanted: parts that are missing, children before parents. parts: that are here.
    """

    id: str
    wanted: deque[str]
    parts: dict[str, bytes] = field(default_factory=dict)
    nbytes: int = 0


class SuperLinkReplies:
    """Of a SuperLink, over Flower's `HttpGrid`."""

    def __init__(self, grid: Any, clock: Callable[[], float] = time.monotonic) -> None:
        self._grid, self._clock = grid, clock
        self._uploads: dict[str, _Upload] = {}  # by the message that each answers

    def look(self, questions: Collection[str], most_s: float = math.inf) -> list[tuple[str, Reply]]:
        """See `Replies`."""
        until = self._clock() + most_s
        self._uploads |= self._heads([name for name in questions if name not in self._uploads])
        found: list[tuple[str, Reply]] = []
        for question in [name for name in self._uploads if name in questions]:
            upload = self._uploads.pop(question)
            reply = self._take(upload)
            if reply is None:
                self._uploads[question] = upload  # behind those that had no turn
            else:
                self._drop(upload.id)
                if isinstance(reply, RefusedUpdateError) or reply.has_error():
                    self._drop(question)  # the device may never have fetched it
                found.append((question, reply))
            if self._clock() > until:
                break
        return found

    def give_up(self, questions: Collection[str], *, late: bool) -> Mapping[str, Reply]:
        """See `Replies`."""
        begun: dict[str, Reply] = {}
        for question in questions:
            self._drop(question)
            upload = self._uploads.pop(question, None)
            if upload is not None:
                self._drop(upload.id)
                here, left = len(upload.parts), len(upload.wanted)
                begun[question] = RefusedUpdateError(
                    f"only {here} of the {here + left} parts of its answer had come by the deadline"
                )
        silent = set(questions) - set(begun)
        if late and silent:
            threading.Thread(target=self._sweep, args=[silent], daemon=True).start()
        return begun

    def _sweep(self, questions: set[str]) -> None:
        """Take late replies out. SuperLink says itself when a message's time is over."""
        with suppress(Exception):  # the run, or SuperLink, ended: nothing is kept then
            while questions:
                time.sleep(SWEEP_S)
                if not self._grid._is_connected:  # Flower closed it; a call would open it anew
                    return
                for question, upload in self._heads(questions).items():
                    self._drop(upload.id)
                    questions.discard(question)

    def _heads(self, questions: Collection[str]) -> dict[str, _Upload]:
        """Replies of which nothing was taken yet. SuperLink names each once."""
        from flwr.proto.runtime_pb2 import PullAppMessagesRequest
        from flwr.supercore.inflatable.inflatable_object import iterate_object_tree

        if not questions:
            return {}
        answer = self._grid._runtime_client.PullMessages(
            PullAppMessagesRequest(message_ids=questions)
        )
        found: dict[str, _Upload] = {}
        for head, tree in zip(answer.messages_list, answer.message_object_trees, strict=True):
            # The head, which SuperLink has checked, says what is answered, not the content.
            question = head.metadata.reply_to_message_id
            if question in questions:
                names = dict.fromkeys(part.object_id for part in iterate_object_tree(tree))
                found[question] = _Upload(head.metadata.message_id, deque(names))
        return found

    def _take(self, upload: _Upload) -> Reply | None:
        """What has come of a reply; None: not all of it."""
        from flwr.app import Message
        from flwr.proto.message_pb2 import PullObjectRequest
        from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

        if len(upload.wanted) > MOST_PARTS:
            return RefusedUpdateError(
                f"answers in {len(upload.wanted)} parts, at most {MOST_PARTS} are taken"
            )
        while upload.wanted:
            part = self._grid._runtime_client.PullObject(
                PullObjectRequest(
                    node=self._grid.node,
                    run_id=self._grid.run.run_id,
                    object_id=upload.wanted[0],
                )
            )
            if not part.object_found:
                return RefusedUpdateError("stopped in the middle of its answer")
            if not part.object_available:
                return None
            upload.nbytes += len(part.object_content)
            if upload.nbytes > MOST_REPLY_BYTES:
                return RefusedUpdateError(f"answers in over {MOST_REPLY_BYTES:,} bytes")
            upload.parts[upload.wanted.popleft()] = part.object_content
        try:
            made = inflate_object_from_contents(upload.id, upload.parts)
            if not isinstance(made, Message):
                raise TypeError(f"it is a {type(made).__name__}")
            return made
        except Exception as error:  # foreign bytes: DecodeError, KeyError, RecursionError and more
            text = f"{type(error).__name__}: {error}"[:300]
            return RefusedUpdateError(f"sent a message that cannot be put together: {text}")

    def _drop(self, message_id: str) -> None:
        """SuperLink lets go of a message's parts; of an unknown one nothing."""
        from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest

        self._grid._runtime_client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(
                node=self._grid.node,
                run_id=self._grid.run.run_id,
                message_object_id=message_id,
            )
        )

"""SuperLink's own handlers over its own state in memory, called instead of reached by HTTP.

What is deleted, kept and forgotten, and when, is Flower's doing. Devices are played: each fetches
its tasks and answers them whenever the server looks for replies.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from penstock.federated.arrays import Arrays
from penstock.federated.daemon.flower_messages import Outgoing, part_ids, run_app
from penstock.federated.flower_content import no_calls_home, to_content
from penstock.federated.protocol import Record

Answer = Callable[[Any], Any]  # a Flower message to a reply, or to None: no answer


class Device:
    """A node of the link.

    Args:
        answer: to each task.
        forge: changes each reply's bytes.
        parts: of a reply that it sends at once; the rest by `go_on`.
    """

    def __init__(
        self,
        link: Link,
        answer: Answer,
        forge: Callable[[Outgoing], Outgoing] = lambda reply: reply,
        parts: int = 1000,
    ) -> None:
        from flwr.common.constant import NOOP_ACCOUNT_NAME, NOOP_FLWR_AID

        self.link, self.answer, self.forge, self.parts = link, answer, forge, parts
        self.fetches = True
        self.kinds: list[str] = []
        key = f"key of device {len(link.devices)}".encode()
        self.node: int = link.state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, key, 0)
        assert link.state.activate_node(self.node, 30.0)
        self._held: list[tuple[bytes, bytes, dict[str, bytes]]] = []
        self._unsent: list[tuple[str, bytes]] = []
        self._session = ""

    def act(self) -> None:
        """Fetch what there is and answer it."""
        from flwr.proto.fleet_pb2 import PullMessagesRequest
        from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest
        from flwr.superlink.servicer.fleet import fleet_handlers

        state, store = self.link.state, self.link.store
        while self.fetches:
            got = fleet_handlers.pull_messages(PullMessagesRequest(node=self._own()), state, store)
            if not got.messages_list:
                return
            head = got.messages_list[0]
            task = head.SerializeToString(), got.message_object_trees[0].SerializeToString()
            parts = {name: store.get(name) or b"" for name in part_ids(task[1])}
            fleet_handlers.confirm_message_received(
                ConfirmMessageReceivedRequest(
                    node=self._own(),
                    run_id=self.link.run,
                    message_object_id=head.metadata.message_id,
                ),
                state,
                store,
            )
            self.kinds.append(head.metadata.message_type)
            self._work(*task, parts)

    def answer_late(self) -> None:
        """Answer what had no answer until now."""
        held, self._held = self._held, []
        for task in held:
            self._work(*task)

    def _work(self, head: bytes, tree: bytes, parts: dict[str, bytes]) -> None:
        app: Any = self._app
        with self.link.identity():
            try:
                reply = run_app(app, self.node, head, tree, parts)
            except _Silent:
                self._held.append((head, tree, parts))
            else:
                self.send(self.forge(reply))

    def _app(self, message: Any, context: Any) -> Any:
        del context
        reply = self.answer(message)
        if reply is None:
            raise _Silent
        return reply

    def send(self, reply: Outgoing) -> None:
        """Announce a reply and send its first parts."""
        from flwr.proto.fleet_pb2 import PushMessagesRequest
        from flwr.proto.message_pb2 import Message, ObjectTree
        from flwr.superlink.servicer.fleet import fleet_handlers

        told = fleet_handlers.push_messages(
            PushMessagesRequest(
                node=self._own(),
                messages_list=[Message.FromString(reply.head)],
                message_object_trees=[ObjectTree.FromString(reply.tree)],
            ),
            self.link.state,
        )
        wanted, self._session = set(told.objects_to_push), told.session_id
        self._unsent = [(name, part) for name, part in reply.parts.items() if name in wanted]
        self.go_on(self.parts)

    def go_on(self, parts: int = 1000) -> None:
        """Send so many more parts of the reply."""
        from flwr.proto.message_pb2 import PushObjectRequest
        from flwr.superlink.servicer.fleet import fleet_handlers

        now, self._unsent = self._unsent[:parts], self._unsent[parts:]
        for name, part in now:
            fleet_handlers.push_object(
                PushObjectRequest(
                    node=self._own(),
                    run_id=self.link.run,
                    object_id=name,
                    object_content=part,
                    session_id=self._session,
                ),
                self.link.state,
            )

    def leave(self) -> None:
        """Be offline."""
        assert self.link.state.deactivate_node(self.node)

    def _own(self) -> Any:
        from flwr.proto.node_pb2 import Node

        return Node(node_id=self.node)


class Link:
    """The SuperLink, and at once the client by which a Grid reaches it."""

    def __init__(self) -> None:
        no_calls_home()
        from flwr.server.superlink.linkstate import LinkStateFactory
        from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME, NOOP_FEDERATION_ID, TaskType
        from flwr.supercore.object_store import ObjectStoreFactory
        from flwr.superlink.federation import NoOpFederationManager

        self.state: Any = LinkStateFactory(
            FLWR_IN_MEMORY_DB_NAME,
            NoOpFederationManager(),
            ObjectStoreFactory(FLWR_IN_MEMORY_DB_NAME),
        ).state()
        self.store: Any = self.state.object_store
        self.run: int = self.state.create_run(
            "test/app", "1.0.0", "", {}, NOOP_FEDERATION_ID, None, "", TaskType.SERVER_APP
        )
        self.task: Any = self.state.get_tasks(run_ids=[self.run])[0]
        assert self.state.claim_task(self.task.task_id)
        assert self.state.activate_task(self.task.task_id)
        self.devices: list[Device] = []

    def join(self, answer: Answer, **options: Any) -> Device:
        """One more device."""
        self.devices.append(Device(self, answer, **options))
        return self.devices[-1]

    def grid(self) -> Any:
        """Flower's own HttpGrid, on this link."""
        from flwr.superlink.grid.http_grid import HttpGrid

        made: Any = HttpGrid(token="token")
        made._client = self
        made.set_run(self.state.get_run_info(run_ids=[self.run])[0])
        return made

    @contextmanager
    def identity(self) -> Iterator[None]:
        """A block in which this process may be another node; afterwards it is who it was."""
        from flwr.supercore.task_identity import TaskIdentity

        before = vars(TaskIdentity).copy()
        try:
            yield
        finally:
            for name in ("_run_id", "_node_id", "_task_id"):
                setattr(TaskIdentity, name, before[name])

    def __getattr__(self, name: str) -> Callable[[Any], Any]:
        """`PullMessages` and the others, as methods of one request."""
        from flwr.superlink.servicer.runtime import runtime_handlers

        handler = getattr(runtime_handlers, re.sub("(?<!^)([A-Z])", r"_\1", name).lower())

        def call(request: Any) -> Any:
            self.state.acknowledge_task_heartbeat(self.task.task_id)
            if name == "PullMessages":
                for device in self.devices:
                    device.act()
            return handler(request, self.state, self.task)

        return call


class _Silent(Exception):
    """A device does not answer."""


def replying(record: Record, arrays: Arrays | None = None) -> Answer:
    """An answer that is always this."""
    from flwr.app import Message

    return lambda message: Message(to_content(record, arrays), reply_to=message)


def failing(code: int, reason: str) -> Answer:
    """Flower's own word that there is no answer."""
    from flwr.app import Error, Message

    return lambda message: Message(Error(code, reason), reply_to=message)


def silent(message: Any) -> None:
    """No answer."""
    del message


def forged(reply: Outgoing, kind: str, change: Callable[[bytes], bytes]) -> Outgoing:
    """The reply with other bytes in the body of each part of a kind, and hashes to match."""
    names: dict[bytes, bytes] = {}

    def renamed(data: bytes) -> bytes:
        for old, new in names.items():
            data = data.replace(old, new)
        return data

    parts: dict[str, bytes] = {}
    for name, part in reply.parts.items():  # children before parents
        part = renamed(part)
        head, _, body = part.partition(b"\0")
        what, children, _ = head.split(b" ")
        if what.decode() == kind:
            body = change(body)
            part = b"%s %s %d\0%s" % (what, children, len(body), body)
        names[name.encode()] = hashlib.sha256(part).hexdigest().encode()
        parts[names[name.encode()].decode()] = part
    return Outgoing(renamed(reply.head), renamed(reply.tree), parts)

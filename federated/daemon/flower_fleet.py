"""Flower's Fleet protocol, one call at a time.

This file, `flower_http.py` and `flower_messages.py` are the only ones that know Flower's private
names; they are written for flwr 1.41.0 and refuse another version. Flower's own SuperNode loop ends
the process when something fails, keeps messages in memory and runs each in a new process; here
every failure is a typed error, and the caller decides. The wire protocol, the signatures and the
messages are Flower's own classes.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from penstock.federated.daemon.fleet_errors import (
    BadMessage,
    FleetError,
    Forgotten,
    NotAdmitted,
    NotTaken,
    Unreachable,
)
from penstock.federated.daemon.flower_http import BoundedSender, VersionHeaders, typed_error
from penstock.federated.daemon.flower_messages import Outgoing, check_flower, part_ids
from penstock.federated.protocol import MOST_BYTES

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

CONNECT_S, ANSWER_S = 5.0, 10.0
MOST_PARTS = 100_000  # 7 MB of names
PART_WAIT_S = 60.0  # for a part that the server does not have yet
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Incoming:
    """A message as it is handed out, without its parts."""

    id: str
    run_id: int
    kind: str
    expires_at: float  # Unix time
    head: bytes
    tree: bytes


class Fleet:
    """A connection to a SuperLink, for one node.

    Args:
        address: host:port.
        key: the node's identity.
        certificates: PEM of trusted authorities; None: the system's.
        insecure: plain HTTP.
        heartbeat_s: the lease is twice this.

    Raises:
        BackendMissingError: Flower is not installed.
        UnsupportedModelError: another version of it.
    """

    def __init__(
        self,
        address: str,
        key: EllipticCurvePrivateKey,
        *,
        certificates: bytes | None = None,
        insecure: bool = False,
        heartbeat_s: float = 15.0,
    ) -> None:
        check_flower()
        import httpx
        from flwr.supercore.primitives.asymmetric import public_key_to_bytes
        from flwr.supernode.fleet_http_client import FleetHttpClient
        from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

        self.heartbeat_s = heartbeat_s
        self.node_id = 0
        self._taken: tuple[str, set[str]] = ("", set())  # the last reply, and its parts sent so far
        self._public = public_key_to_bytes(key.public_key())
        sender = BoundedSender()
        self._client = FleetHttpClient.from_server_address(
            address,
            insecure,
            certificates,
            [VersionHeaders(), NodeAuthHttpInterceptor(key, key.public_key()), sender],
        )
        sender.http = self._client._client
        sender.http.timeout = httpx.Timeout(ANSWER_S, connect=CONNECT_S)
        sender.http.headers["accept-encoding"] = "identity"  # what unpacks to more is not bounded

    def close(self) -> None:
        """Close the sockets."""
        self._client.close()

    # ------------------------------------------------------------ membership

    def join(self, known: int = 0) -> int:
        """Become active. Returns the node's number, the same for the same key.

        Args:
            known: the number under which this device's last process had a lease that may still run;
                0: there is none. SuperLink activates a node only when its lease has run out, and by
                then it has told the run that the device is gone; a sign of life under the old
                number goes on with the lease instead, so that a reply of before still counts.

        Raises:
            NotAdmitted, Unreachable, ClockWrong, ForeignVersion.
        """
        from flwr.proto.fleet_pb2 import ActivateNodeRequest, RegisterNodeFleetRequest

        if known:
            self.node_id = known
            try:
                self.heartbeat()
                return known
            except Forgotten:  # the server was started anew, or is another one
                self.node_id = 0

        def activate() -> int:
            response = self._client.ActivateNode(
                ActivateNodeRequest(public_key=self._public, heartbeat_interval=self.heartbeat_s)
            )
            return int(response.node_id)

        try:
            self.node_id = self._call(activate)
        except NotAdmitted:
            # Without node authentication anyone may register; with it only the server's owner.
            try:
                self._call(
                    lambda: self._client.RegisterNode(
                        RegisterNodeFleetRequest(public_key=self._public)
                    )
                )
            except NotAdmitted as known:
                raise NotAdmitted(
                    str(known)
                    if known.lease
                    else "the server admits registered keys only, and refuses this one",
                    known.lease,
                ) from None
            self.node_id = self._call(activate)
        return self.node_id

    def heartbeat(self) -> None:
        """Prolong the lease.

        Raises:
            Forgotten, Unreachable, ClockWrong.
        """
        from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest

        answer = self._call(
            lambda: self._client.SendNodeHeartbeat(
                SendNodeHeartbeatRequest(node=self._node(), heartbeat_interval=self.heartbeat_s)
            )
        )
        if not answer.success:
            raise Forgotten("the server does not know this node")

    def leave(self) -> None:
        """End the lease, so that the next process is admitted at once; failures do not matter."""
        from flwr.proto.fleet_pb2 import DeactivateNodeRequest

        try:
            self._call(
                lambda: self._client.DeactivateNode(DeactivateNodeRequest(node_id=self.node_id))
            )
        except FleetError:
            pass

    # ------------------------------------------------------------ messages

    def pull(self) -> Incoming | None:
        """The next message; the server hands it out once.

        Raises:
            Unreachable, Forgotten, ClockWrong, BadMessage.
        """
        from flwr.proto.fleet_pb2 import PullMessagesRequest

        answer = self._call(
            lambda: self._client.PullMessages(PullMessagesRequest(node=self._node()))
        )
        if not answer.messages_list:
            return None
        head, tree = answer.messages_list[0], answer.message_object_trees[0]
        about = head.metadata
        return Incoming(
            about.message_id,
            about.run_id,
            about.message_type.partition(".")[0],
            about.created_at + about.ttl,
            head.SerializeToString(),
            tree.SerializeToString(),
        )

    def pull_parts(self, run_id: int, tree: bytes, beat: Callable[[], None]) -> dict[str, bytes]:
        """All parts of a message, each checked against its SHA-256.

        Args:
            run_id: of the message.
            tree: as it came.
            beat: called after each part.

        Raises:
            Unreachable, RunOver, BadMessage.
        """
        wanted = part_ids(tree)
        if len(wanted) > MOST_PARTS:
            raise BadMessage(f"the message has {len(wanted)} parts, at most {MOST_PARTS} are taken")
        parts: dict[str, bytes] = {}
        total, until = 0, time.monotonic() + PART_WAIT_S
        for name in wanted:
            while True:
                answer = self._pull_part(run_id, name)
                beat()
                if answer.object_found and answer.object_available:
                    break
                if not answer.object_found or time.monotonic() > until:
                    raise BadMessage(f"the server does not have part {name[:12]} of its message")
                time.sleep(0.2)
            if hashlib.sha256(answer.object_content).hexdigest() != name:
                raise BadMessage(f"part {name[:12]} of the message came damaged")
            total += len(answer.object_content)
            if total > MOST_BYTES * 1.1:
                raise BadMessage(f"the message has more than {MOST_BYTES:,} bytes")
            parts[name] = answer.object_content
            until = time.monotonic() + PART_WAIT_S
        return parts

    def confirm(self, run_id: int, message_id: str) -> None:
        """Tell the server that all of a message is here.

        Raises:
            Unreachable, RunOver.
        """
        from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest

        self._call(
            lambda: self._client.ConfirmMessageReceived(
                ConfirmMessageReceivedRequest(
                    node=self._node(), run_id=run_id, message_object_id=message_id
                )
            )
        )

    def send(self, run_id: int, reply: Outgoing, seconds: float, beat: Callable[[], None]) -> None:
        """Send a reply; the server takes the same one once, however often it is sent. One whose
        sending broke off is gone on with, also when the run has already seen its head.

        Raises:
            Unreachable, RunOver, Forgotten.
            NotTaken: the server takes no reply to this message, or none any more.
        """
        from flwr.proto.fleet_pb2 import PushMessagesRequest
        from flwr.proto.message_pb2 import Message, ObjectTree, PushObjectRequest

        names = part_ids(reply.tree)  # the message itself is the last
        if not set(names) <= set(reply.parts):
            raise NotTaken("a part of the reply was damaged on this device's disk")
        answer = self._call(
            lambda: self._client.PushMessages(
                PushMessagesRequest(
                    node=self._node(),
                    messages_list=[Message.FromString(reply.head)],
                    message_object_trees=[ObjectTree.FromString(reply.tree)],
                    clientapp_runtime_list=[seconds],
                )
            )
        )
        wanted, session = set(answer.objects_to_push), answer.session_id
        if not wanted:
            wanted, session = self._outstanding(run_id, names), ""
        self._taken = names[-1], set(names) - wanted
        for name in names:
            if name not in wanted:
                continue
            request = PushObjectRequest(
                node=self._node(),
                run_id=run_id,
                object_id=name,
                object_content=reply.parts[name],
                session_id=session,
            )
            stored = self._call(partial(self._client.PushObject, request)).stored
            beat()
            if stored:
                self._taken[1].add(name)
            elif session:
                raise Unreachable("the server did not keep a part of the reply")
            elif name == names[-1]:
                raise NotTaken("the server did not wait for the rest of the reply")

    def _outstanding(self, run_id: int, names: list[str]) -> set[str]:
        """What is still to be sent of a reply that the server asks no part of. It does so when it
        has all of it, when it refuses it, and when a run has seen the head already and waits for
        the rest. Parts without the number of a session go to the one that waits for them.

        Raises:
            NotTaken: it does not know the reply.
        """
        root = names[-1]  # sent last: where it is, all are
        last = self._taken[1] if self._taken[0] == root else set()
        found = self._pull_part(run_id, root)
        if found.object_available:
            return set()
        if found.object_found:
            return set(names) - last
        if last and last >= set(names[:-1]):
            return set()  # taken, and handed on; only the last answer did not get through
        raise NotTaken("the server takes no reply to this message any more")

    def _pull_part(self, run_id: int, name: str) -> Any:
        from flwr.proto.message_pb2 import PullObjectRequest

        request = PullObjectRequest(node=self._node(), run_id=run_id, object_id=name)
        return self._call(lambda: self._client.PullObject(request))

    # ------------------------------------------------------------ calls

    def _node(self) -> Any:
        from flwr.proto.node_pb2 import Node

        return Node(node_id=self.node_id)

    def _call(self, call: Callable[[], _Result]) -> _Result:
        """The call's result; what fails becomes one of the errors above."""
        import ssl

        import httpx

        try:
            return call()
        except httpx.HTTPStatusError as error:
            raise typed_error(error) from error
        except httpx.TransportError as error:
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, ssl.SSLError):
                cause = cause.__cause__ or cause.__context__
            hint = "; check [superlink] certificates, and the device's clock" if cause else ""
            raise Unreachable(f"{type(error).__name__}: {error}{hint}") from error
        except ValueError as error:  # not protobuf: something else answers there
            raise Unreachable(f"what answers is no SuperLink: {error}") from error

"""Flower's Fleet protocol, one call at a time.

This file and `flower_messages.py` are the only ones that know Flower's private names; they are
written for flwr 1.41.0 and refuse another version. Flower's own SuperNode loop ends the process
when something fails, keeps messages in memory and runs each in a new process; here every failure
is a typed error, and the caller decides. The wire protocol, the signatures and the messages are
Flower's own classes.
"""

from __future__ import annotations

import email.utils
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from penstock.federated.daemon.fleet_errors import (
    BadMessage,
    ClockWrong,
    FleetError,
    ForeignVersion,
    Forgotten,
    NotAdmitted,
    RunOver,
    ServerFault,
    Unreachable,
)
from penstock.federated.daemon.flower_messages import FLOWER, Outgoing, check_flower, part_ids
from penstock.federated.protocol import MOST_BYTES

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

REGISTRATION_OFF, KEY_IN_USE, NOT_ACTIVATED, RUN_OVER = 2001, 23, 2004, 2007  # Flower's codes
CONNECT_S, ANSWER_S = 5.0, 10.0
MOST_SKEW_S = 4.0  # Flower takes a signature 5 s from the future, 305 s from the past
MOST_PARTS = 100_000
FAULT_PAUSES_S = (1.0, 4.0)  # before a call about a run, which the server failed at, is made again
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
        self._public = public_key_to_bytes(key.public_key())
        self._client = FleetHttpClient.from_server_address(
            address,
            insecure,
            certificates,
            [_VersionHeaders(), NodeAuthHttpInterceptor(key, key.public_key())],
        )
        self._client._client.timeout = httpx.Timeout(ANSWER_S, connect=CONNECT_S)

    def close(self) -> None:
        """Close the sockets."""
        self._client.close()

    # ------------------------------------------------------------ membership

    def join(self) -> int:
        """Become active. Returns the node's number, the same for the same key.

        Raises:
            NotAdmitted, Unreachable, ClockWrong, ForeignVersion.
        """
        from flwr.proto.fleet_pb2 import ActivateNodeRequest, RegisterNodeFleetRequest

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
        from flwr.proto.message_pb2 import PullObjectRequest

        wanted = part_ids(tree)
        if len(wanted) > MOST_PARTS:
            raise BadMessage(f"the message has {len(wanted)} parts, at most {MOST_PARTS} are taken")
        parts: dict[str, bytes] = {}
        total, until = 0, time.monotonic() + PART_WAIT_S
        for name in wanted:
            request = PullObjectRequest(node=self._node(), run_id=run_id, object_id=name)
            while True:
                answer = self._about_run(partial(self._client.PullObject, request))
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

        self._about_run(
            lambda: self._client.ConfirmMessageReceived(
                ConfirmMessageReceivedRequest(
                    node=self._node(), run_id=run_id, message_object_id=message_id
                )
            )
        )

    def send(self, run_id: int, reply: Outgoing, seconds: float, beat: Callable[[], None]) -> None:
        """Send a reply; the server takes the same one once, however often it is sent.

        Raises:
            Unreachable, RunOver, Forgotten.
        """
        from flwr.proto.fleet_pb2 import PushMessagesRequest
        from flwr.proto.message_pb2 import Message, ObjectTree, PushObjectRequest

        answer = self._about_run(
            lambda: self._client.PushMessages(
                PushMessagesRequest(
                    node=self._node(),
                    messages_list=[Message.FromString(reply.head)],
                    message_object_trees=[ObjectTree.FromString(reply.tree)],
                    clientapp_runtime_list=[seconds],
                )
            )
        )
        wanted = set(answer.objects_to_push)
        for name, content in reply.parts.items():
            if name in wanted:
                request = PushObjectRequest(
                    node=self._node(),
                    run_id=run_id,
                    object_id=name,
                    object_content=content,
                    session_id=answer.session_id,
                )
                stored = self._about_run(partial(self._client.PushObject, request)).stored
                beat()
                if not stored:
                    raise Unreachable("the server did not keep a part of the reply")

    # ------------------------------------------------------------ calls

    def _node(self) -> Any:
        from flwr.proto.node_pb2 import Node

        return Node(node_id=self.node_id)

    def _about_run(self, call: Callable[[], _Result]) -> _Result:
        """The result of a call about one run.

        A SuperLink that was started anew without a database answers 500 to whatever names a run
        that it does not know. To try that for ever would keep this device from every other message;
        the answer is kept, and is sent when the question comes again.
        """
        for pause in FAULT_PAUSES_S:
            try:
                return self._call(call)
            except ServerFault:
                time.sleep(pause)
        try:
            return self._call(call)
        except ServerFault as fault:
            raise RunOver(f"the server fails at it: {fault}") from fault

    def _call(self, call: Callable[[], _Result]) -> _Result:
        """The call's result; what fails becomes one of the errors above."""
        import ssl

        import httpx

        try:
            return call()
        except httpx.HTTPStatusError as error:
            raise _typed(error) from error
        except httpx.TransportError as error:
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, ssl.SSLError):
                cause = cause.__cause__ or cause.__context__
            hint = "; check [superlink] certificates, and the device's clock" if cause else ""
            raise Unreachable(f"{type(error).__name__}: {error}{hint}") from error
        except ValueError as error:  # not protobuf: something else answers there
            raise Unreachable(f"what answers is no SuperLink: {error}") from error


class _VersionHeaders:
    """Says which version we are, as Flower does, but does not end the process by itself."""

    def __init__(self) -> None:
        from flwr.supercore.runtime_version_compatibility import RuntimeVersionMetadata

        self._headers = dict(RuntimeVersionMetadata.from_local_component("SuperNode").as_metadata())

    def intercept(self, context: Any, call_next: Callable[[Any], Any]) -> Any:
        """Flower calls this around every request."""
        context.request.headers.update(self._headers)
        return call_next(context)


def _typed(error: Any) -> FleetError:
    from flwr.supercore.error import FlowerError
    from flwr.supercore.runtime_version_compatibility import (
        get_runtime_version_incompatibility_exit_message,
    )

    response = error.response
    text = response.text
    foreign = get_runtime_version_incompatibility_exit_message(text)
    if foreign:
        return ForeignVersion(f"this device has Flower {FLOWER}; the server says: {foreign}")
    known = FlowerError.from_json(text)
    if known is not None:
        if known.code == KEY_IN_USE:
            return NotAdmitted("the lease of this device's last process still runs", lease=True)
        if known.code in (NOT_ACTIVATED, REGISTRATION_OFF):
            return NotAdmitted(known.message, lease=False)
        if known.code == RUN_OVER:
            return RunOver(known.message)
    if response.status_code == 401:
        skew = _clock_skew(response.headers.get("date", ""))
        if skew is not None and not -300 < -skew < MOST_SKEW_S:
            side = "behind" if skew > 0 else "ahead of"
            return ClockWrong(
                f"this device's clock is {abs(skew):.0f} s {side} the server's, which refuses its "
                "signatures: set the clock (timedatectl set-ntp true)"
            )
        return Forgotten("the server does not know this node's key and number")
    # 502 to 504 are a proxy's: the server is away, and the message is not to be given up.
    fault = ServerFault if response.status_code == 500 else Unreachable
    return fault(
        f"the server answered {response.status_code}: {(known.message if known else text)[:200]}"
    )


def _clock_skew(date: str) -> float | None:
    """Seconds that the server's clock is ahead of ours, by its answer's Date header."""
    try:
        return email.utils.parsedate_to_datetime(date).timestamp() - time.time()
    except (TypeError, ValueError):
        return None

"""Flower's messages as bytes, and the app that answers them, in this process.

A message is a tree of parts, each named by its SHA-256. As bytes it can be kept in the journal, and
put together after a crash.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from penstock.errors import BackendMissingError, UnsupportedModelError
from penstock.federated.daemon.fleet_errors import BadMessage
from penstock.federated.flower_env import no_calls_home

if TYPE_CHECKING:
    from flwr.app import Message
    from flwr.clientapp import ClientApp

FLOWER = "1.41.0"


@dataclass(frozen=True)
class Outgoing:
    """A reply, ready to be sent."""

    head: bytes
    tree: bytes
    parts: dict[str, bytes]


def part_ids(tree: bytes) -> list[str]:
    """The parts of a message, children before parents, each once."""
    from flwr.proto.message_pb2 import ObjectTree

    found: dict[str, None] = {}
    stack = [(ObjectTree.FromString(tree), False)]
    while stack:
        node, expanded = stack.pop()
        if expanded:
            found.setdefault(node.object_id)
        else:
            stack.append((node, True))
            stack.extend((child, False) for child in node.children)
    return list(found)


def run_app(
    app: ClientApp | Exception, node_id: int, head: bytes, tree: bytes, parts: Mapping[str, bytes]
) -> Outgoing:
    """Put a message together, give it to the app, and take the reply apart.

    Args:
        app: an exception instead of an app answers the message with this error.
        node_id: ours.
        head, tree, parts: the message; of an error's answer only the head is used.

    Raises:
        BadMessage: the parts are no message. Whatever the app raises.
    """
    from flwr.app import Context, Error, Message, RecordDict
    from flwr.common.serde import message_from_proto
    from flwr.proto.message_pb2 import Message as ProtoMessage
    from flwr.proto.message_pb2 import ObjectTree
    from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
    from flwr.supercore.task_identity import TaskIdentity

    asked = message_from_proto(ProtoMessage.FromString(head))
    identity: Any = TaskIdentity  # replies ask it who they are from
    identity.run_id, identity.node_id, identity.task_id = asked.metadata.run_id, node_id, 0
    if isinstance(app, Exception):
        reason = str(app)[:2000]
        return _outgoing(Message(Error(code=2, reason=reason), reply_to=asked))
    try:
        root = ObjectTree.FromString(tree).object_id
        message = inflate_object_from_contents(root, dict(parts))
        if not isinstance(message, Message):
            raise TypeError(f"a {type(message).__name__}")
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise BadMessage(f"the parts do not make a message: {error}") from error
    message.metadata.__dict__["_message_id"] = asked.metadata.message_id
    context = Context(
        run_id=asked.metadata.run_id,
        node_id=node_id,
        node_config={},
        state=RecordDict(),
        run_config={},
    )
    return _outgoing(app(message, context))


def _outgoing(reply: Message) -> Outgoing:
    from flwr.app.message import remove_content_from_message
    from flwr.common.serde import message_to_proto
    from flwr.supercore.inflatable.inflatable_object import (
        get_all_nested_objects,
        get_object_tree,
        no_object_id_recompute,
    )

    reply.metadata.__dict__["_message_id"] = reply.object_id
    head = message_to_proto(remove_content_from_message(reply)).SerializeToString()
    with no_object_id_recompute():
        tree = get_object_tree(reply).SerializeToString()
        parts = {name: part.deflate() for name, part in get_all_nested_objects(reply).items()}
    return Outgoing(head, tree, parts)


def check_flower() -> None:
    """Refuse to work with a Flower that this file was not written for.

    Raises:
        BackendMissingError: it is not installed; UnsupportedModelError: another version.
    """
    no_calls_home()
    from importlib.metadata import PackageNotFoundError, version

    try:
        found = version("flwr")
    except PackageNotFoundError as error:
        raise BackendMissingError(
            "federated learning needs Flower, which is not installed: "
            "pip install 'penstock[federated]'"
        ) from error
    if found != FLOWER:
        raise UnsupportedModelError(
            f"Flower {found} is installed, the warm node is made for {FLOWER}: pip install "
            f"'flwr=={FLOWER}', or set [daemon] engine = \"supernode\""
        )

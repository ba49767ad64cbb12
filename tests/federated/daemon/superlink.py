"""A real flower-superlink in a process of its own, and a hand that plays its ServerApp.

The hand reads and writes SuperLink's database by Flower's own classes, as SuperLink's Runtime API
does: a run that is running, messages with their parts, replies.
"""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.request
import warnings
from pathlib import Path
from typing import Any

from penstock.federated.arrays import Arrays
from penstock.federated.flower_content import from_content, no_calls_home, to_content
from penstock.federated.protocol import Record

# Children keep what they compile, as an installed Python does.
COMPILED = {
    "PYTHONDONTWRITEBYTECODE": "",
    "PYTHONPYCACHEPREFIX": str(Path(tempfile.gettempdir()) / f"penstock-bytecode-{os.getuid()}"),
}


def free_port() -> int:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return int(made.getsockname()[1])


class SuperLink:
    """The process; `stop`, `kill` and `start` again on the same database."""

    def __init__(self, folder: Path, *options: str) -> None:
        """Plain HTTP unless the options say otherwise."""
        self.folder, self.port = folder, free_port()
        self.options = options or ("--insecure",)
        self.database = folder / "superlink.db"
        self.address = f"127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        with open(self.folder / "superlink.log", "ab") as log:
            self.process = subprocess.Popen(
                [
                    str(Path(sys.executable).parent / "flower-superlink"),
                    "--disable-runtime-dependency-installation",
                    "--isolation",
                    "process",  # no SuperExec: the hand does what a ServerApp would
                    "--port",
                    str(self.port),
                    "--database",
                    str(self.database),
                    *self.options,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ
                | COMPILED
                | {
                    "FLWR_HOME": str(self.folder / "flower"),
                    "FLWR_TELEMETRY_ENABLED": "0",
                    "FLWR_DISABLE_UPDATE_CHECK": "1",
                },
            )
        until = time.monotonic() + 120
        scheme = "http" if "--insecure" in self.options else "https"
        trusting = ssl.create_default_context()
        trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE  # only: is it there
        while True:
            try:
                url = f"{scheme}://{self.address}/health"
                with urllib.request.urlopen(url, timeout=2, context=trusting):
                    return
            except OSError:
                if time.monotonic() > until or self.process.poll() is not None:
                    log_text = (self.folder / "superlink.log").read_text()[-2000:]
                    raise AssertionError(f"SuperLink did not start: {log_text}") from None
                time.sleep(0.1)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()


class Hand:
    """Plays a ServerApp on a SuperLink's database."""

    def __init__(self, database: Path) -> None:
        no_calls_home()
        from flwr.server.superlink.linkstate import LinkStateFactory
        from flwr.supercore.object_store import ObjectStoreFactory
        from flwr.superlink.federation import NoOpFederationManager

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # alembic, of Flower's settings
            self.state = LinkStateFactory(
                str(database), NoOpFederationManager(), ObjectStoreFactory(str(database))
            ).state()

    def begin_run(self) -> int:
        """A run that is running."""
        from flwr.supercore.constant import NOOP_FEDERATION_ID, TaskType

        run: int = self.state.create_run(
            "test/app", "1.0.0", "", {}, NOOP_FEDERATION_ID, None, "", TaskType.SERVER_APP
        )
        self.task = self.state.get_tasks(run_ids=[run])[0].task_id
        assert self.state.claim_task(self.task)
        assert self.state.activate_task(self.task)
        return run

    def end_run(self) -> None:
        from flwr.common.constant import SubStatus

        assert self.state.finish_task(self.task, SubStatus.COMPLETED, "")

    def register(self, public_key: bytes) -> int:
        """What `flwr supernode register` does."""
        from flwr.common.constant import NOOP_ACCOUNT_NAME, NOOP_FLWR_AID

        return int(self.state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, public_key, 0))

    def nodes(self, run: int) -> set[int]:
        found: set[int] = self.state.get_nodes(run)
        return found

    def wait_for_nodes(self, run: int, count: int = 1, seconds: float = 60.0) -> list[int]:
        until = time.monotonic() + seconds
        while len(self.nodes(run)) < count:
            assert time.monotonic() < until, f"{len(self.nodes(run))} nodes of {count}"
            time.sleep(0.1)
        return sorted(self.nodes(run))

    def ask(
        self, run: int, node: int, kind: str, record: Record | None, arrays: Arrays | None = None
    ) -> str:
        """Put a message into the database. Returns its id."""
        from flwr.app import Message
        from flwr.common.constant import SUPERLINK_NODE_ID
        from flwr.supercore.inflatable.inflatable_object import (
            get_all_nested_objects,
            get_object_tree,
        )
        from flwr.supercore.task_identity import TaskIdentity

        self.state.acknowledge_task_heartbeat(self.task)
        identity: Any = TaskIdentity
        identity.run_id, identity.node_id, identity.task_id = run, SUPERLINK_NODE_ID, self.task
        message = Message(to_content(record, arrays), node, kind, group_id="1")
        message.metadata.__dict__["_message_id"] = message.object_id
        session = self.state.start_session(run)
        stored, wanted = self.state.store_message_and_object_tree(
            message, get_object_tree(message), session
        )
        assert stored
        for name, part in get_all_nested_objects(message).items():
            if name in wanted:
                assert self.state.store_object(run, session, name, part.deflate())
        return str(message.metadata.message_id)

    def head(self, run: int, message: str, seconds: float = 60.0) -> Any:
        """The reply without its parts, which may be on their way; then the question is gone."""
        until = time.monotonic() + seconds
        while not (found := self.state.get_message_res({message}, run)):
            self.state.acknowledge_task_heartbeat(self.task)
            assert time.monotonic() < until, "no reply"
            time.sleep(0.05)
        self.state.delete_messages({message})
        return found[0]

    def reply(self, run: int, message: str, seconds: float = 60.0) -> Any:
        """The reply, put together: a Flower Message."""
        return self.whole(self.head(run, message, seconds), seconds)

    def whole(self, head: Any, seconds: float = 60.0) -> Any:
        """The reply of which this is the head."""
        from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
        from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

        until = time.monotonic() + seconds
        if head.has_error():
            return head
        name = head.metadata.message_id
        tree = self.state.object_store.get_object_tree(name)
        contents: dict[str, bytes] = {}
        for part in iterate_object_tree(tree):
            while not contents.get(part.object_id):
                contents[part.object_id] = self.state.object_store.get(part.object_id) or b""
                assert time.monotonic() < until, "a part of the reply is missing"
        return inflate_object_from_contents(name, contents)

    def answer(self, run: int, message: str, seconds: float = 60.0) -> tuple[dict[str, Any], Any]:
        """The reply's plain values and arrays."""
        reply = self.reply(run, message, seconds)
        assert not reply.has_error(), reply.error
        return from_content(reply.content, "the device")

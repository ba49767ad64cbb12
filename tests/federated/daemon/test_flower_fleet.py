"""Each call to a real SuperLink, and the typed error of each way in which it fails."""

from __future__ import annotations

import datetime
import http.server
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from penstock.errors import BackendMissingError, UnsupportedModelError
from penstock.federated.daemon import flower_fleet, flower_http
from penstock.federated.daemon.fleet_errors import (
    BadMessage,
    ClockWrong,
    Forgotten,
    NotAdmitted,
    NotTaken,
    RunOver,
    ServerFault,
    Unreachable,
)
from penstock.federated.daemon.flower_fleet import Fleet
from penstock.federated.daemon.flower_messages import Outgoing, check_flower, part_ids, run_app
from penstock.federated.daemon.identity import Identity, load_identity
from penstock.federated.flower_content import to_content
from tests.federated.daemon.superlink import Hand, SuperLink, free_port

pytest.importorskip("flwr")


@pytest.fixture
def identity(tmp_path: Path) -> Identity:
    return load_identity(tmp_path)


@pytest.fixture
def fleet(identity: Identity, superlink: SuperLink) -> Iterator[Fleet]:
    made = Fleet(superlink.address, identity.key, insecure=True)
    yield made
    made.leave()
    made.close()


def nothing() -> None:
    """No sign of life is needed here."""


def test_join_leave_and_the_lease(
    fleet: Fleet, identity: Identity, superlink: SuperLink, hand: Hand
) -> None:
    run = hand.begin_run()
    node = fleet.join()
    fleet.heartbeat()
    assert node in hand.nodes(run)
    second = Fleet(superlink.address, identity.key, insecure=True)
    with pytest.raises(NotAdmitted, match="lease") as caught:
        second.join()
    assert caught.value.lease
    fleet.leave()
    assert node not in hand.nodes(run)
    assert second.join() == node, "the same key is the same node"
    second.leave()
    second.close()


def test_the_next_process_goes_on_with_the_lease(
    fleet: Fleet, identity: Identity, superlink: SuperLink
) -> None:
    """By its number, which is worth as much as the key; a wrong one costs one call."""
    node = fleet.join()
    second = Fleet(superlink.address, identity.key, insecure=True)
    assert second.join(node) == node
    with pytest.raises(NotAdmitted):
        second.join(node + 1)
    fleet.leave()
    assert second.join(node + 1) == node
    second.leave()
    second.close()


def uploading(fleet: Fleet, hand: Hand) -> tuple[int, str, Outgoing]:
    """A run, a question, and the reply to it, of six parts at least, ready to be sent."""
    from flwr.app import Context, Message
    from flwr.clientapp import ClientApp

    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        rng = np.random.default_rng(message.metadata.run_id)  # what the server has is not asked for
        arrays = {"w": rng.normal(size=3_000_000).astype(np.float32)}  # of three chunks
        return Message(to_content(None, arrays), reply_to=message)

    run = hand.begin_run()
    node = fleet.join()
    name = hand.ask(run, node, "train", None)
    asked = fleet.pull()
    assert asked is not None
    parts = fleet.pull_parts(run, asked.tree, nothing)
    fleet.confirm(run, name)
    reply = run_app(app, node, asked.head, asked.tree, parts)
    assert len(reply.parts) >= 6
    return run, name, reply


def cut_after(fleet: Fleet, monkeypatch: pytest.MonkeyPatch, most: int) -> list[str]:
    """The connection breaks after so many parts. Returns the list of parts that are sent."""
    import httpx

    sent: list[str] = []
    push = fleet._client.PushObject

    def pushing(request: object) -> object:
        if len(sent) == most:
            raise httpx.ConnectError("cut")
        sent.append(request.object_id)  # type: ignore[attr-defined]
        return push(request)  # type: ignore[arg-type]

    monkeypatch.setattr(fleet._client, "PushObject", pushing)
    return sent


@pytest.mark.parametrize("crash", [False, True])
def test_a_reply_whose_sending_broke_off_is_gone_on_with(
    fleet: Fleet, identity: Identity, superlink: SuperLink, hand: Hand, crash: bool
) -> None:
    """Though the run has seen its head, which ends the question."""
    run, name, reply = uploading(fleet, hand)
    with pytest.MonkeyPatch.context() as patch:
        before = cut_after(fleet, patch, 3)
        with pytest.raises(Unreachable):
            fleet.send(run, reply, 0.5, nothing)
    head = hand.head(run, name)
    again = fleet
    if crash:
        again = Fleet(superlink.address, identity.key, insecure=True)
        again.join(fleet.node_id)
    with pytest.MonkeyPatch.context() as patch:
        after = cut_after(again, patch, 100)
        again.send(run, reply, 0.5, nothing)
    if not crash:
        assert not set(before) & set(after), "what the server has is not sent again"
    assert set(before) | set(after) == set(reply.parts)
    assert hand.whole(head, 5).metadata.reply_to_message_id == name
    again.send(run, reply, 0.5, nothing)  # as after a crash before it was marked as sent
    if crash:
        again.close()


def test_what_the_server_does_not_take_is_not_sent(fleet: Fleet, hand: Hand) -> None:
    run, name, reply = uploading(fleet, hand)
    hand.state.delete_messages({name})  # as when the run has given the device up
    with pytest.raises(NotTaken, match="no reply to this message any more"):
        fleet.send(run, reply, 0.5, nothing)
    damaged = Outgoing(reply.head, reply.tree, dict(list(reply.parts.items())[1:]))
    with pytest.raises(NotTaken, match="damaged on this device's disk"):
        fleet.send(run, damaged, 0.5, nothing)


def test_a_message_there_and_back(fleet: Fleet, hand: Hand) -> None:
    from flwr.app import Context, Message, RecordDict
    from flwr.clientapp import ClientApp

    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        assert message.content["arrays"]
        return Message(RecordDict(), reply_to=message)

    run = hand.begin_run()
    node = fleet.join()
    assert fleet.pull() is None
    arrays = {"w": np.arange(3_000_000, dtype=np.float32), "n": np.array(3)}  # of three chunks
    name = hand.ask(run, node, "train", None, arrays)
    message = fleet.pull()
    assert message is not None and (message.id, message.run_id, message.kind) == (
        name,
        run,
        "train",
    )
    assert message.expires_at > time.time()
    assert fleet.pull() is None, "it is handed out once"
    parts = fleet.pull_parts(run, message.tree, nothing)
    assert set(parts) == set(part_ids(message.tree))
    assert fleet.pull_parts(run, message.tree, nothing) == parts, "until it is confirmed"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flower_fleet, "MOST_BYTES", 1_000_000)
        with pytest.raises(BadMessage, match="more than 1,000,000 bytes"):
            fleet.pull_parts(run, message.tree, nothing)
    fleet.confirm(run, name)
    reply = run_app(app, node, message.head, message.tree, parts)
    fleet.send(run, reply, 0.5, nothing)
    fleet.send(run, reply, 0.5, nothing)  # as after a crash before it was marked as sent
    got = hand.reply(run, name)
    assert not got.has_error() and got.metadata.reply_to_message_id == name

    # What cannot be put together is an error reply, and the run's end is told from the network's.
    with pytest.raises(BadMessage, match="do not make a message"):
        run_app(app, node, message.head, message.tree, {})
    other = hand.ask(run, node, "train", None, arrays)
    late = fleet.pull()
    assert late is not None
    failed = run_app(BadMessage("no"), node, late.head, late.tree, {})
    fleet.send(run, failed, 0.0, nothing)
    assert hand.reply(run, other).error.reason == "no"
    hand.end_run()
    with pytest.raises(RunOver):
        fleet.send(run, failed, 0.0, nothing)


def test_a_node_that_the_server_does_not_know(fleet: Fleet) -> None:
    fleet.join()
    fleet.node_id += 1
    with pytest.raises(Forgotten):
        fleet.heartbeat()
    with pytest.raises(Forgotten):
        fleet.pull()
    fleet.node_id -= 1


@pytest.mark.parametrize(("seconds", "side"), [(3600, "ahead of"), (-3600, "behind")])
def test_a_wrong_clock_is_named(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, seconds: int, side: str
) -> None:
    from flwr.supernode import node_auth_http_interceptor as signing

    real = time.time
    monkeypatch.setattr(
        flower_http,
        "time",
        SimpleNamespace(time=lambda: real() + seconds, monotonic=time.monotonic, sleep=time.sleep),
    )
    monkeypatch.setattr(
        signing,
        "now",
        lambda: datetime.datetime.fromtimestamp(real() + seconds, datetime.timezone.utc),
    )
    with pytest.raises(ClockWrong, match=rf"clock is \d+ s {side} the server's"):
        fleet.join()


def test_nobody_there_and_somebody_else(identity: Identity) -> None:
    alone = Fleet(f"127.0.0.1:{free_port()}", identity.key, insecure=True)
    with pytest.raises(Unreachable, match="ConnectError"):
        alone.join()
    alone.close()

    class Other(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>hello</html>")

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    server = http.server.HTTPServer(("127.0.0.1", 0), Other)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    other = Fleet(f"127.0.0.1:{server.server_port}", identity.key, insecure=True)
    with pytest.raises(Unreachable, match="no SuperLink"):
        other.join()
    other.close()
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "text", "error"),
    [
        (500, "boom", ServerFault),
        (503, "<html>a proxy</html>", Unreachable),
        (502, "", Unreachable),
        (429, "", Unreachable),
        (404, "", ServerFault),
        (400, "no protobuf", ServerFault),
        (413, "<html>a proxy</html>", NotTaken),
        (412, '{"code": 2004, "detail": "no"}', NotAdmitted),
        (412, '{"code": 23, "detail": "no"}', NotAdmitted),
        (412, '{"code": 2007, "detail": "no"}', RunOver),
        (412, '{"code": "x"}', ServerFault),
        (401, "", Forgotten),
    ],
)
def test_what_an_answer_means(status: int, text: str, error: type[Exception]) -> None:
    import httpx

    request = httpx.Request("POST", "http://x/v1/fleet/pull-messages")
    response = httpx.Response(status, text=text, request=request)
    failed = httpx.HTTPStatusError("failed", request=request, response=response)
    assert type(flower_http.typed_error(failed)) is error


@pytest.mark.parametrize("packed", [False, True])
def test_an_answer_is_bounded_before_it_is_in_memory(identity: Identity, packed: bool) -> None:
    written = 0

    class Endless(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            nonlocal written
            self.send_response(200)
            if packed:
                self.send_header("content-encoding", "gzip")
            self.end_headers()
            try:
                while written < 256 << 20:
                    written += self.wfile.write(bytes(1 << 20))
            except OSError:
                pass

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    server = http.server.HTTPServer(("127.0.0.1", 0), Endless)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    fleet = Fleet(f"127.0.0.1:{server.server_port}", identity.key, insecure=True)
    with pytest.raises(BadMessage, match="compressed" if packed else "more than 16,777,216 bytes"):
        fleet.pull()
    fleet.close()
    server.shutdown()
    server.server_close()
    assert written < 64 << 20


def test_tls_and_registered_keys(
    tmp_path: Path, identity: Identity, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from flwr.supercore.primitives.asymmetric import public_key_to_bytes

    from penstock.federated.server.certificates import (
        AUTHORITY,
        CERTIFICATE,
        KEY,
        make_certificates,
    )

    folder = tmp_path_factory.mktemp("tls")
    made = folder / "certificates"
    made.mkdir()
    make_certificates(made, [])
    link = SuperLink(
        folder,
        "--ssl-ca-certfile",
        str(made / AUTHORITY),
        "--ssl-certfile",
        str(made / CERTIFICATE),
        "--ssl-keyfile",
        str(made / KEY),
        "--enable-supernode-auth",
    )
    try:
        authority = (made / AUTHORITY).read_bytes()
        fleet = Fleet(link.address, identity.key, certificates=authority)
        with pytest.raises(NotAdmitted, match="registered keys only") as caught:
            fleet.join()
        assert not caught.value.lease
        number = Hand(link.database).register(public_key_to_bytes(identity.key.public_key()))
        assert fleet.join() == number
        fleet.leave()
        fleet.close()
        distrustful = Fleet(link.address, identity.key)  # the system's authorities
        with pytest.raises(Unreachable, match="check .superlink. certificates"):
            distrustful.join()
        distrustful.close()
    finally:
        link.stop()


def test_other_versions_of_flower(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.metadata

    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.99.0")
    with pytest.raises(UnsupportedModelError, match=r"Flower 1\.99\.0 is installed"):
        check_flower()

    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(BackendMissingError, match="penstock.federated."):
        check_flower()

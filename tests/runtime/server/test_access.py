"""Keys, and who may listen where."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from penstock.errors import PenstockError, UsageError
from penstock.runtime.server.access import Access, resolve
from penstock.runtime.server.api_error import ApiError
from penstock.runtime.server.serve import ServerOptions, bind
from tests.runtime.server.processes import (
    CHAT,
    COMPLETIONS,
    Client,
    ServerProcess,
    scripted_server,
)

KEY = "sk-correct-horse"


@pytest.fixture(scope="module")
def guarded() -> Iterator[ServerProcess]:
    with scripted_server(api_key=KEY) as running:
        yield running


@pytest.mark.parametrize(
    "value",
    [None, "", "Bearer", "Bearer ", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", f"Bearer {KEY.upper()}",
     f"Basic {KEY}", KEY, "Bearer \xe9\xff"],
)  # fmt: skip
def test_a_wrong_key_is_401(guarded: ServerProcess, value: str | None) -> None:
    client = Client(guarded.client.port)
    headers = {} if value is None else {"Authorization": value}
    for path in (COMPLETIONS, CHAT):
        reply = client.post(path, {"prompt": "say hi"}, **headers)
        assert (reply.status, reply.error["code"]) == (401, "invalid_api_key")
        assert reply.headers["www-authenticate"] == "Bearer"
        assert KEY not in reply.body.decode()
    for path in ("/v1/models", "/metrics", "/nothing/there"):
        assert client.get(path, **headers).status == 401


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER "])
def test_the_key_opens(guarded: ServerProcess, scheme: str) -> None:
    client = Client(guarded.client.port)
    reply = client.post(COMPLETIONS, {"prompt": "say hi"}, Authorization=f"{scheme} {KEY}")
    assert reply.json["choices"][0]["text"] == "hi"


def test_health_needs_no_key(guarded: ServerProcess) -> None:
    assert Client(guarded.client.port).get("/health").status == 200
    assert guarded.client.get("/metrics").status == 200


def test_with_a_key_any_host_name_will_do(guarded: ServerProcess) -> None:
    assert guarded.client.get("/v1/models", Host="models.example.org").status == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", ""]
)
def test_without_a_key_other_names_than_this_machine_are_refused(client: Client, host: str) -> None:
    reply = client.post(COMPLETIONS, {"prompt": "say hi"}, Host=host)
    assert (reply.status, reply.error["code"]) == (403, "host_not_allowed")


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:1", "127.0.0.1:80", "127.1.2.3", "[::1]:9"]
)
def test_names_of_this_machine(host: str) -> None:
    Access(None, "127.0.0.1").check("/v1/models", [(b"host", host.encode())])


def test_the_name_that_was_bound_is_allowed() -> None:
    access = Access(None, "my-laptop")
    access.check("/v1/models", [(b"host", b"my-laptop:80")])
    with pytest.raises(ApiError):
        access.check("/v1/models", [(b"host", b"other")])


@pytest.mark.parametrize("host", ["0.0.0.0", "::", ""])
def test_other_machines_need_a_key(host: str) -> None:
    with pytest.raises(UsageError, match="--api-key"):
        bind(ServerOptions(host=host, port=0))


def test_with_a_key_every_address_can_be_bound() -> None:
    # Bound, never listening: nothing outside can connect.
    with bind(ServerOptions(host="0.0.0.0", port=0, api_key=KEY)) as sock:
        assert sock.getsockname()[1] > 0


def test_localhost_is_local_and_ipv4_first() -> None:
    _, address, is_local = resolve("localhost", 7)
    assert is_local and address == ("127.0.0.1", 7)


def test_a_host_that_is_not_there() -> None:
    with pytest.raises(PenstockError, match="--host"):
        bind(ServerOptions(host="256.1.1.1.invalid", port=0))


@pytest.mark.parametrize("key", ["", "two words", "schlüssel", "tab\t", "line\n"])
def test_a_key_that_no_client_can_send(key: str) -> None:
    with pytest.raises(UsageError, match="printable"):
        ServerOptions(api_key=key)


@pytest.mark.parametrize(
    "wrong", [{"port": -1}, {"port": 65536}, {"max_queue": 0}, {"max_body_bytes": 0}]
)
def test_options_out_of_range(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="expected"):
        ServerOptions(**wrong)  # type: ignore[arg-type]

"""The viewer's server: what it gives, to whom, and how it ends."""

from __future__ import annotations

import http.client
import re
import socket
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pytest

from penstock.errors import PenstockError
from penstock.loaders.splats.model import select
from penstock.runtime.splats.view_server import (
    HOST,
    ViewServer,
    assemble_page,
    content_policy,
    first_view,
)
from tests.runtime.splats.scenes import random_model
from tests.runtime.splats.test_page_model import unpacked


@pytest.fixture(scope="module")
def server() -> Iterator[ViewServer]:
    with ViewServer(random_model(50, dynamic=True), "a ball", background=(1, 0.5, 0)) as running:
        yield running


def ask(
    server: ViewServer, path: str, method: str = "GET", host: str | None = None
) -> tuple[int, dict[str, str], bytes]:
    with closing(http.client.HTTPConnection(HOST, server.port, timeout=30)) as link:
        link.request(method, path, headers={} if host is None else {"Host": host})
        answer = link.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()


def test_the_page_is_whole_and_comes_with_its_policy(server: ViewServer) -> None:
    status, headers, body = ask(server, "/")
    assert status == 200 and headers["Content-Type"] == "text/html; charset=utf-8"
    assert body.decode() == assemble_page()
    policy = headers["Content-Security-Policy"]
    assert policy == content_policy(assemble_page()) and policy.startswith("default-src 'none';")
    assert len(re.findall("'sha256-[A-Za-z0-9+/]{43}='", policy)) == 2
    assert headers["X-Content-Type-Options"] == "nosniff"


def test_the_page_needs_nothing_from_elsewhere() -> None:
    page = assemble_page()
    assert "{{" not in page
    assert not re.search(r"https?://|\bsrc=|\bhref=|@import|url\(|\bimport\b", page)
    assert page.count("<script>") == page.count("</script>") == 1
    assert "\r" not in page


def test_the_model(server: ViewServer) -> None:
    status, headers, body = ask(server, "/model?again")
    assert status == 200 and headers["Content-Type"] == "application/octet-stream"
    header, arrays = unpacked(body)
    assert (header["name"], header["background"]) == ("a ball", [1, 0.5, 0])
    assert len(arrays["places"]) == 50 and 0 < header["radius"] < 1.3  # of 1, its middle aside
    status, headers, nothing = ask(server, "/model", "HEAD")
    assert (status, headers["Content-Length"], nothing) == (200, str(len(body)), b"")


@pytest.mark.parametrize(
    "path, method, host, status",
    [
        ("/favicon.ico", "GET", None, 204), ("/other", "GET", None, 404),
        ("/../data/view.html", "GET", None, 404), ("/", "POST", None, 501),
        ("/", "GET", "evil.example", 403), ("/model", "GET", "", 403),
        ("/model", "GET", "127.0.0.1", 403),
    ],
)  # fmt: skip
def test_others_get_nothing(
    server: ViewServer, path: str, method: str, host: str | None, status: int
) -> None:
    assert ask(server, path, method, host)[0] == status


def test_localhost_by_name(server: ViewServer) -> None:
    assert ask(server, "/", host=f"localhost:{server.port}")[0] == 200


def test_only_this_machine(server: ViewServer) -> None:
    assert server.url == f"http://127.0.0.1:{server.port}/"
    assert server._server.socket.getsockname()[0] == "127.0.0.1"


def test_a_client_that_goes_away(server: ViewServer, capfd: pytest.CaptureFixture[str]) -> None:
    for part in (b"", b"GET /mo", b"GET /model HTTP/1.1\r\nHost: x\r\n\r\n", b"\xff\0\r\n\r\n"):
        with closing(socket.create_connection((HOST, server.port))) as link:
            link.sendall(part)
    assert ask(server, "/")[0] == 200
    assert capfd.readouterr() == ("", "")


def test_a_port_in_use(server: ViewServer) -> None:
    with pytest.raises(PenstockError, match=f"{HOST}:{server.port}.*--port"):
        ViewServer(random_model(1), "x", port=server.port)


def test_the_port_is_free_again() -> None:
    with ViewServer(random_model(1), "x") as first:
        port = first.port
        assert ask(first, "/")[0] == 200
    with ViewServer(random_model(1), "x", port=port) as again:
        assert ask(again, "/")[0] == 200


def test_the_first_view_does_not_follow_stray_splats() -> None:
    model = random_model(200)
    means = model.means.copy()
    means[:10] *= 1e6
    stray = type(model)(means, model.scales, model.rotations, model.opacities, model.sh)
    view = first_view(stray)
    assert view["radius"] < 1.5 and np.abs(view["center"]).max() < 0.3  # 1.4 times nine in ten
    assert first_view(select(model, np.arange(0))) == {"center": [0, 0, 0], "radius": 1}
    assert first_view(select(model, np.arange(1)))["radius"] == 1e-3

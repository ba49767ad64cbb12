"""Who may ask: everyone on this machine, or whoever has the key."""

from __future__ import annotations

import hmac
import ipaddress
import socket

from penstock.errors import PenstockError, UsageError
from penstock.runtime.server.api_error import ApiError
from penstock.runtime.server.body import Headers, header

OPEN_PATHS = frozenset({"/health"})  # for whatever watches the server; it says nothing else


def check_key(key: str | None) -> None:
    """Raise UsageError where no client could send the key."""
    if key is not None and not (key and key.isascii() and key.isprintable() and " " not in key):
        raise UsageError(
            "the API key is empty, or has spaces or characters outside ASCII; expected printable "
            "ASCII without spaces"
        )


def resolve(host: str, port: int) -> tuple[socket.AddressFamily, tuple[str, int], bool]:
    """A family and an address to bind, IPv4 first, and whether only this machine reaches it.

    Raises:
        PenstockError: there is no such host.
    """
    try:
        found = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as error:
        raise PenstockError(
            f"--host {host}: {error}; give an address of this machine, such as 127.0.0.1"
        ) from None
    found.sort(key=lambda item: item[0] != socket.AF_INET)
    family, address = found[0][0], found[0][4]
    name = str(address[0])
    is_local = ipaddress.ip_address(name.partition("%")[0]).is_loopback
    return family, (name, int(address[1])), is_local


class Access:
    """Checks requests.

    Args:
        key: what clients must send as 'Authorization: Bearer KEY'; None: nothing, and then only
            requests that name this machine as their host are answered. Otherwise a page in the
            person's browser could lead its own name here (DNS rebinding) and read the answers.
        host: another name to allow, the one that was bound.
    """

    def __init__(self, key: str | None, host: str) -> None:
        self._key = None if key is None else key.encode()
        self._host = host

    def check(self, path: str, headers: Headers) -> None:
        """Raise ApiError, 401 or 403, unless the request may be answered."""
        if self._key is None:
            self._check_host(header(headers, b"host"))
        elif path not in OPEN_PATHS:
            self._check_key(header(headers, b"authorization"), self._key)

    def _check_key(self, given: bytes | None, key: bytes) -> None:
        scheme, _, value = (given or b"").strip().partition(b" ")
        # Compared in constant time: how long it takes says nothing about the key.
        if hmac.compare_digest(value.strip(), key) and scheme.lower() == b"bearer":
            return
        what = "no API key was sent" if given is None else "the API key is wrong"
        raise ApiError(
            401,
            f"{what}; send 'Authorization: Bearer KEY'.",
            code="invalid_api_key",
            headers={"www-authenticate": "Bearer"},
        )

    def _check_host(self, value: bytes | None) -> None:
        if value is None:  # no browser leaves it out
            return
        name = _host_name(value.decode("latin-1"))
        if name in ("localhost", self._host.lower()):
            return
        try:
            if ipaddress.ip_address(name).is_loopback:
                return
        except ValueError:
            pass
        raise ApiError(
            403,
            f"the Host header says {name!r}; without an API key expected localhost. Start the "
            "server with a key to reach it by other names.",
            code="host_not_allowed",
        )


def _host_name(value: str) -> str:
    """'example.org:80' or '[::1]:80' without the port."""
    if value.startswith("["):
        return value[1:].partition("]")[0].lower()
    return value.partition(":")[0].strip().lower()

"""Certificates: a real TLS handshake accepts them by every name, and by no other."""

from __future__ import annotations

import socket
import ssl
import stat
import threading
from pathlib import Path

import pytest

from penstock.errors import UsageError
from penstock.federated.server.certificates import make_certificates

pytest.importorskip("cryptography")


def handshake(folder: Path, name: str) -> str:
    """Empty, or why the client refused."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "server.pem", folder / "server.key")
    client = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    one, other = socket.socketpair()

    def answer() -> None:
        try:
            server.wrap_socket(one, server_side=True).close()
        except OSError:
            one.close()

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        client.wrap_socket(other, server_hostname=name).close()
        return ""
    except ssl.SSLCertVerificationError as error:
        other.close()
        return str(error)
    finally:
        thread.join()


def test_a_client_accepts_the_names_and_no_other(tmp_path: Path) -> None:
    make_certificates(tmp_path, ["fl.example.org", "192.168.1.5"])
    for name in ("fl.example.org", "192.168.1.5", "127.0.0.1", "localhost"):
        assert handshake(tmp_path, name) == ""
    assert "mismatch" in handshake(tmp_path, "other.example.org")


def test_the_key_is_for_its_owner_only_and_nothing_is_replaced(tmp_path: Path) -> None:
    make_certificates(tmp_path / "new", [])
    key = tmp_path / "new" / "server.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    before = key.read_bytes()
    with pytest.raises(UsageError, match="is there already"):
        make_certificates(tmp_path / "new", [])
    assert key.read_bytes() == before
    with pytest.raises(UsageError, match="neither a host name nor an address"):
        make_certificates(tmp_path / "other", ["gerät.example"])

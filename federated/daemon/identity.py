"""Who a device is: a P-384 key, made once, and a name that follows from it.

The same key gives the same node in the federation after every restart. The private key is in
OpenSSH's format, readable by its owner only, and never leaves the device; the public key is what
the server's owner registers.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.errors import BackendMissingError, FormatError, StorageError
from penstock.federated.device_name import device_name

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

KEY, PUBLIC = "node_key", "node_key.pub"


@dataclass(frozen=True)
class Identity:
    """A device's key and name.

    Attributes:
        device: 16 hex letters, of the public key's SHA-256.
        public_key: file to register at the server.
    """

    device: str
    private_key: Path
    public_key: Path
    key: EllipticCurvePrivateKey = field(repr=False)


def load_identity(folder: Path) -> Identity:
    """The device's identity; it is made at the first call.

    Raises:
        FormatError: the key file is damaged, no P-384 key, or gone while its public half is there.
        StorageError: it cannot be read or written.
        BackendMissingError: cryptography is not installed.
    """
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec
    except ImportError as error:
        raise BackendMissingError(
            "the device's key needs cryptography, which comes with Flower: "
            "pip install 'penstock[federated]'"
        ) from error
    path, public = folder / KEY, folder / PUBLIC
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with open(folder / f"{KEY}.lock", "w", encoding="ascii") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # two processes must not make two
            if not path.exists():
                if public.exists():  # it is written after the key
                    raise FormatError(
                        f"{path}: is gone, while {public} is there. Restore it from a copy; or "
                        "delete the public key too: the device is a new one then, and has to be "
                        "registered again"
                    )
                made = ec.generate_private_key(ec.SECP384R1())
                _write(
                    path,
                    made.private_bytes(
                        serialization.Encoding.PEM,
                        serialization.PrivateFormat.OpenSSH,
                        serialization.NoEncryption(),
                    ),
                    0o600,
                )
            text = path.read_bytes()
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror or error}") from error
    try:
        key = serialization.load_ssh_private_key(text, password=None)
    except (ValueError, TypeError) as error:
        raise FormatError(
            f"{path}: not a key: {error}. Restore it from a copy; without it this device is a new "
            "one to the federation, and has to be registered again"
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != "secp384r1":
        raise FormatError(f"{path}: expected a P-384 key: ssh-keygen -t ecdsa -b 384")
    device = device_name(key.public_key())
    line = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    try:
        # Another key's would be registered, and ours refused. A comment of the owner's stays.
        if not public.exists() or public.read_bytes().split()[:2] != line.split():
            _write(public, line + f" penstock-{device}\n".encode(), 0o644)
    except OSError as error:
        raise StorageError(f"{public}: {error.strerror or error}") from error
    return Identity(device, path, public, key)


def _write(path: Path, data: bytes, mode: int) -> None:
    """To a temporary file of this mode, to the disk, and into place."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        with open(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    handle = os.open(path.parent, os.O_RDONLY)
    with suppress(OSError):  # not every file system can
        os.fsync(handle)  # the name too outlives a power cut: the key may be registered at once
    os.close(handle)

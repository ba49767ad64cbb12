"""What a device is called: it follows from its public key, so that nobody can take another's name.

The device computes it from the key that it holds, the server from the key that SuperLink has
checked; both call this function.
"""

from __future__ import annotations

import hashlib
from typing import Any


def device_name(public_key: Any) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of the key's DER form (RFC 5280, section 4.1).

    Args:
        public_key: of `cryptography`.
    """
    from cryptography.hazmat.primitives import serialization

    der = public_key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return hashlib.sha256(der).hexdigest()[:16]

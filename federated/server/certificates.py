"""A certificate authority of one's own, for a federation without a public name.

    make_certificates(folder, ["fl.example.org", "192.168.1.5"])

writes ca.pem, which every device gets, and server.pem with server.key, which stay on the server.
The authority's key is thrown away: it signed one certificate and can sign no other.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
from collections.abc import Sequence
from pathlib import Path

from penstock.errors import BackendMissingError, StorageError, UsageError

DAYS = 825  # the most that some TLS stacks accept
AUTHORITY, CERTIFICATE, KEY = "ca.pem", "server.pem", "server.key"


def make_certificates(folder: Path, names: Sequence[str], days: int = DAYS) -> None:
    """Write the three files; localhost and 127.0.0.1 are always among the names.

    Args:
        names: host names and addresses by which devices reach the server.

    Raises:
        UsageError: one of the files is there already, or a name is none.
        BackendMissingError: `cryptography`, which comes with Flower, is not installed.
        StorageError: the folder cannot be written.
    """
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
    except ImportError as error:
        raise BackendMissingError(
            "certificates need the cryptography package: pip install 'penstock[federated]'"
        ) from error
    for name in (AUTHORITY, CERTIFICATE, KEY):
        if (folder / name).exists():
            raise UsageError(f"{folder / name} is there already; remove it to make a new one")
    wanted = ["localhost", "127.0.0.1", *names]
    alternatives: list[x509.GeneralName] = []
    for name in dict.fromkeys(wanted):
        try:
            alternatives.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            try:
                alternatives.append(x509.DNSName(name))
            except ValueError as error:
                raise UsageError(f"{name!r} is neither a host name nor an address") from error
    start = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(hours=1)
    end = start + datetime.timedelta(days=days)
    authority_key, key = (ec.generate_private_key(ec.SECP384R1()) for _ in range(2))
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Penstock federation")])
    signs = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    identifier = x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key())
    authority = (
        x509.CertificateBuilder(issuer, issuer, authority_key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(signs, critical=True)
        .add_extension(identifier, critical=False)
        .sign(authority_key, hashes.SHA384())
    )
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, wanted[-1][:64])])
    certificate = (
        x509.CertificateBuilder(issuer, subject, key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier),
            critical=False,
        )
        .sign(authority_key, hashes.SHA384())
    )
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / KEY, secret, 0o600)
        _write(folder / CERTIFICATE, certificate.public_bytes(pem), 0o644)
        _write(folder / AUTHORITY, authority.public_bytes(pem), 0o644)
    except OSError as error:
        raise StorageError(f"{folder}: cannot be written: {error.strerror}") from error


def _write(path: Path, data: bytes, mode: int) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())

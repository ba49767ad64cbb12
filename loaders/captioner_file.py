"""A captioner in one file: a ZIP archive, nothing in it compressed, with a manifest.

    captioner.json    the manifest: format, version, architecture, how a photo is prepared, the
                      tokenizer, how captions are made; of each other member its size and SHA-256
    *.onnx, *.txt ... what the manifest names

Standard tools open it (`unzip -l`). A damaged, foreign or newer file is refused before a library
sees any of it: names, sizes and checksums are checked against the archive.
"""

from __future__ import annotations

import hashlib
import json
import os
import reprlib
import zipfile
from pathlib import Path
from typing import Any

from penstock.errors import FormatError
from penstock.loaders.closing import Closing
from penstock.loaders.zip_errors import ZIP_ERRORS, zip_error

FORMAT, VERSION = "penstock.captioner", 1
MANIFEST = "captioner.json"
MANIFEST_LIMIT = 4 << 20  # bytes
MEMBERS_LIMIT = 64
EXPECTED = "expected a file that 'penstock export captioner' or 'penstock export lightcap' wrote"
ARCHITECTURES = ("lightcap", "encoder-decoder")

_short = reprlib.Repr()
_short.maxlevel, _short.maxlist, _short.maxdict = 3, 4, 4
_short.maxstring = _short.maxlong = _short.maxother = 80


def shown(value: object) -> str:
    """A value of a manifest for a message: what it is, but not megabytes of it."""
    return _short.repr(value)


class CaptionerFile(Closing):
    """An open captioner file; members are read when asked for.

    Attributes:
        path: the file.
        size: its bytes.
        manifest: the checked `captioner.json`.

    Raises:
        FormatError: not such a file, damaged, or of a newer version.
        StorageError: it cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            self.size = self.path.stat().st_size
            self._archive = zipfile.ZipFile(self.path)
        except ZIP_ERRORS as error:
            raise zip_error(self.path, error, f"not a captioner ({error}); {EXPECTED}") from None
        try:
            self._check_archive()
            self.manifest = self._read_manifest()
        except BaseException:
            self.close()
            raise

    @property
    def architecture(self) -> str:
        """'lightcap' or 'encoder-decoder'."""
        return str(self.manifest["architecture"])

    def read(self, name: str) -> bytes:
        """A member, whole.

        Raises:
            FormatError: there is none of this name, or its checksum is not the manifest's.
            StorageError: it cannot be read.
        """
        entry = self.manifest["members"].get(name)
        if entry is None:
            raise FormatError(f"{self.path}: the manifest names no member '{name}'")
        data = self._member(name)
        if hashlib.sha256(data).hexdigest() != entry["sha256"]:
            raise FormatError(
                f"{self.path}: member '{name}' is damaged: its SHA-256 is not that of the "
                "manifest; get the file again"
            )
        return data

    def text(self, name: str) -> str:
        """A member that is UTF-8 text.

        Raises:
            FormatError: as `read`, or it is not UTF-8.
        """
        try:
            return self.read(name).decode()
        except UnicodeDecodeError as error:
            raise FormatError(f"{self.path}: member '{name}' is not UTF-8: {error}") from None

    def __contains__(self, name: str) -> bool:
        return name in self.manifest["members"]

    def close(self) -> None:
        """Close the archive; twice is no error."""
        self._archive.close()

    def _check_archive(self) -> None:
        entries = self._archive.infolist()
        if len(entries) > MEMBERS_LIMIT:
            raise FormatError(
                f"{self.path}: {len(entries)} members, expected at most {MEMBERS_LIMIT}"
            )
        names = [entry.filename for entry in entries]
        if len(set(names)) != len(names):
            raise FormatError(f"{self.path}: two members have the same name")
        for entry in entries:
            stored = entry.compress_type == zipfile.ZIP_STORED and not entry.flag_bits & 1
            if not stored or entry.file_size != entry.compress_size:
                raise FormatError(
                    f"{self.path}: member '{entry.filename}' is compressed or encrypted, "
                    "expected stored"
                )
        if sum(entry.file_size for entry in entries) > self.size:
            raise FormatError(f"{self.path}: the members are larger than the file")
        if MANIFEST not in names:
            raise FormatError(f"{self.path}: no {MANIFEST} in it; this is not a captioner")

    def _member(self, name: str) -> bytes:
        try:
            return self._archive.read(name)
        except KeyError:
            raise FormatError(f"{self.path}: member '{name}' is missing") from None
        except ZIP_ERRORS as error:
            raise zip_error(self.path, error, f"member '{name}' is damaged: {error}") from None

    def _read_manifest(self) -> dict[str, Any]:
        if self._archive.getinfo(MANIFEST).file_size > MANIFEST_LIMIT:
            raise FormatError(f"{self.path}: {MANIFEST} is larger than {MANIFEST_LIMIT} bytes")
        try:
            manifest = json.loads(self._member(MANIFEST).decode())
        except (ValueError, RecursionError) as error:
            raise FormatError(f"{self.path}: {MANIFEST} is not JSON: {error}") from None
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise FormatError(f"{self.path}: {MANIFEST} is not of format '{FORMAT}'")
        version = manifest.get("version")
        if type(version) is not int or version != VERSION:
            raise FormatError(
                f"{self.path}: version {shown(version)}, this Penstock reads {VERSION}; install a "
                "newer one, or export the model again"
            )
        architecture = manifest.get("architecture")
        if architecture not in ARCHITECTURES:
            raise FormatError(
                f"{self.path}: architecture {shown(architecture)}, expected one of "
                f"{', '.join(ARCHITECTURES)}"
            )
        self._check_members(manifest.get("members"))
        return manifest

    def _check_members(self, members: Any) -> None:
        if not isinstance(members, dict):
            raise FormatError(f"{self.path}: {MANIFEST} lists no members")
        sizes = {entry.filename: entry.file_size for entry in self._archive.infolist()}
        for name, entry in members.items():
            digest = entry.get("sha256") if isinstance(entry, dict) else None
            if not isinstance(digest, str):
                raise FormatError(f"{self.path}: {MANIFEST} has no SHA-256 of member {shown(name)}")
            if name not in sizes or entry.get("bytes") != sizes[name]:
                raise FormatError(
                    f"{self.path}: member {shown(name)} has {sizes.get(name, 'no')} bytes, "
                    f"{MANIFEST} says {shown(entry.get('bytes'))}"
                )

"""Writes captioner files; `penstock.loaders.captioner_file` says what is in one."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from penstock.errors import UsageError
from penstock.loaders.captioner_file import ARCHITECTURES, FORMAT, MANIFEST, VERSION
from penstock.loaders.partial_file import partial_file

EPOCH = (1980, 1, 1, 0, 0, 0)  # the same members give the same bytes, whenever they are written


def write_captioner(
    out: Path, manifest: Mapping[str, Any], members: Mapping[str, bytes], *, overwrite: bool = False
) -> int:
    """Write a captioner file, whole or not at all.

    Args:
        manifest: `architecture`, `image`, `tokenizer`, `generation` and what else the architecture
            needs; format, version, sizes and checksums are added here.
        members: content by name.

    Returns:
        The file's bytes.

    Raises:
        UsageError: the architecture is not known, a member is called like the manifest, or `out` is
            there and `overwrite` is not given.
        StorageError: it cannot be written.
    """
    if manifest.get("architecture") not in ARCHITECTURES:
        raise UsageError(f"architecture {manifest.get('architecture')!r} is not one of captioners")
    if MANIFEST in members:
        raise UsageError(f"a member cannot be called {MANIFEST}")
    if out.exists() and not overwrite:
        raise UsageError(f"{out} is there already; give another name, or ask for overwriting")
    sums = {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in members.items()
    }
    whole = {"format": FORMAT, "version": VERSION, **manifest, "members": sums}
    with partial_file(out) as (handle, _), zipfile.ZipFile(handle, "w", zipfile.ZIP_STORED) as z:
        z.writestr(_entry(MANIFEST), json.dumps(whole, indent=1, ensure_ascii=False).encode())
        for name, data in members.items():
            z.writestr(_entry(name), data)
    return out.stat().st_size


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, EPOCH)
    entry.external_attr = 0o644 << 16
    return entry

"""Whether an artifact can be written under a name: asked before the work, not after it."""

from __future__ import annotations

import os
from pathlib import Path

from penstock.errors import StorageError, UsageError
from penstock.loaders.partial_file import check_writable


def check_target(source: Path, out: Path, overwrite: bool, suffix: str, kind: str) -> None:
    """Say early that nothing can be written there.

    Args:
        source: the file that is read; need not be there.
        suffix: that the name must have, such as ".onnx"; kind: of the artifact, for people.

    Raises:
        UsageError: the name ends otherwise, is taken, or is the source's.
        StorageError: the folder is missing, or cannot be written to.
    """
    if out.suffix.lower() != suffix:
        raise UsageError(f"{out}: the name of {kind} ends in {suffix}")
    if out.is_dir() or (out.exists() and not overwrite):
        raise UsageError(
            f"{out}: exists; choose another name, or pass overwrite=True (--overwrite)"
        )
    if out.exists() and source.exists() and os.path.samefile(source, out):
        raise UsageError(f"{out}: is the source; choose another name")
    if not out.parent.is_dir():
        raise StorageError(f"{out.parent}: there is no such folder; make it first")
    check_writable(out)

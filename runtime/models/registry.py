"""Finds an architecture's file by its name."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable

import penstock.runtime.models as package
from penstock.errors import UnsupportedModelError
from penstock.runtime.program import Program


def architectures() -> list[str]:
    """Names of the architectures that ship: the files of this folder."""
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if m.name != "registry")


def recorder(arch: str) -> Callable[[Program], None]:
    """The record function of an architecture.

    Raises:
        UnsupportedModelError: there is no such file.
    """
    if arch not in architectures():  # never import a name that came from a file unchecked
        raise UnsupportedModelError(
            f"architecture '{arch}' is not supported by the flash engine; "
            f"supported: {', '.join(architectures())}"
        )
    module = importlib.import_module(f"penstock.runtime.models.{arch}")
    record: Callable[[Program], None] = module.record
    return record

"""Penstock: run models that do not fit in memory, under a memory budget that is kept.

import penstock

model = penstock.load("storyteller.gguf", memory="24MiB")
for piece in model.generate("Once upon a time", max_tokens=64):
    print(piece, end="", flush=True)
print()
print(model.stats())
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

from penstock.errors import (
    BackendMissingError,
    BudgetError,
    ContextError,
    FormatError,
    PenstockError,
    RefusedUpdateError,
    StorageError,
    UnsupportedModelError,
    UsageError,
)

if TYPE_CHECKING:
    from penstock.runtime.caption.captioner import load_captioner as load_captioner
    from penstock.runtime.load import load as load
    from penstock.runtime.load import plan as plan

try:
    __version__ = _version("penstock")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

__all__ = [
    "BackendMissingError",
    "BudgetError",
    "ContextError",
    "FormatError",
    "PenstockError",
    "RefusedUpdateError",
    "StorageError",
    "UnsupportedModelError",
    "UsageError",
    "__version__",
    "load",
    "load_captioner",
    "plan",
]


def __getattr__(name: str) -> Any:
    # The engine is imported on first use, so that `import penstock` stays cheap.
    if name in ("load", "plan"):
        from penstock.runtime import load as module

        return getattr(module, name)
    if name == "load_captioner":
        from penstock.runtime.caption.captioner import load_captioner

        return load_captioner
    raise AttributeError(f"module 'penstock' has no attribute {name!r}")

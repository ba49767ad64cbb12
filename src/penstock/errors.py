"""The errors that Penstock raises on purpose.

    PenstockError
    ├── FormatError            a damaged, foreign or newer file: path, offset or field, expectation
    ├── BudgetError            does not fit: the least budget that works
    ├── UnsupportedModelError  which architecture or activation, and what is supported instead
    ├── BackendMissingError    an optional library is not installed: the extra to install
    ├── StorageError           a read failed or came back short
    ├── RefusedUpdateError     arrays or a message of a federation are not what was asked for
    └── UsageError             a value that the caller gave is out of its range
        └── ContextError       a prompt is longer than the context

Every message says what is wrong with the value seen, what was expected, and what to do.
"""

from __future__ import annotations


class PenstockError(Exception):
    """Base of every error that Penstock raises on purpose."""


class FormatError(PenstockError):
    """A file is damaged, truncated, of a newer version, or not of this format at all."""


class BudgetError(PenstockError):
    """The model does not fit the memory budget.

    Attributes:
        least_bytes: the smallest budget that works, or None when no budget would.
    """

    def __init__(self, message: str, least_bytes: int | None = None) -> None:
        super().__init__(message)
        self.least_bytes = least_bytes


class UnsupportedModelError(PenstockError):
    """The model's architecture, activation or options are not supported here."""


class BackendMissingError(PenstockError):
    """An optional library is missing; the message names the extra that brings it."""


class StorageError(PenstockError):
    """A read from storage failed or came back short; the engine can be used again."""


class RefusedUpdateError(PenstockError):
    """What came from a device or a server of a federation is not what was asked for."""


class UsageError(PenstockError, ValueError):
    """An argument is out of its range."""


class ContextError(UsageError):
    """A prompt is longer than the context."""

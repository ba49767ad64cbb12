"""TOML of settings and configurations: text to tables, or what is wrong with it."""

from __future__ import annotations

import sys
from typing import Any

from penstock.errors import BackendMissingError, FormatError


def parse_toml(text: str) -> dict[str, Any]:
    """The tables of a TOML text.

    Raises:
        FormatError: it is none; the caller names the file.
        BackendMissingError: Python 3.10 without tomli.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:  # Flower itself needs 3.11
        try:
            import tomli as tomllib
        except ImportError as error:
            raise BackendMissingError(
                "reading TOML on Python 3.10 needs tomli: pip install tomli"
            ) from error
    try:
        found: dict[str, Any] = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise FormatError(f"not TOML: {error}") from error
    return found

"""Marks of tests that need libraries, which collecting them does not import."""

from __future__ import annotations

from importlib.util import find_spec

import pytest


def needs(*libraries: str) -> pytest.MarkDecorator:
    """Skips where one of these top-level packages is not installed.

    `pytest.importorskip` at the top of a file imports it in every worker; this in none but the one
    that runs the tests.
    """
    missing = [name for name in libraries if find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")

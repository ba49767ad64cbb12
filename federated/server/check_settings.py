"""Checks of single settings, each with an error that names the setting and what was expected."""

from __future__ import annotations

import math
from typing import Any

from penstock.errors import UsageError


def between(name: str, value: float, low: float, high: float) -> None:
    """Raises:
    UsageError: the value is not within these bounds.
    """
    if not (math.isfinite(value) and low <= value <= high):
        raise UsageError(f"{name} is {value:g}, expected {low:g} to {high:g}")


def at_least(name: str, value: float, low: float) -> None:
    """Raises:
    UsageError: the value is less.
    """
    if not (math.isfinite(value) and value >= low):
        raise UsageError(f"{name} is {value:g}, expected at least {low:g}")


def check_type(name: str, value: Any, kind: str) -> Any:
    """The value as a field of this annotation holds it.

    Raises:
        UsageError: TOML gave another type.
    """
    plain = {"str": str, "int": int, "bool": bool}
    if kind in plain and type(value) is plain[kind]:
        return value
    if kind == "float" and type(value) in (int, float):
        return float(value)
    if kind == "tuple[int, ...]" and isinstance(value, (list, tuple)):
        return tuple(check_type(f"{name}[{i}]", item, "int") for i, item in enumerate(value))
    if kind == "tuple[tuple[float, float], ...]" and isinstance(value, (list, tuple)):
        pairs = []
        for i, pair in enumerate(value):
            if not isinstance(pair, (list, tuple)) or len(pair) != 2:
                raise UsageError(f"{name}[{i}] is {pair!r}, expected [ratio, share]")
            pairs.append(tuple(check_type(f"{name}[{i}]", item, "float") for item in pair))
        return tuple(pairs)
    raise UsageError(f"{name} is {value!r}, expected {kind}")

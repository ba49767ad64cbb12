"""The fields of a request's JSON, each with the type it must have."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from penstock.runtime.server.api_error import ApiError

SHOWN_CHARS = 60  # of a value that is wrong


def wrong(name: str, value: object, expected: str) -> ApiError:
    """The error for a field that is not what it should be."""
    return ApiError(400, f"{name} is {show(value)}; expected {expected}.", param=name)


def show(value: object) -> str:
    """A value as its sender wrote it, shortened."""
    try:
        text = json.dumps(value)
    except RecursionError:
        return "nested too deeply"
    return text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}..."


def check_text(name: str, value: object, expected: str = "a string") -> str:
    """The value, which must be a string that UTF-8 can hold."""
    if not isinstance(value, str):
        raise wrong(name, value, expected)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ApiError(
            400, f"{name} holds half of a surrogate pair; expected whole characters.", param=name
        ) from None
    return value


class Fields:
    """A JSON object whose fields are read one by one; null means absent, others are ignored."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._document = document

    def get(self, name: str) -> Any:
        """As it is."""
        return self._document.get(name)

    def flag(self, name: str) -> bool:
        value = self.get(name)
        if value is None:
            return False
        if not isinstance(value, bool):
            raise wrong(name, value, "true or false")
        return value

    def number(self, name: str, default: float) -> float:
        value = self.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise wrong(name, value, "a number")
        try:
            return float(value)
        except OverflowError:  # hundreds of digits
            raise wrong(name, value, "a finite number") from None

    def whole(self, name: str, least: int | None = None) -> int | None:
        value = self.get(name)
        if value is None:
            return None
        expected = "a whole number" if least is None else f"a whole number, {least} or more"
        if isinstance(value, bool) or not isinstance(value, int):
            raise wrong(name, value, expected)
        if least is not None and value < least:
            raise wrong(name, value, expected)
        return value

    def refuse(self, name: str, accepted: tuple[object, ...], reason: str) -> None:
        """Raise unless the field is absent or has a value that asks for nothing."""
        value = self.get(name)
        for ok in accepted:
            # True == 1 in Python, not in JSON.
            if value == ok and isinstance(value, bool) == isinstance(ok, bool):
                return
        if value is not None:
            raise ApiError(
                400, f"{name} is {show(value)}; {reason}.", param=name, code="unsupported_value"
            )

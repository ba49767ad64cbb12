"""`config.json` of a Hugging Face folder, read with types: errors name the file and the key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from penstock.errors import FormatError, StorageError


def read_json(path: Path, limit_bytes: int = 64 << 20) -> dict[str, Any]:
    """A JSON object from a file. Raises FormatError or StorageError."""
    try:
        size = path.stat().st_size
        if size > limit_bytes:
            raise FormatError(f"{path}: {size} bytes; expected at most {limit_bytes}")
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: not valid JSON ({error}); fetch it again") from None
    if not isinstance(value, dict):
        raise FormatError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


class HFConfig:
    """Typed access to a model's configuration."""

    def __init__(self, path: Path, values: dict[str, Any] | None = None) -> None:
        self.path = path
        self.values = read_json(path) if values is None else values

    def has(self, key: str) -> bool:
        return self.values.get(key) is not None

    def integer(
        self, *keys: str, default: int | None = None, low: int = 1, high: int = 2**31 - 1
    ) -> int:
        """The first of these keys that is set, a whole number from `low` to `high`."""
        value = next((self.values[k] for k in keys if self.has(k)), default)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.wrong(keys[0], f"a whole number from {low} to {high}", value)
        return value

    def number(self, *keys: str, default: float | None = None) -> float:
        value = next((self.values[k] for k in keys if self.has(k)), default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.wrong(keys[0], "a number", value)
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.values.get(key)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false", value)
        return value

    def text(self, *keys: str, default: str | None = None) -> str:
        value = next((self.values[k] for k in keys if self.has(k)), default)
        if not isinstance(value, str):
            raise self.wrong(keys[0], "a string", value)
        return value

    def wrong(self, key: str, expected: str, value: object) -> FormatError:
        seen = "missing" if value is None else repr(value)[:80]
        return FormatError(
            f"{self.path}: '{key}' is {seen}; expected {expected}. "
            "Take the file that belongs to the checkpoint."
        )

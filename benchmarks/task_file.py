"""What a benchmark asks of its child process, as JSON: frozen dataclasses there and back."""

from __future__ import annotations

import json
import types
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


def write_task(path: Path, task: Any) -> None:
    """Write a dataclass of plain values, tuples, frozensets and other dataclasses."""
    path.write_text(json.dumps(asdict(task), default=sorted))  # frozensets


def read_task(path: Path, kind: type[T]) -> T:
    """Read it back as `kind`, by its annotations."""
    task: T = _build(kind, json.loads(path.read_text()))
    return task


def _build(kind: Any, value: Any) -> Any:
    build: Any = kind
    if get_origin(kind) in (types.UnionType, Union):
        inner = next(arg for arg in get_args(kind) if arg is not type(None))
        return None if value is None else _build(inner, value)
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        return build(**{f.name: _build(hints[f.name], value[f.name]) for f in fields(kind)})
    if get_origin(kind) in (tuple, frozenset):
        return get_origin(kind)(_build(get_args(kind)[0], item) for item in value)
    return value

"""Where output goes: data to stdout, talk to stderr, JSON or tables, and prompts from stdin."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from penstock.errors import UsageError

PIPE_WIDTH = 120  # columns of a table that does not go to a terminal


def emit_json(document: Mapping[str, Any]) -> None:
    """Print one JSON document; whoever asked for JSON gets nothing else on stdout."""
    print(json.dumps(to_plain(document), ensure_ascii=False, indent=2), flush=True)


def to_plain(value: Any) -> Any:
    """A value as JSON knows it: dataclasses, numpy scalars and arrays, sets, paths; NaN is null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_plain(dataclasses.asdict(value))
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(to_plain(item) for item in value)
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):  # numpy
        return to_plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def say(text: str = "") -> None:
    """Talk to the person, not to the pipe."""
    print(text, file=sys.stderr, flush=True)


def print_facts(rows: Iterable[tuple[str, str]], title: str | None = None) -> None:
    """Names and values, one a line."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*row)
    print_rich(table)


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], title: str | None = None
) -> None:
    """A table; columns whose name starts with '>' are aligned to the right."""
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        right = name.startswith(">")
        table.add_column(name.lstrip(">"), justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    print_rich(table)


def print_rich(renderable: Any) -> None:
    """Print what rich renders."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else PIPE_WIDTH
    console = Console(width=width, markup=False, emoji=False, highlight=False)
    # Captured, because rich answers a closed pipe with an exit status of its own.
    with console.capture() as capture:
        console.print(renderable)
    lines = [line.rstrip() for line in capture.get().splitlines()]
    print("\n".join(lines), flush=True)


def read_prompt(prompt: str | None) -> str:
    """The PROMPT argument; '-' or nothing at all reads stdin, less one final newline.

    Raises:
        UsageError: there is no argument and stdin is a terminal.
    """
    if prompt is not None and prompt != "-":
        return prompt
    if prompt is None and sys.stdin.isatty():
        raise UsageError(
            "give a PROMPT, or pipe one in: echo 'Once upon a time' | penstock run MODEL"
        )
    data = sys.stdin.buffer.read().decode("utf-8", errors="replace")
    return data[:-1] if data.endswith("\n") else data


def size(nbytes: float) -> str:
    """Bytes for people."""
    from penstock.runtime.budget import format_size

    return format_size(nbytes)


def percent(share: float, digits: int = 1) -> str:
    """A share for people."""
    return f"{100 * share:.{digits}f} %"

"""What a part of the splat benchmark gives back."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table


@dataclass
class Part:
    """Figures for JSON, tables and lines for people, and the bars that were missed."""

    report: dict[str, Any] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)

    def bar(self, met: bool, text: str) -> None:
        """Note a bar that was not met."""
        if not met:
            self.missed.append(text)


@dataclass(frozen=True)
class Job:
    """What every part is told.

    Attributes:
        work: folder for what is made. splats: the shared data's folder, None: not there.
        quick: small shapes; bars do not apply.
    """

    work: Path
    splats: Path | None
    quick: bool
    threads: int


def without_data(job: Job, part: Part) -> Part:
    """The part of a run that has no shared data: it says so, and misses its bar unless quick."""
    part.lines.append("the shared data is not there: see --shared")
    part.bar(job.quick, "the shared data is not there, and with it what is measured of real scenes")
    return part


def table(title: str, first: str, *columns: str) -> Table:
    """An empty table whose first column is text."""
    made = Table(title=title, title_justify="left")
    made.add_column(first)
    for name in columns:
        made.add_column(name, justify="right")
    return made

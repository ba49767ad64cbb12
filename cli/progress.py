"""Progress bars on stderr, for people only: none where stderr is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from penstock.export.report import Progress, ProgressCallback


@contextmanager
def progress(what: str, total_bytes: int, wanted: bool = True) -> Iterator[Callable[[int], None]]:
    """Gives a function to call with the bytes done since the last call."""
    if not wanted or not sys.stderr.isatty():
        yield lambda nbytes: None
        return
    with _bar() as bar:
        task = bar.add_task(what, total=total_bytes)
        yield lambda nbytes: bar.advance(task, nbytes)


@contextmanager
def stages(wanted: bool = True) -> Iterator[ProgressCallback | None]:
    """Gives a callback for work in several stages, one bar each; None where nothing is shown."""
    if not wanted or not sys.stderr.isatty():
        yield None
        return
    tasks: dict[str, Any] = {}
    with _bar() as bar:

        def show(at: Progress) -> None:
            if at.stage not in tasks:
                tasks[at.stage] = bar.add_task(at.stage)
            bar.update(tasks[at.stage], completed=at.done, total=at.total or None)

        yield show


@contextmanager
def reading(wanted: bool = True) -> Iterator[None]:
    """A bar without an end meanwhile: for a file that is read and decoded in one go."""
    if not wanted or not sys.stderr.isatty():
        yield
        return
    with _bar() as bar:
        bar.add_task("reading", total=None)
        yield


def _bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
    from rich.progress import TimeRemainingColumn as TimeLeft

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeLeft())
    # What is printed meanwhile goes above the bar; into a pipe or a file it must go as it is.
    to_terminal = sys.stdout.isatty()
    return Progress(
        *columns, console=Console(stderr=True), transient=True, redirect_stdout=to_terminal
    )

"""Silence around libraries that print: progress bars, log lines, warnings, and lines from C++."""

from __future__ import annotations

import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout

STDERR = 2


@contextmanager
def quiet(native: bool = False) -> Iterator[None]:
    """Nothing on stdout and stderr from Python; with `native`, nothing on stderr from C++ either.

    It is for the whole process: what other threads print meanwhile is lost too.
    """
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            redirect_stdout(io.StringIO()),
            redirect_stderr(io.StringIO()),
            _silent_stderr() if native else nullcontext(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


@contextmanager
def _silent_stderr() -> Iterator[None]:
    if sys.__stderr__ is not None:
        sys.__stderr__.flush()
    try:
        kept = os.dup(STDERR)
    except OSError:  # it is closed
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, STDERR)
        yield
    finally:
        os.dup2(kept, STDERR)
        os.close(kept)
        os.close(nowhere)

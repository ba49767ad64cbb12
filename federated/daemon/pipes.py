"""How supervisor and node hear of each other: two pipes, so that neither can outlive the other.

The node writes a line whenever its phase changes and at least every second while it lives; the
supervisor kills a node that has fallen silent. The supervisor only holds the other pipe open: when
it is gone, the node reads the end of it and leaves. Signals wake the same wait.
"""

from __future__ import annotations

import json
import os
import select
import signal
import time
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

BEAT_S = 1.0  # least time between two lines of the same phase
MOST_LINE = 8192


class Stop:
    """Whether this process was asked to end: by SIGTERM, SIGINT, or the end of its supervisor. Any
    thread may ask.

    Args:
        lifeline: file descriptor whose end means that the supervisor is gone; None: there is none.
    """

    def __init__(self, lifeline: int | None = None) -> None:
        self._asked = False
        self._lifeline = lifeline
        self._read, self._write = os.pipe()
        for end in (self._read, self._write):
            os.set_blocking(end, False)

    @property
    def wake(self) -> int:
        """A file descriptor that can be read when the end is asked for; to select on."""
        return self._read

    def drain(self) -> None:
        """Let `wake` sleep again, though the end was asked for."""
        try:
            os.read(self._read, 4096)
        except BlockingIOError:
            pass

    def listen(self) -> None:
        """Handle the signals; from the main thread."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._signalled)

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self.ask()

    def ask(self) -> None:
        """Ask for the end."""
        self._asked = True
        try:
            os.write(self._write, b".")
        except BlockingIOError:
            pass  # it is full of questions

    def asked(self) -> bool:
        """Whether it was asked; does not wait."""
        if not self._asked and self._lifeline is not None:
            self._look(0.0)
        return self._asked

    def wait(self, seconds: float) -> bool:
        """Sleep, but wake at once when the end is asked for. Returns whether it is."""
        until = time.monotonic() + seconds
        while not self._asked:
            left = until - time.monotonic()
            if left <= 0:
                break
            self._look(left)
        return self._asked

    def _look(self, seconds: float) -> None:
        watched = [self._read] + ([] if self._lifeline is None else [self._lifeline])
        ready, _, _ = select.select(watched, [], [], max(0.0, seconds))
        if self._lifeline in ready:  # nothing is ever written to it: this is its end
            self._asked = True


@dataclass
class Reporter:
    """The node's side: says what it does.

    Args:
        pipe: to the supervisor; None: nobody listens.
        facts: that go with every line.
    """

    pipe: int | None
    facts: dict[str, Any] = field(default_factory=dict)
    _phase: str = ""
    _last: float = 0.0

    def __post_init__(self) -> None:
        if self.pipe is not None:
            os.set_blocking(self.pipe, False)

    def beat(self, phase: str | None = None, **facts: Any) -> None:
        """A sign of life; a new phase or new facts are said at once."""
        now = time.monotonic()
        news = (phase is not None and phase != self._phase) or any(
            self.facts.get(name) != value for name, value in facts.items()
        )
        if not news and now - self._last < BEAT_S:
            return
        self._phase, self._last = phase or self._phase, now
        self.facts |= facts
        line = json.dumps({"phase": self._phase} | self.facts)
        if self.pipe is not None and len(line) < MOST_LINE:
            try:
                os.write(self.pipe, line.encode() + b"\n")
            except (BlockingIOError, BrokenPipeError):
                pass  # the supervisor is slow, or gone: the lifeline says which


class LineReader:
    """The supervisor's side of a pipe: whole lines as they come, none too long."""

    def __init__(self, pipe: int) -> None:
        self.pipe = pipe
        self.ended = False
        self._held = b""
        os.set_blocking(pipe, False)

    def lines(self) -> list[str]:
        """What has come; does not wait."""
        try:
            while chunk := os.read(self.pipe, 65536):
                self._held += chunk
                if len(self._held) > 8 * MOST_LINE:
                    break
            else:
                self.ended = True
        except BlockingIOError:
            pass
        *whole, self._held = self._held.split(b"\n")
        self._held = self._held[-MOST_LINE:]
        return [line.decode(errors="replace") for line in whole if line]

"""Stop strings in streamed text, also when they are spread over several pieces."""

from __future__ import annotations

from collections.abc import Sequence

from penstock.errors import UsageError


class StopMatcher:
    """Releases streamed text up to the first stop string, which is never shown.

    The stop string that is complete first wins; of those complete at the same character, the
    longest. How the text is cut into pieces does not change the result. Text is held back only
    while it is the beginning of a stop string. The cost per character does not depend on the
    length of the stop strings (Knuth, Morris and Pratt, 1977).

    Args:
        stops: the stop strings; none means that all text passes through.

    Attributes:
        matched: the stop string that was found, or None.

    Raises:
        UsageError: a stop string is empty, or `stops` is one string instead of a sequence.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        check_stops(stops)
        self.matched: str | None = None
        self._stops = tuple(stops)
        self._borders = [_borders(stop) for stop in self._stops]
        self._matched_chars = [0] * len(self._stops)  # how much of each stop the text now ends with
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """Add text; returns what may be shown now, and whether a stop string was found.

        After a stop string was found, everything pushed is dropped.
        """
        if self.matched is not None:
            return "", True
        before_chars = len(self._held)
        self._held += text
        for position, char in enumerate(text, start=before_chars + 1):
            complete = self._advance(char)
            if complete:
                self.matched = max(complete, key=len)
                shown, self._held = self._held[: position - len(self.matched)], ""
                return shown, True
        keep_chars = max(self._matched_chars, default=0)
        cut = len(self._held) - keep_chars
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown, False

    def flush(self) -> str:
        """The text still held back, at the end of the stream; empty after a stop string."""
        held, self._held = self._held, ""
        self._matched_chars = [0] * len(self._stops)
        return held

    def _advance(self, char: str) -> list[str]:
        complete = []
        for i, (stop, borders) in enumerate(zip(self._stops, self._borders, strict=True)):
            length = self._matched_chars[i]
            while length and stop[length] != char:
                length = borders[length - 1]
            length += stop[length] == char
            if length == len(stop):
                complete.append(stop)
            self._matched_chars[i] = length
        return complete


def check_stops(stops: Sequence[str]) -> None:
    """Raise `UsageError` unless `stops` is a sequence of non-empty strings."""
    if isinstance(stops, str) or not all(isinstance(stop, str) and stop for stop in stops):
        raise UsageError(
            f"stop is {stops!r}; expected a sequence of non-empty strings, such as ('\\n\\n',)."
        )


def _borders(stop: str) -> list[int]:
    """For each prefix, the length of its longest proper prefix that is also its suffix."""
    borders = [0]
    length = 0
    for char in stop[1:]:
        while length and stop[length] != char:
            length = borders[length - 1]
        length += stop[length] == char
        borders.append(length)
    return borders

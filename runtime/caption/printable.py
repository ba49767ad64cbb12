"""Names of files, messages and captions as one line that cannot steer a terminal."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text with what is not printable as Python writes it: a newline as \\n, a raw byte as
    \\udcff. What is printable stays, in any script."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)

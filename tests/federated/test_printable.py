"""What comes from a device steers no terminal that shows it."""

from __future__ import annotations

from penstock.federated.printable import printable
from penstock.federated.protocol import MOST_REASON


def test_one_bounded_line_without_control_characters() -> None:
    assert printable("a\x1b[31mb\n\u202ec\x00\x9b2J") == "a [31mb c 2J"
    assert printable("größer, 大きい") == "größer, 大きい"
    assert len(printable("x" * 60_000)) == MOST_REASON
    assert printable("x" * 60_000, 7) == "x" * 7

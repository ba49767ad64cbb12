"""A text that came over the network, for a terminal, a log or a status."""

from __future__ import annotations

from penstock.federated.protocol import MOST_REASON


def printable(text: str, most: int = MOST_REASON) -> str:
    """One line of at most `most` letters; control characters, which steer a terminal, are gone."""
    kept = "".join(letter if letter.isprintable() else " " for letter in text[: 4 * most])
    return " ".join(kept.split())[:most]

"""What a label in a file stands for: a class number, or the name of one."""

from __future__ import annotations

import re
from dataclasses import dataclass

from penstock.errors import FormatError
from penstock.federated.models.registry import MOST_CLASSES
from penstock.federated.training.data import UNLABELLED

NONE = ("", "nan", "<na>")  # an empty cell, and how pandas writes one
WHOLE = re.compile(r"\.0*$")  # of 1.0


@dataclass(frozen=True)
class LabelCodes:
    """Names of the classes 0, 1, ...; without names labels are numbers."""

    names: tuple[str, ...] = ()

    def from_number(self, value: int, where: str) -> int:
        """A class number; -1 is no label.

        Raises:
            FormatError: out of range.
        """
        most = len(self.names) or MOST_CLASSES
        if not UNLABELLED <= value < most:
            raise FormatError(
                f"{where} is {value}, expected a class from 0 to {most - 1}, or -1 for none"
            )
        return value

    def from_text(self, text: str, where: str) -> int:
        """A class's name or number, also as pandas writes numbers beside empty cells (1.0); empty
        or NaN is no label.

        Raises:
            FormatError: not known.
        """
        text = text.strip()
        if text in self.names:
            return self.names.index(text)
        if text.casefold() in NONE:
            return UNLABELLED
        try:
            number = int(WHOLE.sub("", text))
        except ValueError:
            known = (
                f"one of {', '.join(self.names)}" if self.names else "a number, or --label-names"
            )
            raise FormatError(f"{where} is {text!r}, expected {known}") from None
        return self.from_number(number, where)


@dataclass(frozen=True)
class AnyLabels(LabelCodes):
    """For windows that are only looked up: whatever their label is, it is none."""

    def from_number(self, value: int, where: str) -> int:
        """-1."""
        del value, where
        return UNLABELLED

    def from_text(self, text: str, where: str) -> int:
        """-1."""
        del text, where
        return UNLABELLED


def parse_label_names(text: str) -> tuple[str, ...]:
    """'walk,sit,stand' as names.

    Raises:
        FormatError: one is empty, twice there, or looks like a number.
    """
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if not name or names.count(name) > 1 or name.lstrip("-").isdigit():
            raise FormatError(
                f"label names {text!r}: {name!r} is empty, there twice or a number; write them "
                "as walking,sitting,standing"
            )
    return names

"""Checked values of a captioner's manifest: nothing of it is used unseen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from penstock.errors import FormatError
from penstock.loaders.captioner_file import CaptionerFile, shown
from penstock.runtime.caption.beam_search import BeamOptions

RESIZES = ("stretch", "shortest-edge")
RESAMPLES = ("bilinear", "bicubic")


@dataclass(frozen=True)
class ImageInput:
    """How a photo becomes the encoder's input [1, 3, size, size], float32.

    Attributes:
        size: pixels of each side.
        resize: `stretch` to the square, or the `shortest-edge` to the size and the middle cut out.
        mean, std: of pixels in [0, 1], by channel.
    """

    size: int
    resize: str
    resample: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class Section:
    """A part of the manifest whose values are checked as they are read."""

    def __init__(self, file: CaptionerFile, name: str) -> None:
        self.where = f"{file.path}: captioner.json: {name}"
        values = file.manifest.get(name)
        if not isinstance(values, dict):
            raise FormatError(f"{self.where} is missing")
        self.values: Mapping[str, Any] = values

    def integer(self, key: str, least: int, most: int, default: int | None = None) -> int:
        """A whole number within [least, most]."""
        value = self.values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise FormatError(f"{self.where}.{key} is {shown(value)}, expected {least} to {most}")
        return value

    def number(self, key: str, least: float, most: float, default: float | None = None) -> float:
        """A finite number within [least, most]."""
        value = self.values.get(key, default)
        good = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not good or not least <= value <= most:  # NaN is neither
            raise FormatError(
                f"{self.where}.{key} is {shown(value)}, expected {least:g} to {most:g}"
            )
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        """True or false."""
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            raise FormatError(f"{self.where}.{key} is {shown(value)}, expected true or false")
        return value

    def choice(self, key: str, choices: tuple[str, ...]) -> str:
        """One of the names."""
        value = self.values.get(key)
        if value not in choices:
            raise FormatError(
                f"{self.where}.{key} is {shown(value)}, expected one of {', '.join(choices)}"
            )
        return str(value)

    def triple(self, key: str, least: float, most: float) -> tuple[float, float, float]:
        """Three finite numbers within [least, most]."""
        value = self.values.get(key)
        if not isinstance(value, list) or len(value) != 3:
            raise FormatError(f"{self.where}.{key} is {shown(value)}, expected three numbers")
        for x in value:
            if isinstance(x, bool) or not isinstance(x, (int, float)) or not least <= x <= most:
                raise FormatError(
                    f"{self.where}.{key} has {shown(x)}, expected {least:g} to {most:g}"
                )
        return float(value[0]), float(value[1]), float(value[2])


def image_input(file: CaptionerFile) -> ImageInput:
    """The section `image`."""
    section = Section(file, "image")
    return ImageInput(
        size=section.integer("size", 8, 2048),
        resize=section.choice("resize", RESIZES),
        resample=section.choice("resample", RESAMPLES),
        mean=section.triple("mean", -10, 10),
        std=section.triple("std", 1e-6, 1e3),
    )


def most_tokens(file: CaptionerFile) -> int:
    """Of a caption, as far as the graphs' tables of positions go."""
    return Section(file, "generation").integer("most_tokens", 1, 1024, 64)


def generation_options(file: CaptionerFile) -> BeamOptions:
    """The section `generation`: what is done when the caller does not say."""
    section = Section(file, "generation")
    most = most_tokens(file)
    return BeamOptions(
        beams=section.integer("beams", 1, 10),
        max_tokens=section.integer("max_tokens", 1, most),
        end=section.integer("end", 0, 1 << 24),
        length_penalty=section.number("length_penalty", -10, 10, 1.0),
        no_repeat=section.integer("no_repeat", 0, 16, 0),
        early_stopping=section.flag("early_stopping"),
    )

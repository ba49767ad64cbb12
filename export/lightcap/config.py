"""Widths and depths of a LightCap captioner; the defaults are the paper's 40 M parameter design."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from penstock.errors import FormatError

ENCODERS = ("clip-resnet50", "mobilenet-v2", "small-resnet")
LEAST = {"image_size": 32, "positions": 2, "begin": 0, "end": 0, "mask": 0}
MOST = {"image_size": 2048, "grid": 64, "layers": 256, "prediction_heads": 64}
MOST_ELSE = 1 << 20  # of any other number; shapes are checked before memory is taken for them


@dataclass(frozen=True)
class LightCapConfig:
    """A LightCap captioner.

    Attributes:
        encoder: the visual backbone; gives a grid of `grid` x `grid` cells of `channels`.
        image_size: pixels of each side of the input.
        alignment, embedding: widths of the alignment module: channels -> alignment -> embedding,
            the space of the concepts' text embeddings.
        concepts: size of the concept vocabulary; top_concepts: of them that are kept for a photo.
        modulator: hidden width of the cross-modal modulator.
        vocabulary, hidden, layers, heads, ffn, positions: of the fusion BERT.
        prediction_heads: parallel heads, averaged.
        begin, end, mask: token ids, of BERT `[CLS]`, `[SEP]`, `[MASK]`.
    """

    encoder: str = "clip-resnet50"
    image_size: int = 224
    grid: int = 7
    channels: int = 2048
    alignment: int = 1024
    embedding: int = 1024
    concepts: int = 1600
    top_concepts: int = 20
    modulator: int = 312
    vocabulary: int = 30522
    hidden: int = 312
    layers: int = 4
    heads: int = 12
    ffn: int = 1200
    positions: int = 512
    prediction_heads: int = 3
    begin: int = 101
    end: int = 102
    mask: int = 103

    @property
    def cells(self) -> int:
        """Of the grid."""
        return self.grid * self.grid

    @property
    def head_width(self) -> int:
        """Of one attention head."""
        return self.hidden // self.heads

    def save(self, path: Path) -> None:
        """As JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> LightCapConfig:
        """From JSON.

        Raises:
            FormatError: an unknown name, a value of another type or out of range, or two that do
                not go together.
        """
        try:
            values: dict[str, Any] = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise FormatError(f"{path}: cannot be read as JSON: {error}") from None
        if not isinstance(values, dict):
            raise FormatError(f"{path}: expected a JSON object, not {type(values).__name__}")
        known = {field.name: type(field.default) for field in fields(cls)}
        for name, value in values.items():
            if name not in known or type(value) is not known[name]:
                raise FormatError(
                    f"{path}: {name} is {value!r}; expected of a LightCap configuration: "
                    + ", ".join(f"{key} ({kind.__name__})" for key, kind in known.items())
                )
        config = cls(**values)
        config._check(path)
        return config

    def _check(self, path: Path) -> None:
        if self.encoder not in ENCODERS:
            raise FormatError(
                f"{path}: encoder is '{self.encoder}', expected one of {', '.join(ENCODERS)}"
            )
        for name, value in asdict(self).items():
            least, most = LEAST.get(name, 1), MOST.get(name, MOST_ELSE)
            if isinstance(value, int) and not least <= value <= most:
                raise FormatError(f"{path}: {name} is {value}, expected {least} to {most}")
        for name in ("begin", "end", "mask"):
            if getattr(self, name) >= self.vocabulary:
                raise FormatError(
                    f"{path}: {name} is {getattr(self, name)}, expected a token below "
                    f"{self.vocabulary}"
                )
        if self.top_concepts > self.concepts:
            raise FormatError(
                f"{path}: top_concepts is {self.top_concepts}, there are {self.concepts} concepts"
            )
        if self.hidden % self.heads:
            raise FormatError(f"{path}: hidden is {self.hidden}, no multiple of {self.heads} heads")

"""LightCap-style captioners: what runs on the device (arXiv 2212.08985).

    photo -> encoder -> grid -> concepts -> prefix -> decoder, token by token

`penstock.export.lightcap.graphs` describes the four graphs. Arrays between them stay onnxruntime's
own; which beam continues which is an input of the decoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from penstock.errors import FormatError, PenstockError
from penstock.loaders.captioner_file import CaptionerFile
from penstock.runtime.backends.onnx_model import Values
from penstock.runtime.caption.captioner import Concept, Times
from penstock.runtime.caption.manifest import (
    Section,
    generation_options,
    image_input,
    most_tokens,
)
from penstock.runtime.caption.member_graph import MemberGraph
from penstock.runtime.caption.preprocess import prepare

VOCABULARY, CONCEPTS = "vocab.txt", "concepts.txt"


@dataclass(frozen=True)
class FusionShape:
    """The section `fusion` of the manifest.

    Attributes:
        head_width: numbers of one head's key.
        begin: the token that stands before a caption.
        positions: tokens that the graph has places for.
    """

    layers: int
    heads: int
    head_width: int
    vocabulary: int
    concepts: int
    begin: int
    positions: int


class LightCapNetwork:
    """See `penstock.runtime.caption.captioner.CaptionNetwork`."""

    def __init__(self, file: CaptionerFile, threads: int) -> None:
        self._image = image_input(file)
        self.shape = fusion_shape(file)
        self._pieces = _lines(file, VOCABULARY, self.shape.vocabulary)
        self._names = _lines(file, CONCEPTS, self.shape.concepts)
        self._encoder = MemberGraph(file, "encoder.onnx", threads)
        self._encoder.expect(("pixels",), ("grid",))
        self._concepts = MemberGraph(file, "concepts.onnx", threads)
        self._concepts.expect(("grid",), ("concepts", "scores"))
        self._prefix = MemberGraph(file, "prefix.onnx", threads)
        self._prefix.expect(("concepts", "scores", "grid"), ("prefix",))
        self._decoder = MemberGraph(file, "decoder.onnx", threads)
        self._decoder.expect(
            ("tokens", "parents", "place", "prefix", "past_keys", "past_values"),
            ("log_probabilities", "keys", "values"),
        )

    def see(self, image: NDArray[np.uint8]) -> tuple[LightCapRun, tuple[Concept, ...], Times]:
        """Prepare a photo, encode it, find its concepts, and fuse both."""
        begin = perf_counter()
        pixels = self.pixels(image)
        ready = perf_counter()
        grid = self.grid(pixels)
        seen = perf_counter()
        found = self._concepts.run_values({"grid": grid})
        known = perf_counter()
        prefix = self._prefix.run_values({**found, "grid": grid})["prefix"]
        done = perf_counter()
        times = Times(
            preprocess_ms=(ready - begin) * 1000,
            encoder_ms=(seen - ready) * 1000,
            concepts_ms=(known - seen) * 1000,
            prefix_ms=(done - known) * 1000,
        )
        return LightCapRun(self._decoder, self.shape, prefix), self._named(found), times

    def pixels(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """A photo as the encoder's input [1, 3, side, side]."""
        return prepare(image, self._image)

    def grid(self, pixels: NDArray[np.float32]) -> object:
        """The visual features of what `pixels` gave, as onnxruntime's value."""
        return self._encoder.run_values({"pixels": self._encoder.value(pixels)})["grid"]

    def text(self, tokens: tuple[int, ...]) -> str:
        """The words that the pieces spell."""
        text = " ".join(self._pieces[token] for token in tokens)
        return text.replace(" ##", "").replace(" ' ", "'").strip()

    def close(self) -> None:
        """Give the memory back."""
        del self._encoder, self._concepts, self._prefix, self._decoder

    def _named(self, found: Values) -> tuple[Concept, ...]:
        ids, scores = found["concepts"].numpy().ravel(), found["scores"].numpy().ravel()
        good = ids.dtype == np.int64 and scores.dtype == np.float32 and ids.size == scores.size
        if not good or not ((ids >= 0) & (ids < len(self._names)) & np.isfinite(scores)).all():
            raise PenstockError(
                f"{self._concepts.where}: gave concepts {ids.dtype} {list(ids.shape)} with scores "
                f"{scores.dtype} {list(scores.shape)}; expected as many int64 from 0 to "
                f"{len(self._names) - 1} as finite float32; export the model again"
            )
        return tuple(
            Concept(self._names[i], float(score)) for i, score in zip(ids, scores, strict=True)
        )


class LightCapRun:
    """A decoder that has seen a photo; see `penstock.runtime.caption.beam_search.StepModel`."""

    def __init__(self, graph: MemberGraph, shape: FusionShape, prefix: object) -> None:
        self._graph = graph
        self._shape = shape
        self._prefix = prefix
        self._past: Values = {}
        self._place = 0

    def begin(self) -> NDArray[np.float32]:
        """Log-probabilities [vocabulary] of the first token; image and concepts go in here."""
        shape = self._shape
        nothing = np.zeros((shape.layers, 1, shape.heads, 0, shape.head_width), np.float32)
        empty = self._graph.value(nothing)
        self._past, self._place = {"past_keys": empty, "past_values": empty}, 0
        first: NDArray[np.float32] = self._run(
            np.array([shape.begin]), np.zeros(1, np.int64), self._prefix
        )[0]
        return first

    def step(self, tokens: NDArray[np.int64], parents: NDArray[np.int64]) -> NDArray[np.float32]:
        """Log-probabilities [beams, vocabulary] of the token after `tokens`."""
        hidden = self._shape.heads * self._shape.head_width
        nothing = self._graph.value(np.zeros((len(tokens), 0, hidden), np.float32))
        return self._run(tokens, parents, nothing)

    def _run(
        self, tokens: NDArray[np.int64], parents: NDArray[np.int64], prefix: object
    ) -> NDArray[np.float32]:
        value = self._graph.value
        place = value(np.array([self._place]))
        fed = {"tokens": value(tokens), "parents": value(parents), "place": place, "prefix": prefix}
        made = self._graph.run_values({**fed, **self._past})
        self._place += 1
        scores: NDArray[np.float32] = made["log_probabilities"].numpy()
        wanted = (len(tokens), self._shape.vocabulary)
        if scores.dtype != np.float32 or scores.shape != wanted or np.isnan(scores).any():
            raise PenstockError(
                f"{self._graph.where}: gave log-probabilities {scores.dtype} {list(scores.shape)}, "
                f"expected float32 {list(wanted)} without NaN; export the model again"
            )
        self._past = {"past_keys": made["keys"], "past_values": made["values"]}
        return scores


def fusion_shape(file: CaptionerFile) -> FusionShape:
    """The section `fusion`, checked.

    Raises:
        FormatError: a value is missing, of the wrong type, or out of range.
    """
    section = Section(file, "fusion")
    vocabulary = section.integer("vocabulary", 2, 1 << 20)
    shape = FusionShape(
        layers=section.integer("layers", 1, 256),
        heads=section.integer("heads", 1, 1024),
        head_width=section.integer("head_width", 1, 1 << 14),
        vocabulary=vocabulary,
        concepts=section.integer("concepts", 1, 1 << 20),
        begin=section.integer("begin", 0, vocabulary - 1),
        positions=section.integer("positions", 2, 1 << 16),
    )
    options = generation_options(file)
    if options.end >= vocabulary:
        raise FormatError(f"{file.path}: captioner.json: generation.end is not below {vocabulary}")
    most = most_tokens(file)
    if most >= shape.positions:
        raise FormatError(
            f"{section.where}.positions is {shape.positions}, too few for captions of {most} tokens"
        )
    return shape


def _lines(file: CaptionerFile, name: str, count: int) -> list[str]:
    lines = file.text(name).removesuffix("\n").split("\n")
    if len(lines) != count:
        raise FormatError(
            f"{file.path}: member '{name}' has {len(lines)} lines, captioner.json says {count}"
        )
    return lines

"""Captioners of an image encoder and a text decoder with a cache: BLIP, ViT-GPT2.

    photo -> encoder -> keys and values of the image, once
    prompt, then one token after another -> decoder, with the keys and values of what came before

`penstock.export.captioner.graphs` describes the two graphs. Keys and values stay onnxruntime's own
values between steps; which beam continues which is an input of the decoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from penstock.errors import FormatError, PenstockError
from penstock.loaders.captioner_file import CaptionerFile, shown
from penstock.runtime.backends.onnx_model import Values
from penstock.runtime.caption.captioner import Concept, Times
from penstock.runtime.caption.manifest import Section, image_input, most_tokens
from penstock.runtime.caption.member_graph import MemberGraph
from penstock.runtime.caption.preprocess import prepare
from penstock.runtime.caption.token_rules import TokenRules
from penstock.runtime.tokenizer import Tokenizer

ENCODER, DECODER, TOKENIZER = "encoder.onnx", "decoder.onnx", "tokenizer.json"
KEYS_LIMIT = 1 << 16  # token ids in a list of the manifest


@dataclass(frozen=True)
class DecoderShape:
    """The section `decoder` of the manifest.

    Attributes:
        head_width: numbers of one head's key.
        vocabulary: rows of logits.
        crop: side of the middle of the resized photo that the encoder sees.
    """

    layers: int
    heads: int
    head_width: int
    vocabulary: int
    crop: int
    rules: TokenRules


class EncoderDecoderNetwork:
    """See `penstock.runtime.caption.captioner.CaptionNetwork`."""

    def __init__(self, file: CaptionerFile, threads: int) -> None:
        self._image = image_input(file)
        self.shape = decoder_shape(file)
        layers = range(self.shape.layers)
        kept = tuple(f"{kind}.{layer}" for layer in layers for kind in ("key", "value"))
        past = tuple(f"past_{name}" for name in kept)
        cross = tuple(f"cross_{name}" for name in kept)
        self._encoder = MemberGraph(file, ENCODER, threads)
        self._encoder.expect(("pixels",), cross)
        self._decoder = MemberGraph(file, DECODER, threads)
        self._decoder.expect(("tokens", "parents", *past, *cross), ("logits", *kept))
        self._tokenizer = Tokenizer({"tokenizer.huggingface.json": file.text(TOKENIZER)})

    def see(self, image: NDArray[np.uint8]) -> tuple[DecoderRun, tuple[Concept, ...], Times]:
        """Prepare and encode a photo."""
        begin = perf_counter()
        pixels = self.pixels(image)
        ready = perf_counter()
        run = self.look(pixels)
        done = perf_counter()
        return run, (), Times((ready - begin) * 1000, (done - ready) * 1000)

    def pixels(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """A photo as the encoder's input."""
        whole = prepare(image, self._image)
        begin, crop = (self._image.size - self.shape.crop) // 2, self.shape.crop
        return np.ascontiguousarray(whole[:, :, begin : begin + crop, begin : begin + crop])

    def look(self, pixels: NDArray[np.float32]) -> DecoderRun:
        """Encode what `pixels` gave."""
        cross = self._encoder.run_values({"pixels": self._encoder.value(pixels)})
        return DecoderRun(self._decoder, self.shape, cross)

    def text(self, tokens: tuple[int, ...]) -> str:
        """The caption that the tokens spell, without special tokens and the prompt."""
        return self._tokenizer.decode(list(tokens)).strip()

    def close(self) -> None:
        """Give the memory back."""
        del self._encoder, self._decoder


class DecoderRun:
    """A decoder that has seen a photo; see `penstock.runtime.caption.beam_search.StepModel`."""

    def __init__(self, graph: MemberGraph, shape: DecoderShape, cross: Values) -> None:
        self._graph = graph
        self._shape = shape
        self._cross = cross
        self._past: Values = {}
        self._histories: list[tuple[int, ...]] = []

    def begin(self) -> NDArray[np.float32]:
        """Run the prompt: log-probabilities [vocabulary] of the first token of the caption."""
        first: NDArray[np.float32] = self._allowed(self.prompt_logits()[None])[0]
        return first

    def step(self, tokens: NDArray[np.int64], parents: NDArray[np.int64]) -> NDArray[np.float32]:
        """Log-probabilities [beams, vocabulary] of the token after `tokens`."""
        return self._allowed(self.step_logits(tokens, parents))

    def prompt_logits(self) -> NDArray[np.float32]:
        """What `begin` makes of: [vocabulary], as the model gives it."""
        shape = self._shape
        nothing = np.zeros((1, shape.heads, 0, shape.head_width), np.float32)
        names = [spec.name for spec in self._graph.inputs if spec.name.startswith("past_")]
        self._past = {name: self._graph.value(nothing) for name in names}
        self._histories = [shape.rules.prompt]
        prompt = np.array([shape.rules.prompt], np.int64)
        first: NDArray[np.float32] = self._next(prompt, np.zeros(1, np.int64))[0]
        return first

    def step_logits(
        self, tokens: NDArray[np.int64], parents: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """What `step` makes of: [beams, vocabulary], as the model gives it."""
        self._histories = [
            (*self._histories[parent], int(token))
            for token, parent in zip(tokens, parents, strict=True)
        ]
        return self._next(tokens[:, None], parents)

    def _next(self, tokens: NDArray[np.int64], parents: NDArray[np.int64]) -> NDArray[np.float32]:
        fed = {"tokens": self._graph.value(tokens), "parents": self._graph.value(parents)}
        made = self._graph.run_values({**fed, **self._past, **self._cross})
        logits: NDArray[np.float32] = made.pop("logits").numpy()
        wanted = (len(tokens), self._shape.vocabulary)
        floats = logits.dtype == np.float32
        if not floats or logits.shape != wanted or not np.isfinite(logits).all():
            raise PenstockError(
                f"{self._graph.where}: gave logits {logits.dtype} {list(logits.shape)}, expected "
                f"float32 {list(wanted)}, all finite; export the model again"
            )
        self._past = {f"past_{name}": value for name, value in made.items()}
        return logits

    def _allowed(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        scores = log_softmax(logits)
        self._shape.rules.apply(scores, self._histories)
        return scores


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Log-probabilities of each row, in a new array."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    total = np.exp(shifted).sum(axis=1, dtype=np.float64, keepdims=True)
    made: NDArray[np.float32] = shifted - np.log(total).astype(np.float32)
    return made


def decoder_shape(file: CaptionerFile) -> DecoderShape:
    """The section `decoder`, checked.

    Raises:
        FormatError: a value is missing, of the wrong type, or out of range.
    """
    section = Section(file, "decoder")
    vocabulary = section.integer("vocabulary", 1, 1 << 24)
    rules = TokenRules(
        prompt=_ids(section, "prompt", vocabulary, least=1),
        ends=_ids(section, "ends", vocabulary, least=1),
        min_tokens=section.integer("min_tokens", 0, 1 << 16, 0),
        no_repeat=section.integer("no_repeat", 0, 1 << 16, 0),
        suppress=_ids(section, "suppress", vocabulary),
        suppress_first=_ids(section, "suppress_first", vocabulary),
        bad_words=_words(section, vocabulary),
    )
    _check_room(file, section, rules)
    return DecoderShape(
        layers=section.integer("layers", 1, 1024),
        heads=section.integer("heads", 1, 1024),
        head_width=section.integer("head_width", 1, 1 << 16),
        vocabulary=vocabulary,
        crop=section.integer("crop", 8, Section(file, "image").integer("size", 8, 2048)),
        rules=rules,
    )


def _check_room(file: CaptionerFile, section: Section, rules: TokenRules) -> None:
    """Positions are rows of a table in the graph: more tokens than rows is an error there."""
    most = most_tokens(file)
    positions = section.integer("positions", 1, 1 << 20)
    if len(rules.prompt) + most > positions + 1:  # the last token is given out, not taken in
        raise FormatError(
            f"{section.where}.positions is {positions}, too few for a prompt of "
            f"{len(rules.prompt)} tokens and captions of up to {most}"
        )
    end = Section(file, "generation").integer("end", 0, 1 << 24)
    if end != rules.ends[0]:
        raise FormatError(f"{section.where}.ends starts with {rules.ends[0]}, expected {end}")


def _words(section: Section, vocabulary: int) -> tuple[tuple[int, ...], ...]:
    words = section.values.get("bad_words", [])
    if not isinstance(words, list) or len(words) > KEYS_LIMIT:
        raise FormatError(f"{section.where}.bad_words is no list of at most {KEYS_LIMIT} runs")
    return tuple(_checked_ids(section, "bad_words", word, vocabulary, 1) for word in words)


def _ids(section: Section, key: str, vocabulary: int, least: int = 0) -> tuple[int, ...]:
    return _checked_ids(section, key, section.values.get(key, []), vocabulary, least)


def _checked_ids(
    section: Section, key: str, value: object, vocabulary: int, least: int
) -> tuple[int, ...]:
    if not isinstance(value, list) or not least <= len(value) <= KEYS_LIMIT:
        raise FormatError(f"{section.where}.{key} is no list of {least} to {KEYS_LIMIT} token ids")
    for token in value:
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocabulary:
            raise FormatError(
                f"{section.where}.{key} has {shown(token)}, expected token ids from 0 to "
                f"{vocabulary - 1}"
            )
    return tuple(value)

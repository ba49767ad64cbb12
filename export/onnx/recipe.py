"""What can be done to an ONNX model, in words: `static-int8 percentile per-channel`.

| recipe | weights | activations | words that it takes |
|---|---|---|---|
| `dynamic-int8` | int8 | uint8, scaled in every run | `per-channel`, `reduce-range` |
| `static-int8` | int8 | uint8, scaled once, from data | `minmax`, `percentile`, `percentile=P` |
| | | | or `entropy`; `per-channel` or `uint8-weights`, `symmetric`, `reduce-range` |
| `weight-int8`, `weight-int4` | int8, int4 a channel | float | |
| `block-int4`, `block-int8` | blocks, of MatMul and Gemm | float | `rtn` or, in 4 bits, `hqq`, |
| | | | `k-quant`, `gptq`; `block=N`, `symmetric`, `qdq` |
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from penstock.errors import UsageError
from penstock.quant.observers.ranges import PERCENTILE

Kind = Literal[
    "dynamic-int8", "static-int8", "weight-int8", "weight-int4", "block-int4", "block-int8"
]
Method = Literal["minmax", "percentile", "entropy"]
Algorithm = Literal["rtn", "k-quant", "hqq", "gptq"]

METHODS: tuple[Method, ...] = ("minmax", "percentile", "entropy")
ALGORITHMS: tuple[Algorithm, ...] = ("rtn", "k-quant", "hqq", "gptq")
_CHANNELS = frozenset({"per-channel", "reduce-range"})
WORDS: dict[Kind, frozenset[str]] = {
    "dynamic-int8": _CHANNELS,
    "static-int8": _CHANNELS | {"symmetric", "uint8-weights", *METHODS},
    "weight-int8": frozenset(),
    "weight-int4": frozenset(),
    "block-int4": frozenset({"symmetric", "qdq", *ALGORITHMS}),
    # onnxruntime's k-quant and gptq write 4 bits whatever they are asked for, and what its hqq
    # writes in 8 bits its own MatMulNBits refuses.
    "block-int8": frozenset({"symmetric", "qdq", "rtn"}),
}


@dataclass(frozen=True)
class OnnxRecipe:
    """See the module.

    Attributes:
        method: of static-int8: how ranges of activations come from calibration data.
        percentile: of the method of that name: share of the values that is not clipped, in %.
        per_channel: a scale for each output channel of a weight instead of one for all.
        symmetric: zero point 0 for activations, or for blocks.
        reduce_range: weights in 7 bits: processors without VNNI add two products in 16 bits,
            which overflow with the full range.
        uint8_weights: weights in uint8 with a zero point, one scale for all: products do not
            overflow anywhere, and models that were trained on such a grid stay on it.
        algorithm, block, qdq: of block-int4 and block-int8; `qdq` writes DequantizeLinear and
            MatMul instead of MatMulNBits.
    """

    kind: Kind
    method: Method = "minmax"
    percentile: float = PERCENTILE
    per_channel: bool = False
    symmetric: bool = False
    reduce_range: bool = False
    uint8_weights: bool = False
    algorithm: Algorithm = "rtn"
    block: int = 32
    qdq: bool = False

    @property
    def calibrated(self) -> bool:
        """Whether calibration data is used."""
        return self.kind == "static-int8" or (self.bits_of_blocks > 0 and self.algorithm == "gptq")

    @property
    def bits_of_blocks(self) -> int:
        return {"block-int4": 4, "block-int8": 8}.get(self.kind, 0)

    def __str__(self) -> str:
        words: list[str] = [self.kind]
        if self.kind == "static-int8":
            given = self.method == "percentile" and self.percentile != PERCENTILE
            words.append(f"percentile={self.percentile:g}" if given else self.method)
        if self.bits_of_blocks:
            words += [self.algorithm, f"block={self.block}"]
        flags = {
            "per-channel": self.per_channel,
            "symmetric": self.symmetric,
            "reduce-range": self.reduce_range,
            "uint8-weights": self.uint8_weights,
            "qdq": self.qdq,
        }
        return " ".join(words + [word for word, on in flags.items() if on])


def parse_recipe(text: str) -> OnnxRecipe:
    """`"static-int8 percentile per-channel"`; commas do as well as blanks.

    Raises:
        UsageError: an unknown recipe or word, or one that the recipe does not take.
    """
    kind, *words = text.replace(",", " ").split() or [""]
    if kind not in WORDS:
        raise UsageError(f"unknown recipe '{kind}'; recipes of ONNX are {', '.join(WORDS)}")
    known = WORDS[kind]
    chosen: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if name == "percentile" and equals and name in known:
            chosen.update(method="percentile", percentile=_number(word, value))
        elif name == "block" and equals and "rtn" in known:
            chosen["block"] = _block(word, value)
        elif equals or name not in known:
            raise UsageError(_refusal(word, kind))
        elif name in METHODS or name in ALGORITHMS:
            chosen["method" if name in METHODS else "algorithm"] = name
        else:
            chosen[name.replace("-", "_")] = True
    recipe = replace(OnnxRecipe(kind), **chosen)
    if recipe.qdq and recipe.algorithm != "rtn":
        raise UsageError(f"recipe '{text}': only rtn can be written as qdq")
    if recipe.uint8_weights and recipe.per_channel:
        raise UsageError(f"recipe '{text}': uint8-weights have one scale, not one per-channel")
    return recipe


def _number(word: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if not 50 < number <= 100:
        raise UsageError(f"'{word}': expected a percentile above 50 and at most 100")
    return number


def _block(word: str, value: str) -> int:
    if value not in ("16", "32", "64", "128", "256"):
        raise UsageError(f"'{word}': expected a block of 16, 32, 64, 128 or 256 weights")
    return int(value)


def _refusal(word: str, kind: Kind) -> str:
    words = sorted(WORDS[kind])
    extra = ["percentile=P"] * ("percentile" in words) + ["block=N"] * ("rtn" in words)
    taken = ", ".join([*words, *extra]) or "no words"
    return f"recipe '{kind}' does not take '{word}'; it takes {taken}"

"""The tensors of a synthetic GGUF model: names, number formats, and how values are drawn.

Scales keep activations in size over depth: embeddings have deviation 1 where they enter the first
layer, norms are ones, and every branch adds about a quarter to a third of that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.gguf_blocks import FORMATS, Format, fitting
from benchmarks.gguf_reuse import (
    CONSTANT,
    SPREAD,
    Window,
    mean_square_weight,
    slow_columns,
    slow_share,
    window,
)
from benchmarks.gguf_shapes import ARCHS, ROPE_BASE, Shape, embedding_scale

Floats = NDArray[np.float32]
CONTROL_TOKENS = 4  # the first of the vocabulary; an untied output never prefers them
# Deviation that a branch adds to a hidden state. Attention's is what neighbouring tokens share: in
# a deep model it is less a layer, or it would make their routing alike.
ATTENTION, FEED_FORWARD = 0.5, 0.25
ACTIVATED = 0.6  # deviation of silu(gate) * up for normal gate and up
Draw = Callable[[np.random.Generator], Floats]


@dataclass(frozen=True)
class Tensor:
    """A tensor of a file.

    Attributes:
        shape: as numpy has it: (experts, rows, columns), the reverse of ggml's order.
        deviation: of the random values; unused where `draw` makes them.
        first: (rows, n) what each row's first n blocks of 32 columns hold, not random values.
        zero_rows: the first rows (of each expert) that are zero.
        draw: for F32: the values.
    """

    name: str
    form: Format
    shape: tuple[int, ...]
    deviation: float = 0.0
    first: Floats | None = None
    zero_rows: int = 0
    draw: Draw | None = None

    @property
    def rows(self) -> int:
        return int(np.prod(self.shape[:-1], dtype=np.int64))

    @property
    def nbytes(self) -> int:
        return self.rows * self.form.row_bytes(self.shape[-1])


def layout(shape: Shape) -> list[Tensor]:
    """All tensors of a model, in the order of its file."""
    return _biased(shape, list(_Model(shape).all()))


class _Model:
    def __init__(self, shape: Shape) -> None:
        self.shape, self.arch = shape, ARCHS[shape.arch]
        self.window: Window | None = None
        self.share = 0.0
        if shape.reuse is not None:
            if not shape.experts or shape.latent:
                raise ValueError(f"{shape.name}: reuse is for mixtures with ordinary attention")
            if FORMATS[shape.other].block != 32:
                raise ValueError(f"{shape.name}: reuse needs F16, Q8_0 or Q4_0 attention")
            arch, normed = self.arch, bool(self.arch.qk_norm)
            self.window = window(shape.head_dim, ROPE_BASE, arch.neox, normed, shape.width)
            self.share = slow_share(shape.reuse, shape.experts, shape.used, self.window)

        self.attention = ATTENTION * min(1.0, 2 / _root(shape.layers))

    @property
    def reserved(self) -> int:
        """Dimensions that no matrix writes to but layer 0's attention."""
        return CONSTANT + slow_columns(self.shape.width) if self.window else 0

    def size(self, branches: float) -> float:
        """Deviation of the hidden state after this many layers."""
        averaged = self.window.deviation if self.window else 0.5
        return float(np.sqrt(1 + branches * ((self.attention * averaged) ** 2 + FEED_FORWARD**2)))

    def all(self) -> Iterator[Tensor]:
        s = self.shape
        scale = embedding_scale(s)
        first = None
        if self.window:
            first = np.zeros((s.vocab, self.reserved // CONSTANT), np.float32)
            first[:, 0] = 1 / scale
        yield self._matrix("token_embd", (s.vocab, s.width), 1 / scale, s.other, first=first)
        for n in range(s.layers):
            yield from self._layer(n)
        # A tied output would prefer the token that was fed; random signs take that away.
        level = 3 * scale / _root(s.width) if s.tied else 1.0
        yield self._norm("output_norm", s.width, level, constant=0.0, signs=s.tied)
        if not s.tied:
            rows = CONTROL_TOKENS
            yield self._matrix("output", (s.vocab, s.width), 3 / _root(s.width), s.other, rows)

    def _layer(self, n: int) -> Iterator[Tensor]:
        s, at = self.shape, f"blk.{n}."
        yield self._norm(f"{at}attn_norm", s.width, constant=self.size(n))
        yield from self._latent(at) if s.latent else self._attention(at, n)
        if self.arch.post_norms:
            yield self._norm(f"{at}post_attention_norm", s.width, value=self.attention)
        ffn_norm = "post_attention_norm" if s.arch == "gpt-oss" else "ffn_norm"
        yield self._norm(f"{at}{ffn_norm}", s.width, constant=0.0)
        if s.experts and n >= s.dense:
            yield from self._experts(at, n)
        else:
            down = FEED_FORWARD / ACTIVATED
            yield from self._feed_forward(at, "", s.neurons, down)
        if self.arch.post_norms:
            yield self._norm(f"{at}post_ffw_norm", s.width, value=FEED_FORWARD)

    def _attention(self, at: str, n: int) -> Iterator[Tensor]:
        s, w = self.shape, self.window
        rows = {"attn_q": s.heads, "attn_k": s.kv_heads, "attn_v": s.kv_heads}
        for name, heads in rows.items():
            count, gain, first = heads * s.head_dim, 1.0, None
            if name != "attn_v":
                gain = 0.05 if w else 1.5
            if w:
                # 32 columns that hold ones: a row's sum is 32 times its value.
                head: Floats = np.ones(s.head_dim, np.float32) if self.arch.qk_norm else w.head
                head = head * np.float32(0 if name == "attn_v" else 1 / CONSTANT)
                first = np.tile(head, heads)[:, None]
            yield self._matrix(
                f"{at}{name}", (count, s.width), gain / _root(s.width), s.other, first=first
            )
        if self.arch.qk_norm:
            for name, heads in (("attn_q_norm", s.heads), ("attn_k_norm", s.kv_heads)):
                count = heads if self.arch.qk_norm == "full" else 1
                head = w.head if w else np.ones(s.head_dim, np.float32)
                yield _given(f"{at}{name}.weight", np.tile(head, count))
        width = s.heads * s.head_dim
        zero = CONSTANT if w and n == 0 else self.reserved
        yield self._matrix(
            f"{at}attn_output", (s.width, width), self.attention / _root(width), s.other, zero
        )
        if s.arch == "gpt-oss":
            yield _drawn(f"{at}attn_sinks.weight", (s.heads,), 1.0)

    def _latent(self, at: str) -> Iterator[Tensor]:
        """Keys and values from one low-rank vector, as DeepSeek V2 has them, in llama.cpp's form.

        Of a head's dimensions the last 32 are rotated, the others and a value's are 64.
        """
        s, rank = self.shape, self.shape.latent
        rotated = s.head_dim // 3
        plain = s.head_dim - rotated
        query = 1.5 / _root(rank)
        yield self._matrix(f"{at}attn_q_a", (rank, s.width), 1 / _root(s.width), s.other)
        yield self._norm(f"{at}attn_q_a_norm", rank)
        yield self._matrix(f"{at}attn_q_b", (s.heads * s.head_dim, rank), query, s.other)
        yield self._matrix(
            f"{at}attn_kv_a_mqa", (rank + rotated, s.width), 1 / _root(s.width), s.other
        )
        yield self._norm(f"{at}attn_kv_a_norm", rank)
        yield self._matrix(f"{at}attn_k_b", (s.heads, rank, plain), 1 / _root(rank), s.other)
        yield self._matrix(f"{at}attn_v_b", (s.heads, plain, rank), 1 / _root(rank), s.other)
        width = s.heads * plain
        yield self._matrix(
            f"{at}attn_output", (s.width, width), self.attention / _root(width), s.other
        )

    def _experts(self, at: str, n: int) -> Iterator[Tensor]:
        s = self.shape
        yield Tensor(f"{at}ffn_gate_inp.weight", FORMATS["F32"], (s.experts, s.width),
                     draw=lambda rng: self._router(rng, n))  # fmt: skip
        if "ffn_gate_inp" in self.arch.biases:
            yield _drawn(f"{at}ffn_gate_inp.bias", (s.experts,), 0.1)
        weight = mean_square_weight(s.experts, s.used, self.arch.over_chosen)
        down = FEED_FORWARD / ACTIVATED / _root(weight)
        yield from self._feed_forward(at, "_exps", s.neurons, down, (s.experts,))
        if s.shared:
            yield from self._feed_forward(at, "_shexp", s.neurons * s.shared, FEED_FORWARD)

    def _feed_forward(
        self, at: str, end: str, neurons: int, down: float, experts: tuple[int, ...] = ()
    ) -> Iterator[Tensor]:
        width, dtype = self.shape.width, self.shape.dtype
        for name in ("ffn_gate", "ffn_up"):
            yield self._matrix(
                f"{at}{name}{end}", (*experts, neurons, width), 1 / _root(width), dtype
            )
        yield self._matrix(
            f"{at}ffn_down{end}", (*experts, width, neurons), down / _root(neurons), dtype,
            self.reserved,
        )  # fmt: skip

    def _router(self, rng: np.random.Generator, n: int) -> Floats:
        """(experts, width): each row's share of slow columns has the same length."""
        s = self.shape
        rows: Floats = rng.standard_normal((s.experts, s.width), np.float32)
        if self.window is None:
            return rows * np.float32(SPREAD / _root(s.width))
        rows[:, :CONSTANT] = 0
        slow, fast = rows[:, CONSTANT : self.reserved], rows[:, self.reserved :]
        size = self.size(n + 1)
        amplitude = self.attention * self.window.deviation / size
        for part, deviation, share in ((slow, amplitude, self.share), (fast, 1, 1 - self.share)):
            length = np.linalg.norm(part, axis=1, keepdims=True)
            part *= SPREAD * np.float32(np.sqrt(share) / deviation) / length
        return rows

    def _matrix(
        self, name: str, shape: tuple[int, ...], deviation: float, dtype: str, zero_rows: int = 0,
        first: Floats | None = None,
    ) -> Tensor:  # fmt: skip
        form = fitting(dtype, shape[-1])
        return Tensor(f"{name}.weight", form, shape, deviation, first, zero_rows)

    def _norm(
        self, name: str, width: int, value: float = 1.0, constant: float = 1.0, signs: bool = False
    ) -> Tensor:
        """constant: the weight of the constant columns, where there are any."""
        values = np.full(width, value, np.float32)
        if self.window and width == self.shape.width:
            values[:CONSTANT] = constant
        if signs:

            def draw(rng: np.random.Generator) -> Floats:
                signed: Floats = values * rng.choice(np.array([-1, 1], np.float32), width)
                return signed

            return Tensor(f"{name}.weight", FORMATS["F32"], (width,), draw=draw)
        return _given(f"{name}.weight", values)


def _biased(shape: Shape, matrices: list[Tensor]) -> list[Tensor]:
    """The tensors, each followed by its bias where the architecture has one."""
    out = []
    reserved = 0 if shape.reuse is None else CONSTANT + slow_columns(shape.width)
    for t in matrices:
        out.append(t)
        kind = t.name.removesuffix(".weight").rsplit(".", 1)[-1]
        if kind in ARCHS[shape.arch].biases and t.form.name != "F32":
            zero = reserved if t.shape[-2] == shape.width and kind != "attn_q" else 0
            out.append(_drawn(t.name.replace(".weight", ".bias"), t.shape[:-1], 0.05, zero))
    return out


def _root(number: float) -> float:
    return float(np.sqrt(number))


def _given(name: str, values: Floats) -> Tensor:
    return Tensor(name, FORMATS["F32"], values.shape, draw=lambda rng: values)


def _drawn(name: str, shape: tuple[int, ...], deviation: float, zero_rows: int = 0) -> Tensor:
    def draw(rng: np.random.Generator) -> Floats:
        values = rng.standard_normal(shape, np.float32) * np.float32(deviation)
        values[..., :zero_rows] = 0
        return values

    return Tensor(name, FORMATS["F32"], shape, draw=draw)

"""Records an architecture's forward pass into the native decoder, by names instead of ids.

The files in runtime/models/ describe a model with these calls; nothing runs while they are made.
Afterwards the native decoder runs the recorded operations for every token, without Python.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penstock import _native
from penstock.errors import FormatError
from penstock.loaders.bundle import ACTIVATIONS, DTYPES, Bundle
from penstock.runtime.plan import Plan

RESIDENCY = {"resident": 0, "window": 1, "exact": 2, "stream": 3}
MATRIX = ("F16", "Q8_0", "Q4_0", "F32")


@dataclass(frozen=True)
class Hyperparameters:
    """Shape of the attention and positions, from the bundle's metadata."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context: int  # positions that the model was made for
    eps: float
    rope_base: float
    rope_dims: int
    post_norm: bool

    @staticmethod
    def read(bundle: Bundle) -> Hyperparameters:
        f, a = bundle.file, bundle.arch
        heads = f.get_int(f"{a}.attention.head_count", low=1, high=1 << 12)
        head_dim = f.get_int(
            f"{a}.attention.key_length", bundle.width // heads, low=1, high=1 << 12
        )
        kv_heads = f.get_int(f"{a}.attention.head_count_kv", heads, low=1, high=1 << 12)
        if heads % kv_heads:
            raise f.wrong(f"{a}.attention.head_count_kv", f"a divisor of {heads}", kv_heads)
        rms = f"{a}.attention.layer_norm_rms_epsilon"
        eps_key = rms if rms in f.metadata else f"{a}.attention.layer_norm_epsilon"
        embedding = f.tensors.get("token_embd.weight")
        if embedding is None or len(embedding.shape) != 2:
            raise FormatError(f"{bundle.path}: tensor 'token_embd.weight' is missing or misshapen")
        rope_dims = f.get_int(f"{a}.rope.dimension_count", head_dim, low=0, high=head_dim)
        return Hyperparameters(
            layers=bundle.layers,
            width=bundle.width,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            vocab=embedding.shape[0],
            context=f.get_int(f"{a}.context_length", low=1, high=1 << 24),
            eps=f.get_float(eps_key),
            rope_base=f.get_float(f"{a}.rope.freq_base", 10000.0),
            rope_dims=rope_dims,
            post_norm=f.get_bool("penstock.norm.post", False),
        )


class Program:
    """One recording. Registers are named; each holds (batch, width) floats and is reused.

    Attributes:
        config: the model's hyperparameters.
        decoder: the native decoder that is recorded into.
    """

    def __init__(self, bundle: Bundle, plan: Plan, decoder: _native.Decoder) -> None:
        self.bundle = bundle
        self.plan = plan
        self.config = Hyperparameters.read(bundle)
        self.decoder = decoder
        self._registers: dict[str, tuple[int, int]] = {}
        self._weights: dict[str, int] = {}

    def has(self, name: str) -> bool:
        """Whether the file holds this tensor: optional biases, tied outputs."""
        return name in self.bundle.file.tensors

    def embed(self, name: str = "token_embd.weight") -> str:
        """The tokens' rows of the table: the residual stream."""
        c = self.config
        out = self._register("residual", c.width)
        self.decoder.embed(self._weight(name, c.vocab, c.width), out)
        return "residual"

    def add_position(self, target: str, name: str = "position_embd.weight") -> None:
        """Add the learned position's row."""
        c = self.config
        table = self._weight(name, c.context, c.width)
        self.decoder.position(table, self._id(target), 0)

    def rms_norm(self, source: str, name: str, out: str = "normed") -> str:
        width = self._width(source)
        weight = self._weight(f"{name}.weight", 1, width, ("F32",))
        self.decoder.rms_norm(self._id(source), self._register(out, width), weight, self.config.eps)
        return out

    def layer_norm(self, source: str, name: str, out: str = "normed") -> str:
        width = self._width(source)
        weight = self._weight(f"{name}.weight", 1, width, ("F32",))
        bias = self._bias(name, width)
        self.decoder.layer_norm(
            self._id(source), self._register(out, width), weight, bias, self.config.eps
        )
        return out

    def linear(self, source: str, name: str, width: int, out: str) -> str:
        """out = W source + b; W is (width, width of source), b only if the file holds it."""
        weight = self._weight(f"{name}.weight", width, self._width(source))
        bias = self._bias(name, width)
        self.decoder.linear(self._id(source), self._register(out, width), weight, bias)
        return out

    def rope(self, target: str, heads: int, *, interleaved: bool) -> None:
        """Rotary positions on the first rope_dims of each head."""
        c = self.config
        frequencies = rope_frequencies(self.bundle, c)
        self.decoder.rope(self._id(target), heads, c.head_dim, frequencies, interleaved)

    def attention(self, q: str, k: str, v: str) -> str:
        """Causal grouped-query attention over the KV cache, scaled by 1 / sqrt(head_dim)."""
        c = self.config
        out = self._register("attended", c.heads * c.head_dim)
        self.decoder.attention(
            self._id(q), self._id(k), self._id(v), out, c.heads, c.kv_heads, c.head_dim
        )
        return "attended"

    def add(self, target: str, source: str) -> None:
        """target += source."""
        self.decoder.add(self._id(target), self._id(source))

    def ffn(self, source: str, layer: int, out: str = "ffn") -> str:
        """The sparse feed-forward network of a layer, where the plan put it."""
        b, where = self.bundle, self.plan.layers[layer]
        predictor = b.predictors[layer] if where.predictor else None
        fc1 = fc2 = fc2_bias = -1
        if predictor is not None:
            fc1 = self._weight(predictor.fc1.name, predictor.rank, b.width)
            fc2 = self._weight(predictor.fc2.name, b.neurons, predictor.rank)
            if predictor.bias is not None:
                fc2_bias = self._weight(predictor.bias.name, 1, b.neurons, ("F32",))
        self.decoder.ffn(
            self._id(source),
            self._register(out, b.width),
            offset=b.bundles[layer].offset,
            stride=b.stride,
            neurons=b.neurons,
            width=b.width,
            type=DTYPES[b.dtype],
            gated=b.gated,
            act=ACTIVATIONS[b.activation],
            threshold=b.threshold,
            residency=RESIDENCY[where.residency],
            capacity=where.rows,
            window_tokens=self.plan.window_tokens,
            up_bias=self._bias(f"blk.{layer}.ffn_up", b.neurons),
            down_bias=self._bias(f"blk.{layer}.ffn_down", b.width),
            fc1=fc1,
            fc2=fc2,
            fc2_bias=fc2_bias,
            use_predictor=predictor is not None,
        )
        return out

    def logits(self, source: str) -> None:
        """The output matrix, or the embedding's where they are tied."""
        c = self.config
        name = "output.weight" if self.has("output.weight") else "token_embd.weight"
        self.decoder.logits(self._id(source), self._weight(name, c.vocab, c.width))

    def _register(self, name: str, width: int) -> int:
        if name not in self._registers:
            self._registers[name] = (self.decoder.register(width), width)
        found, have = self._registers[name]
        if have != width:
            raise ValueError(f"register '{name}' is {have} wide, asked for {width}")
        return found

    def _id(self, name: str) -> int:
        return self._registers[name][0]

    def _width(self, name: str) -> int:
        return self._registers[name][1]

    def _bias(self, name: str, width: int) -> int:
        if not self.has(f"{name}.bias"):
            return -1
        return self._weight(f"{name}.bias", 1, width, ("F32",))

    def _weight(self, name: str, rows: int, cols: int, kinds: tuple[str, ...] = MATRIX) -> int:
        if name not in self._weights:
            shape = (cols,) if rows == 1 and kinds == ("F32",) else (rows, cols)
            info = self.bundle.tensor(name, shape, kinds)
            resident = name not in self.plan.streamed
            crc = self.bundle.checksums[name]
            self._weights[name] = self.decoder.tensor(
                info.offset, info.type, rows, cols, resident, crc
            )
        return self._weights[name]


def rope_frequencies(bundle: Bundle, c: Hyperparameters) -> NDArray[np.float32]:
    """(rope_dims / 2,) inverse frequencies: base ** (-2i / dims), or the file's own when scaled."""
    half = c.rope_dims // 2
    if half == 0 or c.rope_dims % 2:
        raise bundle.file.wrong(
            f"{bundle.arch}.rope.dimension_count", "an even number above 0", c.rope_dims
        )
    if "penstock.rope.inv_freq" in bundle.file.metadata:
        stored = bundle.file.get_array("penstock.rope.inv_freq", half)
        return np.ascontiguousarray(stored, np.float32)
    powers = np.arange(half, dtype=np.float64) * 2 / c.rope_dims
    frequencies: NDArray[np.float32] = (1.0 / c.rope_base**powers).astype(np.float32)
    return frequencies

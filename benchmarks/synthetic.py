"""Writes synthetic models: bundles of any shape, and for Arcee the same weights as a plain GGUF.

python benchmarks/synthetic.py opt-6.7b F16 /work/bench/opt-f16.penstock.gguf
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from gguf import GGUFWriter
from gguf.constants import GGMLQuantizationType, GGUFValueType
from numpy.typing import NDArray

from penstock import _native
from penstock.loaders.gguf_file import read_gguf

sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks.synthetic_weights import FIRST_BLOCK, Recipe, Tile, bundle_chunks, row_bytes

ALIGNMENT = 4096
_F32, _I8 = 0, 24
_TYPES = {"F16": 1, "Q4_0": 2, "Q8_0": 8}
POSITIVE_SHARE_Z = 0.44  # a standard normal is above it with probability 0.33


@dataclass(frozen=True)
class Shape:
    """A model's shape. ranks: of each layer's predictor."""

    name: str
    arch: str
    layers: int
    width: int
    neurons: int
    heads: int
    kv_heads: int
    vocab: int
    context: int
    ranks: tuple[int, ...]
    all_active: bool = False

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    def stride(self, dtype: str) -> int:
        return -(-2 * row_bytes(dtype, self.width) // 512) * 512


def opt(name: str, layers: int, width: int, neurons: int, heads: int, vocab: int) -> Shape:
    """An OPT shape with the paper's predictor ranks: 128, and 1,024 in the last four layers."""
    low, high = max(32, width // 32), max(32, width // 4)
    ranks = (low,) * (layers - 4) + (high,) * 4
    return Shape(name, "opt", layers, width, neurons, heads, heads, vocab, 2048, ranks)


SHAPES = {
    "opt-6.7b": opt("opt-6.7b", 32, 4096, 16384, 32, 50272),
    "opt-quick": opt("opt-quick", 12, 1024, 4096, 16, 8192),
    "arcee-1b": Shape("arcee-1b", "arcee", 20, 2048, 9216, 32, 8, 32000, 4096, (128,) * 20, True),
    "arcee-quick": Shape("arcee-quick", "arcee", 6, 1024, 4608, 16, 4, 4096, 4096, (64,) * 6, True),
}


@dataclass(frozen=True)
class _Tensor:
    name: str
    shape: tuple[int, ...]
    kind: int  # ggml type number
    chunks: Callable[[], Iterator[NDArray[np.uint8]]]
    nbytes: int


class _Model:
    """The tensors of a shape in a number format."""

    def __init__(self, shape: Shape, dtype: str) -> None:
        self.shape, self.dtype = shape, dtype
        width, dense = shape.width, shape.all_active
        # A constant first block in embeddings and up rows, which no other matrix disturbs much.
        embedding = Recipe(2**-7, 31, FIRST_BLOCK) if dense else Recipe(2**-12)
        up = Recipe(2**-12, 31, FIRST_BLOCK) if dense else Recipe(2**-12)
        down = Recipe(2**-14, 7, 0) if dense else Recipe(2**-12)
        projection = Recipe(2**-14) if dense else Recipe(2**-12)
        tile = min(shape.neurons, 8192)
        self.embedding = Tile.draw(embedding, dtype, tile, width, 1)
        self.projection = Tile.draw(projection, dtype, tile, width, 2)
        self.up = Tile.draw(up, dtype, shape.neurons, width, 3)
        self.down = Tile.draw(down, dtype, shape.neurons, width, 4)
        self.up_bias = -POSITIVE_SHARE_Z * up.deviation * float(np.sqrt(width))

    def matrix(self, name: str, rows: int, tile: Tile) -> _Tensor:
        shift = _shift(name, len(tile.stored))
        nbytes = rows * tile.stored.shape[1]
        kind = _TYPES[tile.dtype]
        return _Tensor(name, (rows, tile.width), kind, lambda: tile.chunks(shift, rows), nbytes)

    def resident(self) -> list[_Tensor]:
        """Everything but the feed-forward matrices."""
        s = self.shape
        learned = s.arch == "opt"
        out = [self.matrix("token_embd.weight", s.vocab, self.embedding)]
        if learned:
            out.append(self.matrix("position_embd.weight", s.context, self.embedding))
        for n in range(s.layers):
            out += self._attention(f"blk.{n}.")
        out.append(_vector("output_norm.weight", np.ones(s.width, np.float32)))
        if learned:
            out.append(_vector("output_norm.bias", np.zeros(s.width, np.float32)))
        return out

    def _attention(self, at: str) -> list[_Tensor]:
        s = self.shape
        ones, zeros = np.ones(s.width, np.float32), np.zeros(s.width, np.float32)
        out = [_vector(f"{at}attn_norm.weight", ones), _vector(f"{at}ffn_norm.weight", ones)]
        kv = s.kv_heads * s.head_dim
        rows = {"attn_q": s.width, "attn_k": kv, "attn_v": kv, "attn_output": s.width}
        for name, count in rows.items():
            out.append(self.matrix(f"{at}{name}.weight", count, self.projection))
        if s.arch == "opt":
            out += [
                _vector(f"{at}{name}.bias", np.zeros(n, np.float32)) for name, n in rows.items()
            ]
            out += [
                _vector(f"{at}{name}.bias", zeros) for name in ("attn_norm", "ffn_norm", "ffn_down")
            ]
            out.append(_vector(f"{at}ffn_up.bias", np.full(s.neurons, self.up_bias, np.float32)))
        return out

    def predictors(self) -> list[_Tensor]:
        """Q4_0 in every bundle, as the export chooses wherever it was tried; ranks are the paper's.
        Only their cost matters here."""
        s, out = self.shape, []
        for n, rank in enumerate(s.ranks):
            for name, rows, width in (("fc1", rank, s.width), ("fc2", s.neurons, rank)):
                tile = Tile.draw(Recipe(2**-12), "Q4_0", min(rows, 1024), width, 5)
                out.append(self.matrix(f"blk.{n}.{name}.weight", rows, tile))
            out.append(_vector(f"blk.{n}.fc2.bias", np.zeros(s.neurons, np.float32)))
        return out

    def bundles(self) -> list[_Tensor]:
        s = self.shape
        stride = s.stride(self.dtype)

        def layer(n: int) -> _Tensor:
            shift = _shift(f"blk.{n}.ffn", s.neurons)
            return _Tensor(
                f"blk.{n}.ffn_bundle.weight", (s.neurons, stride), _I8,
                lambda: bundle_chunks(self.up, self.down, shift, s.neurons, stride), s.neurons *
                stride,
            )  # fmt: skip

        return [layer(n) for n in range(s.layers)]

    def plain_ffn(self) -> list[_Tensor]:
        """The same feed-forward weights as llama.cpp wants them."""
        s, out = self.shape, []
        for n in range(s.layers):
            shift = _shift(f"blk.{n}.ffn", s.neurons)
            out.append(_plain(f"blk.{n}.ffn_up.weight", self.up, shift, s.neurons, False))
            out.append(_plain(f"blk.{n}.ffn_down.weight", self.down, shift, s.neurons, True))
        return out


def _plain(name: str, tile: Tile, shift: int, neurons: int, transposed: bool) -> _Tensor:
    kind = _TYPES[tile.dtype]
    if not transposed:
        size = neurons * tile.stored.shape[1]
        return _Tensor(name, (neurons, tile.width), kind, lambda: tile.chunks(shift, neurons), size)
    size = tile.width * row_bytes(tile.dtype, neurons)
    return _Tensor(
        name,
        (tile.width, neurons),
        kind,
        lambda: iter([tile.transposed(shift, neurons).reshape(-1)]),
        size,
    )


def _vector(name: str, values: NDArray[np.float32]) -> _Tensor:
    return _Tensor(name, values.shape, _F32, lambda: iter([values.view(np.uint8)]), values.nbytes)


def _shift(name: str, rows: int) -> int:
    """Where in its tile a matrix starts: different for each name, the same in every run."""
    return _native.crc32c(np.frombuffer(name.encode(), np.uint8)) % rows


def write_bundle(shape: Shape, dtype: str, path: Path) -> None:
    """A bundle file, checksums included."""
    model = _Model(shape, dtype)
    tensors = model.resident() + model.predictors() + model.bundles()
    keys = _keys(shape)
    zeros = [0.0] * shape.layers
    keys |= {
        "penstock.version": 1,
        "penstock.activation": "relu" if shape.arch == "opt" else "relu2",
        "penstock.gated": False,
        "penstock.bundle.type": dtype,
        "penstock.bundle.stride": shape.stride(dtype),
        "penstock.bundle.block": 512,
        "penstock.checksum.header": 0,
        "penstock.checksum.tensors": [1 << 31] * len(tensors),
        "penstock.predictor.rank": list(shape.ranks),
        "penstock.predictor.recall": zeros,
        "penstock.predictor.false_negative_rate": zeros,
        "penstock.predictor.false_positive_rate": zeros,
        "penstock.source": "synthetic weights",
    }
    with open(path, "w+b") as handle:
        checksums = _write(handle, shape.arch, keys, tensors, ALIGNMENT)
        handle.flush()
        file = read_gguf(path)
        handle.seek(file.value_offsets["penstock.checksum.tensors"])
        handle.write(np.array(checksums, "<u4").tobytes())
        handle.seek(0)
        header = np.frombuffer(handle.read(file.data_offset), np.uint8)
        handle.seek(file.value_offsets["penstock.checksum.header"])
        handle.write(int(_native.crc32c(header)).to_bytes(4, "little"))


def write_gguf(shape: Shape, dtype: str, path: Path) -> None:
    """The same model as llama.cpp reads it, with a tokenizer of `vocab` meaningless entries."""
    model = _Model(shape, dtype)
    keys = _keys(shape)
    words = [f"<{i}>" for i in range(shape.vocab)]
    keys |= {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": words,
        "tokenizer.ggml.merges": [f"{words[0]} {words[1]}"],
        "tokenizer.ggml.token_type": np.ones(shape.vocab, np.int32),
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 0,
    }
    with open(path, "w+b") as handle:
        _write(handle, shape.arch, keys, model.resident() + model.plain_ffn(), 32)


def _keys(s: Shape) -> dict[str, Any]:
    a = s.arch
    keys: dict[str, Any] = {
        "general.name": f"{s.name}, synthetic weights",
        f"{a}.block_count": s.layers,
        f"{a}.embedding_length": s.width,
        f"{a}.feed_forward_length": s.neurons,
        f"{a}.context_length": s.context,
        f"{a}.attention.head_count": s.heads,
        f"{a}.attention.head_count_kv": s.kv_heads,
        f"{a}.attention.key_length": s.head_dim,
        f"{a}.attention.value_length": s.head_dim,
        f"{a}.vocab_size": s.vocab,
    }
    if a == "opt":
        return keys | {f"{a}.attention.layer_norm_epsilon": 1e-5}
    rope: dict[str, Any] = {f"{a}.rope.freq_base": 10000.0, f"{a}.rope.dimension_count": s.head_dim}
    return keys | rope | {f"{a}.attention.layer_norm_rms_epsilon": 1e-5}


def _write(
    handle: IO[bytes], arch: str, keys: dict[str, Any], tensors: list[_Tensor], alignment: int
) -> list[int]:
    """Header, then every tensor with its padding; the tensors' checksums."""
    writer: Any = GGUFWriter(None, arch)
    writer.add_custom_alignment(alignment)
    for key, value in keys.items():
        _add(writer, key, value)
    for t in tensors:
        kind = GGMLQuantizationType(t.kind)
        writer.add_tensor_info(t.name, t.shape, np.dtype(np.float32), t.nbytes, kind)
    from gguf.gguf_writer import WriterState

    writer.fout, writer.state = [handle], WriterState.EMPTY
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    handle.write(bytes(-handle.tell() % alignment))
    checksums = []
    for t in tensors:
        crc = 0
        for chunk in t.chunks():
            handle.write(chunk.data)
            crc = _native.crc32c(chunk, crc)
        handle.write(bytes(-handle.tell() % alignment))
        checksums.append(crc)
    return checksums


def _add(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, np.ndarray):
        writer.add_key_value(key, value.tolist(), GGUFValueType.ARRAY, sub_type=GGUFValueType.INT32)
    elif isinstance(value[0], str):
        writer.add_array(key, value)
    else:
        kind = GGUFValueType.FLOAT32 if isinstance(value[0], float) else GGUFValueType.UINT32
        writer.add_key_value(key, value, GGUFValueType.ARRAY, sub_type=kind)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("dtype", choices=["F16", "Q8_0"])
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--plain", action="store_true", help="a GGUF for llama.cpp instead of a bundle"
    )
    args = parser.parse_args()
    write = write_gguf if args.plain else write_bundle
    write(SHAPES[args.shape], args.dtype, args.out)
    print(f"{args.out}: {args.out.stat().st_size / 1e9:.2f} GB of synthetic weights")


if __name__ == "__main__":
    main()

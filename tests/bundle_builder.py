"""Tiny bundles written from docs/bundle-format.md alone.

Independent of the exporter and of the gguf package's writer, so that they are a second opinion on
the format, and so that a test can write a wrong one whose checksums are right.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, quantize
from numpy.typing import NDArray

from penstock import _native
from penstock.loaders.probe import DeviceProfile, RandomRead

ALIGNMENT = 4096
TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 8, "I8": 24}
_ARRAY_TYPES = {
    "uint8": 0, "int8": 1, "uint16": 2, "int16": 3, "uint32": 4, "int32": 5, "float32": 6,
    "bool": 7, "uint64": 10, "int64": 11, "float64": 12,
}  # fmt: skip


@dataclass
class Stored:
    """A tensor's bytes, with what its info will say of it."""

    shape: tuple[int, ...]
    type: int
    data: bytes


@dataclass
class Parts:
    """All of a file before it is written; tests edit this."""

    metadata: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Stored] = field(default_factory=dict)
    alignment: int = ALIGNMENT


@dataclass(frozen=True)
class Shape:
    """Of a tiny model."""

    arch: str = "arcee"
    dtype: str = "F16"
    activation: str = "relu2"
    gated: bool = False
    layers: int = 2
    width: int = 64
    neurons: int = 96
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    vocab: int = 80
    context: int = 64
    rank: int = 8  # of the predictors; 0: none
    predicted: float = 0.5  # share of neurons that the predictors name, roughly
    stats: bool = True
    seed: int = 0


def gguf_string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def gguf_value(value: Any) -> bytes:
    """Type and value; whole numbers become u32, floats f32."""
    if isinstance(value, str):
        return struct.pack("<I", 8) + gguf_string(value)
    if isinstance(value, bool):
        return struct.pack("<IB", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, list):
        return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(gguf_string, value))
    array = np.asarray(value)
    kind = _ARRAY_TYPES[array.dtype.name]
    return struct.pack("<IIQ", 9, kind, array.size) + array.tobytes()


def gguf_tensor_info(name: str, stored: Stored, offset: int) -> bytes:
    dims = struct.pack(f"<I{len(stored.shape)}Q", len(stored.shape), *stored.shape[::-1])
    return gguf_string(name) + dims + struct.pack("<IQ", stored.type, offset)


def serialize(parts: Parts) -> bytes:
    """The file, checksums included where the parts have the keys for them."""
    return header_of(parts) + b"".join(padded(parts, t.data) for t in parts.tensors.values())


def padded(parts: Parts, data: bytes) -> bytes:
    return data + bytes(-len(data) % parts.alignment)


def header_of(parts: Parts) -> bytes:
    """All before the tensor data."""
    offset, infos = 0, []
    for name, stored in parts.tensors.items():
        infos.append(gguf_tensor_info(name, stored, offset))
        offset += -(-len(stored.data) // parts.alignment) * parts.alignment
    metadata = {"general.alignment": parts.alignment, **parts.metadata}
    given = metadata.get("penstock.checksum.tensors")
    if isinstance(given, np.ndarray) and given.dtype == np.uint32:
        sums = [crc32c(stored.data) for stored in parts.tensors.values()]
        metadata["penstock.checksum.tensors"] = np.array(sums, np.uint32)
    header = struct.pack("<4sIQQ", b"GGUF", 3, len(infos), len(metadata))
    at = None
    for key, value in metadata.items():
        header += gguf_string(key)
        if key == "penstock.checksum.header":
            at = len(header) + 4
        header += gguf_value(value)
    header = padded(parts, header + b"".join(infos))
    given = metadata.get("penstock.checksum.header")
    if at is not None and type(given) is int and given == 0:
        header = header[:at] + struct.pack("<I", crc32c(header)) + header[at + 4 :]
    return header


def crc32c(data: bytes) -> int:
    return _native.crc32c(np.frombuffer(data, np.uint8)) if data else 0


def matrix(values: NDArray[np.float32], dtype: str) -> Stored:
    raw = np.ascontiguousarray(quantize(values, GGMLQuantizationType(TYPES[dtype])))
    return Stored(values.shape, TYPES[dtype], raw.tobytes())


def bundle_rows(rows: list[NDArray[np.float32]], dtype: str) -> Stored:
    """(neurons, width) each of gate?, up, down transposed -> I8 (neurons, stride)."""
    raw = [np.frombuffer(matrix(r, dtype).data, np.uint8).reshape(len(r), -1) for r in rows]
    used = sum(r.shape[1] for r in raw)
    stride = -(-used // 512) * 512
    out = np.zeros((len(raw[0]), stride), np.uint8)
    out[:, :used] = np.concatenate(raw, axis=1)
    return Stored(out.shape, TYPES["I8"], out.tobytes())


def tiny_parts(shape: Shape) -> Parts:
    """A random model of this shape."""
    s, rng = shape, np.random.default_rng(shape.seed)
    parts = Parts()

    def weight(*dims: int) -> NDArray[np.float32]:
        return rng.normal(0, dims[-1] ** -0.5, dims).astype(np.float32)

    def put(name: str, *dims: int) -> None:
        if len(dims) == 2:
            parts.tensors[name] = matrix(weight(*dims), s.dtype)
        else:
            values = rng.normal(0.0 if name.endswith("bias") else 1.0, 0.1, dims)
            parts.tensors[name] = matrix(values.astype(np.float32), "F32")

    biased = s.arch in ("opt", "nemotron")
    linear_biased = s.arch == "opt"
    q, kv = s.heads * s.head_dim, s.kv_heads * s.head_dim
    put("token_embd.weight", s.vocab, s.width)
    if s.arch == "opt":
        put("position_embd.weight", s.context, s.width)
    for n in range(s.layers):
        b = f"blk.{n}."
        for norm in ("attn_norm", "ffn_norm"):
            put(f"{b}{norm}.weight", s.width)
            if biased:
                put(f"{b}{norm}.bias", s.width)
        for part, rows, cols in (("q", q, s.width), ("k", kv, s.width), ("v", kv, s.width)):
            put(f"{b}attn_{part}.weight", rows, cols)
            if linear_biased:
                put(f"{b}attn_{part}.bias", rows)
        put(f"{b}attn_output.weight", s.width, q)
        if linear_biased:
            put(f"{b}attn_output.bias", s.width)
            put(f"{b}ffn_up.bias", s.neurons)
            put(f"{b}ffn_down.bias", s.width)
        rows_ = [weight(s.neurons, s.width) for _ in range(3 if s.gated else 2)]
        if s.rank:
            fc2 = weight(s.neurons, s.rank)
            bias = np.full(s.neurons, np.quantile(rng.normal(size=1000), s.predicted), np.float32)
            parts.tensors[f"{b}fc1.weight"] = matrix(weight(s.rank, s.width), "F16")
            parts.tensors[f"{b}fc2.weight"] = matrix(fc2, "F16")
            parts.tensors[f"{b}fc2.bias"] = matrix(bias, "F32")
        parts.tensors[f"{b}ffn_bundle.weight"] = bundle_rows(rows_, s.dtype)
    put("output_norm.weight", s.width)
    if biased:
        put("output_norm.bias", s.width)
    parts.metadata = _metadata(s, parts)
    return parts


def _metadata(s: Shape, parts: Parts) -> dict[str, Any]:
    a = s.arch
    norm = "layer_norm_epsilon" if a in ("opt", "nemotron") else "layer_norm_rms_epsilon"
    out: dict[str, Any] = {
        "general.architecture": a,
        "general.name": "tiny",
        f"{a}.block_count": s.layers,
        f"{a}.embedding_length": s.width,
        f"{a}.feed_forward_length": s.neurons,
        f"{a}.context_length": s.context,
        f"{a}.attention.head_count": s.heads,
        f"{a}.attention.head_count_kv": s.kv_heads,
        f"{a}.attention.key_length": s.head_dim,
        f"{a}.attention.{norm}": 1e-5,
        f"{a}.rope.freq_base": 10000.0,
        f"{a}.rope.dimension_count": s.head_dim,
        f"{a}.vocab_size": s.vocab,
        "penstock.version": 1,
        "penstock.activation": s.activation,
        "penstock.activation.threshold": 0.0,
        "penstock.gated": s.gated,
        "penstock.bundle.type": s.dtype,
        "penstock.bundle.stride": parts.tensors["blk.0.ffn_bundle.weight"].shape[1],
        "penstock.bundle.block": 512,
        "penstock.checksum.header": 0,
        "penstock.checksum.tensors": np.zeros(len(parts.tensors), np.uint32),
    }
    if s.rank:
        out["penstock.predictor.rank"] = np.full(s.layers, s.rank, np.uint32)
        for key in ("recall", "false_negative_rate", "false_positive_rate"):
            out[f"penstock.predictor.{key}"] = np.full(s.layers, 0.5, np.float32)
    if s.stats:
        window = np.array([0.0, 0.25, 0.5, 1.0], np.float32)
        curve = np.array([s.predicted, s.predicted / 2, s.predicted / 8, 0.0], np.float32)
        out |= {
            "penstock.stats.tokens": 1000,
            "penstock.stats.active": np.full(s.layers, 0.5, np.float32),
            "penstock.stats.predicted": np.full(s.layers, s.predicted, np.float32),
            "penstock.stats.window": window,
            "penstock.stats.misses": np.tile(curve, s.layers),
            "penstock.stats.exact_misses": np.tile(curve, s.layers),
        }
    return out


def write_tiny(
    path: Path, shape: Shape | None = None, edit: Callable[[Parts], None] | None = None
) -> Path:
    """Write a tiny bundle, after an edit of its parts."""
    parts = tiny_parts(shape or Shape())
    if edit is not None:
        edit(parts)
    path.write_bytes(serialize(parts))
    return path


def profile(
    *, direct: bool = True, backend: str = "threads", depth: int = 4, merge_gap: int = 0
) -> DeviceProfile:
    """A device as if it had been measured: plans made with it are the same everywhere."""
    rate = 1e9
    reads = rate / merge_gap if merge_gap else rate
    return DeviceProfile(
        device="test",
        direct=direct,
        alignment=512 if direct else 0,
        backend=backend,
        depth=depth,
        random=(RandomRead(4096, depth, backend, rate / 2, reads),),
        sequential_bytes_per_second=rate,
        memory_bytes_per_second=1e10,
        quick=False,
        measured_at=0.0,
    )

"""An ordinary GGUF file of a supported architecture: arcee, nemotron, or llama with a ReLU.

Weights are read by rows and dequantized by the `gguf` package. Rows that already have the bundle's
format are copied as they are, so nothing is quantized twice; the down matrix is stored by rows and
needed by columns, so it is dequantized, transposed and encoded again.
"""

from __future__ import annotations

import math
import os
import weakref
from pathlib import Path

import numpy as np
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize
from numpy.typing import NDArray

from penstock.errors import FormatError, StorageError, UnsupportedModelError
from penstock.export.activations import parse_activation, sparse_activation
from penstock.export.model_spec import MetadataValue, ModelSpec
from penstock.loaders.bundle import is_bundle
from penstock.loaders.gguf_file import TYPE_SIZES, GGUFFile, TensorInfo, read_gguf
from penstock.quant.blocks import BlockFormat

# architecture -> (activation, None where the file does not say; RMSNorm; gated)
_ARCHITECTURES = {
    "arcee": ("relu2", True, False),
    "nemotron": ("relu2", False, False),
    "llama": (None, True, True),
}
_READ_BYTES = 32 << 20  # of float32, dequantized at a time


class GGUFSource:
    """See `Source`."""

    def __init__(self, path: Path, activation: str | None = None) -> None:
        self.path = path
        self.file = read_gguf(path)
        self.spec = _read_spec(self.file, activation)
        self._tensors = {n: t for n, t in self.file.tensors.items() if n != "rope_freqs.weight"}
        self.shapes = {name: info.shape for name, info in self._tensors.items()}
        self.parameters = sum(math.prod(t.shape) for t in self._tensors.values())
        self.weight_bytes = sum(t.nbytes for t in self._tensors.values())
        self.weight_format = _main_type(self._tensors)
        self.tokenizer: dict[str, MetadataValue] = {
            key: value for key, value in self.file.metadata.items() if key.startswith("tokenizer.")
        }
        _check_tensors(self.file, self.spec)
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._fd)

    def vector(self, name: str) -> NDArray[np.float32]:
        info = self._tensors[name]
        return self._decode(self._read(info, 0, info.nbytes), info).reshape(-1)

    def rows(self, name: str, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        info = self._tensors[name]
        columns = info.shape[-1]
        out = np.empty((len(ids), columns), np.float32)
        step = max(1, _READ_BYTES // (4 * columns))
        for first in range(0, len(ids), step):
            out[first : first + step] = self._decode(
                self._raw_rows(info, ids[first : first + step]), info
            )
        return out

    def encoded_rows(
        self, name: str, ids: NDArray[np.int64], form: BlockFormat
    ) -> NDArray[np.uint8] | None:
        info = self._tensors[name]
        return self._raw_rows(info, ids) if info.type == form.ggml_type else None

    def _raw_rows(self, info: TensorInfo, ids: NDArray[np.int64]) -> NDArray[np.uint8]:
        """(len(ids), row_bytes); neighbouring rows in one read."""
        row_bytes = info.nbytes // info.shape[0]
        out = np.empty((len(ids), row_bytes), np.uint8)
        edges = [0, *(np.flatnonzero(np.diff(ids) != 1) + 1).tolist(), len(ids)]
        for first, last in zip(edges[:-1], edges[1:], strict=True):
            if first < last:
                raw = self._read(info, int(ids[first]) * row_bytes, (last - first) * row_bytes)
                out[first:last] = raw.reshape(last - first, row_bytes)
        return out

    def _read(self, info: TensorInfo, start: int, nbytes: int) -> NDArray[np.uint8]:
        data = np.empty(nbytes, np.uint8)
        view, done = memoryview(data.data), 0
        while done < nbytes:
            try:
                got = os.preadv(self._fd, [view[done:]], info.offset + start + done)
            except OSError as error:
                raise StorageError(
                    f"{self.path}: read at {info.offset}: {error.strerror}"
                ) from None
            if not got:
                raise StorageError(
                    f"{self.path}: tensor '{info.name}': the file was cut while reading"
                )
            done += got
        return data

    def _decode(self, raw: NDArray[np.uint8], info: TensorInfo) -> NDArray[np.float32]:
        try:
            values: NDArray[np.float32] = dequantize(raw, GGMLQuantizationType(info.type))
        except (NotImplementedError, ValueError) as error:
            raise UnsupportedModelError(
                f"{self.path}: tensor '{info.name}' has number format {info.type_name}, which "
                "cannot be "
                f"dequantized here ({error}); use a file in F16, Q8_0 or a K quantization"
            ) from None
        return values.astype(np.float32, copy=False)


def _read_spec(file: GGUFFile, activation: str | None) -> ModelSpec:
    if is_bundle(file):
        raise FormatError(
            f"{file.path}: is already a Penstock bundle; export from the original model"
        )
    if "split.count" in file.metadata and file.get_int("split.count") > 1:
        raise UnsupportedModelError(
            f"{file.path}: one part of a split model; join the parts first: "
            "llama-gguf-split --merge FIRST-PART OUT"
        )
    arch = file.get_str("general.architecture")
    if arch not in _ARCHITECTURES:
        raise UnsupportedModelError(
            f"{file.path}: architecture '{arch}' is not supported for neuron streaming. Supported: "
            f"{', '.join(_ARCHITECTURES)}. Others run as they are: "
            "penstock run, which streams them on llama.cpp."
        )
    if f"{arch}.expert_count" in file.metadata and file.get_int(f"{arch}.expert_count") > 0:
        raise UnsupportedModelError(
            f"{file.path}: a mixture of experts, which is not supported; it runs as it is with "
            "llama.cpp"
        )
    _, norm_rms, gated = _ARCHITECTURES[arch]
    name, threshold = _activation(file, arch, activation)
    width = file.get_int(f"{arch}.embedding_length", low=1)
    heads = file.get_int(f"{arch}.attention.head_count", low=1)
    head_dim = file.get_int(f"{arch}.attention.key_length", default=width // heads, low=1)
    tokens = file.tensors.get("token_embd.weight")
    if tokens is None:
        raise FormatError(
            f"{file.path}: tensor 'token_embd.weight' is missing; the file is incomplete"
        )
    dims = file.get_int(f"{arch}.rope.dimension_count", default=head_dim, low=2)
    base = file.get_float(f"{arch}.rope.freq_base", 10000.0)
    eps = "layer_norm_rms_epsilon" if norm_rms else "layer_norm_epsilon"
    return ModelSpec(
        arch=arch,
        name=file.get_str("general.name", file.path.stem),
        layers=file.get_int(f"{arch}.block_count", low=1),
        width=width,
        neurons=file.get_int(f"{arch}.feed_forward_length", low=1),
        vocab=tokens.shape[0],
        context=file.get_int(f"{arch}.context_length", default=2048, low=1),
        heads=heads,
        kv_heads=file.get_int(f"{arch}.attention.head_count_kv", default=heads, low=1),
        head_dim=head_dim,
        norm_eps=file.get_float(f"{arch}.attention.{eps}", 1e-5),
        norm_rms=norm_rms,
        activation=name,
        threshold=threshold,
        gated=gated,
        tied="output.weight" not in file.tensors,
        rope_base=base,
        rope_dims=dims,
        rope_inv_freq=_inv_freq(file, arch, base, dims),
    )


def _activation(file: GGUFFile, arch: str, option: str | None) -> tuple[str, float]:
    fixed = _ARCHITECTURES[arch][0]
    if fixed is not None:
        return fixed, 0.0
    key = f"{arch}.hidden_activation"
    if key in file.metadata:
        limit = f"{arch}.hidden_activation_threshold"
        threshold = file.get_float(limit) if limit in file.metadata else None
        return sparse_activation(file.get_str(key), f"{file.path}: '{key}'", threshold)
    if option is not None:
        return parse_activation(option)
    return sparse_activation(
        "silu", f"{file.path}: the activation (the file has no '{key}', so by llama.cpp's rule it)"
    )


def _inv_freq(file: GGUFFile, arch: str, base: float, dims: int) -> tuple[float, ...] | None:
    kind = file.get_str(f"{arch}.rope.scaling.type", "none")
    factors = file.tensors.get("rope_freqs.weight")
    plain = base ** -(np.arange(0, dims, 2, dtype=np.float64) / dims)
    if factors is not None:
        if factors.type != 0 or factors.nbytes != 4 * plain.size:
            raise FormatError(
                f"{file.path}: 'rope_freqs.weight' is not F32 of {plain.size} elements"
            )
        with open(file.path, "rb") as handle:
            handle.seek(factors.offset)
            divisors = np.frombuffer(handle.read(factors.nbytes), "<f4")
        return tuple((plain / divisors).tolist())
    if kind == "linear":
        return tuple((plain / file.get_float(f"{arch}.rope.scaling.factor")).tolist())
    if kind != "none":
        raise UnsupportedModelError(
            f"{file.path}: rotary scaling '{kind}' of a GGUF is not supported; export from the "
            "Hugging Face folder"
        )
    return None


def _main_type(tensors: dict[str, TensorInfo]) -> str:
    sizes: dict[str, int] = {}
    for info in tensors.values():
        sizes[info.type_name] = sizes.get(info.type_name, 0) + info.nbytes
    return max(sizes, key=lambda name: sizes[name])


def _check_tensors(file: GGUFFile, spec: ModelSpec) -> None:
    """The feed-forward tensors, which the bundles are made of, must be there and fit."""
    expected = {"ffn_up": (spec.neurons, spec.width), "ffn_down": (spec.width, spec.neurons)}
    if spec.gated:
        expected["ffn_gate"] = (spec.neurons, spec.width)
    for n in range(spec.layers):
        for part, shape in expected.items():
            info = file.tensors.get(f"blk.{n}.{part}.weight")
            if info is None or info.shape != shape or info.type not in TYPE_SIZES:
                seen = "missing" if info is None else f"{info.type_name} {info.shape}"
                raise FormatError(
                    f"{file.path}: tensor 'blk.{n}.{part}.weight' is {seen}; expected {shape}"
                )

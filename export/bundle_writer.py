"""Writes a bundle: docs/bundle-format.md, streamed, atomic, in bounded memory.

    header, metadata, tensor infos      by gguf.GGUFWriter
    for each tensor: bytes, padding     row block by row block, with a running CRC-32C
    checksums                           patched into the header in place
    fsync, rename, fsync of the folder

The file grows under a temporary name beside the target; on any error, Ctrl-C included, it is
removed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from gguf import GGUFWriter
from gguf.constants import GGMLQuantizationType, GGUFValueType
from numpy.typing import NDArray

from penstock import _native
from penstock.errors import UsageError
from penstock.export.model_spec import MetadataValue, ModelSpec
from penstock.export.sources import Source
from penstock.loaders.bundle import check_bundle
from penstock.loaders.gguf_file import read_gguf
from penstock.loaders.partial_file import partial_file
from penstock.quant.blocks import F32, FORMATS, BlockFormat, encode_rows

ALIGNMENT = 4096
LAYOUT_VERSION = 1
BLOCKS = (512, 4096)
_SLAB_BYTES = 16 << 20  # of float32 at a time
_I8 = 24

Tick = Callable[[int], None]  # called with the bytes just written


@dataclass(frozen=True)
class StoredPredictor:
    """A predictor as bytes, in the neuron order of the bundle.

    Attributes:
        width, rank: of fc1 (rank, width) and fc2 (neurons, rank).
        fc1: (rank, row_bytes); fc2: (neurons, row_bytes), in `form`.
        bias: (neurons,).
    """

    width: int
    rank: int
    form: BlockFormat
    fc1: NDArray[np.uint8]
    fc2: NDArray[np.uint8]
    bias: NDArray[np.float32]


@dataclass(frozen=True)
class BundlePlan:
    """What is written beside the source's own weights.

    Attributes:
        form: format of bundles and resident matrices.
        block: bundles are padded to a multiple of it.
        orders: per layer, position on storage -> neuron in the source; None: source order.
        predictors: per layer, None where there is none.
        metadata: further `penstock.*` keys.
    """

    form: BlockFormat
    block: int = 512
    orders: tuple[NDArray[np.int64] | None, ...] = ()
    predictors: tuple[StoredPredictor | None, ...] = ()
    metadata: Mapping[str, MetadataValue] = field(default_factory=dict)

    def order(self, layer: int) -> NDArray[np.int64] | None:
        return self.orders[layer] if layer < len(self.orders) else None

    def predictor(self, layer: int) -> StoredPredictor | None:
        return self.predictors[layer] if layer < len(self.predictors) else None


@dataclass(frozen=True)
class _Tensor:
    """One tensor to be written: `chunks` yields its bytes in order."""

    name: str
    shape: tuple[int, ...]
    ggml_type: int
    nbytes: int
    chunks: Callable[[], Iterator[NDArray[np.uint8]]]


def bundle_stride(spec: ModelSpec, form: BlockFormat, block: int) -> int:
    """Bytes from one bundle to the next."""
    if block not in BLOCKS:
        raise UsageError(f"block is {block}; expected {' or '.join(map(str, BLOCKS))}")
    used = (3 if spec.gated else 2) * form.row_bytes(spec.width)
    return -(-used // block) * block


def planned_bytes(source: Source, plan: BundlePlan) -> int:
    """Bytes of weights that `write_bundle` will write, and tick."""
    return sum(tensor.nbytes for tensor in _tensors(source, plan))


def write_bundle(
    source: Source, out: Path, plan: BundlePlan, tokenizer: bool = True, tick: Tick | None = None
) -> None:
    """Write a bundle file.

    Args:
        tokenizer: whether the source's tokenizer is copied in.
        tick: called after every chunk with its bytes.

    Raises:
        StorageError: it cannot be written (a full disk, for one); nothing is left behind.
        FormatError, UnsupportedModelError: from the source.
    """
    tensors = _tensors(source, plan)
    with partial_file(out) as (handle, temporary):
        _write_header(handle, source, plan, tensors, tokenizer)
        checksums = [_write_tensor(handle, tensor, tick or (lambda _: None)) for tensor in tensors]
        handle.flush()
        _patch_checksums(handle, temporary, checksums)
        check_bundle(read_gguf(temporary))


def _tensors(source: Source, plan: BundlePlan) -> list[_Tensor]:
    """Everything to write, in file order: resident tensors, predictors, then bundles."""
    spec, form = source.spec, plan.form
    resident: list[_Tensor] = []
    for name, shape in source.shapes.items():
        if len(shape) == 1:
            resident.append(_vector(source, name, _bias_order(name, plan)))
        elif ".ffn_" not in name:
            resident.append(_matrix(source, name, _resident_form(name, form)))
    for n in range(spec.layers):
        p = plan.predictor(n)
        if p is not None:
            neurons, bias = len(p.bias), encode_rows(p.bias[None, :], F32)
            resident += [
                _bytes(f"blk.{n}.fc1.weight", (p.rank, p.width), p.form, p.fc1),
                _bytes(f"blk.{n}.fc2.weight", (neurons, p.rank), p.form, p.fc2),
                _bytes(f"blk.{n}.fc2.bias", (neurons,), F32, bias),
            ]
    stride = bundle_stride(spec, form, plan.block)
    return resident + [_bundles(source, n, plan.order(n), form, stride) for n in range(spec.layers)]


def _resident_form(name: str, form: BlockFormat) -> BlockFormat:
    """Embeddings lose most by four bits and are read by rows, so they keep eight."""
    if form.name == "Q4_0" and name in (
        "token_embd.weight",
        "output.weight",
        "position_embd.weight",
    ):
        return FORMATS["Q8_0"]
    return form


def _bias_order(name: str, plan: BundlePlan) -> NDArray[np.int64] | None:
    parts = name.split(".")
    return plan.order(int(parts[1])) if parts[-2:] == ["ffn_up", "bias"] else None


def _vector(source: Source, name: str, order: NDArray[np.int64] | None) -> _Tensor:
    def chunks() -> Iterator[NDArray[np.uint8]]:
        values = source.vector(name)
        yield encode_rows((values if order is None else values[order])[None, :], F32).reshape(-1)

    (length,) = source.shapes[name]
    return _Tensor(name, (length,), F32.ggml_type, 4 * length, chunks)


def _matrix(source: Source, name: str, form: BlockFormat) -> _Tensor:
    rows, columns = source.shapes[name]

    def chunks() -> Iterator[NDArray[np.uint8]]:
        step = max(1, _SLAB_BYTES // (4 * columns))
        for first in range(0, rows, step):
            yield _encoded(source, name, np.arange(first, min(first + step, rows)), form).reshape(
                -1
            )

    return _Tensor(name, (rows, columns), form.ggml_type, rows * form.row_bytes(columns), chunks)


def _bytes(
    name: str, shape: tuple[int, ...], form: BlockFormat, data: NDArray[np.uint8]
) -> _Tensor:
    return _Tensor(name, shape, form.ggml_type, data.nbytes, lambda: iter([data.reshape(-1)]))


def _bundles(
    source: Source, layer: int, order: NDArray[np.int64] | None, form: BlockFormat, stride: int
) -> _Tensor:
    """| gate row i if gated | up row i | down column i | zeros |, for every neuron."""
    spec = source.spec
    names = [f"blk.{layer}.ffn_gate.weight"] if spec.gated else []
    names.append(f"blk.{layer}.ffn_up.weight")
    row_bytes = form.row_bytes(spec.width)

    def chunks() -> Iterator[NDArray[np.uint8]]:
        ids = np.arange(spec.neurons, dtype=np.int64) if order is None else order
        columns = _transposed(source, f"blk.{layer}.ffn_down.weight")  # (neurons, width)
        step = max(1, _SLAB_BYTES // (4 * spec.width))
        for first in range(0, spec.neurons, step):
            part = ids[first : first + step]
            block = np.zeros((len(part), stride), np.uint8)
            for i, name in enumerate(names):
                block[:, i * row_bytes : (i + 1) * row_bytes] = _encoded(source, name, part, form)
            at = len(names) * row_bytes
            block[:, at : at + row_bytes] = encode_rows(columns[part], form)
            yield block.reshape(-1)

    shape = (spec.neurons, stride)
    return _Tensor(f"blk.{layer}.ffn_bundle.weight", shape, _I8, math.prod(shape), chunks)


def _encoded(
    source: Source, name: str, ids: NDArray[np.int64], form: BlockFormat
) -> NDArray[np.uint8]:
    raw = source.encoded_rows(name, ids, form)
    return encode_rows(source.rows(name, ids), form) if raw is None else raw


def _transposed(source: Source, name: str) -> NDArray[np.float32]:
    """A matrix (rows, columns) as (columns, rows), read in slabs: the largest thing in memory."""
    rows, columns = source.shapes[name]
    out = np.empty((columns, rows), np.float32)
    step = max(1, _SLAB_BYTES // (4 * columns))
    for first in range(0, rows, step):
        out[:, first : first + step] = source.rows(
            name, np.arange(first, min(first + step, rows))
        ).T
    return out


def _write_header(
    handle: IO[bytes], source: Source, plan: BundlePlan, tensors: list[_Tensor], tokenizer: bool
) -> None:
    spec = source.spec
    writer = GGUFWriter(None, spec.arch)
    writer.add_custom_alignment(ALIGNMENT)
    keys: dict[str, MetadataValue] = {
        **spec.metadata(),
        "penstock.version": LAYOUT_VERSION,
        "penstock.source": source.path.resolve().name,
        "penstock.bundle.type": plan.form.name,
        "penstock.bundle.stride": bundle_stride(spec, plan.form, plan.block),
        "penstock.bundle.block": plan.block,
        "penstock.checksum.header": 0,
        "penstock.checksum.tensors": np.zeros(len(tensors), np.uint32),
        **plan.metadata,
    }
    for n in range(spec.layers):
        order = plan.order(n)
        if order is not None:
            keys[f"penstock.order.{n}"] = order.astype(np.int32)
    for key, value in {**keys, **(source.tokenizer if tokenizer else {})}.items():
        _add(writer, key, value)
    for tensor in tensors:
        dtype = np.dtype(np.float32)  # ignored beside raw_dtype
        writer.add_tensor_info(
            tensor.name, tensor.shape, dtype, tensor.nbytes, GGMLQuantizationType(tensor.ggml_type)
        )
    _emit(writer, handle)
    _pad(handle)


def _emit(writer: Any, handle: IO[bytes]) -> None:
    """Let GGUFWriter write into our file: it opens its own only when it has none."""
    from gguf.gguf_writer import WriterState

    writer.fout = [handle]
    writer.state = WriterState.EMPTY
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()


_ARRAY_TYPES = {
    "uint32": GGUFValueType.UINT32, "int32": GGUFValueType.INT32, "float32": GGUFValueType.FLOAT32,
    "uint64": GGUFValueType.UINT64, "int64": GGUFValueType.INT64, "bool": GGUFValueType.BOOL,
    "uint8": GGUFValueType.UINT8, "int8": GGUFValueType.INT8, "float64": GGUFValueType.FLOAT64,
    "uint16": GGUFValueType.UINT16, "int16": GGUFValueType.INT16,
}  # fmt: skip


def _add(writer: Any, key: str, value: MetadataValue) -> None:
    if isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        kind = GGUFValueType.UINT32 if 0 <= value < 1 << 32 else GGUFValueType.INT64
        writer.add_key_value(key, value, kind)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif len(value) == 0:
        return  # GGUFWriter has no empty arrays; an absent key means the same
    elif isinstance(value, list):
        writer.add_key_value(key, value, GGUFValueType.ARRAY, sub_type=GGUFValueType.STRING)
    else:
        writer.add_key_value(
            key, value.tolist(), GGUFValueType.ARRAY, sub_type=_ARRAY_TYPES[value.dtype.name]
        )


def _write_tensor(handle: IO[bytes], tensor: _Tensor, tick: Tick) -> int:
    """Write one tensor and the padding after it; its CRC-32C."""
    crc, written = 0, 0
    for chunk in tensor.chunks():
        handle.write(chunk.data)
        crc = _native.crc32c(chunk, crc)
        written += chunk.nbytes
        tick(chunk.nbytes)
    if written != tensor.nbytes:
        raise RuntimeError(
            f"tensor '{tensor.name}': wrote {written} bytes, announced {tensor.nbytes}; please "
            "report"
        )
    _pad(handle)
    return crc


def _pad(handle: IO[bytes]) -> None:
    handle.write(bytes(-handle.tell() % ALIGNMENT))


def _patch_checksums(handle: IO[bytes], path: Path, checksums: list[int]) -> None:
    """Tensor checksums first, then the header's over them, with its own four bytes as zeros."""
    file = read_gguf(path)
    handle.seek(file.value_offsets["penstock.checksum.tensors"])
    handle.write(np.array(checksums, "<u4").tobytes())
    handle.seek(0)
    header = np.frombuffer(handle.read(file.data_offset), np.uint8)
    handle.seek(file.value_offsets["penstock.checksum.header"])
    handle.write(np.array([_native.crc32c(header, 0)], "<u4").tobytes())
    handle.flush()

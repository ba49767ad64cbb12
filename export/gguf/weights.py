"""Where the weights of a GGUF export come from: a GGUF of any architecture, or Hugging Face's.

Both are read by slabs of rows. Rows of a tensor with more than two dimensions (experts) are those
of all its matrices, one below the other.
"""

from __future__ import annotations

import math
import os
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from penstock.errors import FormatError, StorageError, UnsupportedModelError
from penstock.export.architectures import Architecture
from penstock.export.gguf import dense_llama
from penstock.export.gguf.header import encode_entry, stored_entries
from penstock.export.gguf.tensor_types import decode
from penstock.export.hf_config import HFConfig
from penstock.export.sources.huggingface import HuggingFaceSource
from penstock.loaders.bundle import is_bundle
from penstock.loaders.gguf_file import TYPE_NAMES, GGUFFile, TensorInfo, read_gguf

# Of the sparse ones llama.cpp computes these as the checkpoint means it. OPT it does not know, and
# to 'llama' it gives SiLU, whatever config.json says.
FAITHFUL = frozenset({"arcee", "nemotron"})


@dataclass(frozen=True)
class WeightTensor:
    """A tensor of the source; shape in NumPy order."""

    name: str
    shape: tuple[int, ...]
    type_name: str

    @property
    def rows(self) -> int:
        return math.prod(self.shape[:-1])

    @property
    def columns(self) -> int:
        return self.shape[-1]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


class Weights(Protocol):
    """A model to be written as GGUF.

    Attributes:
        path: file or folder; source_bytes: of it.
        entries: metadata, each entry as GGUF has it.
        tensors: in the order of the source.
        alignment: of tensors in the new file.
    """

    path: Path
    source_bytes: int
    entries: dict[str, bytes]
    tensors: tuple[WeightTensor, ...]
    alignment: int

    def raw(self, tensor: WeightTensor, first: int, count: int) -> NDArray[np.uint8]:
        """Rows as they are stored in `type_name`, (count, row_bytes)."""
        ...

    def floats(self, tensor: WeightTensor, first: int, count: int) -> NDArray[np.float32]:
        """Rows as numbers, (count, columns)."""
        ...


def open_weights(path: str | os.PathLike[str]) -> Weights:
    """Open a GGUF file or a Hugging Face folder.

    Raises:
        FormatError: damaged, or neither.
        StorageError: not there, or not readable.
        UnsupportedModelError: a part of a split model, a bundle, or an architecture that llama.cpp
            would run differently.
    """
    where = Path(path)
    if where.is_dir():
        return HuggingFaceWeights(where)
    if not where.exists():
        raise StorageError(
            f"{where}: there is no such file or folder; give a GGUF file or a Hugging Face folder"
        )
    return GgufWeights(where)


class GgufWeights:
    """See `Weights`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        file = read_gguf(path)
        _check_whole(file)
        self.source_bytes = file.size
        self.entries = stored_entries(file)
        self.alignment = file.alignment
        self._infos = file.tensors
        self.tensors = tuple(
            WeightTensor(info.name, info.shape, info.type_name) for info in file.tensors.values()
        )
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._fd)

    def raw(self, tensor: WeightTensor, first: int, count: int) -> NDArray[np.uint8]:
        info = self._infos[tensor.name]
        row_bytes = info.nbytes // tensor.rows
        return self._read(info, first * row_bytes, count * row_bytes).reshape(count, row_bytes)

    def floats(self, tensor: WeightTensor, first: int, count: int) -> NDArray[np.float32]:
        info = self._infos[tensor.name]
        return decode(self.raw(tensor, first, count), info.type).reshape(count, tensor.columns)

    def _read(self, info: TensorInfo, start: int, nbytes: int) -> NDArray[np.uint8]:
        data = np.empty(nbytes, np.uint8)
        view, done = memoryview(data.data), 0
        while done < nbytes:
            try:
                count = os.preadv(self._fd, [view[done:]], info.offset + start + done)
            except OSError as error:
                raise StorageError(f"{self.path}: cannot be read: {error.strerror}") from None
            if count == 0:
                raise StorageError(f"{self.path}: ends within tensor '{info.name}'; fetch it again")
            done += count
        return data


class HuggingFaceWeights:
    """See `Weights`. All is given as F32, whatever the checkpoint stores."""

    def __init__(self, path: Path) -> None:
        self.path = path
        source = _open_folder(path)
        spec = source.spec
        self._source = source
        self.alignment = 32
        self.source_bytes = source.weight_bytes
        keys = {"general.architecture": spec.arch, **spec.metadata(), **source.tokenizer}
        self.entries = {
            key: encode_entry(key, value)
            for key, value in keys.items()
            if not key.startswith("penstock.")
        }
        self.tensors = tuple(
            WeightTensor(name, shape, "F32") for name, shape in source.shapes.items()
        )

    def raw(self, tensor: WeightTensor, first: int, count: int) -> NDArray[np.uint8]:
        rows = np.ascontiguousarray(self.floats(tensor, first, count), np.float32)
        return rows.view(np.uint8).reshape(count, -1)

    def floats(self, tensor: WeightTensor, first: int, count: int) -> NDArray[np.float32]:
        if len(tensor.shape) == 1:
            return self._source.vector(tensor.name)[None]
        return self._source.rows(tensor.name, np.arange(first, first + count))


def _open_folder(path: Path) -> HuggingFaceSource:
    config_file = path / "config.json"
    if config_file.is_file() and dense_llama.is_dense_llama(HFConfig(config_file)):
        source = HuggingFaceSource(path, cast(Architecture, dense_llama))
    else:
        source = HuggingFaceSource(path)
        if source.spec.arch not in FAITHFUL:
            raise UnsupportedModelError(
                f"{path}: llama.cpp does not run this model as it is meant ({source.spec.arch}, "
                f"{source.spec.activation}); 'penstock export llm' makes a bundle of it"
            )
    if source.spec.rope_inv_freq is not None:
        raise UnsupportedModelError(
            f"{path}: its rotary positions are scaled, which is not written to GGUF here; make a "
            "GGUF with llama.cpp's convert_hf_to_gguf.py and give that"
        )
    return source


def _check_whole(file: GGUFFile) -> None:
    if is_bundle(file):
        raise UnsupportedModelError(
            f"{file.path}: a Penstock bundle; quantize the model that it was made from"
        )
    if file.metadata.get("general.type", "model") not in ("model", "mmproj"):
        kind = file.metadata["general.type"]
        raise UnsupportedModelError(f"{file.path}: holds '{kind}', not a model")
    parts = file.metadata.get("split.count", 0)
    if isinstance(parts, int) and parts > 1:
        raise UnsupportedModelError(
            f"{file.path}: one of {parts} parts; join them first with llama.cpp's llama-gguf-split "
            "--merge"
        )
    unknown = {t.type for t in file.tensors.values()} - TYPE_NAMES.keys()
    if unknown:
        raise UnsupportedModelError(f"{file.path}: tensors of unknown types {sorted(unknown)}")
    if not file.tensors:
        raise FormatError(f"{file.path}: has no tensors; expected a model")

"""llama.cpp's importance matrices: the mean square of each input of each matrix.

`llama-imatrix` writes them as GGUF: for a tensor T, `T.in_sum2` (matrices, columns), the sums of
squares, and `T.counts` (matrices,), over how many tokens; of a plain matrix there is one.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from penstock.errors import FormatError, StorageError
from penstock.export.gguf.weights import WeightTensor
from penstock.loaders.gguf_file import GGUFFile, TensorInfo, read_gguf

SUMS, COUNTS = ".in_sum2", ".counts"


@dataclass(frozen=True)
class Importance:
    """Weights of columns, by tensor: (matrices, columns) float32."""

    path: Path
    dataset: str
    chunks: int
    weights: dict[str, NDArray[np.float32]]

    def of(self, tensor: WeightTensor) -> NDArray[np.float32] | None:
        """(matrices, columns) that fit the tensor; None where the file has none for it.

        Raises:
            FormatError: they are of another shape: of another model.
        """
        found = self.weights.get(tensor.name)
        if found is None:
            return None
        matrices = 1 if len(tensor.shape) < 3 else tensor.rows // tensor.shape[-2]
        if found.shape != (matrices, tensor.columns):
            raise FormatError(
                f"{self.path}: '{tensor.name}' has importance of {found.shape}, expected "
                f"{(matrices, tensor.columns)}; it is of another model"
            )
        return found


def read_importance(path: str | os.PathLike[str]) -> Importance:
    """Read an importance matrix in GGUF.

    Raises:
        FormatError: damaged, or not one (the older .dat files are not read).
        StorageError: it cannot be read.
    """
    file = _read(Path(path))
    weights: dict[str, NDArray[np.float32]] = {}
    for name, info in file.tensors.items():
        if not name.endswith(SUMS):
            continue
        tensor = name.removesuffix(SUMS)
        counts = file.tensors.get(f"{tensor}{COUNTS}")
        if counts is None:
            raise FormatError(f"{path}: '{tensor}' has sums and no '{COUNTS}'; fetch it again")
        weights[tensor] = _means(file, tensor, info, counts)
    if not weights:
        raise FormatError(f"{path}: no '*{SUMS}' tensors in it; expected an importance matrix")
    dataset = file.metadata.get("imatrix.datasets")
    name = ", ".join(dataset) if isinstance(dataset, list) else ""
    return Importance(file.path, name, file.get_int("imatrix.chunk_count", 0), weights)


def _read(path: Path) -> GGUFFile:
    try:
        file = read_gguf(path)
    except FormatError as error:
        raise FormatError(
            f"{error}; --imatrix takes GGUF files, as llama-imatrix writes them today "
            "(llama-imatrix --in-file OLD.dat -o NEW.gguf converts)"
        ) from None
    if file.metadata.get("general.type") != "imatrix":
        raise FormatError(
            f"{path}: general.type is {file.metadata.get('general.type')!r}, expected 'imatrix'"
        )
    return file


def _means(
    file: GGUFFile, tensor: str, sums: TensorInfo, counts: TensorInfo
) -> NDArray[np.float32]:
    """Experts that no token reached have weights of zero, which the encoders count as even."""
    if sums.type != 0 or counts.type != 0:
        raise FormatError(f"{file.path}: '{tensor}' is not F32")
    total, tokens = _floats(file, sums), _floats(file, counts)
    if total.size % tokens.size or total.size // tokens.size != sums.shape[-1]:
        raise FormatError(
            f"{file.path}: '{tensor}' has {sums.shape} sums and {counts.shape} counts, which do "
            "not belong together"
        )
    if not (np.isfinite(total).all() and np.isfinite(tokens).all()) or total.min() < 0:
        raise FormatError(f"{file.path}: '{tensor}' has sums that are no sums of squares")
    if tokens.min() < 0:
        raise FormatError(f"{file.path}: '{tensor}' has a negative count")
    rows = total.reshape(tokens.size, -1)
    return (rows / np.maximum(tokens.reshape(-1, 1), 1)).astype(np.float32)


def _floats(file: GGUFFile, info: TensorInfo) -> NDArray[np.float32]:
    try:
        with open(file.path, "rb") as handle:
            handle.seek(info.offset)
            return np.frombuffer(handle.read(info.nbytes), "<f4").astype(np.float32)
    except OSError as error:
        raise StorageError(f"{file.path}: cannot be read: {error.strerror or error}") from None

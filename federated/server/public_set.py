"""The server's public samples: read from an npz, split once by seed into its parts."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from penstock.errors import FormatError, PenstockError, StorageError, UsageError
from penstock.federated.models.registry import ModelOptions
from penstock.federated.training.data import TrainingData, check_fits

MOST_PUBLIC_BYTES = 4 << 30  # a header can claim any size; nothing is allocated beyond this


def read_public_set(path: Path, model: ModelOptions) -> TrainingData:
    """Labelled samples of an npz with `inputs` [n, *shape] and `labels` [n].

    Raises:
        StorageError: it cannot be read.
        FormatError: it is not such an npz, or holds pickled objects.
        UsageError, RefusedUpdateError: its samples do not fit the model.
    """
    try:
        # np.load would leave a file open that it opened itself and cannot read
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as found:
            arrays = {name: _array(found, name, path) for name in ("inputs", "labels")}
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, zipfile.BadZipFile, EOFError, AttributeError) as error:
        raise FormatError(f"{path}: not an npz of plain arrays: {error}") from error
    inputs, labels = arrays["inputs"], arrays["labels"]
    if inputs.dtype.kind not in "fiu" or labels.dtype.kind not in "iu":
        raise FormatError(
            f"{path}: inputs are {inputs.dtype} and labels {labels.dtype}, expected numbers and "
            "whole numbers"
        )
    try:
        data = TrainingData(inputs.astype(np.float32), labels.astype(np.int64))
        check_fits(data, model)
    except PenstockError as error:
        raise type(error)(f"{path}: {error}") from error
    if len(data.unlabelled):
        raise UsageError(f"{path}: {len(data.unlabelled)} public samples have no label")
    return data


def split_public_set(
    data: TrainingData, hold_out: float, seed: int, test: float = 0.0
) -> tuple[TrainingData, TrainingData, TrainingData]:
    """Training part, hold-out and test part; the same for the same data, shares and seed.

    Args:
        hold_out, test: shares of the samples; without a test part the hold-out may be all of them.

    Raises:
        UsageError: a part would be empty.
    """
    order = np.random.default_rng([seed, 0x9B11C]).permutation(len(data))
    held = round(hold_out * len(data))
    if not 0 < held <= len(data) or (held == len(data) and hold_out < 1):
        raise UsageError(
            f"public.hold_out is {hold_out:g} of {len(data)} samples: one of the parts is empty"
        )
    tested = round(test * len(data))
    if test and not 0 < tested < len(data) - held:
        raise UsageError(
            f"public.hold_out is {hold_out:g} and public.test {test:g} of {len(data)} samples: one "
            "of the parts is empty"
        )
    cuts = np.split(order, [held, held + tested])
    hold, measured, train = (data.subset(np.sort(part)) for part in cuts)
    return train, hold, measured


def _array(found: np.lib.npyio.NpzFile, name: str, path: Path) -> NDArray[np.generic]:
    if name not in found.files:
        raise FormatError(f"{path}: lacks {name!r}, it has {found.files[:8]}")
    size = found.zip.getinfo(f"{name}.npy").file_size if found.zip is not None else 0
    if size > MOST_PUBLIC_BYTES:
        raise FormatError(f"{path}: {name} has {size} bytes, at most {MOST_PUBLIC_BYTES} are read")
    array: NDArray[np.generic] = found[name]
    return array

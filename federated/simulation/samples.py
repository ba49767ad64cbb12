"""The samples of a simulation: read from an npz, written out device by device, mapped by actors.

    samples = read_samples(Path("train.npz"))             inputs, labels, users
    shards = write_shards(folder, samples, parts)         on disk, each device's samples in a row
    open_shards(folder).device(7)                         TrainingData, copied from the mapping

An actor maps the files and copies one device's samples at a time: its memory does not grow with
their number.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from penstock.errors import FormatError, PenstockError, StorageError, UsageError
from penstock.federated.training.data import UNLABELLED, TrainingData

MOST_BYTES = 16 << 30  # of one array; a header can claim any size


@dataclass(frozen=True)
class Samples:
    """A whole data set.

    Attributes:
        data: inputs and labels; users: int64 [n], or None where the file has none.
    """

    data: TrainingData
    users: NDArray[np.int64] | None = field(default=None, repr=False)

    def subset(self, positions: NDArray[np.intp]) -> Samples:
        """Copies of these samples."""
        users = None if self.users is None else self.users[positions]
        return Samples(self.data.subset(positions), users)


@dataclass(frozen=True)
class Shards:
    """The samples of all devices, mapped.

    Attributes:
        inputs: float32 [n, *shape]; labels: int64 [n]; in the order of devices.
        starts: int64 [devices, chunks + 1]: where each chunk of time of a device begins, and ends.
    """

    inputs: NDArray[np.float32] = field(repr=False)
    labels: NDArray[np.int64] = field(repr=False)
    starts: NDArray[np.int64] = field(repr=False)

    @property
    def devices(self) -> int:
        """How many."""
        return len(self.starts)

    def device(self, index: int, chunk: int = 0) -> TrainingData:
        """A copy of a device's samples of one chunk; of the last one where there are fewer."""
        chunk = min(chunk, self.starts.shape[1] - 2)
        own = slice(int(self.starts[index, chunk]), int(self.starts[index, chunk + 1]))
        return TrainingData(np.array(self.inputs[own]), np.array(self.labels[own]))

    def counts(self, index: int) -> tuple[int, int]:
        """Labelled and unlabelled samples of a device, of all chunks."""
        own = self.labels[int(self.starts[index, 0]) : int(self.starts[index, -1])]
        labelled = int(np.count_nonzero(own != UNLABELLED))
        return labelled, len(own) - labelled


def read_samples(path: Path) -> Samples:
    """An npz with `inputs` [n, *shape], `labels` [n] (-1: none) and, by choice, `users` [n].

    Raises:
        StorageError: it cannot be read.
        FormatError: it is not such an npz, or holds pickled objects.
        UsageError: a value is out of its range.
    """
    try:
        # opened here, as numpy leaves a file that is no zip open
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as found:
            for name in ("inputs", "labels"):
                if name not in found.files:
                    raise FormatError(f"{path}: lacks {name!r}, it has {found.files[:8]}")
            for entry in found.zip.infolist() if found.zip is not None else ():
                if entry.file_size > MOST_BYTES:
                    raise FormatError(
                        f"{path}: {entry.filename} has {entry.file_size} bytes, at most "
                        f"{MOST_BYTES} are read"
                    )
            arrays = {n: found[n] for n in ("inputs", "labels", "users") if n in found.files}
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, zipfile.BadZipFile, EOFError, AttributeError, KeyError) as error:
        raise FormatError(f"{path}: not an npz of plain arrays: {error}") from error
    for name, kinds in (("inputs", "fiu"), ("labels", "iu"), ("users", "iu")):
        if name in arrays and arrays[name].dtype.kind not in kinds:
            raise FormatError(f"{path}: {name} are {arrays[name].dtype}, expected numbers")
    users = arrays.get("users")
    if users is not None and users.shape != arrays["labels"].shape:
        raise FormatError(
            f"{path}: users have shape {users.shape}, labels {arrays['labels'].shape}"
        )
    try:
        data = TrainingData(arrays["inputs"].astype(np.float32), arrays["labels"].astype(np.int64))
    except PenstockError as error:
        raise type(error)(f"{path}: {error}") from error
    return Samples(data, None if users is None else users.astype(np.int64))


@dataclass(frozen=True)
class HeldOut:
    """The labelled samples that measure the global model.

    Attributes:
        chunks: int64 [n]: of time, that each belongs to.
    """

    data: TrainingData
    chunks: NDArray[np.int64] = field(repr=False)

    def __len__(self) -> int:
        return len(self.data)


def hold_out(
    data: TrainingData, share: float, seed: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Positions that are shared out, and of labelled samples kept to measure the global model.

    Raises:
        UsageError: a part would be empty.
    """
    rng = np.random.default_rng([seed, 4])
    known = rng.permutation(data.labelled)
    held = round(share * len(known))
    everything = np.arange(len(data))
    if not share:
        return everything, everything[:0]
    if not 0 < held < len(data):
        raise UsageError(
            f"simulation.test is {share:g} of {len(known)} labelled samples: a part is empty"
        )
    test = np.sort(known[:held])
    return np.setdiff1d(everything, test, assume_unique=True), test


def chunks_of_held(
    kept: NDArray[np.intp],
    held: NDArray[np.intp],
    parts: Sequence[NDArray[np.intp]],
    chunks: int,
    groups: NDArray[np.int64] | None,
) -> NDArray[np.int64]:
    """The chunk of time of each held sample: that of the shared-out one before it in the file.

    Args:
        kept, held: positions in the file, in order.
        parts: of each device, positions in `kept`.
        groups: [n] of the whole file: of these alone neighbours are taken, as devices share a
            group's samples and each has its own times; None: all are one.

    Returns:
        int64 [len(held)].
    """
    of_kept = np.zeros(len(kept), np.int64)
    for part in parts:
        for chunk, piece in enumerate(np.array_split(part, chunks)):
            of_kept[piece] = chunk
    found = of_kept[np.maximum(np.searchsorted(kept, held) - 1, 0)]
    if groups is None:
        return found
    for group in np.unique(groups[held]):
        own = np.flatnonzero(groups[kept] == group)
        asked = np.flatnonzero(groups[held] == group)
        if len(own):
            before = np.searchsorted(kept[own], held[asked]) - 1
            found[asked] = of_kept[own[np.maximum(before, 0)]]
    return found


def write_shards(
    folder: Path,
    data: TrainingData,
    parts: Sequence[NDArray[np.intp]],
    *,
    chunks: int = 1,
    labelled: float = 1.0,
    seed: int = 0,
) -> Shards:
    """Write every device's samples in a row, and map them.

    Args:
        folder: a temporary one; the files are not synced.
        parts: positions of each device, in time.
        chunks: of time, into which each device's samples are cut.
        labelled: share of the labels that devices keep, one at least in each chunk.

    Raises:
        UsageError: a device has fewer samples than chunks, or the share is out of range.
        StorageError: the folder does not take it.
    """
    if not 0 < labelled <= 1:
        raise UsageError(f"simulation.labelled is {labelled:g}, expected more than 0, at most 1")
    few = [index for index, part in enumerate(parts) if len(part) < chunks]
    if few:
        raise UsageError(
            f"device {few[0]} has {len(parts[few[0]])} samples for {chunks} chunks of time; take "
            "fewer devices or chunks"
        )
    order = np.concatenate(list(parts))
    sizes = [[len(piece) for piece in np.array_split(part, chunks)] for part in parts]
    ends = np.cumsum(np.array(sizes, np.int64)).reshape(len(parts), chunks)
    starts = np.hstack([ends[:, :1] - np.array(sizes, np.int64)[:, :1], ends])
    labels = data.labels[order]
    if labelled < 1:
        labels = _hide_labels(labels, starts, labelled, seed)
    try:
        inputs = np.lib.format.open_memmap(
            folder / "inputs.npy", "w+", np.float32, (len(order), *data.inputs.shape[1:])
        )
        for begin in range(0, len(order), 4096):  # not a second copy of everything
            block = order[begin : begin + 4096]
            inputs[begin : begin + len(block)] = data.inputs[block]
        inputs.flush()
        np.save(folder / "labels.npy", labels)
        np.save(folder / "starts.npy", starts)
    except OSError as error:
        raise StorageError(f"{folder}: cannot be written: {error.strerror}") from error
    return open_shards(folder)


def open_shards(folder: Path) -> Shards:
    """What `write_shards` wrote, mapped.

    Raises:
        StorageError: it is not there.
    """
    try:
        inputs = np.load(folder / "inputs.npy", mmap_mode="r")
        labels = np.load(folder / "labels.npy", mmap_mode="r")
        return Shards(inputs, labels, np.load(folder / "starts.npy"))
    except (OSError, ValueError) as error:
        raise StorageError(f"{folder}: the samples cannot be mapped: {error}") from error


def _hide_labels(
    labels: NDArray[np.int64], starts: NDArray[np.int64], share: float, seed: int
) -> NDArray[np.int64]:
    rng = np.random.default_rng([seed, 5])
    hidden = np.full_like(labels, UNLABELLED)
    for begin, end in zip(starts[:, :-1].ravel(), starts[:, 1:].ravel(), strict=True):
        known = begin + np.flatnonzero(labels[begin:end] != UNLABELLED)
        kept = rng.permutation(known)[: max(1, round(share * len(known)))]
        hidden[kept] = labels[kept]
    return hidden

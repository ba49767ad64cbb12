"""An .npz as a dataset: an array for each input, first axis the sample, read row by row.

`numpy.load` reads an array whole; here each is a stream out of the zip, so that memory holds one
sample. Sizes in headers are checked against the zip's before anything is read.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from penstock.errors import FormatError, StorageError, UsageError
from penstock.export.dataset import Sample
from penstock.loaders.npz_parts import read_header
from penstock.loaders.tensor_graph import TensorSpec, shape_text

LABELS = "labels"


@dataclass(frozen=True)
class Member:
    """An array of the file: its type, shape (samples, ...), and bytes of a sample."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape[1:])


@dataclass(frozen=True)
class NpzDataset:
    """See `open_dataset`."""

    path: Path
    inputs: tuple[TensorSpec, ...]
    members: tuple[Member, ...]  # of the inputs, in their order
    labels: tuple[int, ...] | None

    @classmethod
    def open(cls, path: Path, inputs: Sequence[TensorSpec]) -> NpzDataset:
        """Read the headers and the labels."""
        with _archive(path) as archive:
            there = {name.removesuffix(".npy") for name in archive.namelist()}
            missing = [spec.name for spec in inputs if spec.name not in there]
            if missing:
                raise UsageError(
                    f"{path}: no array for input '{missing[0]}'; it holds "
                    f"{', '.join(sorted(there)) or 'nothing'}"
                )
            members = tuple(_member(path, archive, spec.name) for spec in inputs)
            labels = _labels(path, archive) if LABELS in there else None
        for spec, member in zip(inputs, members, strict=True):
            _check_fits(path, spec, member)
        counts = {member.name: member.shape[0] for member in members}
        if labels is not None:
            counts[LABELS] = len(labels)
        if len(set(counts.values())) != 1 or not min(counts.values()):
            seen = ", ".join(f"'{name}' {count}" for name, count in counts.items())
            raise UsageError(f"{path}: samples differ or there are none: {seen}")
        return cls(path, tuple(inputs), members, labels)

    @property
    def name(self) -> str:
        return str(self.path)

    def __len__(self) -> int:
        return self.members[0].shape[0]

    def samples(self, limit: int | None = None) -> Iterator[Sample]:
        count = len(self) if limit is None else min(limit, len(self))
        with ExitStack() as stack:
            archive = stack.enter_context(_archive(self.path))
            streams = []
            for member in self.members:
                stream = stack.enter_context(_stream(archive, member.name))
                if _read_header(self.path, stream, member.name) != member:
                    raise FormatError(f"{self.path}: '{member.name}' changed since it was opened")
                streams.append(stream)
            for index in range(count):
                name = f"{self.path.name}[{index}]"
                arrays = {
                    spec.name: _row(self.path, name, spec, member, stream)
                    for spec, member, stream in zip(self.inputs, self.members, streams, strict=True)
                }
                yield Sample(name, arrays, None if self.labels is None else self.labels[index])


def _archive(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise FormatError(f"{path}: expected a folder of images or an .npz: {error}") from None
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror or error}") from None


def _stream(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    return archive.open(f"{name}.npy")


def _member(path: Path, archive: zipfile.ZipFile, name: str) -> Member:
    try:
        with _stream(archive, name) as stream:
            member = _read_header(path, stream, name)
            header_bytes = stream.tell()
    except (zipfile.BadZipFile, zlib.error, KeyError, OSError, RuntimeError) as error:
        raise FormatError(f"{path}: '{name}' is damaged: {error}") from None
    stored = archive.getinfo(f"{name}.npy").file_size - header_bytes
    wanted = member.row_bytes * (member.shape[0] if member.shape else 1)
    if stored != wanted:
        raise FormatError(
            f"{path}: '{name}' says {shape_text(member.shape)} {member.dtype}, {wanted} bytes, "
            f"and holds {stored}"
        )
    return member


def _read_header(path: Path, stream: IO[bytes], name: str) -> Member:
    try:
        header = read_header(stream)
    except ValueError as error:
        raise FormatError(f"{path}: '{name}' is not a NumPy array: {error}") from None
    shape, dtype = header.shape, header.dtype
    if dtype.hasobject or dtype.kind not in "biuf":
        raise FormatError(f"{path}: '{name}' is of {dtype}, expected numbers")
    if header.fortran and len(shape) > 1:
        raise FormatError(f"{path}: '{name}' is in Fortran order; save np.ascontiguousarray of it")
    if not shape:
        raise FormatError(f"{path}: '{name}' is a scalar, expected (samples, ...)")
    return Member(name, dtype, shape)


def _labels(path: Path, archive: zipfile.ZipFile) -> tuple[int, ...]:
    member = _member(path, archive, LABELS)
    if len(member.shape) != 1 or member.dtype.kind not in "iu":
        raise UsageError(
            f"{path}: 'labels' is {member.dtype} {shape_text(member.shape)}, expected a class "
            "number for each sample"
        )
    with _stream(archive, LABELS) as stream:
        _read_header(path, stream, LABELS)
        data = stream.read(member.row_bytes * member.shape[0])
    labels = np.frombuffer(data, member.dtype)
    if labels.size and labels.min() < 0:
        raise UsageError(f"{path}: a label is {labels.min()}, expected 0 or more")
    return tuple(int(label) for label in labels)


def _check_fits(path: Path, spec: TensorSpec, member: Member) -> None:
    """The shape of a sample, and that its numbers need no lossy cast."""
    wanted = spec.shape
    if wanted is not None:
        row = member.shape[1:]
        row = (1, *row) if len(member.shape) == len(wanted) else row
        if len(row) != len(wanted) or any(
            isinstance(dim, int) and dim != size for size, dim in zip(row, wanted, strict=True)
        ):
            raise UsageError(
                f"{path}: '{spec.name}' is {shape_text(member.shape)}: samples of "
                f"{shape_text(row)}, and the input is {shape_text(wanted)}"
            )
    target = np.dtype(spec.dtype)
    floats = member.dtype.kind == "f" and (target.kind == "f" or spec.quantization is not None)
    if not floats and not np.can_cast(member.dtype, target, "safe"):
        raise UsageError(f"{path}: '{spec.name}' is {member.dtype}, and the input is {spec.dtype}")
    if target.kind == "f" and member.dtype.kind != "f":
        raise UsageError(
            f"{path}: '{spec.name}' is {member.dtype}, and the input is {spec.dtype}; save it "
            "as the model expects it, scaled to its range"
        )


def _row(
    path: Path, sample: str, spec: TensorSpec, member: Member, stream: IO[bytes]
) -> NDArray[Any]:
    try:
        data = stream.read(member.row_bytes)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise FormatError(f"{path}: '{member.name}' is damaged: {error}") from None
    if len(data) != member.row_bytes:
        raise FormatError(f"{path}: '{member.name}' ends within {sample}")
    row = np.frombuffer(data, member.dtype).reshape(member.shape[1:])
    if member.dtype.kind == "f":
        if not np.isfinite(row).all():
            raise UsageError(f"{sample}: '{spec.name}' has NaN or infinity; nothing learns from it")
        target = np.dtype(spec.dtype)
        row = row.astype(target if target.kind == "f" else np.float32)
    elif spec.dtype != member.dtype.name:
        row = row.astype(spec.dtype)
    batched = spec.shape is None or len(member.shape) == len(spec.shape)
    return row[None] if batched else row

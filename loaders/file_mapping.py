"""Where this process has a file mapped, by /proc/self/maps, and how to give its pages back."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path

from penstock.errors import StorageError

MAPS = Path("/proc/self/maps")
DONT_NEED = 4  # MADV_DONTNEED on Linux


@dataclass(frozen=True)
class MappedRange:
    """Bytes [offset, offset + nbytes) of a file at `address`."""

    address: int
    offset: int
    nbytes: int


def mapped_ranges(path: Path, maps: Path = MAPS) -> list[MappedRange]:
    """Every range of the file that is mapped, in the order of addresses.

    The file is known by its device and inode, so links and renames do not matter. Where the system
    shows another device than stat does (btrfs, overlays), inode and path must agree.

    Raises:
        StorageError: the system does not tell what is mapped.
    """
    stat, real = os.stat(path), os.path.realpath(path)
    device = f"{os.major(stat.st_dev):02x}:{os.minor(stat.st_dev):02x}"
    try:
        lines = os.fsdecode(maps.read_bytes()).split("\n")  # not at what else is a line end
    except OSError as error:
        raise StorageError(
            f"{maps}: cannot be read ({error.strerror}); it is needed to stream {path}"
        ) from None
    found = []
    for line in filter(None, lines):
        span, _, offset, where, inode, *name = line.split(maxsplit=5)
        if int(inode) == stat.st_ino and (where == device or name == [real]):
            begin, end = (int(x, 16) for x in span.split("-"))
            found.append(MappedRange(begin, int(offset, 16), end - begin))
    return found


@dataclass(frozen=True)
class FileMapping:
    """One mapping of a file, less what was unmapped of it again: pieces, in order, not touching."""

    pieces: tuple[MappedRange, ...]

    @property
    def span(self) -> MappedRange:
        """From the first piece to the last, with what lies between them."""
        first, last = self.pieces[0], self.pieces[-1]
        return MappedRange(first.address, first.offset, last.offset + last.nbytes - first.offset)

    def give_back(self, offset: int, nbytes: int) -> None:
        """Take pages of these bytes out of the process's memory; they are read when used again.

        Args:
            offset, nbytes: page multiples; what of them is not mapped is left alone.
        """
        advise = ctypes.CDLL(None).madvise
        for p in self.pieces:
            begin, end = max(offset, p.offset), min(offset + nbytes, p.offset + p.nbytes)
            if begin < end:
                at = ctypes.c_void_p(p.address + begin - p.offset)
                advise(at, ctypes.c_size_t(end - begin), DONT_NEED)

    def holds(self, offset: int, nbytes: int) -> bool:
        """Whether these bytes of the file are all mapped."""
        return any(
            p.offset <= offset and offset + nbytes <= p.offset + p.nbytes for p in self.pieces
        )


def new_mapping(before: list[MappedRange], after: list[MappedRange], path: Path) -> FileMapping:
    """The mapping that was added between two looks. It may have no pieces.

    Raises:
        StorageError: what was added is more than one mapping.
    """
    pieces: list[MappedRange] = []
    for r in sorted((r for r in after if r not in before), key=lambda r: r.address):
        last = pieces[-1] if pieces else r
        if r.address - r.offset != last.address - last.offset:
            raise StorageError(
                f"{path}: llama.cpp mapped the file more than once, where one mapping was "
                "expected; this version of llama.cpp cannot be streamed under"
            )
        if pieces and last.offset + last.nbytes == r.offset:  # a difference in access or advice
            pieces[-1] = MappedRange(last.address, last.offset, last.nbytes + r.nbytes)
        else:
            pieces.append(r)
    return FileMapping(tuple(pieces))


def forget_cached(path: Path) -> None:
    """Let the system drop what it has of a file beside the pages that are mapped."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)

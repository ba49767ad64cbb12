"""Niantic's SPZ files: what both kinds of container hold, as arrays of bytes for each attribute.

https://github.com/nianticlabs/spz (MIT), README.md and extensions/README.md.
Versions 1 to 3: one gzip stream of a header of 16 bytes, the attributes, and extensions.
Version 4: a header of 32 bytes, extensions, a table of (compressed, whole) sizes, one zstd frame an
attribute. Attributes without bytes have no frame. Everything is little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from penstock.errors import FormatError, UnsupportedModelError
from penstock.loaders.splats.axes import axes_of
from penstock.loaders.splats.file_access import (
    Inflater,
    check_ratio,
    cut_short,
    file_error,
    open_file,
    unzstd,
)
from penstock.loaders.splats.model import MAX_SPLATS

MAGIC = b"NGSP"
GZIP_MAGIC = b"\x1f\x8b"
GZIP_HEADER = struct.Struct("<4sIIBBBB")  # magic, version, splats, degree, fraction, flags, 0
ZSTD_HEADER = struct.Struct("<4sIIBBBBI12x")  # the same, streams, offset of the table
TABLE_ENTRY = struct.Struct("<QQ")
RECORD = struct.Struct("<II")  # of an extension: type, bytes
REST_COUNTS = (0, 3, 8, 15, 24)  # coefficients of a channel after the first, by degree
MAX_FRACTION = 24  # bits of a position's 24
HAS_EXTENSIONS = 2
MAX_EXTENSIONS = 1 << 20  # bytes of all of them
SH_RANGE, COORDINATES = 0xADBE0001, 0xADBE0003  # types of extensions that change what bytes mean

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class SpzHeader:
    """What the header says, of any version.

    Attributes:
        degree: of the spherical harmonics, 0 to 4.
        fraction: bits of a position after the point.
        axes: for `change_axes`, from the file's frame to the model's.
    """

    version: int
    count: int
    degree: int
    fraction: int
    flags: int
    axes: NDArray[np.float64]

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of every attribute, in the file's order."""
        position, rotation = (6 if self.version == 1 else 9), (4 if self.version >= 3 else 3)
        widths = {
            "positions": position,
            "alphas": 1,
            "colours": 3,
            "scales": 3,
            "rotations": rotation,
            "sh": 3 * REST_COUNTS[self.degree],
        }
        return {name: width * self.count for name, width in widths.items()}


def read_spz_parts(path: Path) -> tuple[SpzHeader, dict[str, Bytes]]:
    """The header and each attribute's bytes, of the size that the header asks for.

    Raises:
        BackendMissingError: the file is of version 4 and zstandard is not installed.
        FormatError: not SPZ, damaged, cut short, or of another version.
        StorageError: it cannot be read.
        UnsupportedModelError: an extension that nothing is known of changes the meaning.
    """
    with open_file(path) as (handle, _):
        data = handle.read()
    if data[:4] == MAGIC:
        return _read_frames(path, data)
    if data[:2] == GZIP_MAGIC:
        return _read_gzip(path, data)
    raise file_error(
        path, 0, f"not an SPZ file (starts with {data[:4]!r}, expected {MAGIC!r} or gzip)"
    )


def read_spz_header(path: Path) -> SpzHeader:
    """The header alone, as `read_spz_parts`; extensions after gzip's splats are not looked at."""
    with open_file(path) as (handle, size):
        head = handle.read(min(size, 1 << 16))
    if head[:2] == GZIP_MAGIC:
        return _gzip_header(path, Inflater(path, head).read(GZIP_HEADER.size), size)
    if head[:4] != MAGIC:
        raise file_error(path, 0, f"not an SPZ file (starts with {head[:4]!r})")
    header, streams, table = _frames_header(path, head)
    if table + streams * TABLE_ENTRY.size <= len(head):  # else extensions are before it
        list(_frames(path, head, size, header, streams, table))
    return header


def _read_gzip(path: Path, data: bytes) -> tuple[SpzHeader, dict[str, Bytes]]:
    stream = Inflater(path, data)
    header = _gzip_header(path, stream.read(GZIP_HEADER.size), len(data))
    parts = {}
    for name, nbytes in header.sizes.items():
        part = stream.read(nbytes)
        if len(part) != nbytes:
            raise FormatError(
                f"{path}: its gzip data ends in the {name}, after {len(part)} of {nbytes} bytes; "
                "the file is cut short or its header lies, fetch it again"
            )
        parts[name] = np.frombuffer(part, np.uint8)
    rest = stream.read(MAX_EXTENSIONS)  # of other writers, too: read for the checksum behind it
    stream.check_end()
    if header.flags & HAS_EXTENSIONS:
        header = _with_axes(header, _extension_axes(path, rest, "after the splats"))
    return header, parts


def _gzip_header(path: Path, raw: bytes, size: int) -> SpzHeader:
    if len(raw) != GZIP_HEADER.size:
        raise FormatError(f"{path}: its gzip data ends in the header; the file is cut short")
    magic, version, count, degree, fraction, flags, _ = GZIP_HEADER.unpack(raw)
    if magic != MAGIC:
        raise FormatError(
            f"{path}: gzip data, but not of an SPZ file (starts with {magic!r}, expected {MAGIC!r})"
        )
    if not 1 <= version <= 3:
        raise FormatError(
            f"{path}: SPZ version {version} in a gzip stream; expected 1, 2 or 3. Use a newer "
            "Penstock, or export again"
        )
    header = _checked(path, version, count, degree, fraction, flags)
    check_ratio(path, size, sum(header.sizes.values()))
    return header


def _read_frames(path: Path, data: bytes) -> tuple[SpzHeader, dict[str, Bytes]]:
    header, streams, table = _frames_header(path, data)
    begin = ZSTD_HEADER.size
    if header.flags & HAS_EXTENSIONS:
        header = _with_axes(header, _extension_axes(path, data[begin:table], "before the table"))
    parts = {name: np.empty(0, np.uint8) for name in header.sizes}
    for name, at, packed in _frames(path, data, len(data), header, streams, table):
        whole = header.sizes[name]
        stream = unzstd(path, data[at : at + packed], whole, at, f"the stream of {name}")
        parts[name] = np.frombuffer(stream, np.uint8)
    return header, parts


def _frames(
    path: Path, data: bytes, size: int, header: SpzHeader, streams: int, table: int
) -> Iterator[tuple[str, int, int]]:
    """(attribute, offset, bytes) of each stream, which lie within the file.

    Args:
        data: from the file's start to the end of the table at least.
        size: of the whole file.
    """
    wanted = {name: nbytes for name, nbytes in header.sizes.items() if nbytes}
    if streams != len(wanted):
        raise file_error(path, 15, f"{streams} streams; splats of this degree have {len(wanted)}")
    at = table + streams * TABLE_ENTRY.size
    if at > size:
        raise cut_short(path, table, "the table of streams", at - table, size)
    check_ratio(path, size, sum(wanted.values()))
    for i, (name, nbytes) in enumerate(wanted.items()):
        entry = table + i * TABLE_ENTRY.size
        packed, whole = TABLE_ENTRY.unpack_from(data, entry)
        if whole != nbytes:
            raise file_error(path, entry, f"{whole} bytes of {name}; the splats have {nbytes}")
        if packed > size - at:
            raise cut_short(path, at, f"the stream of {name}", packed, size)
        yield name, at, packed
        at += packed


def _frames_header(path: Path, data: bytes) -> tuple[SpzHeader, int, int]:
    """(header, number of streams, offset of their table)."""
    if len(data) < ZSTD_HEADER.size:
        raise cut_short(path, 0, "the header", ZSTD_HEADER.size, len(data))
    _, version, count, degree, fraction, flags, streams, table = ZSTD_HEADER.unpack_from(data)
    if version != 4:
        raise file_error(
            path, 4, f"SPZ version {version}, expected 4; use a newer Penstock, or export again"
        )
    if table < ZSTD_HEADER.size:
        raise file_error(path, 16, f"the table of streams is at {table}, inside the header")
    return _checked(path, version, count, degree, fraction, flags), streams, table


def _checked(
    path: Path, version: int, count: int, degree: int, fraction: int, flags: int
) -> SpzHeader:
    if count > MAX_SPLATS:
        raise FormatError(f"{path}: header: {count} splats, more than {MAX_SPLATS}; it is damaged")
    if degree >= len(REST_COUNTS):
        raise FormatError(f"{path}: header: SH degree {degree}, expected 0 to 4; it is damaged")
    if fraction > MAX_FRACTION:
        raise FormatError(
            f"{path}: header: {fraction} fractional bits of positions of 24; it is damaged"
        )
    return SpzHeader(version, count, degree, fraction, flags, axes_of_code(path, 4))


def _with_axes(header: SpzHeader, axes: NDArray[np.float64] | None) -> SpzHeader:
    if axes is None:
        return header
    return SpzHeader(
        header.version, header.count, header.degree, header.fraction, header.flags, axes
    )


def _extension_axes(path: Path, data: bytes, where: str) -> NDArray[np.float64] | None:
    """The frame that an extension gives, None where none does. Unknown ones change nothing."""
    at = 0
    axes: NDArray[np.float64] | None = None
    while at < len(data):
        kind, nbytes = RECORD.unpack_from(data, at) if len(data) - at >= RECORD.size else (0, -1)
        at += RECORD.size
        if not 0 <= nbytes <= len(data) - at:
            raise FormatError(
                f"{path}: the extensions {where}: a record does not fit in their {len(data)} bytes"
            )
        if kind == SH_RANGE:
            raise UnsupportedModelError(
                f"{path}: colours with a range of their own (extension {kind:#x}), of a draft of "
                "the format; write the file again with a current spz"
            )
        if kind == COORDINATES and nbytes == 4:
            axes = axes_of_code(path, struct.unpack_from("<I", data, at)[0])
        at += nbytes
    return axes


def axes_of_code(path: Path, code: int) -> NDArray[np.float64]:
    """The axes of SPZ's number of a frame: 1 LDB, 2 RDB, 3 LUB, 4 RUB (the default), 5 LDF, 6 RDF,
    7 LUF, 8 RUF, and 9 to 16 the same with the second axis forward and the third up.

    The letters say where x, y and z point: left or right, up or down, front or back.

    Raises:
        FormatError: there is no such number.
    """
    if not 0 <= code <= 16:
        raise FormatError(f"{path}: frame number {code}; expected 1 to 16")
    bits = (code or 4) - 1
    right = np.array([1.0 if bits & 1 else -1.0, 0, 0])
    up, forward = (1.0 if bits & 2 else -1.0), (1.0 if bits & 4 else -1.0)
    if bits & 8:
        return axes_of(right, np.array([0, 0, up]), np.array([0, forward, 0]))
    return axes_of(right, np.array([0, up, 0]), np.array([0, 0, forward]))

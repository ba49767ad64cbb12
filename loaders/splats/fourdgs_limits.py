"""What a .4dgs file would become, by its records alone, before its library decodes any.

The library bounds each stream by 512 MiB, whatever the file's size, and a stream of equal values
takes some bytes: a file of a kilobyte could have thousands of them. Of the format only what frames
streams is looked at: https://github.com/avala-ai/4dgs, its sections of records and chunks.
"""

from __future__ import annotations

import struct
from pathlib import Path

from penstock.errors import UnsupportedModelError
from penstock.loaders.splats.file_access import check_ratio

RECORD = struct.Struct("<BQ")  # kind, bytes
CHUNK_START = struct.Struct("<ddII")  # from, until, level, splats
STREAM = struct.Struct("<BBBBBIQ")  # attribute, width, mode, codec, channels, splats, bytes
CHUNK, SH_BAND = 0x05, 0x07
START = 8  # the magic


def check_fourdgs(path: Path, content: bytes) -> None:
    """Refuse a file whose streams announce splats out of all proportion to its size. One that does
    not hold together is left to its reader, which stops where this does.

    Raises:
        FormatError: as it says.
        UnsupportedModelError: chunks that are compressed as a whole, which the library never
            writes and in which nothing can be seen.
    """
    data, total, at = memoryview(content), 0, START
    while at + RECORD.size <= len(data):
        kind, nbytes = RECORD.unpack_from(data, at)
        record = data[at + RECORD.size : at + RECORD.size + nbytes]
        at += RECORD.size + nbytes
        if kind == CHUNK:
            total += _of_streams(_streams_of_chunk(path, record))
        elif kind == SH_BAND:
            total += _of_streams(record[1:])
        check_ratio(path, len(data), total)


def _streams_of_chunk(path: Path, content: memoryview) -> memoryview:
    at = CHUNK_START.size
    if len(content) < at + 4:
        return content[:0]
    named = int.from_bytes(content[at : at + 4], "little")
    if named:
        raise UnsupportedModelError(
            f"{path}: a chunk that is compressed as a whole; write it again with fourdgs, which "
            "compresses its streams"
        )
    return content[at + 4 + 8 + 8 :]  # behind two lengths


def _of_streams(data: memoryview) -> int:
    """Bytes that streams become, four for each number."""
    total = at = 0
    while at + STREAM.size <= len(data):
        _, _, _, _, channels, count, nbytes = STREAM.unpack_from(data, at)
        total += 4 * channels * count
        at += STREAM.size + nbytes
    return total

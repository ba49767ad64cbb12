"""Heads that lie, with checksums that are right: each lie is found before memory is taken."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from penstock import _native
from penstock.errors import FormatError
from penstock.export.omg4.psplat_writer import write_psplat
from penstock.loaders.splats.codebook import Codebook
from penstock.loaders.splats.encoded import EncodedSplats, SubVector, scalar_sub_vector
from penstock.loaders.splats.psplat_file import PsplatFile
from penstock.loaders.splats.psplat_layout import (
    BOOK,
    CHANNEL,
    CRC_OFFSET,
    GROUP,
    HEADER,
    GroupEntry,
    Section,
    head_bytes,
    pack_head,
    parse_head,
)
from penstock.loaders.splats.psplat_limits import MAX_RATIO, splat_nbytes
from penstock.quant.lattice import Lattice


def resealed(content: bytes) -> bytes:
    """With the right checksum of the head, as far as there is one."""
    fixed = bytearray(content)
    length = struct.unpack_from("<I", fixed, 12)[0]
    fixed[CRC_OFFSET : CRC_OFFSET + 4] = bytes(4)
    crc = _native.crc32c(np.frombuffer(bytes(fixed[:length]), np.uint8))
    struct.pack_into("<I", fixed, CRC_OFFSET, crc)
    return bytes(fixed)


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A moving scene of several groups; its first codebook is stored, its channels refer."""
    rng = np.random.default_rng(0)
    n = 400
    means = np.cumsum(rng.normal(0, 0.01, (n, 3)), axis=0)
    lattice = Lattice.fit(means, bits=12)
    scale = Codebook.grid(rng.normal(size=(30, 3)), 0.1)
    parts = (
        SubVector("scale.0", scale, rng.integers(0, 30, n).astype(np.uint16)),
        SubVector("rotation.0", Codebook.half(rng.uniform(-0.4, 0.4, (16, 3))),
                  rng.integers(0, 16, n).astype(np.uint16)),
        scalar_sub_vector("opacity", rng.uniform(0, 1, n), 0.01),
        *(scalar_sub_vector(f"dc.{k}", means[:, k], 0.01) for k in range(3)),
        scalar_sub_vector("t_center", rng.uniform(0, 10, n), 0.01),
        scalar_sub_vector("t_sigma", rng.uniform(-3, 0, n), 0.1),
    )  # fmt: skip
    digits = rng.integers(9, 13, n).astype(np.uint8)
    cells = lattice.cells(means, digits)
    encoded = EncodedSplats(lattice, cells, parts, 1, digits, 0.0, 10.0, 30.0)
    path = tmp_path_factory.mktemp("layout") / "a.psplat"
    write_psplat(path, encoded, least_group=60)
    data = path.read_bytes()
    assert resealed(data) == data
    return data


GROUPS = HEADER.size
NAN, INF = float("nan"), float("inf")
HEADER_LIES = [
    (8, "<H", 2, "at offset 8: version is 2"),
    (10, "<H", 16 + 1, "at offset 10: flags"),
    (10, "<H", 11, "at offset 132: coding of the digits"),  # all are kept, it says
    (10, "<H", 2, "at offset 88: times"),  # and that nothing moves
    (12, "<I", 145, "at offset 12: the head has 145 bytes"),
    (16, "<Q", 1 << 60, "at offset 16"),
    (24, "<I", 399, "splats of all groups"),
    (24, "<I", 0xFFFFFFFF, "at offset 24: splats"),
    (28, "<H", 0, "at offset 12: the head has"),
    (32, "<B", 4, "at offset 32: SH degree"),
    (33, "<B", 0, "at offset 33: lattice"),
    (33, "<B", 22, "at offset 33: lattice"),
    (34, "<B", 2, "at offset 34: lattice map"),
    (35, "<B", 22, "at offset 35: modelled digits"),
    (36, "<B", 3, "at offset 36: slowest rate"),
    (37, "<B", 17, "at offset 37: alignment"),
    (37, "<B", 12, "offset of group 0"),
    (38, "<H", 1, "at offset 38: unused bytes"),
    (40, "<d", NAN, "at offset 33: lattice"),
    (64, "<d", 0.0, "at offset 33: lattice"),
    (64, "<d", -1.0, "at offset 33: lattice"),
    (72, "<d", 1e300, "at offset 33: lattice"),
    (88, "<d", INF, "at offset 88: times"),
    (88, "<d", -1e308, "at offset 88: times"),
    (96, "<d", NAN, "at offset 88: times"),
    (96, "<d", 1.1e9, "at offset 88: times"),
    (88, "<d", 11.0, "at offset 96: end"),
    (104, "<f", -1.0, "at offset 104: frames"),
    (104, "<f", NAN, "at offset 104: frames"),
    (108, "<I", 0, "at offset 108"),
    (108, "<I", 0xFFFFFFFE, "at offset 108: bytes of the codebook section: found 4294967294"),
    (112, "<Q", 1, "at offset 112: offset of the codebook section"),
    (120, "<I", 8, "at offset 120: bytes of the nets"),
    (128, "<I", 1, "at offset 128: checksum of no nets"),
    (132, "<B", 2, "at offset 132: coding of the digits"),
    (139, "<B", 2, "at offset 132: coding of the digits"),
]


@pytest.mark.parametrize(("offset", "form", "value", "message"), HEADER_LIES)
def test_lies_of_the_header(
    tmp_path: Path, content: bytes, offset: int, form: str, value: float, message: str
) -> None:
    refused(tmp_path, content, offset, form, value, message)


GROUP_LIES = [
    (0, "<d", NAN, "times of group 0"),
    (8, "<d", -1e9, "times of group 0"),
    (16, "<Q", 1 << 63, "offset of group 0"),
    (16, "<Q", 2, "offset of group 0"),
    (24, "<I", 7, "bytes of group 0"),
    (24, "<I", 0xFFFFFFFE, "bytes of group 0"),  # more than its splats could take
    (24, "<I", 8000, "end of group 0"),
    (28, "<I", 0, "splats of group 0"),
    (28, "<I", 1 << 27, "bytes of group 0"),
    (36, "<I", 1, "unused bytes of group 0"),
]


@pytest.mark.parametrize(("offset", "form", "value", "message"), GROUP_LIES)
def test_lies_of_a_group(
    tmp_path: Path, content: bytes, offset: int, form: str, value: float, message: str
) -> None:
    refused(tmp_path, content, GROUPS + offset, form, value, message)


BOOK_LIES = [
    (0, "<B", 3, "map of codebook 0"),
    (1, "<B", 2, "'stored' of codebook 0"),
    (1, "<B", 0, "columns of codebook 0"),
    (2, "<H", 0, "columns of codebook 0"),
    (2, "<H", 257, "columns of codebook 0"),
    (2, "<H", 4, "columns of channel 0"),
    (4, "<I", 0, "entries of codebook 0"),
    (4, "<I", 65537, "entries of codebook 0"),
    (4, "<I", 4096, "bytes of the codebook section"),
    (8, "<I", 0, "levels of codebook 0"),
    (8, "<I", 65537, "levels of codebook 0"),
    (12, "<I", 5, "table of codebook 0"),
    (16, "<d", NAN, "low and step of codebook 0"),
    (24, "<d", -1.0, "low and step of codebook 0"),
    (24, "<d", 1e300, "low and step of codebook 0"),
    (32, "<B", 2, "coding of codebook 0"),
    (32, "<B", 9, "coding of codebook 0"),
    (34, "<B", 6, "coding of codebook 0"),
    (35, "<B", 1, "coding of codebook 0"),
    (36, "<B", 5, "coding of codebook 0"),
    (38, "<B", 10, "coding of codebook 0"),
    (39, "<B", 2, "coding of codebook 0"),
]


@pytest.mark.parametrize(("offset", "form", "value", "message"), BOOK_LIES)
def test_lies_of_a_codebook(
    tmp_path: Path, content: bytes, offset: int, form: str, value: float, message: str
) -> None:
    groups = struct.unpack_from("<H", content, 28)[0]
    at = GROUPS + groups * GROUP.size
    refused(tmp_path, content, at + offset, form, value, message)


CHANNEL_LIES = [
    (0, "<B", 12, "attribute of channel 0"),
    (0, "<B", 1, "channels"),
    (1, "<B", 1, "columns of channel 0"),
    (1, "<B", 255, "columns of channel 0"),
    (2, "<H", 60, "codebook of channel 0"),
    (4, "<I", 1, "unused bytes of channel 0"),
    (8, "<B", 2, "coding of channel 0"),  # fresh numbers, but several groups
    (9, "<B", 17, "coding of channel 0"),
    (11, "<B", 0, "coding of channel 0"),  # itself
    (11, "<B", 253, "coding of channel 0"),
]


@pytest.mark.parametrize(("offset", "form", "value", "message"), CHANNEL_LIES)
def test_lies_of_a_channel(
    tmp_path: Path, content: bytes, offset: int, form: str, value: float, message: str
) -> None:
    groups, books = struct.unpack_from("<HB", content, 28)
    at = GROUPS + groups * GROUP.size + books * BOOK.size
    assert at + CHANNEL.size <= len(content)
    refused(tmp_path, content, at + offset, form, value, message)


def refused(
    folder: Path, content: bytes, offset: int, form: str, value: float, message: str
) -> None:
    lie = bytearray(content)
    struct.pack_into(form, lie, offset, value)
    path = folder / "a.psplat"
    path.write_bytes(resealed(bytes(lie)))
    with pytest.raises(FormatError, match=message) as error:
        PsplatFile.open(path)
    assert str(error.value).startswith(f"{path}: ")


@pytest.mark.parametrize(("count", "refused"), [(149_000, False), (151_000, True), (2**28, True)])
def test_a_small_file_of_many_splats_is_refused(
    tmp_path: Path, content: bytes, count: int, refused: bool
) -> None:
    """A byte of zeros for each: 112 times as large when decoded."""
    path = tmp_path / "a.psplat"
    path.write_bytes(content)
    head = parse_head(path, content[: struct.unpack_from("<I", content, 12)[0]], len(content))
    start = head_bytes(1, len(head.books), len(head.channels))
    books = replace(head.books_section, offset=start)
    at = start + books.nbytes
    group = GroupEntry(0.0, 10.0, at, count + count % 2, count, 0)
    nbytes = at + group.nbytes
    bomb = pack_head(
        replace(
            head, nbytes=nbytes, count=count, alignment=0, books_section=books, groups=(group,),
            nets_section=Section(at),
        )
    )  # fmt: skip
    old = head.books_section
    with open(path, "wb") as file:
        file.write(bomb + content[old.offset : old.offset + old.nbytes])
        file.truncate(nbytes)
    if refused:
        with pytest.raises(FormatError, match="at offset 16: bytes of the file: found"):
            PsplatFile.open(path)
    else:
        assert PsplatFile.open(path).info.count == count


def test_many_equal_splats_take_as_many_bytes_as_the_reader_asks_for(tmp_path: Path) -> None:
    n = 80_000
    cells = np.zeros((n, 3), np.uint32)
    parts = (
        *(scalar_sub_vector(f"scale.{k}", np.zeros(n), 0.1) for k in range(3)),
        *(scalar_sub_vector(f"rotation.{k}", np.zeros(n), 0.1) for k in range(3)),
        *(scalar_sub_vector(f"dc.{k}", np.zeros(n), 0.1) for k in range(3)),
        scalar_sub_vector("opacity", np.ones(n), 0.1),
    )
    path = tmp_path / "a.psplat"
    lattice = Lattice(4, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), False)
    sizes = write_psplat(path, EncodedSplats(lattice, cells, parts, degree=3))
    assert sizes.total == path.stat().st_size >= n * splat_nbytes(3, dynamic=False) / MAX_RATIO
    with PsplatFile.open(path) as file:
        assert file.info.count == file.read_all().count == n


def test_another_file_is_named_as_such(tmp_path: Path) -> None:
    path = tmp_path / "a.psplat"
    path.write_bytes(b"ply\nformat binary_little_endian 1.0\n" + bytes(500))
    with pytest.raises(FormatError, match=r"at offset 0: begins with b'ply.*not a \.psplat file"):
        PsplatFile.open(path)

"""The reader of captioner files: what is written is what is read, and nothing else is."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import FormatError, StorageError, UsageError
from penstock.export.captioner_bundle import write_captioner
from penstock.loaders.captioner_file import MANIFEST, CaptionerFile

PARTS = {"encoder.onnx": bytes(range(256)) * 3, "vocab.txt": "ein\nWört\n".encode()}
SECTIONS: dict[str, Any] = {"architecture": "lightcap", "image": {"size": 224}, "generation": {}}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("captioner") / "whole.captioner"
    assert write_captioner(path, SECTIONS, PARTS) == path.stat().st_size
    return path.read_bytes()


def manifest_of(**changes: Any) -> dict[str, Any]:
    """Of a file with PARTS in it; a change to None leaves the entry out."""
    sums = {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in PARTS.items()
    }
    values = {"format": "penstock.captioner", "version": 1, **SECTIONS, "members": sums, **changes}
    return {name: value for name, value in values.items() if value is not None}


def packed(manifest: bytes | None, *more: tuple[str, bytes], compression: int = 0) -> bytes:
    """An archive made by hand."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        if manifest is not None:
            archive.writestr(MANIFEST, manifest)
        for name, data in (*PARTS.items(), *more):
            archive.writestr(name, data)
    return out.getvalue()


def refused(tmp_path: Path, data: bytes, said: str) -> None:
    path = tmp_path / "odd.captioner"
    path.write_bytes(data)
    with pytest.raises(FormatError, match=said) as error:
        CaptionerFile(path)
    assert "odd.captioner: " in str(error.value)


def test_what_was_written_is_read(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "x.captioner"
    path.write_bytes(whole)
    with CaptionerFile(path) as file:
        assert file.manifest == manifest_of()
        assert (file.architecture, file.size) == ("lightcap", len(whole))
        assert {name: file.read(name) for name in file.manifest["members"]} == PARTS
        assert "vocab.txt" in file and MANIFEST not in file
        with pytest.raises(FormatError, match="names no member 'x.onnx'"):
            file.read("x.onnx")
        with pytest.raises(FormatError, match=f"names no member '{MANIFEST}'"):
            file.read(MANIFEST)
    file.close()
    with zipfile.ZipFile(path) as standard:
        assert standard.testzip() is None


def test_the_same_members_give_the_same_bytes(tmp_path: Path, whole: bytes) -> None:
    write_captioner(tmp_path / "again", SECTIONS, PARTS)
    assert (tmp_path / "again").read_bytes() == whole


def test_what_is_not_written(tmp_path: Path) -> None:
    out = tmp_path / "x.captioner"
    with pytest.raises(UsageError, match="architecture 'blip' is not one"):
        write_captioner(out, {"architecture": "blip"}, PARTS)
    with pytest.raises(UsageError, match="cannot be called captioner.json"):
        write_captioner(out, SECTIONS, {MANIFEST: b""})
    out.write_bytes(b"mine")
    with pytest.raises(UsageError, match="is there already"):
        write_captioner(out, SECTIONS, PARTS)
    assert out.read_bytes() == b"mine" and list(tmp_path.iterdir()) == [out]
    write_captioner(out, SECTIONS, PARTS, overwrite=True)
    with pytest.raises(StorageError, match="cannot be written"):
        write_captioner(tmp_path / "none" / "x.captioner", SECTIONS, PARTS)


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.captioner"):
        with pytest.raises(StorageError, match="cannot be read"):
            CaptionerFile(path)


@pytest.mark.parametrize("data", [b"", b"PK", b"GGUF" * 100, b"PK\x05\x06" + bytes(18)])
def test_what_is_no_archive(tmp_path: Path, data: bytes) -> None:
    refused(tmp_path, data, "not a captioner|this is not a captioner")


def test_archives_of_others(tmp_path: Path) -> None:
    plain = json.dumps(manifest_of()).encode()
    refused(tmp_path, packed(None), "no captioner.json in it")
    refused(tmp_path, packed(plain, compression=zipfile.ZIP_DEFLATED), "'captioner.json' is compr")
    refused(tmp_path, packed(plain, *((f"{i}", b"") for i in range(62))), "65 members, .* most 64")
    with pytest.warns(UserWarning, match="Duplicate name"):
        twice = packed(plain, ("vocab.txt", b"other"))
    refused(tmp_path, twice, "two members have the same name")
    refused(tmp_path, packed(plain + b" " * (4 << 20)), "is larger than 4194304 bytes")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"version": ' + b"9" * 10_000 + b"}", "is not JSON"),
        (b"[]", "not of format 'penstock.captioner'"),
        (b"{}", "not of format"),
    ],
)
def test_manifests_without_sense(tmp_path: Path, text: bytes, said: str) -> None:
    refused(tmp_path, packed(text), said)


SUM = hashlib.sha256(PARTS["vocab.txt"]).hexdigest()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"version": 2}, "version 2, this Penstock reads 1; install a newer"),
        ({"version": None}, "version None"),
        ({"version": True}, "version True"),
        ({"version": 1.0}, r"version 1\.0"),
        ({"architecture": "blip"}, "architecture 'blip', expected one of lightcap, enc"),
        ({"architecture": ["lightcap"]}, "architecture .'lightcap'., expected one of"),
        ({"architecture": None}, "architecture None"),
        ({"members": None}, "lists no members"),
        ({"members": [1]}, "lists no members"),
        ({"members": {"vocab.txt": 9}}, "no SHA-256 of member 'vocab.txt'"),
        ({"members": {"vocab.txt": {"bytes": 10}}}, "no SHA-256 of member 'vocab.txt'"),
        ({"members": {"vocab.txt": {"bytes": 10, "sha256": 5}}}, "no SHA-256 of member"),
        ({"members": {"vocab.txt": {"bytes": 9, "sha256": SUM}}}, "has 10 bytes, .* says 9"),
        ({"members": {"vocab.txt": {"bytes": "10", "sha256": SUM}}}, "has 10 bytes, .* says '10'"),
        ({"members": {"vocab.txt": {"bytes": -1, "sha256": SUM}}}, "says -1"),
        ({"members": {"lost.txt": {"bytes": 10, "sha256": SUM}}}, "'lost.txt' has no bytes"),
        ({"members": {"x" * 100_000: {"bytes": 10, "sha256": SUM}}}, r"'x+\.\.\.x+' has no"),
        ({"version": [[[[[[[1]]]]]]]}, r"version \[+\.\.\.\]+, this"),
        ({"members": {"../vocab.txt": {"bytes": 10, "sha256": SUM}}}, "has no bytes"),
    ],
)
def test_manifests_that_do_not_fit(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    refused(tmp_path, packed(json.dumps(manifest_of(**changes)).encode()), said)


def test_another_checksum(tmp_path: Path) -> None:
    changed = manifest_of()
    changed["members"]["vocab.txt"]["sha256"] = "0" * 64
    path = tmp_path / "x.captioner"
    path.write_bytes(packed(json.dumps(changed).encode()))
    with CaptionerFile(path) as file:
        assert file.read("encoder.onnx") == PARTS["encoder.onnx"]
        with pytest.raises(FormatError, match="'vocab.txt' is damaged: its SHA-256"):
            file.read("vocab.txt")


def edited(whole: bytes, at: int, form: str, value: int, record: int = 0) -> bytes:
    """With a number in a record of the central directory changed."""
    where = -1
    for _ in range(record + 1):
        where = whole.index(b"PK\x01\x02", where + 1)
    data = bytearray(whole)
    struct.pack_into(form, data, where + at, value)
    return bytes(data)


@pytest.mark.parametrize(
    ("at", "form", "value"),
    [
        (6, "<H", 99),  # the version of ZIP that is needed
        (8, "<H", 1),  # encrypted
        (8, "<H", 0x20),  # a patch of another file
        (10, "<H", 8),  # deflated
        (10, "<H", 77),  # by a method that nobody knows
        (16, "<I", 0),  # CRC
        (20, "<I", 1 << 31),  # bytes, packed
        (24, "<I", 1 << 31),  # bytes
        (24, "<I", 0xFFFFFFFF),  # bytes: as an extra field says, which is not there
        (28, "<H", 0xFFFF),  # bytes of the name
        (30, "<H", 0xFFFF),  # bytes of the extra field
        (42, "<I", 0xFFFF0000),  # where the member begins
        (42, "<I", 5),
    ],
)
def test_directories_that_lie(tmp_path: Path, whole: bytes, at: int, form: str, value: int) -> None:
    refused(tmp_path, edited(whole, at, form, value), ".")


def test_members_on_top_of_each_other(tmp_path: Path) -> None:
    """The bomb without compression: a hundred entries that are one and the same stretch."""
    big = bytes(100_000)
    data = packed(json.dumps(manifest_of()).encode(), *((f"{i}.onnx", big) for i in range(20)))
    end = data.index(b"PK\x01\x02")
    start = data.index(b"0.onnx") - 30
    directory = bytearray(data[end:])
    at = 0
    while (at := directory.find(b"PK\x01\x02", at)) >= 0:
        if directory[at + 46 : at + 60].split(b"PK")[0].endswith(b".onnx") and at > 200:
            struct.pack_into("<I", directory, at + 42, start)
        at += 4
    body = data[: start + 30 + 6 + len(big)]
    tail = bytes(directory)
    eocd = tail.rindex(b"PK\x05\x06")
    ending = bytearray(tail[eocd:])
    struct.pack_into("<I", ending, 16, len(body))
    refused(tmp_path, body + tail[:eocd] + bytes(ending), "members are larger than the file")


@settings(max_examples=100, deadline=None)
@given(
    edits=st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=4),
    cut=st.one_of(st.none(), st.integers(0, 1 << 12)),
    directory=st.booleans(),
)
def test_damage_is_refused_or_does_not_matter(
    whole: bytes,
    tmp_path_factory: pytest.TempPathFactory,
    edits: list[tuple[int, int]],
    cut: int | None,
    directory: bool,
) -> None:
    """Whatever is read in the end is what was written."""
    data = bytearray(whole)
    first = whole.index(b"PK\x01\x02") if directory else 0  # where all the structure is
    for at, byte in edits:
        data[first + at % (len(data) - first)] = byte
    path = tmp_path_factory.getbasetemp() / "damaged.captioner"
    path.write_bytes(data[:cut])
    try:
        with CaptionerFile(path) as file:
            read = {name: file.read(name) for name in file.manifest["members"]}
    except FormatError as error:
        assert "damaged.captioner" in str(error)
    else:
        assert read == PARTS and file.manifest == manifest_of()

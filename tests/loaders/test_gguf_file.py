"""The GGUF parser: against the gguf package's reader on good files, every refusal on bad ones."""

from __future__ import annotations

import ctypes
import struct
import tempfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from penstock.errors import FormatError, StorageError
from penstock.loaders.gguf_file import (
    MAX_HEADER_BYTES,
    MAX_KEYS,
    MAX_TENSORS,
    TYPE_NAMES,
    TYPE_SIZES,
    read_gguf,
)
from tests.bundle_builder import Stored, gguf_string, gguf_tensor_info, gguf_value

V = gguf.GGUFValueType
INTEGERS = {
    V.UINT8: (0, 2**8 - 1), V.INT8: (-(2**7), 2**7 - 1), V.UINT16: (0, 2**16 - 1),
    V.INT16: (-(2**15), 2**15 - 1), V.UINT32: (0, 2**32 - 1), V.INT32: (-(2**31), 2**31 - 1),
    V.UINT64: (0, 2**64 - 1), V.INT64: (-(2**63), 2**63 - 1),
}  # fmt: skip
DTYPES = {
    V.UINT8: "u1", V.INT8: "i1", V.UINT16: "u2", V.INT16: "i2", V.UINT32: "u4", V.INT32: "i4",
    V.UINT64: "u8", V.INT64: "i8", V.FLOAT32: "f4", V.FLOAT64: "f8", V.BOOL: "?",
}  # fmt: skip
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
NAMES = st.text(st.sampled_from("abcdefgh._0123456789é"), min_size=1, max_size=20)


def _numbers(kind: Any) -> st.SearchStrategy[Any]:
    if kind in INTEGERS:
        return st.integers(*INTEGERS[kind])
    if kind == V.BOOL:
        return st.booleans()
    return st.floats(width=32 if kind == V.FLOAT32 else 64)


@st.composite
def metadata_values(draw: st.DrawFn) -> tuple[Any, Any, Any]:
    """(type, element type or None, value)."""
    kind = draw(st.sampled_from([*DTYPES, V.STRING, V.ARRAY]))
    if kind == V.STRING:
        return kind, None, draw(TEXT)
    if kind != V.ARRAY:
        return kind, None, draw(_numbers(kind))
    element = draw(st.sampled_from([*DTYPES, V.STRING]))
    values = TEXT if element == V.STRING else _numbers(element)
    return kind, element, draw(st.lists(values, min_size=1, max_size=5))


@st.composite
def tensors(draw: st.DrawFn) -> NDArray[Any]:
    dtype = draw(st.sampled_from(["f4", "f2", "i1", "i4"]))
    shape = draw(st.lists(st.integers(1, 7), min_size=1, max_size=4))
    count = int(np.prod(shape))
    return np.arange(count).astype(dtype).reshape(shape)


@given(
    keys=st.dictionaries(NAMES.map("x.".__add__), metadata_values(), max_size=6),
    arrays=st.dictionaries(NAMES, tensors(), max_size=5),
    alignment=st.sampled_from([8, 32, 64, 4096]),
)
@settings(deadline=None, max_examples=150)
def test_reads_what_the_gguf_package_writes_as_its_own_reader_does(
    keys: dict[str, tuple[Any, Any, Any]], arrays: dict[str, NDArray[Any]], alignment: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file.gguf"
        writer = gguf.GGUFWriter(path, "arcee")
        writer.add_custom_alignment(alignment)
        for key, (kind, element, value) in keys.items():
            writer.add_key_value(key, value, kind, element)
        for name, array in arrays.items():
            writer.add_tensor(name, array)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        ours, oracle = read_gguf(path), gguf.GGUFReader(path)

        assert ours.version == 3 and ours.alignment == alignment
        assert ours.data_offset == (oracle.data_offset if arrays else ours.data_offset)
        expected = {k: f for k, f in oracle.fields.items() if not k.startswith("GGUF.")}
        assert ours.metadata.keys() == expected.keys()
        for key, (_, element, value) in keys.items():
            mine = ours.metadata[key]
            if element in DTYPES:
                assert isinstance(mine, np.ndarray) and mine.dtype == DTYPES[element]
                assert np.array_equal(mine, np.array(value, DTYPES[element]), equal_nan=True) or (
                    element == V.FLOAT32 and np.allclose(mine, value, equal_nan=True)
                )
            elif isinstance(value, float):
                theirs = expected[key].contents()
                assert mine == theirs or (np.isnan(theirs) and np.isnan(float(str(mine))))
            else:
                assert type(mine) is type(value) and mine == expected[key].contents() == value
        assert list(ours.tensors) == [t.name for t in oracle.tensors]
        content = path.read_bytes()
        for theirs in oracle.tensors:
            info = ours.tensors[theirs.name]
            assert info.shape == tuple(int(n) for n in theirs.shape[::-1])
            assert (info.type, info.offset, info.nbytes) == (
                theirs.tensor_type, theirs.data_offset, theirs.n_bytes,
            )  # fmt: skip
            stored = content[info.offset : info.offset + info.nbytes]
            assert stored == arrays[theirs.name].tobytes()
        for key, offset in ours.value_offsets.items():
            kind, element, value = keys.get(key, (None, None, None))
            if kind == V.STRING:
                raw = value.encode()
                assert content[offset + 8 : offset + 8 + len(raw)] == raw


def test_types_are_those_of_ggml() -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    folder = Path(llama_cpp.__file__).parent / "lib"
    names = ("libggml-base.so", "libggml-base.dylib", "ggml-base.dll")
    base = ctypes.CDLL(next(str(folder / name) for name in names if (folder / name).exists()))
    base.ggml_type_name.restype = ctypes.c_char_p
    base.ggml_blck_size.restype = ctypes.c_int64
    base.ggml_type_size.restype = ctypes.c_size_t
    sizes, called = {}, {}
    for kind in range(llama_cpp.llama_cpp.GGML_TYPE_COUNT):
        if base.ggml_type_size(kind):  # those that were removed have none
            sizes[kind] = base.ggml_blck_size(kind), base.ggml_type_size(kind)
            called[kind] = base.ggml_type_name(kind).decode().upper()
    assert sizes == TYPE_SIZES
    assert called == TYPE_NAMES


def test_version_2_is_read_as_version_3_is(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(GOOD)
    newer = read_gguf(tmp_path / "f")
    (tmp_path / "f").write_bytes(GOOD[:4] + struct.pack("<I", 2) + GOOD[8:])
    older = read_gguf(tmp_path / "f")
    assert (older.version, newer.version) == (2, 3)
    assert older.tensors == newer.tensors and older.metadata == newer.metadata


# ---------------------------------------------------------------- refusals


def header(
    keys: list[tuple[str | bytes, bytes]] | None = None,
    infos: list[bytes] | None = None,
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    order: str = "<",
    key_count: int | None = None,
    tensor_count: int | None = None,
    data: int = 0,
) -> bytes:
    """A file of the given parts, padded to 32, with this many bytes of tensor data."""
    keys, infos = keys or [], infos or []
    counts = (
        len(infos) if tensor_count is None else tensor_count,
        len(keys) if key_count is None else key_count,
    )
    out = magic + struct.pack(order + "IQQ", version, *counts)
    out += b"".join(gguf_string(key) + value for key, value in keys) + b"".join(infos)
    return out + bytes(-len(out) % 32) + bytes(data)


def info(name: str = "t", shape: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0) -> bytes:
    return gguf_tensor_info(name, Stored(shape, kind, b""), offset)


TEXT_KEY = ("general.architecture", gguf_value("arcee"))
GOOD = header([TEXT_KEY], [info("a", (2, 8)), info("b", (4,), offset=64)], data=96)

REFUSED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", r"at offset 0: not a GGUF file"),
    "bad magic": (header(magic=b"GGML"), r"at offset 0: .*b'GGML', expected b'GGUF'"),
    "version 1": (
        header(version=1), r"at offset 4: GGUF version is 1, expected 2 or 3; it is too old"
    ),
    "version 0": (header(version=0), r"at offset 4: GGUF version is 0, .*; it is too old"),
    "version 4": (header(version=4), r"at offset 4: GGUF version is 4, .*; use a newer Penstock"),
    "big-endian": (header(order=">"), r"at offset 4: .*expected 2 or 3; it is big-endian"),
    "tensor count": (
        header(tensor_count=MAX_TENSORS + 1), r"offset 8: the number of tensors is 131073, more"
    ),
    "key count": (
        header(key_count=MAX_KEYS + 1), r"offset 16: the number of metadata keys is 131073, more"
    ),
    "most keys": (header(key_count=2**64 - 1), r"offset 16: the number of metadata keys"),
    "key length": (
        header([(b"", b"")])[:24] + struct.pack("<Q", 2**63), r"at offset 24: length of a metadata"
    ),
    "string length": (
        header([("k", struct.pack("<IQ", 8, 1 << 20))]), r"at offset 37: length of value of 'k'"
    ),
    "array length": (
        header([("k", struct.pack("<IIQ", 9, 4, 2**62))]), r"at offset 41: length of 'k' is"
    ),
    "array of strings": (
        header([("k", struct.pack("<IIQ", 9, 8, 60))], data=64), r"'k' announces 60 strings, more"
    ),
    "nested array": (
        header([("k", struct.pack("<IIQ", 9, 9, 1))], data=64), r"'k' has unknown element type 9"
    ),
    "value type": (header([("k", struct.pack("<I", 13))]), r"'k' has unknown value type 13"),
    "bool of 2": (header([("k", struct.pack("<IB", 7, 2))]), r"value of 'k' is 2, more than 1"),
    "key not UTF-8": (header([(b"\xff\xfe", b"")]), r"offset 24: a metadata key is not UTF-8"),
    "value not UTF-8": (
        header([("k", struct.pack("<I", 8) + gguf_string(b"\xc3"))]), r"value of 'k' is not UTF-8"
    ),
    "key twice": (header([TEXT_KEY, TEXT_KEY]), r"'general.architecture' appears twice"),
    "alignment 0": (
        header([("general.alignment", gguf_value(0))]), r"general.alignment is 0, expected a power"
    ),
    "alignment 48": (header([("general.alignment", gguf_value(48))]), r"general.alignment is 48"),
    "alignment text": (
        header([("general.alignment", gguf_value("32"))]), r"general.alignment is '32'"
    ),
    "alignment true": (
        header([("general.alignment", gguf_value(True))]), r"general.alignment is True"
    ),
    "five dimensions": (header([], [info(shape=(1,) * 5)]), r"dimensions of 't' is 5, more than 4"),
    "no dimensions": (header([], [info(shape=())], data=64), r"'t' has shape \(\), which"),
    "zero elements": (header([], [info(shape=(4, 0))], data=64), r"'t' has shape \(4, 0\)"),
    "huge dimension": (header([], [info(shape=(2**41,))]), r"shape of 't' is 2199023255552"),
    "product overflows": (
        header([], [info(shape=(2**40, 2**40, 2**40))]), r"'t' needs bytes 96 to .* but the file"
    ),
    "half a block": (header([], [info(shape=(33,), kind=8)], data=64), r"'t' has shape \(33,\)"),
    "tensor type": (header([], [info(kind=99)], data=32), r"tensor 't' has unknown type 99"),
    "removed type": (header([], [info(kind=4)], data=32), r"tensor 't' has unknown type 4"),
    "tensor twice": (header([], [info(), info(offset=32)], data=64), r"tensor 't' appears twice"),
    "misaligned": (
        header([], [info(offset=8)], data=64), r"at offset 72: tensor 't' is at offset 72, not a"
    ),
    "past the end": (
        header([], [info(offset=64)], data=64), r"'t' needs bytes 128 to 144 but the file has 128"
    ),
    "offset wraps": (header([], [info(offset=2**64 - 32)], data=64), r"'t' needs bytes"),
    "overlap": (
        header([], [info("a", (16,)), info("b", offset=32)], data=64),
        r"at offset 128: tensors 'a' and 'b' overlap",
    ),
    "same place": (header([], [info("a"), info("b")], data=64), r"tensors 'a' and 'b' overlap"),
}  # fmt: skip


def test_the_good_file_of_these_tests_is_good(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(GOOD)
    assert list(read_gguf(tmp_path / "f").tensors) == ["a", "b"]


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_naming_file_place_and_expectation(case: str, tmp_path: Path) -> None:
    content, message = REFUSED[case]
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=message) as error:
        read_gguf(path)
    assert str(error.value).startswith(f"{path}: ")


def test_a_file_cut_at_any_byte_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    for length in range(len(GOOD) - 16):  # the last tensor ends 16 bytes before the file does
        path.write_bytes(GOOD[:length])
        with pytest.raises(FormatError, match="cut.gguf: "):
            read_gguf(path)


def test_a_header_that_would_take_gigabytes_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "sparse.gguf"
    with open(path, "wb") as handle:
        handle.write(header([("k", struct.pack("<IIQ", 9, 0, MAX_HEADER_BYTES))])[:24])
        handle.write(gguf_string("k") + struct.pack("<IIQ", 9, 0, MAX_HEADER_BYTES))
        handle.truncate(2 * MAX_HEADER_BYTES)
    with pytest.raises(FormatError, match="the header is larger than 536870912 bytes"):
        read_gguf(path)


def test_a_file_that_is_not_there_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="missing.gguf: cannot be read"):
        read_gguf(tmp_path / "missing.gguf")
    with pytest.raises(StorageError, match="cannot be read"):
        read_gguf(tmp_path)  # a folder


@pytest.mark.parametrize(
    "value, getter, expected",
    [
        (gguf_value("text"), "get_int", "a whole number from 0 to"),
        (gguf_value(True), "get_int", "a whole number"),
        (gguf_value(1.5), "get_int", "a whole number"),
        (gguf_value(4_000_000_000), "get_int", "a whole number from 0 to 2147483647"),
        (gguf_value(float("nan")), "get_float", "a finite number"),
        (gguf_value(float("inf")), "get_float", "a finite number"),
        (gguf_value(True), "get_float", "a finite number"),
        (gguf_value(1), "get_bool", "true or false"),
        (gguf_value(1), "get_str", "a string"),
        (gguf_value(["a"]), "get_array", "an array of numbers"),
    ],
)
def test_getters_name_key_and_expectation(
    value: bytes, getter: str, expected: str, tmp_path: Path
) -> None:
    path = tmp_path / "f.gguf"
    path.write_bytes(header([("some.key", value)]))
    file = read_gguf(path)
    with pytest.raises(FormatError, match=f"metadata key 'some.key' is .*; expected {expected}"):
        getattr(file, getter)("some.key")
    with pytest.raises(FormatError, match="metadata key 'other.key' is missing; expected"):
        getattr(file, getter)("other.key")

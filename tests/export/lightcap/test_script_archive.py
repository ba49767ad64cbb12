"""Tensors of TorchScript archives, equal to those that torch.jit finds, and hostile archives."""

from __future__ import annotations

import pickle
import shutil
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import FormatError, StorageError
from penstock.export.lightcap.script_archive import ScriptArchive, is_script_archive, unpack
from tests.export.lightcap.random_checkpoints import save_script, small_clip

Edit = Callable[[str, bytes], bytes | None]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_script(small_clip(), tmp_path_factory.mktemp("script") / "small.pt")


def repacked(source: Path, out: Path, edit: Edit, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(out, "w", compression) as new:
        for info in old.infolist():
            data = edit(info.filename.partition("/")[2], old.read(info))
            if data is not None:
                new.writestr(info.filename, data)
    return out


def with_pickle(source: Path, out: Path, data: bytes) -> Path:
    return repacked(source, out, lambda name, old: data if name == "data.pkl" else old)


def read_all(path: Path) -> dict[str, Any]:
    opened = ScriptArchive(path)
    return {name: opened.read(name) for name in opened.shapes}


def test_tensors_are_those_that_torch_finds(archive: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is no longer recommended
        expected = torch.jit.load(str(archive)).state_dict()  # type: ignore[no-untyped-call]
    found = read_all(archive)
    assert is_script_archive(archive)
    assert found.keys() == expected.keys() and len(found) > 90
    for name, tensor in expected.items():
        assert str(found[name].dtype) == str(tensor.dtype).removeprefix("torch.")
        assert np.array_equal(found[name], tensor.numpy()), name


def test_views_of_one_storage(tmp_path: Path) -> None:
    """Tensors with strides and offsets, as of transposed and sliced parameters."""

    class Views(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            base = torch.arange(60.0).view(3, 4, 5)
            self.register_buffer("whole", base)
            self.register_buffer("turned", base.permute(2, 0, 1)[1:, :, ::2])
            self.register_buffer("spread", base[0, 0, :1].expand(7))
            self.register_buffer("none", base[:0])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    views, path = Views(), tmp_path / "views.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        script: Any = torch.jit.script(views)
        torch.jit.save(script, str(path))
    found = read_all(path)
    assert found.keys() == {"whole", "turned", "spread", "none"}
    for name, tensor in views.named_buffers():
        assert np.array_equal(found[name], tensor.numpy()), name


class Hostile:
    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call[0], self.call[1:]


@pytest.mark.parametrize("protocol", range(6))
def test_nothing_is_called(archive: Path, tmp_path: Path, protocol: int) -> None:
    marker = tmp_path / "was here"
    data = pickle.dumps({"visual": Hostile(open, str(marker), "w")}, protocol=protocol)
    path = with_pickle(archive, tmp_path / "hostile.pt", data)
    with pytest.raises(FormatError, match="hostile.pt: not a whole TorchScript archive"):
        ScriptArchive(path)
    assert not marker.exists()


def module(*entries: bytes) -> bytes:
    """A pickle of a module with these attributes."""
    return b"\x80\x02c__torch__\nM\n)\x81}(" + b"".join(entries) + b"ub."


def text(value: str) -> bytes:
    return pickle.BINUNICODE + len(value).to_bytes(4, "little") + value.encode()


def number(value: int) -> bytes:
    return pickle.LONG1 + b"\x08" + value.to_bytes(8, "little", signed=True)


def tensor(
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    offset: int = 0,
    count: int = 2,
    kind: str = "torch\nHalfStorage",
) -> bytes:
    """The description of a tensor in storage `2` of the archive, which has one half a count."""
    storage = b"(" + text("storage") + b"c" + kind.encode() + b"\n" + text("2") + text("cpu")
    storage += number(count) + b"tQ"
    sizes, steps = (b"(" + b"".join(map(number, x)) + b"t" for x in (shape, strides))
    call = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(offset)
    return call + sizes + steps + b"\x89ccollections\nOrderedDict\n)RtR"


def test_a_tensor_made_by_hand(archive: Path, tmp_path: Path) -> None:
    data = module(text("w"), tensor((1,), (1,), 0, 1))
    path = with_pickle(archive, tmp_path / "hand.pt", data)
    assert read_all(path)["w"].shape == (1,)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (tensor((2,), (1,)), "has 2 bytes of float16"),
        (tensor((2,), (1,), count=1), "needs 2 elements"),
        (tensor((1,), (1,), offset=1, count=1), "needs 2 elements"),
        (tensor((1 << 20, 1 << 20), (1, 1), count=1), "needs 2097151 elements, but"),
        (tensor((1 << 40, 1 << 40), (0, 0), count=1), "a tensor of 12089258196146.* elements"),
        (tensor((-1,), (1,)), "not a whole number"),
        (tensor((2,), (-1,)), "not a whole number"),
        (tensor((1,), (1,), offset=-1), "not a whole number"),
        (tensor((1,), (1, 1)), "strides of another length"),
        (tensor((1,), (1,), count=1 << 40), "has 2 bytes of float16"),
        (tensor((1,), (1,), kind="torch\nQInt8Storage"), "a storage of Name.*QInt8Storage"),
        (tensor((1,), (1,), kind="os\nHalfStorage"), "expected one of HalfStorage"),
        (b"cos\nsystem\n(" + text("true") + b"tR", "call of os.system"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n(tR", "not enough values"),
        (b"cos\nsystem\n(ib)", "."),
        (b"\x93", "STACK_GLOBAL"),
        (b"S'\\h'\n", "the instruction STRING"),
        (b"}" * 3, "to odd entries"),
    ],
)
def test_what_is_not_made(archive: Path, tmp_path: Path, entry: bytes, said: str) -> None:
    path = with_pickle(archive, tmp_path / "odd.pt", module(text("w"), entry))
    with pytest.raises(FormatError, match=said if said != "to odd entries" else "odd.pt"):
        read_all(path)


def test_modules_without_end(archive: Path, tmp_path: Path) -> None:
    """Each of 40 levels has the next one twice: 2^40 names."""
    data, level = b"\x80\x02", 0
    data += b"c__torch__\nM\n)\x81q\x00"
    for level in range(1, 41):
        below = b"h" + bytes([level - 1])
        data += b"c__torch__\nM\n)\x81}(" + text("a") + below + text("b") + below + b"ub"
        data += b"q" + bytes([level])
    path = with_pickle(archive, tmp_path / "deep.pt", data + b".")
    with pytest.raises(FormatError, match="modules in modules without end"):
        ScriptArchive(path)


def test_packed_again(archive: Path, tmp_path: Path) -> None:
    packed = repacked(archive, tmp_path / "z.pt", lambda _, old: old, zipfile.ZIP_DEFLATED)
    with pytest.raises(FormatError, match="'data.pkl' is compressed"):
        ScriptArchive(packed)
    twice = tmp_path / "twice.pt"
    shutil.copy(archive, twice)
    with zipfile.ZipFile(twice, "a") as file:
        file.writestr("other/data.pkl", b".")
    with pytest.raises(FormatError, match="has 'data.pkl' twice"):
        ScriptArchive(twice)
    lost = repacked(archive, tmp_path / "l.pt", lambda n, old: None if n == "data/2" else old)
    with pytest.raises(FormatError, match="'data/2' is not there"):
        read_all(lost)
    with pytest.raises(StorageError, match="cannot be read"):
        ScriptArchive(tmp_path / "none.pt")


def test_a_huge_pickle_is_not_read(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penstock.export.lightcap.script_archive.MAX_PICKLE_BYTES", 1000)
    with pytest.raises(FormatError, match="'data.pkl' has .* bytes, expected at most 1000"):
        ScriptArchive(archive)


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_damaged_archives_are_refused_or_read(
    archive: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    whole = bytearray(archive.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.none(), st.integers(0, len(whole))))
    path = tmp_path_factory.getbasetemp() / "damaged.pt"
    path.write_bytes(whole[:cut])
    try:
        read_all(path)
    except FormatError as error:
        assert "damaged.pt" in str(error)


@settings(max_examples=100, deadline=None)
@given(edits=st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=5))
def test_damaged_pickles_raise_what_is_meant(archive: Path, edits: list[tuple[int, int]]) -> None:
    with zipfile.ZipFile(archive) as file:
        data = bytearray(file.read("small/data.pkl"))
    for at, byte in edits:
        data[at % len(data)] = byte
    try:
        unpack(bytes(data))
    except (ValueError, TypeError, KeyError, IndexError):
        pass

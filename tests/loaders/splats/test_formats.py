"""What a file is, found in it; summaries; and damaged files of every format, by hypothesis."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.errors import FormatError, PenstockError, StorageError, UsageError
from penstock.export.omg4.psplat_writer import write_psplat
from penstock.loaders.splats.formats import READERS, open_splats, summary
from penstock.loaders.splats.inria_ply import write_inria_ply
from penstock.loaders.splats.model import SplatModel, check_model
from penstock.loaders.splats.psplat_file import PsplatFile
from penstock.loaders.splats.rotor_file import write_rotor_npz
from penstock.loaders.splats.splat_format import SplatFormat, splat_format
from penstock.loaders.splats.spz_writer import write_spz
from penstock.loaders.splats.summary import SUMMARIES
from tests.loaders.splats import test_compressed_ply as compressed
from tests.loaders.splats import test_dot_splat as dot_splat
from tests.loaders.splats import test_fourdgs_file as fourdgs
from tests.loaders.splats import test_rotor_file as rotor
from tests.loaders.splats import test_sog as sog
from tests.loaders.splats import test_spacetime_ply as spacetime
from tests.loaders.splats.encoded_builder import random_encoded
from tests.loaders.splats.splat_builder import ply_bytes, random_model, write
from tests.needs import needs

Maker = Callable[[Path], Path]


def compressed_ply(path: Path) -> Path:
    chunk = ("chunk", compressed.CHUNK_COLUMNS, [compressed.BOUNDS])
    vertex = ("vertex", compressed.VERTEX_COLUMNS, [(1, compressed.IDENTITY, 2, 3)] * 3)
    path.write_bytes(ply_bytes([chunk, vertex]))
    return path


def written(writer: Callable[[Path, SplatModel], None], dynamic: bool) -> Maker:
    def make(path: Path) -> Path:
        writer(path, random_model(4, 1, dynamic=dynamic))
        return path

    return make


def bytes_of(data: Callable[[], bytes]) -> Maker:
    def make(path: Path) -> Path:
        path.write_bytes(data())
        return path

    return make


def spz_v4(path: Path, model: SplatModel) -> None:
    write_spz(path, model, 4)


def spacetime_ply() -> bytes:
    return ply_bytes([("vertex", spacetime.COLUMNS, [spacetime.row(), spacetime.row(x=1)])])


FILES: dict[str, tuple[SplatFormat, Maker, bool]] = {
    "inria": (SplatFormat.INRIA_PLY, written(write_inria_ply, False), False),
    "moving": (SplatFormat.INRIA_PLY, written(write_inria_ply, True), True),
    "compressed": (SplatFormat.COMPRESSED_PLY, compressed_ply, False),
    "spacetime": (SplatFormat.SPACETIME_PLY, bytes_of(spacetime_ply), True),
    "rotor npz": (SplatFormat.ROTOR, written(write_rotor_npz, True), True),
    "rotor ply": (
        SplatFormat.ROTOR,
        bytes_of(lambda: rotor.rotor_ply(rotor.random_rotors(3))),
        True,
    ),
    "splat": (SplatFormat.DOT_SPLAT, bytes_of(lambda: dot_splat.record() * 3), False),
    "spz 3": (SplatFormat.SPZ, written(write_spz, False), False),
}
EXTRA: dict[str, tuple[SplatFormat, Maker, bool]] = {
    "spz 4": (SplatFormat.SPZ, written(spz_v4, False), False),
    "sog": (SplatFormat.SOG, lambda path: sog.zip_of(path, *sog.scene(1)), False),
    "4dgs": (
        SplatFormat.FOURDGS,
        lambda path: fourdgs.scene(path, random_model(5, dynamic=True)),
        True,
    ),
    "checkpoint": (
        SplatFormat.ROTOR,
        lambda path: rotor.checkpoint(path, rotor.random_rotors(3)),
        True,
    ),
}
NEEDS = {"spz 4": "zstandard", "sog": "PIL", "checkpoint": "torch", "4dgs": "fourdgs"}
ALL = [
    *FILES,
    *(pytest.param(name, marks=needs(library)) for name, library in NEEDS.items()),
]


def made_psplat(folder: Path) -> Path:
    write_psplat(folder / "a.psplat", random_encoded(20, 1))
    return folder / "a.psplat"


def make(name: str, folder: Path) -> tuple[SplatFormat, Path, bool]:
    kind, maker, dynamic = (FILES | EXTRA)[name]
    ending = ".splat" if name == "splat" else ".bin"  # only .splat has no magic
    return kind, maker(folder / f"file{ending}"), dynamic


@pytest.mark.parametrize("name", ALL)
def test_a_format_is_found_without_the_name(tmp_path: Path, name: str) -> None:
    kind, path, dynamic = make(name, tmp_path)
    assert splat_format(path) == kind
    model = check_model(open_splats(path), path)
    found = summary(path)
    assert found.count == model.count > 0 and found.degree == model.degree
    assert found.dynamic == model.dynamic == dynamic
    assert found.nbytes == path.stat().st_size
    if model.motion is not None:
        assert (found.start, found.end, found.fps) == (
            model.motion.start,
            model.motion.end,
            model.motion.fps,
        )
    if found.box is not None:
        low, high = found.box
        assert (model.means >= np.array(low) - 1e-5).all()
        assert (model.means <= np.array(high) + 1e-5).all()
    assert json.loads(json.dumps(found.to_dict()))["count"] == model.count


@pytest.mark.skipif(sys.platform != "linux", reason="names there are text")
@pytest.mark.parametrize("name", ["psplat", "inria", "spz 3", "rotor npz"])
def test_names_of_any_bytes(tmp_path: Path, name: str) -> None:
    path = tmp_path / os.fsdecode(b"sc\xe9ne \xff.bin")
    made = made_psplat(tmp_path) if name == "psplat" else make(name, tmp_path)[1]
    made.rename(path)
    assert open_splats(path).count == summary(path).count > 0
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(FormatError) as error:
        open_splats(path)
    assert str(path) in str(error.value)
    path.unlink()
    with pytest.raises(StorageError) as missing:
        PsplatFile.open(path)
    assert str(path) in str(missing.value)


def test_a_scene_gets_the_length_that_its_file_does_not_say(tmp_path: Path) -> None:
    path = make("spacetime", tmp_path)[1]
    one, four = open_splats(path).motion, open_splats(path, 4.0).motion
    assert one is not None and four is not None
    assert (one.start, one.end, four.start, four.end) == (0, 1, 0, 4)
    assert np.allclose(four.t_centers, 4 * one.t_centers)
    path = make("rotor npz", tmp_path)[1]
    as_it_is, three = open_splats(path).motion, open_splats(path, 3.0).motion
    assert as_it_is is not None and three is not None
    assert (three.start, three.end) == (0, 3) != (as_it_is.start, as_it_is.end)
    assert np.array_equal(three.t_centers, as_it_is.t_centers)
    for seconds in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(UsageError, match="expected over 0"):
            open_splats(path, seconds)
    for name in ("inria", "moving", "splat"):
        with pytest.raises(UsageError, match=r"can be given for a Spacetime Gaussian PLY or rotor"):
            open_splats(make(name, tmp_path)[1], 2.0)


def test_every_format_has_a_reader_and_a_summary() -> None:
    assert set(READERS) == set(SUMMARIES) == set(SplatFormat)


@needs("PIL")
def test_folders_of_sog(tmp_path: Path) -> None:
    folder = sog.folder_of(tmp_path / "0_0", *sog.scene(2))
    for path in (folder, folder / "meta.json"):
        assert splat_format(path) == SplatFormat.SOG
        assert summary(path).count == open_splats(path).count == sog.COUNT
    assert summary(folder).nbytes == sum(f.stat().st_size for f in folder.iterdir())
    (tmp_path / "lod-meta.json").write_text("{}")
    for path in (tmp_path, tmp_path / "lod-meta.json"):
        with pytest.raises(FormatError, match="give the folder of one: 0_0"):
            open_splats(path)
    shutil.rmtree(folder)
    (tmp_path / "lod-meta.json").unlink()
    with pytest.raises(FormatError, match="without meta.json"):
        open_splats(tmp_path)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.bin", b"", "not a file of splats"),
        ("a.ksplat", bytes(100), "not a file of splats"),
        ("a.ply", b"hello", "not a PLY file"),
        ("a.ply", b"", "the file is empty"),
        ("a.ply", b"ply\nformat binary_little_endian 1.0\nend_header\n", "no element 'vertex'"),
        ("a.ply", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("a.spz", b"hello", "not an SPZ file"),
        ("a.sog", b"hello", "not a zip file"),
        ("a.zip", b"PK\5\6" + bytes(18), "a zip file without meta.json"),
        ("a.pth", b"hello", "expected a checkpoint"),
        ("a.splat", b"hello", "multiple of 32"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    path = write(tmp_path, name, data)
    for opened in (open_splats, summary):
        with pytest.raises(FormatError, match=message):
            opened(path)


@needs("PIL", "zstandard")
def test_a_summary_tells_of_what_is_missing(tmp_path: Path) -> None:
    """As far as it can be seen without reading all."""
    whole = written(spz_v4, False)(tmp_path / "a.spz")
    cut = write(tmp_path, "b.spz", whole.read_bytes()[:-1])
    folder = sog.folder_of(tmp_path / "0_0", *sog.scene(2))
    next(folder.glob("quats*")).unlink()
    for path, message in ((cut, "cut short"), (folder, "has no file 'quats")):
        for opened in (open_splats, summary):
            with pytest.raises(FormatError, match=message):
                opened(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names here")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.ply")
    with pytest.raises(StorageError, match="a pipe or a device"):
        summary(tmp_path / "a.ply")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be read"):
        open_splats(tmp_path / "none.ply")


@pytest.mark.parametrize("name", ALL)
@given(data=st.data())
@settings(
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_damaged_files_give_a_sane_model_or_an_error_of_ours(
    tmp_path: Path, name: str, data: st.DataObject
) -> None:
    """Cut short, bytes changed, bytes put in: never another exception, nor a model of NaN."""
    good = tmp_path / "good"
    if not good.exists():
        good.write_bytes(make(name, tmp_path)[1].read_bytes())
    raw = bytearray(good.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(len(raw) - 1, 0)))
        change = data.draw(st.sampled_from(["set", "cut", "insert", "ones"]))
        if change == "set" and raw:
            raw[at] = data.draw(st.integers(0, 255))
        elif change == "ones":
            raw[at : at + 4] = b"\xff" * len(raw[at : at + 4])
        elif change == "insert":
            raw[at:at] = data.draw(st.binary(max_size=8))
        else:
            del raw[at:]
    ending = ".splat" if name == "splat" else ".bin"
    path = write(tmp_path, f"bad{ending}", bytes(raw))
    try:
        model = open_splats(path)
    except PenstockError as error:
        assert str(path) in str(error) or "pip install" in str(error)
        return
    check_model(model, path)
    assert model.nbytes < 1 << 24
    summary(path)

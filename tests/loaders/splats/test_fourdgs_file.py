"""Scenes of .4dgs, written by the format's own library."""

from __future__ import annotations

import math
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.errors import (
    BackendMissingError,
    FormatError,
    StorageError,
    UnsupportedModelError,
)
from penstock.loaders.splats.fourdgs_file import (
    MAGIC,
    _axes,
    read_fourdgs,
    read_fourdgs_with_losses,
)
from penstock.loaders.splats.fourdgs_limits import CHUNK, CHUNK_START, RECORD, STREAM
from penstock.loaders.splats.harmonics import C0
from penstock.loaders.splats.model import SplatModel, named_arrays, select
from tests.loaders.splats.splat_builder import random_model, same_rotations, write
from tests.needs import needs

DURATION = 2.0


def scene(path: Path, model: SplatModel, **changed: Any) -> Path:
    """The model as a file, in fine steps."""
    import fourdgs

    motion = model.motion
    assert motion is not None
    n = model.count
    colours = np.clip(model.sh[:, 0] * C0 + 0.5, 0, 1)
    values = {
        "positions": model.means,
        "scales": model.scales,
        "rotations": model.rotations[:, [1, 2, 3, 0]],
        "colors": np.concatenate([colours, model.opacities[:, None]], axis=1),
        "motions": motion.velocities,
        "mu_t": motion.t_centers,
        "sigma_t": motion.t_sigmas,
        "win_lo": np.zeros(n, "f4"),
        "win_hi": np.full(n, DURATION, "f4"),
    }
    gaussians = fourdgs.GaussianSet(**(values | changed))
    with open(path, "wb") as out:
        fourdgs.write(out, gaussians, DURATION)
    return path


@needs("fourdgs")
def test_a_scene_comes_back_within_the_formats_steps(tmp_path: Path) -> None:
    model = random_model(60, 0, dynamic=True)
    found = read_fourdgs_with_losses(scene(tmp_path / "a.4dgs", model))
    back = found.model
    assert back.motion is not None and model.motion is not None
    assert (back.count, back.motion.start, back.motion.end) == (60, 0, DURATION)
    # the library puts splats into chunks of its own order
    order = [int(np.argmin(np.abs(back.means - mean).sum(axis=1))) for mean in model.means]
    assert len(set(order)) == 60
    assert np.allclose(back.means[order], model.means, atol=0.02)
    assert np.allclose(back.scales[order], model.scales, rtol=0.05)
    assert same_rotations(back.rotations[order], model.rotations, 1e-3)
    assert np.allclose(back.opacities[order], model.opacities, atol=0.02)
    assert np.allclose(back.motion.t_sigmas[order], model.motion.t_sigmas, rtol=0.05)
    assert np.allclose(back.motion.velocities[order], model.motion.velocities, atol=0.2)
    assert found.cut == 0 and found.boxed == 0


@needs("fourdgs")
def test_splats_that_never_fade(tmp_path: Path) -> None:
    model = random_model(3, 0, dynamic=True)
    sigma = np.array([np.inf, np.inf, 0.1], "f4")
    low, high = np.array([0, 0.5, 0.9], "f4"), np.array([DURATION, 1.5, 1.0], "f4")
    births = np.array([0.0, 0.0, 1.0], "f4")
    path = scene(tmp_path / "a.4dgs", model, sigma_t=sigma, win_lo=low, win_hi=high, mu_t=births)
    found = read_fourdgs_with_losses(path)
    motion = found.model.motion
    assert motion is not None and found.boxed == 1 and found.cut == 1
    order = np.argsort(motion.t_sigmas)
    cut, boxed, lasting = order
    assert np.isclose(motion.t_sigmas[cut], 0.1, rtol=0.1)
    weight = math.exp(-0.5 * (0.5 / float(motion.t_sigmas[boxed])) ** 2)
    assert np.isclose(motion.t_centers[boxed], 1) and math.isclose(weight, 0.05, rel_tol=1e-3)
    assert math.exp(-0.5 * (DURATION / float(motion.t_sigmas[lasting])) ** 2) > 1 - 1e-7
    # moved to the new centre, it is where it was at every time
    assert model.motion is not None
    expected = model.means[1] + model.motion.velocities[1] * 1.0
    assert np.allclose(found.model.means[boxed], expected, atol=0.05)


@needs("fourdgs")
@pytest.mark.parametrize("cut", [0, 8, 40, -9])
def test_cut_files_are_refused(tmp_path: Path, cut: int) -> None:
    data = scene(tmp_path / "a.4dgs", random_model(20, dynamic=True)).read_bytes()
    with pytest.raises(FormatError):
        read_fourdgs(write(tmp_path, "b.4dgs", data[:cut]))
    with pytest.raises(StorageError):
        read_fourdgs(tmp_path / "none.4dgs")


@needs("fourdgs")
def test_no_splats(tmp_path: Path) -> None:
    found = read_fourdgs(scene(tmp_path / "a.4dgs", random_model(0, dynamic=True)))
    assert found.count == 0 and found.motion is not None and found.motion.end == DURATION


def of_chunks(whole: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """A file in which something is done to each chunk's content."""
    out, at = whole[: len(MAGIC)], len(MAGIC)
    while at + RECORD.size <= len(whole):
        kind, nbytes = RECORD.unpack_from(whole, at)
        content = whole[at + RECORD.size : at + RECORD.size + nbytes]
        if kind == CHUNK:
            content = change(content)
        out += RECORD.pack(kind, len(content)) + content
        at += RECORD.size + nbytes
    return out + whole[at:]


@needs("fourdgs")
def test_a_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    """A chunk of equal splats, of which it says that there are millions."""
    equal = select(random_model(1, dynamic=True), np.zeros(5, np.int64))
    whole = scene(tmp_path / "a.4dgs", equal).read_bytes()
    many = 2_000_000

    def grown(content: bytes) -> bytes:
        chunk = bytearray(content)
        struct.pack_into("<I", chunk, CHUNK_START.size - 4, many)
        at = CHUNK_START.size + 4 + 8 + 8
        while at + STREAM.size <= len(chunk):
            fields = list(STREAM.unpack_from(chunk, at))
            fields[2:3], fields[5] = [2], many  # equal values
            STREAM.pack_into(chunk, at, *fields)
            at += STREAM.size + fields[6]
        return bytes(chunk)

    assert of_chunks(whole, bytes) == whole
    path = write(tmp_path, "b.4dgs", of_chunks(whole, grown))
    tracemalloc.start()
    with pytest.raises(FormatError, match="over 40 times as many"):
        read_fourdgs(path)
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


@needs("fourdgs")
def test_a_chunk_compressed_as_a_whole_is_refused(tmp_path: Path) -> None:
    whole = scene(tmp_path / "a.4dgs", random_model(3, dynamic=True)).read_bytes()
    at = CHUNK_START.size

    def named(content: bytes) -> bytes:
        return content[:at] + b"\4\0\0\0zstd" + content[at + 4 :]

    with pytest.raises(UnsupportedModelError, match="compressed as a whole"):
        read_fourdgs(write(tmp_path, "b.4dgs", of_chunks(whole, named)))


@needs("fourdgs")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_steps_that_are_not_numbers_are_refused(tmp_path: Path, value: float) -> None:
    """Each of the origin's three and of the eight steps, where the splats do not stay finite."""
    path = scene(tmp_path / "a.4dgs", random_model(3, dynamic=True))
    whole = bytearray(path.read_bytes())
    at, quantization = len(MAGIC), 0x03
    while RECORD.unpack_from(whole, at)[0] != quantization:
        at += RECORD.size + RECORD.unpack_from(whole, at)[1]
    at += RECORD.size
    at += 4 + int.from_bytes(whole[at : at + 4], "little")  # the scheme's name
    refused = 0
    for place in range(at, at + 8 * 11, 8):
        lie = bytearray(whole)
        struct.pack_into("<d", lie, place, value)
        path.write_bytes(lie)
        try:
            model = read_fourdgs(path)
        except FormatError as error:
            assert str(error).startswith(f"{path}: ")
            refused += 1
            continue
        assert all(np.isfinite(array).all() for array in named_arrays(model).values())
    assert refused >= 4


def test_without_the_library_its_name_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "fourdgs", None)
    with pytest.raises(BackendMissingError, match="penstock.fourdgs."):
        read_fourdgs(write(tmp_path, "a.4dgs", MAGIC))


class Frame:
    def __init__(self, up: int, forward: int, handedness: int, name: str = "") -> None:
        self.up_axis, self.forward_axis, self.handedness = up, forward, handedness
        self.name = name


class Scene:
    """What of a scene tells its frame."""

    def __init__(self, name: str | None = None, *frames: Frame) -> None:
        attributes = {} if name is None else {"coordinate_system": name}
        self.header = type("Header", (), {"attributes": attributes})()
        self.provenance = type("Provenance", (), {"frames": list(frames)})()


def test_frames_of_files(tmp_path: Path) -> None:
    flip = np.diag([1.0, -1, -1])
    assert np.array_equal(_axes(tmp_path, Scene()), np.eye(3))
    assert np.array_equal(_axes(tmp_path, Scene("y-up-right-handed")), flip)
    z_up = _axes(tmp_path, Scene("z-up-right-handed"))
    assert np.array_equal(z_up, [[1, 0, 0], [0, 0, -1], [0, 1, 0]])
    y, z, minus_y, minus_z = 1, 2, 4, 5
    assert np.array_equal(_axes(tmp_path, Scene(None, Frame(y, minus_z, 1))), flip)
    assert np.array_equal(_axes(tmp_path, Scene(None, Frame(z, y, 0))), z_up)
    assert np.array_equal(_axes(tmp_path, Scene("unknown", Frame(minus_y, z, 1))), np.eye(3))
    assert np.array_equal(_axes(tmp_path, Scene(None, Frame(y, z, 2))), np.diag([1.0, -1, 1]))
    rig = Frame(z, y, 1, "rig")
    assert np.array_equal(_axes(tmp_path, Scene(None, rig)), np.eye(3))
    assert np.array_equal(_axes(tmp_path, Scene(None, rig, Frame(y, minus_z, 1))), flip)
    for wrong in (Scene("left"), Scene(None, Frame(y, minus_y, 1)), Scene(None, Frame(6, y, 1))):
        with pytest.raises(FormatError):
            _axes(tmp_path, wrong)

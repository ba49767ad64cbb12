"""4D rotor splats from checkpoints, npz and PLY: the same splats from each, lies refused."""

from __future__ import annotations

import io
import math
import zipfile
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.errors import FormatError, StorageError, UnsupportedModelError, UsageError
from penstock.loaders.splats.array_archive import read_arrays, write_arrays
from penstock.loaders.splats.covariance import covariances
from penstock.loaders.splats.model import SplatModel
from penstock.loaders.splats.rotor_file import (
    read_rotor_file,
    read_rotors,
    write_rotor_npz,
)
from penstock.loaders.splats.rotors import Rotors, band_losses, model_of_rotors
from tests.loaders.splats.splat_builder import ply_bytes, random_model, write
from tests.needs import needs


def random_rotors(count: int = 6, bands: int = 3, coefficients: int = 16, seed: int = 0) -> Rotors:
    rng = np.random.default_rng(seed)

    def numbers(*shape: int) -> Any:
        return rng.normal(size=(count, *shape)).astype("f4")

    return Rotors(
        xyz=numbers(3),
        t=rng.uniform(0, 10, count).astype("f4"),
        scales=(numbers(4) - 3).astype("f4"),
        left=numbers(4),
        right=numbers(4),
        logits=numbers(),
        sh=numbers(bands * coefficients, 3),
        bands=bands,
        start=0.0,
        end=10.0,
    )


def checkpoint(path: Path, rotors: Rotors, iteration: int | None = 30_000, **changed: Any) -> Path:
    """As training writes it: parameters, what densification needs, and the optimizer."""
    import torch

    def parameter(array: Any) -> Any:
        return torch.nn.Parameter(torch.from_numpy(np.array(array)))

    n = len(rotors.xyz)
    state: OrderedDict[str, Any] = OrderedDict(
        active_sh_degree=3,
        xyz=parameter(rotors.xyz),
        features_dc=parameter(rotors.sh[:, :1]),
        features_rest=parameter(rotors.sh[:, 1:]),
        scaling=parameter(rotors.scales[:, :3]),
        rotation=parameter(rotors.left),
        opacity=parameter(rotors.logits[:, None]),
        max_radii2D=torch.zeros(n),
        xyz_gradient_accum=torch.zeros(n, 1),
        t_gradient_accum=torch.zeros(n, 1),
        denom=torch.zeros(n, 1),
        optimizer={"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.0}]},
        spatial_lr_scale=5.0,
        t=parameter(rotors.t[:, None]),
        scaling_t=parameter(rotors.scales[:, 3:]),
        rotation_r=parameter(rotors.right),
        rot_4d=True,
        env_map=torch.empty(0),
        active_sh_degree_t=2,
    )
    state.update(changed)
    held = tuple(state.values())
    torch.save(held if iteration is None else (held, iteration), path)
    return path


def rotor_ply(rotors: Rotors, ours: bool = True) -> bytes:
    rest = rotors.sh.shape[1] - 1
    names = ["x", "y", "z", "t", "f_dc_0", "f_dc_1", "f_dc_2"]
    names += [f"f_rest_{i}" for i in range(3 * rest)]
    names += ["opacity", "scale_0", "scale_1", "scale_2", "scale_t" if ours else "scale_3"]
    names += [f"rot_{i}" for i in range(4)]
    names += [f"rot_r_{i}" if ours else f"rot_{4 + i}" for i in range(4)]
    rows = [
        [
            *rotors.xyz[i],
            rotors.t[i],
            *rotors.sh[i, 0],
            *rotors.sh[i, 1:].T.ravel(),
            rotors.logits[i],
            *rotors.scales[i],
            *rotors.left[i],
            *rotors.right[i],
        ]
        for i in range(len(rotors.xyz))
    ]
    comments = ["sogst.time_min 0", "sogst.time_max 10"] if ours else []
    return ply_bytes([("vertex", [("float", name) for name in names], rows)], comments)


def rotor_npz(path: Path, rotors: Rotors, **changed: Any) -> Path:
    arrays = {
        "version": np.array(1),
        "bands": np.array(rotors.bands),
        "time": np.array([rotors.start, rotors.end]),
        "xyz": rotors.xyz,
        "t": rotors.t,
        "scale": rotors.scales,
        "rot_l": rotors.left,
        "rot_r": rotors.right,
        "opacity": rotors.logits,
        "sh": rotors.sh,
    }
    write_arrays(path, {k: v for k, v in (arrays | changed).items() if v is not None})
    return path


def same(a: SplatModel, b: SplatModel) -> bool:
    assert a.motion is not None and b.motion is not None
    pairs = [(a.means, b.means), (a.scales, b.scales), (a.rotations, b.rotations)]
    pairs += [(a.opacities, b.opacities), (a.sh, b.sh), (a.motion.velocities, b.motion.velocities)]
    pairs += [(a.motion.t_centers, b.motion.t_centers), (a.motion.t_sigmas, b.motion.t_sigmas)]
    return all(np.allclose(x, y, rtol=1e-5, atol=1e-6) for x, y in pairs)


def test_a_splat_at_each_time_is_the_4d_gaussian(tmp_path: Path) -> None:
    """Against the 4D density itself: its maximum over space at a time, and its value there."""
    rotors = random_rotors(4)
    model = model_of_rotors(rotors, "here")
    assert model.motion is not None
    for i in range(4):
        a, b, c, d = rotors.left[i] / np.linalg.norm(rotors.left[i])
        p, q, r, s = rotors.right[i] / np.linalg.norm(rotors.right[i])
        turn = np.array([[a, -b, -c, -d], [b, a, -d, c], [c, d, a, -b], [d, -c, b, a]]) @ np.array(
            [[p, q, r, s], [-q, p, -s, r], [-r, s, p, -q], [-s, -r, q, p]]
        )
        factor = turn[::-1, ::-1] * np.exp(rotors.scales[i].astype(float))
        precision = np.linalg.inv(factor @ factor.T)
        t = rotors.t[i] + 0.03
        mean = model.means[i] + model.motion.velocities[i] * (t - rotors.t[i])
        offset = np.array([*(mean - rotors.xyz[i]), t - rotors.t[i]])
        exponent = offset @ precision @ offset
        weight = ((t - rotors.t[i]) / model.motion.t_sigmas[i]) ** 2
        assert np.isclose(exponent, weight, rtol=1e-3, atol=1e-6)
        gradient = (precision @ offset)[:3]
        assert np.allclose(gradient, 0, atol=1e-3 * np.abs(precision).max())


def test_bands_of_time_are_summed_and_their_loss_is_told() -> None:
    rotors = random_rotors(5)
    model = model_of_rotors(rotors, "here")
    assert model.degree == 3
    expected = rotors.sh[:, :16] + rotors.sh[:, 16:32] + rotors.sh[:, 32:]
    assert np.allclose(model.sh, expected, atol=1e-6)
    assert model.motion is not None
    lost = band_losses(rotors, model.motion.t_sigmas)
    assert 0 < lost.mean <= lost.largest
    quiet = replace(rotors, sh=rotors.sh * (np.arange(48) < 16)[:, None].astype("f4"))
    assert band_losses(quiet, model.motion.t_sigmas).largest == 0
    # a band of one coefficient c, sigma so long that its cosine turns about: 2 c of 0.28
    one = replace(quiet, sh=quiet.sh * 0)
    one.sh[:, 16] = 0.5
    assert math.isclose(band_losses(one, np.full(5, 1e3)).largest, 0.2820948, rel_tol=1e-5)


@pytest.mark.parametrize(("bands", "coefficients"), [(1, 1), (3, 1), (2, 4), (3, 9), (1, 16)])
def test_npz_and_ply_give_the_same_splats(tmp_path: Path, bands: int, coefficients: int) -> None:
    rotors = random_rotors(7, bands, coefficients)
    expected = model_of_rotors(rotors, "here")
    npz = read_rotor_file(rotor_npz(tmp_path / "a.npz", rotors))
    ply = read_rotor_file(write(tmp_path, "a.ply", rotor_ply(rotors)))
    other = read_rotor_file(write(tmp_path, "b.ply", rotor_ply(rotors, ours=False)), 10.0)
    for model in (npz, ply, other):
        assert same(model, expected)
        assert model.motion is not None and (model.motion.start, model.motion.end) == (0, 10)


def test_a_length_begins_where_the_file_says_that_the_scene_does(tmp_path: Path) -> None:
    rotors = replace(random_rotors(3), start=2.0, end=7.0)
    npz = rotor_npz(tmp_path / "a.npz", rotors)
    timed = rotor_ply(rotors).replace(b"time_min 0", b"time_min 2").replace(b"max 10", b"max 7")
    files = (npz, write(tmp_path, "a.ply", timed))
    assert [(r.start, r.end) for r in map(read_rotors, files)] == [(2, 7)] * 2
    assert [(r.start, r.end) for r in (read_rotors(f, 3.0) for f in files)] == [(2, 5)] * 2
    for path in (
        rotor_npz(npz, rotors, time=None),
        write(tmp_path, "b.ply", rotor_ply(rotors, False)),
    ):
        found = read_rotors(path, 3.0)
        assert (found.start, found.end) == (0, 3)


@needs("torch")
@pytest.mark.parametrize("iteration", [30_000, None])
def test_checkpoints_give_the_same_splats(tmp_path: Path, iteration: int | None) -> None:
    rotors = random_rotors(7)
    path = checkpoint(tmp_path / "a.pth", rotors, iteration)
    assert same(read_rotor_file(path), model_of_rotors(rotors, "here"))
    found = read_rotors(path)
    assert (found.start, found.end) == (float(rotors.t.min()), float(rotors.t.max()))
    assert (read_rotors(path, 2.0).start, read_rotors(path, 2.0).end) == (0, 2)


@needs("torch")
def test_what_is_no_such_checkpoint_is_refused(tmp_path: Path) -> None:
    import torch

    rotors = random_rotors(3)
    path = tmp_path / "a.pth"
    with pytest.raises(UnsupportedModelError, match="without 4D rotations"):
        read_rotor_file(checkpoint(path, rotors, rot_4d=False))
    with pytest.raises(UnsupportedModelError, match="holds a tuple of 3"):
        torch.save((1, 2, 3), path)
        read_rotor_file(path)
    with pytest.raises(UnsupportedModelError, match="holds dict"):
        torch.save({"a": torch.ones(2)}, path)
        read_rotor_file(path)
    with pytest.raises(FormatError, match="never runs its code"):
        torch.save((Path("x"), 1), path)
        read_rotor_file(path)
    wrong: list[dict[str, Any]] = [
        {"xyz": "text"},
        {"xyz": torch.ones(3, 3, dtype=torch.int32)},
        {"t": torch.ones(3)},
        {"t": torch.ones(3, 0)},
        {"t": torch.ones(4, 1)},
        {"features_rest": torch.ones(3, 47, 4)},
        {"features_rest": torch.ones(3, 46, 3)},
        {"rotation": torch.zeros(3, 4)},
        {"rotation": torch.ones(3, 5)},
        {"scaling": torch.full((3, 3), math.nan)},
        {"scaling": torch.full((3, 3), 200.0)},
        {"opacity": torch.ones(1, 1).expand(3, 1)},
        {"xyz": torch.ones(3, 3, device="meta")},
    ]
    for changed in wrong:
        with pytest.raises(FormatError):
            read_rotor_file(checkpoint(path, rotors, **changed))


@needs("torch")
def test_damaged_and_packed_checkpoints_are_refused(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "a.pth", random_rotors(3))
    data = path.read_bytes()
    for cut in (4, 100, len(data) // 2, len(data) - 1):
        with pytest.raises(FormatError):
            read_rotor_file(write(tmp_path, "b.pth", data[:cut]))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as out, zipfile.ZipFile(path) as old:
        for entry in old.infolist():
            out.writestr(entry.filename, old.read(entry))
    with pytest.raises(FormatError, match="would become more"):
        read_rotor_file(write(tmp_path, "c.pth", packed.getvalue()))


@given(seed=st.integers(0, 2**32 - 1), degree=st.integers(0, 3), count=st.integers(0, 20))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_models_written_as_rotors_come_back(
    tmp_path: Path, seed: int, degree: int, count: int
) -> None:
    model = random_model(count, degree, dynamic=True, seed=seed)
    path = tmp_path / "a.npz"
    write_rotor_npz(path, model)
    back = read_rotor_file(path)
    assert model.motion is not None and back.motion is not None
    assert np.array_equal(back.means, model.means)
    assert np.allclose(back.sh[:, : model.sh.shape[1]], model.sh) and back.degree == 3
    assert np.allclose(back.opacities, model.opacities, rtol=1e-5)
    assert np.allclose(back.motion.t_sigmas, model.motion.t_sigmas, rtol=1e-4)
    assert np.allclose(back.motion.velocities, model.motion.velocities, rtol=1e-3, atol=1e-3)
    for got, expected in zip(
        covariances(back.scales, back.rotations),
        covariances(model.scales, model.rotations),
        strict=True,
    ):
        assert np.allclose(got, expected, rtol=1e-2, atol=1e-4 * float(expected.max()))
    assert (back.motion.start, back.motion.end, back.motion.fps) == (0, 2, 30)


def test_a_splat_takes_644_bytes(tmp_path: Path) -> None:
    sizes = []
    for count in (100, 200):
        write_rotor_npz(tmp_path / "a.npz", random_model(count, 3, dynamic=True))
        sizes.append((tmp_path / "a.npz").stat().st_size)
    assert sizes[1] - sizes[0] == 64_400
    with pytest.raises(UsageError, match="static"):
        write_rotor_npz(tmp_path / "b.npz", random_model(3))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"xyz": None}, "has no array xyz"),
        ({"time": None}, "has no array time"),
        ({"version": np.array(2)}, "layout version 2"),
        ({"version": np.array([1, 1])}, "should be one number"),
        ({"bands": np.array(math.nan)}, "should be one number"),
        ({"bands": np.array(4)}, "bands of time"),
        ({"bands": np.array(0)}, "bands of time"),
        ({"time": np.array([0.0])}, "expected 2"),
        ({"time": np.array([5.0, 1.0])}, "before its start"),
        ({"t": np.zeros(5, "f4")}, "t is float32 of shape"),
        ({"xyz": np.full((6, 3), 1e300)}, "xyz of splat 0"),
        ({"rot_r": np.zeros((6, 4), "f4")}, "right of splat 0"),
        ({"sh": np.zeros((6, 10, 3), "f4")}, "sh has shape"),
        ({"opacity": np.array(["a"])}, "expected numbers"),
    ],
)
def test_lies_of_npz_files(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    path = rotor_npz(tmp_path / "a.npz", random_rotors(6), **changed)
    with pytest.raises(FormatError, match=message):
        read_rotor_file(path)


def test_arrays_that_announce_more_than_there_is(tmp_path: Path) -> None:
    """NumPy's own reader would ask for these bytes at once."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (1 << 40,)}
    )
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("xyz.npy", header.getvalue() + bytes(16))
    with pytest.raises(FormatError, match="of shape"):
        read_arrays(path)
    for data in (b"", b"\x93NUMPY\x01\x00\x10\x00{'descr': 'O'}  \n", b"\x93NUMPY\x09\x00"):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("xyz.npy", data)
        with pytest.raises(FormatError, match="damaged header"):
            read_arrays(path)


def test_archives_that_would_grow_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xyz.npy", bytes(64 << 20))
    with pytest.raises(FormatError, match="no real scene compresses so"):
        read_arrays(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "x")
    with pytest.raises(FormatError, match="expected one array"):
        read_arrays(path)


def test_objects_are_not_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, xyz=np.array([{"a": 1}], dtype=object))
    with pytest.raises(FormatError, match="expected numbers"):
        read_arrays(path)


def test_fortran_order_and_other_types(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    wanted = {"a": np.asfortranarray(np.arange(6.0).reshape(2, 3)), "b": np.array([1], ">i4")}
    np.savez_compressed(path, **wanted)  # type: ignore[arg-type]
    got = read_arrays(path)
    assert all(np.array_equal(got[name], wanted[name]) for name in wanted)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="expected a checkpoint"):
        read_rotor_file(write(tmp_path, "a.pth", b"\x80\x02hello"))
    with pytest.raises(StorageError):
        read_rotor_file(tmp_path / "none.pth")

"""The page's layout, unpacked here as the page's shader does it."""

from __future__ import annotations

import json
import struct
import sys
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from penstock.loaders.splats.model import SplatModel, select
from penstock.runtime.splats.page_model import page_model
from tests.runtime.splats.scenes import random_model


def unpacked(data: bytes) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The header, and the arrays with the shapes that the format's description gives."""
    magic, version, length, zero = struct.unpack("<4sIII", data[:16])
    assert (magic, version, zero, length % 16) == (b"PSVW", 1, 0, 0)
    header = json.loads(data[16 : 16 + length])
    types = {"places": "<f4", "shapes": "<u4", "tints": "<u4", "motions": "<f4", "harmonics": "<u4"}
    arrays, end = {}, 0
    for name, place in header["arrays"].items():
        assert place["offset"] == end and end % 8 == 0
        begin = 16 + length + place["offset"]
        values = np.frombuffer(data[begin : begin + place["bytes"]], types[name])
        width = 2 if name == "tints" else 4
        arrays[name] = values.reshape(-1, width)
        end += place["bytes"]
    assert len(data) == 16 + length + end
    return header, arrays


def halves(words: NDArray[Any]) -> NDArray[np.float32]:
    """[n, m] words as [n, 2 m] numbers."""
    return np.ascontiguousarray(words).view("<f2").astype(np.float32)


def harmonics_of(header: dict[str, Any], words: NDArray[Any], count: int) -> NDArray[np.float32]:
    """[count, k - 1, 3], a byte at a time as the shader takes them."""
    k = (header["degree"] + 1) ** 2
    out = np.zeros((count, k - 1, 3), np.float32)
    for number in range(3 * (k - 1)):
        texel = words[(number >> 4) * count : ((number >> 4) + 1) * count]
        word = texel[:, (number >> 2) & 3]
        value = (word << np.uint32(24 - 8 * (number & 3))).astype(np.uint32).view(np.int32) >> 24
        coefficient = number // 3 + 1
        degree = int(np.sqrt(coefficient))
        out[:, number // 3, number % 3] = value * header["sh_scales"][degree - 1] / 127
    return out


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_everything_comes_back(degree: int, dynamic: bool) -> None:
    model = random_model(61, degree=degree, dynamic=dynamic, seed=degree)
    data = page_model(model, {"name": "a <b> \u732b"})
    header, arrays = unpacked(data)
    assert header["name"] == "a <b> \u732b"
    assert (header["count"], header["degree"], header["dynamic"]) == (61, degree, dynamic)
    assert (arrays["places"][:, :3] == model.means).all()
    pairs = np.ascontiguousarray(arrays["shapes"][:, :2]).view("<i2") / 32767
    assert np.abs(pairs - model.rotations).max() <= 0.51 / 32767
    logs = halves(arrays["shapes"][:, 2:])
    assert np.abs(np.exp(logs[:, :3]) / model.scales - 1).max() < 4e-3
    assert np.abs(logs[:, 3] - model.opacities).max() < 5e-4
    tints = halves(arrays["tints"])
    assert np.abs(tints[:, :3] - model.sh[:, 0]).max() < 1e-3 and (tints[:, 3] == 0).all()
    if model.motion is None:
        assert "motions" not in arrays and (arrays["places"][:, 3] == 0).all()
    else:
        assert (arrays["places"][:, 3] == model.motion.t_sigmas).all()
        assert (arrays["motions"][:, :3] == model.motion.velocities).all()
        assert (arrays["motions"][:, 3] == model.motion.t_centers).all()
        assert (header["start"], header["end"], header["fps"]) == (0.0, 2.0, 10.0)
    if degree:
        found = harmonics_of(header, arrays["harmonics"], 61)
        assert np.abs(found - model.sh[:, 1:]).max() <= 0.51 * max(header["sh_scales"]) / 127
    else:
        assert "harmonics" not in arrays
    sizes = {(0, False): 40, (3, True): 104}
    if (degree, dynamic) in sizes:
        assert len(data) - data.index(b"}}") < 61 * sizes[degree, dynamic] + 32


def test_no_splats() -> None:
    for dynamic in (False, True):
        empty = select(random_model(3, degree=2, dynamic=dynamic), np.arange(0))
        header, arrays = unpacked(page_model(empty, {}))
        assert header["count"] == 0 and header["sh_scales"] == [0.0, 0.0, 0.0]
        assert all(len(array) == 0 for array in arrays.values())


def test_extremes_stay_numbers() -> None:
    """Scales of 0, huge coefficients, arrays that are not in order of rows."""
    model = random_model(5, degree=3, seed=1)
    scales, sh = model.scales.copy(), model.sh.copy()
    scales[0] = (0, 1e30, 1e-30)
    sh[1, 0] = (1e9, -1e9, 0)
    sh[:, 1:4] = 1e-38
    sh[2, 5, 1] = 3e38
    turned = np.asfortranarray(model.rotations)
    odd = SplatModel(model.means, scales, turned, model.opacities, sh)
    header, arrays = unpacked(page_model(odd, {}))
    assert np.isfinite(halves(arrays["shapes"][:, 2:])).all()
    assert np.isfinite(halves(arrays["tints"])).all()
    pairs = np.ascontiguousarray(arrays["shapes"][:, :2]).view("<i2") / 32767
    assert np.abs(pairs - model.rotations).max() <= 0.51 / 32767
    found = harmonics_of(header, arrays["harmonics"], 5)
    assert np.isfinite(found).all()
    assert found[2, 4, 1] == pytest.approx(header["sh_scales"][1], rel=1e-6)  # cut
    others = np.array([0, 1, 3, 4])
    bound = 0.51 * max(header["sh_scales"]) / 127
    assert np.abs(found - sh[:, 1:])[others].max() <= bound < 0.05


def test_one_huge_coefficient_leaves_the_other_splats_their_colours() -> None:
    model = random_model(2000, degree=3, seed=4)
    sh = model.sh.copy()
    sh[7, 2, 1] = sh[7, 9, 0] = 50.0
    sh[8] = 0.0
    odd = SplatModel(model.means, model.scales, model.rotations, model.opacities, sh)
    header, arrays = unpacked(page_model(odd, {}))
    found = harmonics_of(header, arrays["harmonics"], 2000)
    usual = unpacked(page_model(model, {}))[0]["sh_scales"]
    wrong = np.abs(found - sh[:, 1:])
    wrong[7] = 0
    assert wrong.max() <= 0.51 * 2 * max(usual) / 127 < 0.03
    assert 0 < found[7, 1, 1] <= 2 * usual[0]
    sh[:] = 0.0
    sh[7, 2, 1] = 50.0  # nobody else has any
    header, arrays = unpacked(page_model(odd, {}))
    assert header["sh_scales"] == [50.0, 0.0, 0.0]
    assert harmonics_of(header, arrays["harmonics"], 2000)[7, 1, 1] == pytest.approx(50.0)


@pytest.mark.skipif(sys.byteorder != "little", reason="compares with the machine's own order")
def test_a_layout_that_was_written_down() -> None:
    """One splat, byte for byte: a browser's tab may have a page older than the server."""
    model = SplatModel(
        np.array([[1, 2, 3]], np.float32),
        np.array([[1, 1, 1]], np.float32),
        np.array([[1, 0, 0, 0]], np.float32),
        np.array([1], np.float32),
        np.array([[[0.5, 1, 2]]], np.float32),
    )
    data = page_model(model, {})
    body = data[16 + struct.unpack("<I", data[8:12])[0] :]
    wanted = struct.pack("<4f", 1, 2, 3, 0) + struct.pack("<4h", 32767, 0, 0, 0)
    wanted += struct.pack("<4e", 0, 0, 0, 1) + struct.pack("<4e", 0.5, 1, 2, 0)
    assert body == wanted

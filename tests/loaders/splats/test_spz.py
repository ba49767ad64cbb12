"""SPZ of every version: fields by hand, frames, round trips, real files, bombs and lies."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from penstock.errors import FormatError, UnsupportedModelError, UsageError
from penstock.loaders.splats.compressed_ply import read_compressed_ply
from penstock.loaders.splats.covariance import covariances
from penstock.loaders.splats.model import SplatModel
from penstock.loaders.splats.spz import read_spz
from penstock.loaders.splats.spz_container import axes_of_code, read_spz_header
from penstock.loaders.splats.spz_writer import write_spz
from tests.loaders.splats.splat_builder import (
    random_model,
    same_rotations,
    spz_gzip,
    spz_payload,
    spz_rotation,
    spz_zstd,
    static_models,
    write,
)
from tests.needs import needs

Splat = tuple[tuple[float, float, float], int, bytes, bytes, bytes, bytes]
BAD_EXTENSION = struct.pack("<II", 7, 100)


def splat(version: int, sh: bytes = b"", x: float = 1.5) -> Splat:
    """Turned by 90 degrees about x: x, y, z, w of 0.71, 0, 0, 0.71."""
    half = math.sqrt(0.5)
    rotation = spz_rotation((half, 0, 0, half)) if version >= 3 else bytes([218, 128, 128])
    return (x, -2.0, 0.25), 51, bytes([0, 128, 255]), bytes([0, 160, 112]), rotation, sh


@pytest.mark.parametrize("version", [1, 2, 3])
def test_fields_of_gzip_versions(tmp_path: Path, version: int) -> None:
    data = spz_gzip(version, spz_payload(version, [splat(version)]), 1)
    check_fields(read_spz(write(tmp_path, "a.spz", data)), version)


@needs("zstandard")
def test_fields_of_version_4(tmp_path: Path) -> None:
    data = spz_zstd(spz_payload(4, [splat(4)]), 1)
    check_fields(read_spz(write(tmp_path, "a.spz", data)), 4)


def check_fields(model: SplatModel, version: int) -> None:
    """Of `splat`, in the model's frame: y and z are turned about."""
    assert model.means.tolist() == [[1.5, 2.0, -0.25]]
    assert np.allclose(np.log(model.scales), [[-10, 0, -3]], atol=1e-5)
    assert np.allclose(model.opacities, 0.2)
    colours = [(c / 255 - 0.5) / 0.15 for c in (0, 128, 255)]
    assert np.allclose(model.sh[0, 0], colours, atol=1e-6)
    # R about x by 90 degrees commutes with the change of axes, half a turn about x
    half = math.sqrt(0.5)
    seen = covariances(model.scales, model.rotations)[0]
    turned = covariances(model.scales, np.array([[half, half, 0, 0]]))[0]
    assert np.allclose(seen, turned, atol=0.02 if version < 3 else 2e-3)


def test_harmonics_are_coefficient_by_coefficient(tmp_path: Path) -> None:
    sh = bytes([0, 64, 128, 192, 255, 130, 126, 128, 128])
    data = spz_gzip(3, spz_payload(3, [splat(3, sh)]), 1, degree=1)
    model = read_spz(write(tmp_path, "a.spz", data))
    values = (np.frombuffer(sh, np.uint8).reshape(3, 3) - 128.0) / 128
    assert np.allclose(model.sh[0, 1:], values * [[-1], [-1], [1]])  # y, z and x of the frame


def test_degree_4_is_left_out(tmp_path: Path) -> None:
    sh = bytes([200] * 45 + [0] * 27)
    data = spz_gzip(3, spz_payload(3, [splat(3, sh)] * 2), 2, degree=4)
    path = write(tmp_path, "a.spz", data)
    model = read_spz(path)
    assert model.degree == 3 and (np.abs(model.sh[:, 1:]) == (200 - 128) / 128).all()
    assert read_spz_header(path).degree == 4


def test_positions_have_24_bits_and_a_sign(tmp_path: Path) -> None:
    farthest = (2**23 - 1) / 2**4
    splats = [splat(3, x=farthest), splat(3, x=-(2**23) / 2**4), splat(3, x=-1 / 16)]
    data = spz_gzip(3, spz_payload(3, splats, 4), 3, fraction=4)
    means = read_spz(write(tmp_path, "a.spz", data)).means
    assert means[:, 0].tolist() == [np.float32(farthest), -(2**19), -1 / 16]


def test_no_splats_of_any_version(tmp_path: Path) -> None:
    for version in (1, 2, 3):
        data = spz_gzip(version, [], 0, degree=2)
        assert read_spz(write(tmp_path, "a.spz", data)).count == 0


@needs("zstandard")
def test_no_splats_of_version_4(tmp_path: Path) -> None:
    assert read_spz(write(tmp_path, "a.spz", spz_zstd([], 0))).count == 0


@needs("zstandard")
@pytest.mark.parametrize("code", range(17))
def test_extensions_name_the_frame(tmp_path: Path, code: int) -> None:
    records = struct.pack("<II4s", 0x12340001, 4, b"none") + struct.pack(
        "<III", 0xADBE0003, 4, code
    )
    payload = spz_payload(4, [splat(4)])
    zstd = write(tmp_path, "a.spz", spz_zstd(payload, 1, flags=2, extensions=records))
    gzip = write(tmp_path, "b.spz", spz_gzip(3, payload, 1, flags=2, trailer=records))
    expected = axes_of_code(zstd, code) @ [1.5, -2, 0.25]
    for path in (zstd, gzip):
        assert np.allclose(read_spz(path).means[0], expected)


def test_frames_are_what_their_letters_say(tmp_path: Path) -> None:
    letters = {1: "LDB", 2: "RDB", 4: "RUB", 6: "RDF", 8: "RUF", 9: "LBD", 12: "RBU", 16: "RFU"}
    directions = {"R": [1, 0, 0], "L": [-1, 0, 0], "D": [0, 1, 0], "U": [0, -1, 0]}
    directions |= {"F": [0, 0, 1], "B": [0, 0, -1]}
    for code, names in letters.items():
        axes = axes_of_code(tmp_path, code)
        for i, letter in enumerate(names):
            assert axes[:, i].tolist() == directions[letter], names
    with pytest.raises(FormatError, match="frame number 17"):
        axes_of_code(tmp_path, 17)


@given(static_models)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("version", [3, pytest.param(4, marks=needs("zstandard"))])
def test_what_is_written_comes_back(
    tmp_path: Path, version: Literal[3, 4], model: SplatModel
) -> None:
    write_spz(tmp_path / "a.spz", model, version)
    back = read_spz(tmp_path / "a.spz")
    assert back.count == model.count and back.degree == model.degree
    assert np.allclose(back.means, model.means, atol=2**-13 + 1e-6)
    assert np.allclose(np.log(back.scales), np.log(model.scales), atol=1 / 32 + 1e-4)
    assert np.allclose(back.opacities, model.opacities, atol=0.5 / 255 + 1e-6)
    assert np.allclose(back.sh[:, 0], model.sh[:, 0], atol=0.5 / 38.25 + 1e-5)
    assert np.allclose(back.sh[:, 1:], model.sh[:, 1:], atol=1 / 16 + 1 / 128 + 1e-5)
    # three components of a step of 0.7 / 511 each
    assert same_rotations(back.rotations, model.rotations, 1e-5)


def test_a_large_scene_gets_fewer_bits_after_the_point(tmp_path: Path) -> None:
    model = random_model(3)
    model.means[0] = [5000, 0, 0]
    write_spz(tmp_path / "a.spz", model)
    assert read_spz_header(tmp_path / "a.spz").fraction == 10
    assert read_spz(tmp_path / "a.spz").means[0, 0] == 5000
    model.means[0] = [1e8, 0, 0]
    with pytest.raises(UsageError, match="from the origin"):
        write_spz(tmp_path / "b.spz", model)
    with pytest.raises(UsageError, match="no motion"):
        write_spz(tmp_path / "b.spz", random_model(dynamic=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 0}, "version 0"),
        ({"version": 9}, "version 9"),
        ({"degree": 5}, "SH degree 5"),
        ({"fraction": 25}, "25 fractional bits"),
        ({"count": 2**32 - 1}, "more than"),
        ({"count": 2}, "ends in the"),
        ({"degree": 1}, "ends in the sh, after 0 of 9"),
        ({"flags": 2, "trailer": BAD_EXTENSION}, "does not fit"),
        ({"flags": 2, "trailer": b"abc"}, "does not fit"),
    ],
)
def test_lies_of_gzip_headers(tmp_path: Path, change: dict[str, int], message: str) -> None:
    values = {"version": 3, "count": 1} | change
    version = values.pop("version")
    count = values.pop("count")
    data = spz_gzip(version, spz_payload(3, [splat(3)]), count, **values)  # type: ignore[arg-type]
    with pytest.raises(FormatError, match=message):
        read_spz(write(tmp_path, "a.spz", data))


@needs("zstandard")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 5}, "version 5"),
        ({"streams": 4}, "4 streams"),
        ({"table": 16}, "inside the header"),
        ({"table": 1 << 30}, "needs 80 bytes"),
        ({"count": 2}, "9 bytes of positions"),
        ({"degree": 1}, "5 streams"),
        ({"degree": 9}, "SH degree 9"),
    ],
)
def test_lies_of_version_4(tmp_path: Path, change: dict[str, int], message: str) -> None:
    values: dict[str, Any] = {"count": 1, **change}
    data = spz_zstd(spz_payload(4, [splat(4)]), **values)
    with pytest.raises(FormatError, match=message):
        read_spz(write(tmp_path, "a.spz", data))


@needs("zstandard")
def test_frames_that_become_more_or_fewer_bytes(tmp_path: Path) -> None:
    import zstandard

    good = spz_zstd(spz_payload(4, [splat(4)]), 1)
    first = struct.unpack_from("<Q", good, 32)[0]
    begin = 32 + 5 * 16
    for size in (8, 10, 1 << 30):
        frame = zstandard.compress(bytes(min(size, 100)))
        if size == 1 << 30:  # what the frame's own header announces
            frame = b"\x28\xb5\x2f\xfd\xa0" + struct.pack("<I", size) + frame[6:]
        data = good[:32] + struct.pack("<Q", len(frame)) + good[40:begin] + frame
        data += good[begin + first :]
        with pytest.raises(FormatError, match="the stream of positions"):
            read_spz(write(tmp_path, "a.spz", data))


def test_bombs_are_refused_before_they_are_unpacked(tmp_path: Path) -> None:
    count = 4_000_000
    parts = [bytes(count * width) for width in (9, 1, 3, 3, 4)]
    path = write(tmp_path, "a.spz", spz_gzip(3, parts, count))
    assert path.stat().st_size < 200_000
    with pytest.raises(FormatError, match="no real scene compresses so"):
        read_spz(path)
    with pytest.raises(FormatError, match="no real scene compresses so"):
        read_spz_header(path)


@pytest.mark.parametrize("cut", [1, 10, 17, 18, 30, -1, -5, -9])
def test_cut_gzip_files_are_refused(tmp_path: Path, cut: int) -> None:
    data = spz_gzip(3, spz_payload(3, [splat(3)] * 20), 20)
    with pytest.raises(FormatError):
        read_spz(write(tmp_path, "a.spz", data[:cut]))


def test_a_wrong_checksum_is_refused(tmp_path: Path) -> None:
    data = bytearray(spz_gzip(3, spz_payload(3, [splat(3)]), 1))
    data[-6] ^= 1
    with pytest.raises(FormatError, match="gzip data is damaged"):
        read_spz(write(tmp_path, "a.spz", bytes(data)))


def test_a_drafts_range_of_colours_is_named(tmp_path: Path) -> None:
    record = struct.pack("<II", 0xADBE0001, 10) + bytes(10)
    data = spz_gzip(3, spz_payload(3, [splat(3)]), 1, flags=2, trailer=record)
    with pytest.raises(UnsupportedModelError, match="range of their own"):
        read_spz(write(tmp_path, "a.spz", data))


def test_other_gzip_files_are_refused(tmp_path: Path) -> None:
    import gzip

    with pytest.raises(FormatError, match="not of an SPZ file"):
        read_spz(write(tmp_path, "a.spz", gzip.compress(b"hello" * 100)))


@needs("zstandard")
def test_the_biker_is_the_same_in_both_formats(shared_dir: Path) -> None:
    """Real files of the same 152,746 splats, in other orders and quantizations."""
    folder = shared_dir / "data/splats"
    spz = read_spz(folder / "biker.spz")
    ply = read_compressed_ply(folder / "biker.compressed.ply")
    assert spz.count == ply.count == 152_746
    for a, b in ((spz.means, ply.means), (np.log(spz.scales), np.log(ply.scales))):
        for axis in range(3):
            low, high = np.percentile(b[:, axis], [1, 99])
            ours = np.percentile(a[:, axis], [1, 25, 50, 75, 99])
            theirs = np.percentile(b[:, axis], [1, 25, 50, 75, 99])
            assert np.abs(ours - theirs).max() < 0.01 * (high - low) + 1 / 32
    assert abs(float(spz.opacities.mean() - ply.opacities.mean())) < 0.005
    assert np.abs(spz.sh[:, 0].mean(axis=0) - ply.sh[:, 0].mean(axis=0)).max() < 0.02
    full_a = covariances(spz.scales, spz.rotations).mean(axis=0)
    full_b = covariances(ply.scales, ply.rotations).mean(axis=0)
    assert np.allclose(full_a, full_b, rtol=0.1, atol=0.02 * float(full_b.max()))

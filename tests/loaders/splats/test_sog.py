"""SOG v2: images by hand, folders and zips, the playbot, lies and bombs."""

from __future__ import annotations

import io
import json
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from penstock.errors import FormatError, StorageError
from penstock.loaders.splats.model import SplatModel
from penstock.loaders.splats.sog import read_sog, read_sog_meta
from penstock.loaders.splats.sog_container import open_sog
from tests.loaders.splats.splat_builder import same_rotations, write
from tests.needs import needs

pytestmark = needs("PIL")
COUNT = 5
BOOK = [-8 + i / 32 for i in range(256)]
COLOURS = [-2 + i / 64 for i in range(256)]


def image(pixels: NDArray[np.uint8], width: int) -> bytes:
    """Lossless WebP of [n, 4] pixels, filled up to whole rows."""
    from PIL import Image

    height = -(-len(pixels) // width)
    full = np.zeros((height * width, 4), np.uint8)
    full[: len(pixels)] = pixels
    out = io.BytesIO()
    picture = Image.fromarray(full.reshape(height, width, 4))
    picture.save(out, "WEBP", lossless=True, exact=True)
    return out.getvalue()


def scene(bands: int = 0) -> tuple[dict[str, Any], dict[str, bytes]]:
    """(meta.json, images) of five splats."""
    rng = np.random.default_rng(5)

    def pixels(alpha: int | None = 255) -> NDArray[np.uint8]:
        values = rng.integers(0, 256, (COUNT, 4), dtype=np.uint8)
        if alpha is not None:
            values[:, 3] = alpha
        return values

    low, high, scales, colours = pixels(), pixels(), pixels(), pixels(None)
    low[0, :3] = high[0, :3] = 0
    low[1, :3] = high[1, :3] = 255
    quats = pixels()
    quats[:, :3] = 128
    quats[:, 3] = [252, 253, 254, 255, 252]
    meta: dict[str, Any] = {
        "version": 2,
        "count": COUNT,
        "means": {"mins": [-1, -2, -3], "maxs": [1, 2, 0], "files": ["low.webp", "high.webp"]},
        "scales": {"codebook": BOOK, "files": ["scales.webp"]},
        "quats": {"files": ["quats.webp"]},
        "sh0": {"codebook": COLOURS, "files": ["sh0.webp"]},
    }
    images = {
        "low.webp": image(low, 4),
        "high.webp": image(high, 4),
        "scales.webp": image(scales, 4),
        "quats.webp": image(quats, 4),
        "sh0.webp": image(colours, 4),
    }
    if bands:
        coefficients = (bands + 1) ** 2 - 1
        palette = rng.integers(0, 256, (70 * coefficients, 4), dtype=np.uint8)
        labels = np.zeros((COUNT, 4), np.uint8)
        labels[:, 0] = [0, 1, 63, 64, 69]
        meta["shN"] = {
            "count": 70,
            "bands": bands,
            "codebook": COLOURS,
            "files": ["c.webp", "l.webp"],
        }
        # 64 sets in the first row, 6 in the second
        images["c.webp"] = image(palette, 64 * coefficients)
        images["l.webp"] = image(labels, 3)
    return meta, images


def folder_of(path: Path, meta: dict[str, Any], images: dict[str, bytes]) -> Path:
    path.mkdir(exist_ok=True)
    (path / "meta.json").write_text(json.dumps(meta))
    for name, data in images.items():
        (path / name).write_bytes(data)
    return path


def zip_of(
    path: Path, meta: dict[str, Any], images: dict[str, bytes], method: int = zipfile.ZIP_STORED
) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("meta.json", json.dumps(meta))
        for name, data in images.items():
            archive.writestr(name, data)
    return path


def pixel(data: bytes, index: int) -> list[int]:
    from PIL import Image

    values = np.asarray(Image.open(io.BytesIO(data)).convert("RGBA")).reshape(-1, 4)
    return [int(v) for v in values[index]]


@pytest.mark.parametrize("bands", range(4))
def test_folders_zips_and_meta_json(tmp_path: Path, bands: int) -> None:
    meta, images = scene(bands)
    folder = folder_of(tmp_path / "a", meta, images)
    model = read_sog(folder)
    check(model, meta, images, bands)
    for path in (folder / "meta.json", zip_of(tmp_path / "a.sog", meta, images)):
        again = read_sog(path)
        assert np.array_equal(again.sh, model.sh) and np.array_equal(again.means, model.means)
    packed = read_sog(zip_of(tmp_path / "b.sog", meta, images, zipfile.ZIP_DEFLATED))
    assert np.array_equal(packed.scales, model.scales)


def check(model: SplatModel, meta: dict[str, Any], images: dict[str, bytes], bands: int) -> None:
    assert model.count == COUNT and model.degree == bands
    low, high = (
        [math.copysign(math.expm1(abs(v)), v) for v in meta["means"][k]] for k in ("mins", "maxs")
    )
    assert np.allclose(model.means[:2], [low, high], rtol=1e-6)
    third = [
        pixel(images["low.webp"], 2)[i] + 256 * pixel(images["high.webp"], 2)[i] for i in range(3)
    ]
    logs = [a + v / 65535 * (b - a) for v, a, b in zip(third, [-1, -2, -3], [1, 2, 0], strict=True)]
    assert np.allclose(model.means[2], np.sign(logs) * np.expm1(np.abs(logs)), rtol=1e-5)
    assert np.allclose(
        np.log(model.scales[3]), [BOOK[v] for v in pixel(images["scales.webp"], 3)[:3]]
    )
    r, g, b, a = pixel(images["sh0.webp"], 4)
    assert np.allclose(model.sh[4, 0], [COLOURS[r], COLOURS[g], COLOURS[b]], atol=1e-6)
    assert np.isclose(model.opacities[4], a / 255)
    assert same_rotations(model.rotations, np.eye(4)[[0, 1, 2, 3, 0]], 1e-4)
    coefficients = (bands + 1) ** 2 - 1
    for splat, label in enumerate([0, 1, 63, 64, 69] if bands else []):
        for k in range(coefficients):
            wanted = pixel(images["c.webp"], label * coefficients + k)[:3]
            got = model.sh[splat, 1 + k]
            assert np.allclose(got, [COLOURS[v] for v in wanted], atol=1e-6)


def test_no_splats(tmp_path: Path) -> None:
    meta, images = scene(2)
    assert read_sog(folder_of(tmp_path / "a", meta | {"count": 0}, images)).count == 0


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("version", 1, "version is 1"),
        ("version", None, "version is None"),
        ("count", -1, "'count'"),
        ("count", 2.0, "'count'"),
        ("count", True, "'count'"),
        ("count", 1 << 40, "'count'"),
        ("count", 20_000_000, "no real scene compresses so"),
        ("count", 900, "has 4 by 2 pixels"),
        ("means", None, "'means'"),
        ("means.mins", [0, 0], "'means.mins'"),
        ("means.mins", [0, "0", 0], "'means.mins'"),
        ("means.mins", [0, float("nan"), 0], "'means.mins'"),
        ("means.maxs", [10**400, 0, 0], "'means.maxs'"),
        ("means.maxs", [900, 0, 0], "means of splat"),
        ("means.files", ["low.webp"], "'means.files'"),
        ("means.files", ["low.webp", "../a/high.webp"], "has no file"),
        ("means.files", ["low.webp", "meta.json"], "cannot be read"),
        ("scales.codebook", [], "'scales.codebook'"),
        ("scales.codebook", [0.0] * 257, "'scales.codebook'"),
        ("scales.codebook", [0.0], "its codebook has 1 entries"),
        ("scales.codebook", [1000.0] * 256, "scales of splat"),
        ("shN.bands", 4, "'shN.bands'"),
        ("shN.bands", 2, "pixels"),
        ("shN.count", 65_537, "'shN.count'"),
        ("shN.count", 69, "has label 69"),
        ("shN.count", 1000, "pixels"),
    ],
)
def test_lies_of_meta_json(tmp_path: Path, key: str, value: Any, message: str) -> None:
    meta, images = scene(1)
    group, _, name = key.partition(".")
    if name:
        meta[group][name] = value
    else:
        meta[group] = value
    for path in (
        folder_of(tmp_path / "a", meta, images),
        zip_of(tmp_path / "a.sog", meta, images),
    ):
        with pytest.raises(FormatError, match=message):
            read_sog(path)


def test_a_palette_of_another_width_is_named(tmp_path: Path) -> None:
    meta, images = scene(1)
    images["c.webp"] = image(np.zeros((384, 4), np.uint8), 96)
    with pytest.raises(FormatError, match="is 96 pixels wide, expected 192"):
        read_sog(folder_of(tmp_path / "a", meta, images))


def test_a_rotation_image_with_loss_is_named(tmp_path: Path) -> None:
    meta, images = scene()
    quats = np.full((COUNT, 4), 251, np.uint8)
    images["quats.webp"] = image(quats, 4)
    with pytest.raises(FormatError, match="alpha 251 at splat 0"):
        read_sog(folder_of(tmp_path / "a", meta, images))


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, "\xff", "nul"])
def test_what_is_not_json_is_refused(tmp_path: Path, text: str) -> None:
    _, images = scene()
    folder = folder_of(tmp_path / "a", {}, images)
    (folder / "meta.json").write_text(text, encoding="latin-1")
    with pytest.raises(FormatError, match="meta.json"):
        read_sog(folder)


def test_images_far_larger_than_the_splats_are_refused(tmp_path: Path) -> None:
    meta, images = scene()
    images["quats.webp"] = image(np.zeros((400_000, 4), np.uint8), 1000)
    with pytest.raises(FormatError, match="not many more"):
        read_sog(folder_of(tmp_path / "a", meta, images))


def test_images_of_other_formats_are_refused(tmp_path: Path) -> None:
    from PIL import Image

    meta, images = scene()
    out = io.BytesIO()
    Image.new("RGB", (4, 2)).save(out, "GIF")
    for data in (out.getvalue(), b"", images["quats.webp"][:30], b"RIFF" + bytes(100)):
        with pytest.raises(FormatError, match=f"'quats.webp' of {len(data)} bytes cannot be read"):
            read_sog(folder_of(tmp_path / "a", meta, images | {"quats.webp": data}))


def test_a_zip_bomb_is_refused(tmp_path: Path) -> None:
    meta, images = scene()
    images["quats.webp"] = images["quats.webp"] + bytes(100 << 20)
    path = zip_of(tmp_path / "a.sog", meta, images, zipfile.ZIP_DEFLATED)
    with pytest.raises(FormatError, match="expected images as they are"):
        read_sog(path)
    meta["padding"] = " " * (5 << 20)
    path = zip_of(tmp_path / "b.sog", meta, images, zipfile.ZIP_DEFLATED)
    with pytest.raises(FormatError, match=r"meta.json has \d+ bytes"):
        read_sog(path)


def test_other_methods_of_packing_are_refused(tmp_path: Path) -> None:
    meta, images = scene()
    path = zip_of(tmp_path / "a.sog", meta, images, zipfile.ZIP_BZIP2)
    with pytest.raises(FormatError, match="method 12"):
        read_sog(path)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    meta, images = scene()
    with pytest.raises(FormatError, match="has no file 'meta.json'"):
        read_sog(zip_of(tmp_path / "a.sog", meta, {}).parent)
    with pytest.raises(FormatError, match="has no file 'low.webp'"):
        read_sog(zip_of(tmp_path / "a.sog", meta, {}))
    with pytest.raises(FormatError, match="not a zip file"):
        read_sog(write(tmp_path, "b.sog", b"PK\3\4" + bytes(50)))
    with pytest.raises(StorageError):
        read_sog(tmp_path / "none.sog")


@pytest.mark.parametrize(("level", "count"), [("3_0", 31_000), ("5_0", 3000), ("6_0", 1873)])
def test_the_playbot_stands_on_the_floor(shared_dir: Path, level: str, count: int) -> None:
    """A real scene: a robot of one metre, y pointing down, colours of degree 2."""
    folder = shared_dir / "data/splats/playbot" / level
    model = read_sog(folder)
    assert model.count == count and model.degree == 2
    assert -1.1 < model.means[:, 1].min() < -1 and model.means[:, 1].max() < 0.06
    # Expansion of mins and maxs in meta.json, which are of ln(1 + |x|).
    with open_sog(folder) as container:
        raw = read_sog_meta(container).raw
    for axis in range(3):
        low, high = raw["means"]["mins"][axis], raw["means"]["maxs"][axis]
        assert np.isclose(model.means[:, axis].min(), -math.expm1(-low), atol=1e-4)
        assert np.isclose(model.means[:, axis].max(), math.expm1(high), atol=1e-4)
    assert np.abs(model.sh[:, 1:]).max() < 4 and model.scales.max() < 1
    assert model.opacities.max() > 0.9

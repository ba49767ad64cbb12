"""PlayCanvas' SOG, version 2: attributes as lossless images, in a folder or in a zip file.

The specification: https://developer.playcanvas.com/user-manual/gaussian-splatting/formats/sog.
meta.json names the images. Pixel i, row by row, is splat i:
    means     16 bits an axis, low bytes in one image and high in the other; between mins and maxs
              lies sign(x) ln(1 + |x|).
    scales    three indices of a codebook of logarithms.
    quats     three components, and in alpha 252 + which was left out, w first.
    sh0       three indices of a codebook of first coefficients; alpha is the opacity.
    shN       a palette of at most 65,536 sets of coefficients, 64 of them in a row of an image of
              indices of a codebook; and an image of 16-bit labels.
The frame of the numbers is that of the PLY that they were made from: the model's.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.errors import FormatError
from penstock.loaders.splats.activations import exponential
from penstock.loaders.splats.covariance import blocks
from penstock.loaders.splats.file_access import check_ratio
from penstock.loaders.splats.model import (
    MAX_SPLATS,
    Floats,
    SplatModel,
    check_model,
    unfilled_model,
)
from penstock.loaders.splats.quaternions import expand_smallest
from penstock.loaders.splats.sog_container import SogContainer, open_sog

VERSION = 2
REST_COUNTS = (0, 3, 8, 15)  # coefficients of a channel after the first, by bands
ROW = 64  # sets of coefficients in a row of the palette's image
MAX_PALETTE = 1 << 16
BYTES = 18  # of a splat's pixels in all the images, which compression makes some 15
FIRST_TAG = 252  # alpha of quats where w was left out

Pixels = NDArray[np.uint8]  # [pixels, 4]


def read_sog(path: Path) -> SplatModel:
    """Static splats of a folder with meta.json, of that meta.json, or of a .sog file.

    Raises:
        BackendMissingError: Pillow is not installed.
        FormatError: damaged, cut short, of another version, or out of all proportion.
        StorageError: it cannot be read.
    """
    with open_sog(path) as container:
        meta = read_sog_meta(container)
        return check_model(_decode(container, meta), path)


@dataclass(frozen=True)
class SogMeta:
    """meta.json as far as it was checked.

    Attributes:
        bands: of spherical harmonics after the first, 0 to 3.
        palette: sets of their coefficients, 0 where there are none.
        raw: the whole of it.
    """

    path: Path
    count: int
    bands: int
    palette: int
    raw: dict[str, Any]

    def wrong(self, key: str, expected: str) -> FormatError:
        return FormatError(
            f"{self.path}: meta.json: '{key}' is missing or wrong; expected {expected}"
        )

    def group(self, key: str) -> dict[str, Any]:
        group = self.raw.get(key)
        if not isinstance(group, dict):
            raise self.wrong(key, "an object")
        return group

    def files(self, key: str, count: int) -> list[str]:
        files = self.group(key).get("files")
        if (
            not isinstance(files, list)
            or len(files) != count
            or not all(isinstance(name, str) for name in files)
        ):
            raise self.wrong(f"{key}.files", f"{count} names")
        return files

    def images(self) -> list[str]:
        """All that it names."""
        if not self.count:
            return []
        groups = [("means", 2), ("scales", 1), ("quats", 1), ("sh0", 1)]
        groups += [("shN", 2)] if self.palette else []
        return [name for key, count in groups for name in self.files(key, count)]

    def numbers(self, key: str, name: str, least: int, most: int) -> NDArray[np.float64]:
        values = self.group(key).get(name)
        expected = f"{least} to {most} finite numbers" if least < most else f"{most} finite numbers"
        if not isinstance(values, list) or not least <= len(values) <= most:
            raise self.wrong(f"{key}.{name}", expected)
        if not all(type(value) in (int, float) for value in values):
            raise self.wrong(f"{key}.{name}", expected)
        try:
            array = np.array([float(value) for value in values])
        except OverflowError:
            raise self.wrong(f"{key}.{name}", expected) from None
        if not np.isfinite(array).all():
            raise self.wrong(f"{key}.{name}", expected)
        return array


def read_sog_meta(container: SogContainer) -> SogMeta:
    """meta.json, with counts that fit the size of what it describes.

    Raises:
        FormatError: damaged, of another version, or announcing too much.
    """
    path = container.path
    try:
        raw = json.loads(container.read("meta.json"))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: meta.json is not JSON ({type(error).__name__})") from None
    if not isinstance(raw, dict) or raw.get("version") != VERSION:
        version = raw.get("version", "1, as it has none") if isinstance(raw, dict) else "unknown"
        raise FormatError(
            f"{path}: meta.json: version is {str(version)[:40]}, expected {VERSION}; convert it "
            "with splat-transform"
        )
    meta = SogMeta(path, 0, 0, 0, raw)
    count = raw.get("count")
    if type(count) is not int or not 0 <= count <= MAX_SPLATS:
        raise meta.wrong("count", f"0 to {MAX_SPLATS} splats")
    check_ratio(path, container.nbytes, count * BYTES)
    bands: Any = 0
    palette: Any = 0
    if raw.get("shN") is not None:
        bands, palette = meta.group("shN").get("bands"), meta.group("shN").get("count")
        if type(bands) is not int or not 0 <= bands < len(REST_COUNTS):
            raise meta.wrong("shN.bands", "0 to 3")
        if type(palette) is not int or not 0 <= palette <= MAX_PALETTE:
            raise meta.wrong("shN.count", f"0 to {MAX_PALETTE}")
    return SogMeta(path, count, bands, palette, raw)


def _decode(container: SogContainer, meta: SogMeta) -> SplatModel:
    n = meta.count
    low, high, scales, quats, first = (
        container.pixels(name, n)
        for name in [
            *meta.files("means", 2),
            *meta.files("scales", 1),
            *meta.files("quats", 1),
            *meta.files("sh0", 1),
        ]
    )
    mins, maxs = meta.numbers("means", "mins", 3, 3), meta.numbers("means", "maxs", 3, 3)
    scale_book = meta.numbers("scales", "codebook", 1, 256)
    first_book = meta.numbers("sh0", "codebook", 1, 256)
    kept = REST_COUNTS[meta.bands] if meta.palette else 0
    model = unfilled_model(n, meta.bands if meta.palette else 0)
    with np.errstate(over="ignore", invalid="ignore"):  # the model's check finds what comes of it
        for part in blocks(n):
            words = low[part, :3] | high[part, :3].astype(np.uint16) << np.uint16(8)
            logs = mins + words / 65535 * (maxs - mins)
            model.means[part] = np.sign(logs) * np.expm1(np.abs(logs))
            model.scales[part] = exponential(_entries(meta, "scales", scale_book, scales[part, :3]))
            model.rotations[part] = _rotations(meta, quats[part], part.start)
            model.opacities[part] = first[part, 3] / np.float32(255)
            model.sh[part, 0] = _entries(meta, "sh0", first_book, first[part, :3])
    if kept:
        _fill_rest(container, meta, model.sh)
    return model


def _entries(
    meta: SogMeta, key: str, codebook: NDArray[np.float64], indices: Pixels
) -> NDArray[np.float64]:
    """The codebook's entries; PlayCanvas' have 256, so that every byte is one."""
    if len(codebook) < 256 and indices.size and int(indices.max()) >= len(codebook):
        raise FormatError(
            f"{meta.path}: the image of '{key}' has index {int(indices.max())}; its codebook has "
            f"{len(codebook)} entries"
        )
    return np.asarray(codebook[indices], np.float64)


def _rotations(meta: SogMeta, pixels: Pixels, begin: int) -> NDArray[np.float64]:
    tags = pixels[:, 3]
    if tags.size and int(tags.min()) < FIRST_TAG:
        bad = int(np.argmax(tags < FIRST_TAG))
        raise FormatError(
            f"{meta.path}: the image of 'quats' has alpha {int(tags[bad])} at splat {begin + bad}; "
            "expected 252 to 255. It was stored with loss, or is damaged"
        )
    three = (pixels[:, :3] / 255 - 0.5) * math.sqrt(2)
    return expand_smallest((tags - np.uint8(FIRST_TAG)).astype(np.intp), three)


def _fill_rest(container: SogContainer, meta: SogMeta, sh: Floats) -> None:
    """Put the coefficients after the first into sh [n, k, 3]."""
    coefficients = REST_COUNTS[meta.bands]
    centroids, labels = meta.files("shN", 2)
    codebook = meta.numbers("shN", "codebook", 1, 256)
    rows = -(-meta.palette // ROW)
    image = container.pixels(centroids, rows * ROW * coefficients, width=ROW * coefficients)
    sets = image[: meta.palette * coefficients, :3].reshape(meta.palette, coefficients, 3)
    with np.errstate(over="ignore"):  # as above
        palette = _entries(meta, "shN", codebook, sets).astype(np.float32)
    pixels = container.pixels(labels, meta.count)
    for part in blocks(meta.count):
        label = pixels[part, 0] | pixels[part, 1].astype(np.uint16) << np.uint16(8)
        if int(label.max()) >= meta.palette:
            bad = int(np.argmax(label >= meta.palette))
            raise FormatError(
                f"{meta.path}: splat {part.start + bad} has label {int(label[bad])}; the palette "
                f"has {meta.palette} entries"
            )
        sh[part, 1:] = palette[label]

"""Photos of every kind, made by Pillow, come out as upright sRGB pixels."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from penstock.errors import UsageError
from penstock.runtime.caption.photo import open_photo, read_photo
from tests.runtime.caption.icc_profiles import grey_ink, linear_rgb

Image = pytest.importorskip("PIL.Image", reason="Pillow is an extra")

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def flag() -> NDArray[np.uint8]:
    """[16, 24, 3], another colour in each corner: no turn or flip leaves it as it is."""
    pixels = np.zeros((16, 24, 3), np.uint8)
    pixels[:8, :12], pixels[:8, 12:], pixels[8:, :12] = RED, GREEN, BLUE
    return pixels


def saved(path: Path, image: Any, **options: Any) -> Path:
    image.save(path, **options)
    return path


# EXIF's numbers say where row 0 and column 0 of the file are in the upright picture.
STORED = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.transpose(1, 0, 2),
    6: lambda p: np.rot90(p, 1),  # row 0 is the right side
    7: lambda p: np.rot90(p, 2).transpose(1, 0, 2),
    8: lambda p: np.rot90(p, -1),  # row 0 is the left side
}


@pytest.mark.parametrize("number", STORED)
@pytest.mark.parametrize("suffix", [".png", ".tiff", ".jpg", ".webp"])
def test_every_orientation(tmp_path: Path, number: int, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = number
    image = Image.fromarray(np.ascontiguousarray(STORED[number](flag())))
    path = saved(tmp_path / f"turned{suffix}", image, exif=exif)
    photo = open_photo(path)
    assert (photo.width, photo.height, photo.pixels.shape) == (24, 16, (16, 24, 3))
    assert np.abs(photo.pixels[4::8, 6::12].astype(int) - flag()[4::8, 6::12]).max() < 60
    small = open_photo(path, shortest_side=4)
    assert (small.width, small.height, small.pixels.shape) == (24, 16, (4, 6, 3))


def test_orientation_that_does_not_exist_or_is_damaged(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 9
    path = saved(tmp_path / "nine.png", Image.fromarray(flag()), exif=exif)
    assert np.array_equal(read_photo(path), flag())
    plain = saved(tmp_path / "plain.jpg", Image.fromarray(flag())).read_bytes()
    broken = b"Exif\0\0MM\0\x2a\xff\xff\xff\xff"
    segment = b"\xff\xe1" + struct.pack(">H", len(broken) + 2) + broken
    damaged = tmp_path / "damaged.jpg"
    damaged.write_bytes(plain[:2] + segment + plain[2:])
    assert np.array_equal(read_photo(damaged), read_photo(tmp_path / "plain.jpg"))


@pytest.mark.parametrize(
    "suffix", [".png", ".bmp", ".tiff", ".ppm", ".gif", ".webp", ".tga", ".ico"]
)
def test_formats_that_lose_nothing(tmp_path: Path, suffix: str) -> None:
    options: dict[str, Any] = {".webp": {"lossless": True}, ".ico": {"sizes": [(24, 16)]}}
    path = saved(tmp_path / f"a{suffix}", Image.fromarray(flag()), **options.get(suffix, {}))
    assert np.array_equal(read_photo(path), flag())


def test_a_name_that_is_no_utf8(tmp_path: Path) -> None:
    import os

    path = Path(os.fsdecode(bytes(tmp_path) + b"/caf\xe9\n.png"))
    assert np.array_equal(read_photo(saved(path, Image.fromarray(flag()))), flag())


# ---------------------------------------------------------------- colour


def test_cmyk_without_a_profile(tmp_path: Path) -> None:
    inks = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    for name in ("a.jpg", "a.tiff"):
        assert np.abs(read_photo(saved(tmp_path / name, inks)) - [[[0, 255, 255]]]).max() <= 3


def test_cmyk_with_a_profile(tmp_path: Path) -> None:
    paper, cyan = ((0, 0, 0, 0), (255, 0, 0, 0))
    for name in ("a.jpg", "a.tiff"):
        for inks, wanted in ((paper, WHITE), (cyan, (0, 0, 0))):
            image = Image.new("CMYK", (16, 16), inks)
            path = saved(tmp_path / name, image, icc_profile=grey_ink())
            assert np.abs(read_photo(path)[8, 8].astype(int) - wanted).max() <= 4, (name, inks)


def test_rgb_with_a_profile(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 8), (128, 128, 128))
    # https://www.w3.org/Graphics/Color/srgb: 1.055 * (128 / 255) ** (1 / 2.4) - 0.055
    for mode in ("RGB", "RGBA"):
        path = saved(tmp_path / "a.png", image.convert(mode), icc_profile=linear_rgb())
        assert np.abs(read_photo(path).astype(int) - 188).max() <= 1


@pytest.mark.parametrize("profile", [b"no profile", grey_ink(), linear_rgb()[:200]])
def test_a_profile_of_no_use_is_passed_over(tmp_path: Path, profile: bytes) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(flag()), icc_profile=profile)
    assert np.array_equal(read_photo(path), flag())


def test_srgb_profiles_change_nothing(tmp_path: Path) -> None:
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    pixels = np.arange(256 * 3, dtype=np.uint16).reshape(16, 16, 3).astype(np.uint8)
    path = saved(tmp_path / "a.png", Image.fromarray(pixels), icc_profile=profile)
    assert np.array_equal(read_photo(path), pixels)


def test_lab(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.tiff", Image.new("LAB", (8, 8), (255, 128, 128)))
    assert np.abs(read_photo(path).astype(int) - 255).max() <= 2


# ---------------------------------------------------------------- transparency


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_over_white(tmp_path: Path, mode: str) -> None:
    clear, half, solid = (0, 0), (0, 128), (0, 255)
    image = Image.new("LA", (3, 1))
    image.putdata([clear, half, solid])
    pixels = read_photo(saved(tmp_path / "a.png", image.convert(mode)))
    assert pixels.tolist() == [[[255] * 3, [127] * 3, [0] * 3]]


@pytest.mark.parametrize("transparency", [1, b"\xff\x00"])
def test_a_palette_with_transparency(tmp_path: Path, transparency: int | bytes) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *BLUE])
    image.putdata([0, 1])
    path = saved(tmp_path / "a.png", image, transparency=transparency)
    assert read_photo(path).tolist() == [[list(RED), list(WHITE)]]


def test_one_colour_that_is_transparent(tmp_path: Path) -> None:
    grey = Image.new("L", (2, 1))
    grey.putdata([7, 9])
    path = saved(tmp_path / "grey.png", grey, transparency=7)
    assert read_photo(path).tolist() == [[[255] * 3, [9] * 3]]
    colour = Image.new("RGB", (2, 1))
    colour.putdata([RED, BLUE])
    path = saved(tmp_path / "colour.png", colour, transparency=RED)
    assert read_photo(path).tolist() == [[list(WHITE), list(BLUE)]]
    deep = Image.fromarray(np.array([[300, 65535 // 2]], np.uint16))
    path = saved(tmp_path / "deep.png", deep, transparency=300)
    assert read_photo(path).tolist() == [[[255] * 3, [127] * 3]]


# ---------------------------------------------------------------- few bits and many


def test_one_bit_and_grey(tmp_path: Path) -> None:
    bits = np.array([[0, 255], [255, 0]], np.uint8)
    for mode, name in (("1", "a.png"), ("1", "a.tiff"), ("L", "a.png"), ("1", "a.pbm")):
        path = saved(tmp_path / name, Image.fromarray(bits).convert(mode))
        assert np.array_equal(read_photo(path), np.repeat(bits[..., None], 3, 2)), (mode, name)


def test_16_bits_are_scaled(tmp_path: Path) -> None:
    values = np.array([[0, 255, 256, 32768, 65535]], np.uint16)
    wanted = np.rint(values / 257).astype(np.uint8)
    for name in ("a.png", "a.tiff"):
        pixels = read_photo(saved(tmp_path / name, Image.fromarray(values)))
        assert np.array_equal(pixels, np.repeat(wanted[..., None], 3, 2)), name
    pgm = tmp_path / "a.pgm"
    pgm.write_bytes(b"P5 5 1 65535\n" + values.astype(">u2").tobytes())
    assert np.array_equal(read_photo(pgm)[..., 0], wanted)
    big = tmp_path / "big-endian.tiff"
    big.write_bytes(tiff(values, bits=16))
    assert np.array_equal(read_photo(big)[..., 0], wanted)


def test_48_bit_png(tmp_path: Path) -> None:
    values = np.array([[[0, 32768, 65535]]], ">u2")
    path = tmp_path / "a.png"
    path.write_bytes(png(1, 1, 16, 2, b"\0" + values.tobytes()))
    assert read_photo(path).tolist() == [[[0, 128, 255]]]


def test_floats_and_long_integers(tmp_path: Path) -> None:
    def grey(values: list[float], dtype: type) -> list[int]:
        path = saved(tmp_path / "a.tiff", Image.fromarray(np.array([values], dtype)))
        return [int(value) for value in read_photo(path)[0, :, 0]]

    assert grey([0.0, 0.5, 0.75], np.float32) == [0, 128, 191]  # of 0 to 1
    assert grey([-3.0, 0.0, 3.0], np.float32) == [0, 128, 255]  # from the least to the greatest
    assert grey([np.nan, 0.0, np.inf, 4.0], np.float32) == [0, 0, 255, 255]
    assert grey([1000, 1000, 3000], np.int32) == [0, 0, 255]


# ---------------------------------------------------------------- several frames


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png", ".tiff"])
def test_the_first_frame(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, BLUE, GREEN)]
    options: dict[str, Any] = {"lossless": True} if suffix == ".webp" else {}
    path = tmp_path / f"a{suffix}"
    saved(path, frames[0], save_all=True, append_images=frames[1:], **options)
    photo = open_photo(path)
    assert photo.more_frames
    assert photo.pixels.reshape(-1, 3).tolist() == [list(RED)] * 64
    assert not open_photo(saved(path, frames[0])).more_frames


def test_a_phone_s_preview_is_no_frame(tmp_path: Path) -> None:
    image = Image.fromarray(flag())
    path = saved(tmp_path / "a.mpo", image, save_all=True, append_images=[image.resize((6, 4))])
    photo = open_photo(path)
    assert (photo.format, photo.more_frames, photo.width) == ("MPO", False, 24)


# ---------------------------------------------------------------- sizes


def test_shrinking(tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 900).astype(np.uint8)
    pixels = np.repeat(np.repeat(ramp[None, :, None], 600, 0), 3, 2)
    for name in ("a.png", "a.jpg"):
        path = saved(tmp_path / name, Image.fromarray(pixels))
        photo = open_photo(path, shortest_side=100)
        assert (photo.width, photo.height, photo.pixels.shape) == (900, 600, (100, 150, 3))
        middle = photo.pixels[50, :, 0].astype(int)
        assert np.abs(middle - ramp.reshape(150, 6).mean(1)).max() <= 2, name
        assert read_photo(path, shortest_side=600).shape == (600, 900, 3)
        assert read_photo(path, shortest_side=5000).shape == (600, 900, 3)  # never enlarged
    with pytest.raises(UsageError, match="shortest_side is 0"):
        read_photo(path, shortest_side=0)


def test_narrow_pictures(tmp_path: Path) -> None:
    for shape in ((1, 5000), (5000, 1), (3, 2000), (1, 1)):
        path = saved(tmp_path / "a.png", Image.fromarray(np.full(shape, 77, np.uint8)))
        pixels = read_photo(path, shortest_side=2)
        assert min(pixels.shape[:2]) == min(2, *shape) and (pixels == 77).all()


def test_large_pictures_take_the_same_path_in_bands(tmp_path: Path) -> None:
    """More pixels than a band, with transparency, against Pillow's own way."""
    rng = np.random.default_rng(4)
    coarse = rng.integers(0, 256, (60, 80, 4), np.uint8)
    image = Image.fromarray(coarse).resize((2600, 1951))  # 5.1 million, no multiple of anything
    pixels = read_photo(saved(tmp_path / "a.tiff", image))
    white = Image.new("RGBA", image.size, (255,) * 4)
    white.alpha_composite(image)
    assert np.abs(pixels.astype(int) - np.asarray(white.convert("RGB"))).max() <= 1


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def tiff(values: NDArray[np.uint16], bits: int) -> bytes:
    """A big-endian grey TIFF, uncompressed."""
    data = values.astype(">u2").tobytes()
    height, width = values.shape
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, 1), (273, 8), (277, 1)]
    tags += [(278, height), (279, len(data))]
    entries = b"".join(struct.pack(">HHIHH", tag, 3, 1, value, 0) for tag, value in tags)
    start = 8 + len(data)
    return (
        b"MM\0\x2a"
        + struct.pack(">I", start)
        + data
        + struct.pack(">H", len(tags))
        + entries
        + bytes(4)
    )

"""What is no photo is refused by name, and nothing but our own errors comes out."""

from __future__ import annotations

import errno
import io
import os
import random
import struct
import subprocess
import sys
import threading
import time
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from penstock.errors import BackendMissingError, FormatError, PenstockError, StorageError
from penstock.runtime.caption.photo import MOST_PIXELS, open_photo, read_photo
from tests.runtime.caption.icc_profiles import grey_ink
from tests.runtime.caption.test_photo import png

Image = pytest.importorskip("PIL.Image", reason="Pillow is an extra")


def encoded(kind: str, image: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def seeds() -> dict[str, bytes]:
    """A small real file of each kind, with the parts that decoders trip over."""
    noise = np.random.default_rng(1).integers(0, 256, (20, 30, 3), np.uint8)
    image = Image.fromarray(noise)
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = Image.fromarray(noise[..., 0].astype(np.uint16) * 257)
    two = {"save_all": True, "append_images": [image.rotate(180)]}
    return {
        "jpeg": encoded("JPEG", image, exif=exif, quality=60),
        "progressive": encoded("JPEG", image, progressive=True),
        "cmyk": encoded("JPEG", image.convert("CMYK"), icc_profile=grey_ink()),
        "png": encoded("PNG", image.convert("RGBA"), exif=exif),
        "deep": encoded("PNG", deep),
        "palette": encoded("PNG", image.quantize(16), transparency=3),
        "gif": encoded("GIF", image.quantize(8), **{**two, "append_images": [image.quantize(8)]}),
        "webp": encoded("WEBP", image, **two),
        "tiff": encoded("TIFF", image, compression="tiff_lzw", exif=exif),
        "grey tiff": encoded("TIFF", deep),
        "bmp": encoded("BMP", image),
        "ico": encoded("ICO", image),
        "ppm": encoded("PPM", image),
        "tga": encoded("TGA", image, compression="tga_rle"),
        "jp2": encoded("JPEG2000", image),
        "avif": encoded("AVIF", image),
        "psd": b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 2, 2, 8, 3) + bytes(40),
        "icns": encoded("ICNS", image.resize((16, 16))),
    }


SEEDS = seeds()


@pytest.mark.parametrize("kind", SEEDS)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**32))
def test_changed_bytes_give_a_photo_or_a_format_error(
    tmp_path_factory: pytest.TempPathFactory, kind: str, seed: int
) -> None:
    rng = random.Random(seed)
    data = bytearray(SEEDS[kind])
    for _ in range(rng.choice((1, 1, 2, 8, 40))):
        # Headers are where the sense is: half of the changes go there.
        where = rng.randrange(min(len(data), rng.choice((40, len(data)))))
        data[where] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    if rng.random() < 0.2:
        del data[rng.randrange(len(data)) :]
    path = tmp_path_factory.getbasetemp() / f"changed-{kind}"
    path.write_bytes(data)
    try:
        photo = open_photo(path, shortest_side=rng.choice((None, 1, 7, 64)))
    except FormatError as error:
        assert str(path) in str(error)
    except PenstockError as error:
        assert "memory does not suffice" in str(error) or "HEIC" in str(error)
    else:
        pixels = photo.pixels
        assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
        assert min(pixels.shape) > 0


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=200))
@example(b"\x00")
@example(b"P6 1 1")
@example(b"GIF89a")
@example(b"\xff\xd8\xff")
@example(b"RIFF\xff\xff\xff\xffWEBPVP8 ")
@example(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
def test_any_bytes_at_all(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "anything"
    path.write_bytes(data)
    try:
        assert read_photo(path).dtype == np.uint8
    except FormatError as error:
        assert str(path) in str(error)


@pytest.mark.parametrize(
    "kind", ["jpeg", "progressive", "png", "gif", "webp", "tiff", "bmp", "avif"]
)
def test_files_that_were_cut_short(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"half.{kind}"
    path.write_bytes(SEEDS[kind][: len(SEEDS[kind]) // 2])
    with pytest.raises(FormatError, match="damaged") as caught:
        read_photo(path)
    assert str(path) in str(caught.value)


def test_what_is_no_image(tmp_path: Path) -> None:
    page = tmp_path / "page.jpg"
    page.write_text("<!doctype html><title>Not found</title>")
    with pytest.raises(FormatError, match=r"page\.jpg: not an image .* b'<!doctyp'"):
        read_photo(page)
    empty = tmp_path / "empty.jpg"
    empty.touch()
    with pytest.raises(FormatError, match=r"empty\.jpg: the file is empty"):
        read_photo(empty)
    nothing = tmp_path / "nothing.png"
    nothing.write_bytes(png(0, 5, 8, 2, b""))
    with pytest.raises(FormatError, match=r"nothing\.png: "):
        read_photo(nothing)


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="missing.jpg: cannot be read: No such file"):
        read_photo(tmp_path / "missing.jpg")
    with pytest.raises(StorageError, match="this is a folder"):
        read_photo(tmp_path)
    with pytest.raises(StorageError, match="cannot be read"):
        read_photo("a\0b.jpg")
    with pytest.raises(StorageError, match="cannot be read: File name too long"):
        read_photo(tmp_path / ("x" * 300))
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(StorageError, match="a pipe or a device"):  # and does not wait
        read_photo(tmp_path / "pipe.jpg")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = tmp_path / "secret.jpg"
    path.write_bytes(SEEDS["jpeg"])
    path.chmod(0)
    with pytest.raises(StorageError, match="Permission denied"):
        read_photo(path)


def test_postscript_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "drawing.eps"
    path.write_bytes(encoded("EPS", Image.new("RGB", (4, 4))))
    with pytest.raises(FormatError, match="not an image that Pillow reads"):
        read_photo(path)


def test_heic_says_what_to_install(tmp_path: Path) -> None:
    if find_spec("pillow_heif") is not None:
        pytest.skip("pillow-heif is installed")
    path = tmp_path / "IMG_0001.HEIC"
    path.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100))
    with pytest.raises(BackendMissingError, match=r"IMG_0001\.HEIC: .* pip install pillow-heif"):
        read_photo(path)


# ---------------------------------------------------------------- sizes


def test_a_bomb_is_refused_from_its_header(tmp_path: Path) -> None:
    """60000 x 60000 pixels of one colour in 10 MB would be 14 GB."""
    path = tmp_path / "bomb.png"
    path.write_bytes(png(60000, 60000, 8, 2, bytes(1000)))
    for side in (None, 64):
        with pytest.raises(FormatError, match=r"bomb\.png: .* pixels are too many") as caught:
            read_photo(path, shortest_side=side)
        assert "200 million" in str(caught.value)


def test_a_bomb_within_an_icon(tmp_path: Path) -> None:
    """The directory says 16 x 16; the PNG in it says what it likes."""
    inner = png(60000, 60000, 8, 2, bytes(1000))
    path = tmp_path / "bomb.ico"
    entry = struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(inner), 22)
    path.write_bytes(struct.pack("<HHH", 0, 1, 1) + entry + inner)
    with pytest.raises(FormatError, match=r"bomb\.ico"):
        read_photo(path)


def test_a_bomb_of_a_canvas(tmp_path: Path) -> None:
    """WebP: decoders make the whole canvas before the first frame."""
    data = bytearray(SEEDS["webp"])
    assert data[12:16] == b"VP8X"
    path = tmp_path / "bomb.webp"
    for width, height in ((40_000, 40_000), (8_000_000, 20)):
        data[24:30] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
        path.write_bytes(data)
        begin = time.monotonic()
        with pytest.raises(FormatError, match=r"bomb\.webp: .* too many"):
            read_photo(path, shortest_side=64)
        assert time.monotonic() - begin < 5  # 0.2 s where nothing else runs


def test_faults_of_storage_are_not_blamed_on_the_photo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(SEEDS["jpeg"])

    def broken(self: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", broken)
    with pytest.raises(StorageError, match="Input/output error"):
        read_photo(path)


def test_between_pillow_s_limits_and_ours(tmp_path: Path) -> None:
    """Pillow warns from 89 million pixels and refuses from 179 million; one bit each is enough."""
    before = Image.MAX_IMAGE_PIXELS
    width, height = 14000, 14000
    assert 2 * before < width * height < MOST_PIXELS
    path = tmp_path / "large.png"
    row = b"\0" + b"\xff" * (width // 2 // 8) + bytes(width // 8 - width // 2 // 8)
    path.write_bytes(png(width, height, 1, 0, row * height))
    photo = open_photo(path, shortest_side=20)
    assert (photo.width, photo.height, photo.pixels.shape) == (width, height, (20, 20, 3))
    assert photo.pixels[:, :8].min() == 255 and photo.pixels[:, 12:].max() == 0
    assert before == Image.MAX_IMAGE_PIXELS


HUGE = """
import resource, sys
from penstock.runtime.caption.photo import open_photo
open_photo(sys.argv[2], shortest_side=256)
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
photo = open_photo(sys.argv[1], shortest_side=256)
print(photo.width, photo.height, *photo.pixels.shape, peak() - before)
"""


def test_a_huge_jpeg_takes_little_memory(tmp_path: Path) -> None:
    """225 million pixels, more than are decoded of any other format."""
    huge, small = tmp_path / "huge.jpg", tmp_path / "small.jpg"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Image.new("L", (15000, 15000), 90).save(huge)
    Image.new("L", (600, 600), 90).save(small)
    command = [sys.executable, "-c", HUGE, str(huge), str(small)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    *shape, kib = map(int, done.stdout.split())
    assert shape == [15000, 15000, 256, 256, 3]
    assert kib < 100 * 1024
    with pytest.raises(FormatError, match="too many to decode"):  # all of it is too much
        read_photo(huge)


def test_progressive_jpegs_are_limited_by_what_they_keep(tmp_path: Path) -> None:
    data = bytearray(SEEDS["progressive"])
    start = data.index(b"\xff\xc2")
    data[start + 5 : start + 9] = struct.pack(">HH", 60000, 60000)
    path = tmp_path / "bomb.jpg"
    path.write_bytes(data)
    with pytest.raises(FormatError, match="60000 x 60000 pixels are too many"):
        read_photo(path, shortest_side=64)


# ---------------------------------------------------------------- Pillow's settings


def test_pillow_is_left_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(SEEDS["png"])
    (tmp_path / "bad.png").write_bytes(SEEDS["png"][:99])
    before = (Image.MAX_IMAGE_PIXELS, list(warnings.filters))

    def read() -> None:
        for _ in range(20):
            read_photo(path)
            with pytest.raises(FormatError):
                read_photo(tmp_path / "bad.png")

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (Image.MAX_IMAGE_PIXELS, list(warnings.filters)) == before


def test_without_pillow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(BackendMissingError, match=r"pip install 'penstock\[caption\]'"):
        read_photo(tmp_path / "a.jpg")

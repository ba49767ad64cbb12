"""Pictures and animations, read back by Pillow and by ffmpeg where it is there."""

from __future__ import annotations

import builtins
import json
import os
import shutil
import stat
import struct
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from penstock.errors import BackendMissingError, PenstockError, StorageError, UsageError
from penstock.runtime.splats.changes import changed_box
from penstock.runtime.splats.images import PIXEL_BYTES, open_pictures, pixel_bytes, to_pixels
from penstock.runtime.splats.png_writer import filtered
from tests.runtime.splats.scenes import psnr

WIDTH, HEIGHT = 37, 21


def frames_of(count: int, width: int = WIDTH, height: int = HEIGHT) -> list[NDArray[np.uint8]]:
    """A bright square that goes to the right over a ramp; the last two frames are equal."""
    ramp = np.linspace(0, 200, width, dtype=np.float32)[None, :, None]
    ground = np.broadcast_to(ramp, (height, width, 3)) * np.array([1, 0.5, 0.25], np.float32)
    made = []
    for number in range(count):
        picture = ground.astype(np.uint8)
        at = 3 * min(number, count - 2)
        picture[4:12, at : at + 8] = (250, 240, 20 + 10 * number % 200 if number < count - 1 else 0)
        made.append(picture)
    made[-1] = made[-2].copy() if count > 1 else made[-1]
    return made


def write(out: Path, frames: list[NDArray[np.uint8]], fps: float = 12.5, **more: int) -> None:
    height, width = frames[0].shape[:2]
    with open_pictures(
        out, width=width, height=height, frames=len(frames), fps=fps, **more
    ) as writer:
        for frame in frames:
            writer.add(frame)


def read(path: Path) -> tuple[list[NDArray[np.uint8]], list[float]]:
    """Every frame, and milliseconds of each."""
    image = pytest.importorskip("PIL.Image", reason="Pillow is an extra")
    with image.open(path) as opened:
        found, shown = [], []
        for number in range(getattr(opened, "n_frames", 1)):
            opened.seek(number)
            found.append(np.asarray(opened.convert("RGB")))
            shown.append(float(opened.info.get("duration", 0)))
        return found, shown


@pytest.mark.parametrize("name", ["one.png", "one.PNG", "one.apng"])
def test_a_png_is_exact(tmp_path: Path, name: str) -> None:
    (frame,) = frames_of(1)
    write(tmp_path / name, [frame])
    ((found,), _) = read(tmp_path / name)
    assert (found == frame).all()
    assert os.listdir(tmp_path) == [name]


def test_an_animated_png_is_exact_and_stores_what_changed(tmp_path: Path) -> None:
    frames = frames_of(9)
    write(tmp_path / "all.apng", frames)
    found, shown = read(tmp_path / "all.apng")
    assert all((a == b).all() for a, b in zip(found, frames, strict=True))
    assert shown == [80.0] * 9
    data = (tmp_path / "all.apng").read_bytes()
    assert data.count(b"fcTL") == 9 and data.count(b"fdAT") == 8
    at = data.index(b"fcTL", data.index(b"fdAT"))  # of the third frame
    area = struct.unpack(">IIII", data[at + 8 : at + 24])
    assert area[:2] == (11, 8) and area[3] == 4


@pytest.mark.parametrize("fps, wanted", [(1, (1, 1)), (24, (1, 24)), (29.97, (100, 2997))])
def test_the_delay_of_an_animated_png_is_a_fraction(
    tmp_path: Path, fps: float, wanted: tuple[int, int]
) -> None:
    write(tmp_path / "all.png", frames_of(2), fps)
    data = (tmp_path / "all.png").read_bytes()
    at = data.index(b"fcTL") + 4 + 20
    assert struct.unpack(">HH", data[at : at + 4]) == wanted


@given(st.integers(1, 6), st.integers(1, 6), st.binary(min_size=108, max_size=108), st.booleans())
def test_filters_undo(height: int, width: int, data: bytes, smooth: bool) -> None:
    """Against the standard's own way back, a byte at a time."""
    pixels = np.frombuffer(data, np.uint8)[: height * width * 3].reshape(height, width, 3)
    if smooth:
        pixels = np.cumsum(pixels // 16, axis=1, dtype=np.uint8)
    packed = b"".join(filtered(pixels))
    stride = width * 3
    before = bytes(stride)
    for row in range(height):
        kind = packed[row * (stride + 1)]
        line = bytearray(packed[row * (stride + 1) + 1 : (row + 1) * (stride + 1)])
        for i in range(stride):
            a = line[i - 3] if i >= 3 else 0
            b = before[i]
            c = before[i - 3] if i >= 3 else 0
            nearest = min((a, b, c), key=lambda side: abs(a + b - c - side))
            line[i] = (line[i] + {0: 0, 1: a, 2: b, 4: nearest}[kind]) % 256
        assert bytes(line) == pixels[row].tobytes()
        before = bytes(line)


def test_writing_takes_what_the_player_leaves_for_it(tmp_path: Path) -> None:
    """While a frame is written, one image of the two that are planned is free."""
    height, width = 384, 512
    draw = np.random.default_rng(2)
    images = [draw.random((height, width, 3), np.float32) for _ in range(3)]
    out = tmp_path / "all.apng"
    tracemalloc.start()
    try:
        with open_pictures(out, width=width, height=height, frames=3, fps=30) as writer:
            for image in images:
                writer.add(to_pixels(image))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= (12 + PIXEL_BYTES[".apng"]) * width * height
    assert pixel_bytes(out) < pixel_bytes(Path("a.webp")) < pixel_bytes(Path("a.webp"), 100)


def test_chunks_are_checked_and_in_order(tmp_path: Path) -> None:
    write(tmp_path / "all.apng", frames_of(3))
    data, at, kinds, numbers = (tmp_path / "all.apng").read_bytes(), 8, [], []
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        (sum_,) = struct.unpack(">I", data[at + 8 + length : at + 12 + length])
        assert sum_ == zlib.crc32(kind + body)
        kinds.append(kind.decode())
        if kind in (b"fcTL", b"fdAT"):
            numbers.append(struct.unpack(">I", body[:4])[0])
        at += 12 + length
    assert kinds == "IHDR acTL fcTL IDAT fcTL fdAT fcTL fdAT IEND".split()
    assert numbers == list(range(5))


@pytest.mark.parametrize("quality, least", [(90, 26.0), (100, float("inf"))])
def test_webp(tmp_path: Path, quality: int, least: float) -> None:
    pytest.importorskip("PIL.Image", reason="Pillow is an extra")
    frames = frames_of(7, 64, 48)
    write(tmp_path / "all.webp", frames, fps=30, quality=quality)
    found, shown = read(tmp_path / "all.webp")
    assert len(found) == 7
    for ours, theirs in zip(frames, found, strict=True):
        assert psnr(ours, theirs) >= least
    assert sum(shown) == pytest.approx(7000 / 30, abs=1) and set(shown) <= {33.0, 34.0}
    write(tmp_path / "one.webp", frames[:1], quality=quality)
    ((one,), _) = read(tmp_path / "one.webp")
    assert psnr(frames[0], one) >= least


@pytest.mark.parametrize("width, height", [(1, 1), (2, 5), (33, 17)])
@pytest.mark.parametrize("suffix", [".apng", ".webp"])
def test_odd_sizes(tmp_path: Path, suffix: str, width: int, height: int) -> None:
    pytest.importorskip("PIL.Image", reason="Pillow is an extra")
    draw = np.random.default_rng(1)
    frames = [draw.integers(0, 256, (height, width, 3), np.uint8) for _ in range(3)]
    frames[1][:, : width // 2] = frames[0][:, : width // 2]
    write(tmp_path / f"a{suffix}", frames, quality=100)
    found, _ = read(tmp_path / f"a{suffix}")
    assert all((a == b).all() for a, b in zip(found, frames, strict=True))


# ---------------------------------------------------------------- video

FAKE = """#!{python}
import json, pathlib, sys
frames = sys.stdin.buffer.read({most})
out = sys.argv[-1].removeprefix("file:")
pathlib.Path(out).write_bytes(b"mp4" + frames)
pathlib.Path({log!r}).write_text(json.dumps(sys.argv[1:]))
sys.stderr.write({said!r})
sys.exit({code})
"""


def fake_ffmpeg(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, code: int = 0, said: str = "", most: int = -1
) -> Path:
    """A program of that name that keeps what it was given."""
    folder.mkdir()
    log = folder / "arguments.json"
    program = folder / "ffmpeg"
    text = FAKE.format(python=sys.executable, log=str(log), said=said, code=code, most=most)
    program.write_text(text)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(folder))
    return log


def test_video_frames_reach_ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = fake_ffmpeg(tmp_path / "bin", monkeypatch)
    frames = frames_of(4)
    write(tmp_path / "all.mp4", frames, fps=25)
    given = (tmp_path / "all.mp4").read_bytes()
    assert given == b"mp4" + b"".join(frame.tobytes() for frame in frames)
    arguments = json.loads(log.read_text())
    assert arguments[arguments.index("-s") + 1] == f"{WIDTH}x{HEIGHT}"
    assert arguments[arguments.index("-r") + 1] == "25"
    assert arguments[arguments.index("-pix_fmt") + 1] == "rgb24"


@pytest.mark.parametrize("most", [-1, 10])
def test_what_ffmpeg_says_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """At the end, and where it goes while frames come."""
    fake_ffmpeg(tmp_path / "bin", monkeypatch, code=1, said="first\nno encoder here\n", most=most)
    frames = frames_of(30, 200, 200)
    with pytest.raises(PenstockError, match=r"no encoder here; write \.webp"):
        write(tmp_path / "all.mp4", frames)
    assert os.listdir(tmp_path) == ["bin"]


def test_no_ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackendMissingError, match="ffmpeg"):
        write(tmp_path / "all.mp4", frames_of(2))


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")
def test_a_real_video(tmp_path: Path) -> None:
    frames = frames_of(12, 63, 47)
    frames[5][:20, :20] = (250, 20, 30)
    write(tmp_path / "all.mp4", frames, fps=10)
    command = ["ffmpeg", "-v", "error", "-i", str(tmp_path / "all.mp4")]
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    data = subprocess.run(command, check=True, capture_output=True).stdout
    found = np.frombuffer(data, np.uint8).reshape(-1, 48, 64, 3)
    assert len(found) == 12
    assert psnr(frames[5], found[5, :47, :63]) > 25
    red = found[5, 6:14, 6:14].reshape(-1, 3).mean(axis=0)  # which a wrong matrix changes by 20
    assert np.abs(red - (250, 20, 30)).max() < 10
    facts = ["ffmpeg", "-hide_banner", "-i", str(tmp_path / "all.mp4")]
    said = subprocess.run(facts, capture_output=True, text=True).stderr
    assert "yuv420p(tv, bt709" in said  # or players guess, by the size


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    "name, change",
    [
        ("a.gif", {}), ("a", {}), ("a.png", {"frames": 0}), ("a.png", {"fps": 0.5}),
        ("a.apng", {"fps": 1001}), ("a.webp", {"width": 16384}), ("a.png", {"width": 0}),
    ],
)  # fmt: skip
def test_wrong_usage(tmp_path: Path, name: str, change: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {"width": 8, "height": 8, "frames": 1, "fps": 30.0, **change}
    with pytest.raises(UsageError), open_pictures(tmp_path / name, **arguments):
        pass
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("suffix", [".png", ".webp", ".mp4"])
def test_a_file_is_whole_or_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    if suffix == ".webp":
        pytest.importorskip("PIL.Image", reason="Pillow is an extra")
    fake_ffmpeg(tmp_path / "bin", monkeypatch)
    frames, out = frames_of(3), tmp_path / f"a{suffix}"
    sizes: dict[str, Any] = {"width": WIDTH, "height": HEIGHT, "frames": 3, "fps": 10.0}
    with pytest.raises(KeyboardInterrupt), open_pictures(out, **sizes) as writer:
        writer.add(frames[0])
        raise KeyboardInterrupt
    with pytest.raises(PenstockError, match="1 of 3 frames"), open_pictures(out, **sizes) as writer:
        writer.add(frames[0])
    with (
        pytest.raises(PenstockError, match="expected uint8"),
        open_pictures(out, **sizes) as writer,
    ):
        writer.add(frames[0][:, 1:])
    assert os.listdir(tmp_path) == ["bin"]
    with pytest.raises(StorageError):
        write(tmp_path / "missing" / f"a{suffix}", frames)


def test_webp_without_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import_module = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == "PIL":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return import_module(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(BackendMissingError, match=r"penstock\[splats\]"):
        write(tmp_path / "a.webp", frames_of(1))
    write(tmp_path / "a.png", frames_of(1))


# ---------------------------------------------------------------- parts


def test_pixels() -> None:
    values = np.array([-1, 0, 0.5, 1, 7, np.nan, np.inf, -np.inf, 0.999], np.float32)
    assert to_pixels(values[None, :, None])[0, :, 0].tolist() == [
        0,
        0,
        128,
        255,
        255,
        0,
        255,
        0,
        255,
    ]


def test_changed_boxes() -> None:
    before = np.zeros((6, 9, 3), np.uint8)
    assert changed_box(None, before) == (0, 0, 9, 6)
    assert changed_box(before, before.copy()) == (0, 0, 1, 1)
    after = before.copy()
    after[3, 5, 1] = after[4, 7, 0] = 1
    assert changed_box(before, after) == (5, 3, 8, 5)
    assert changed_box(before, after, step=2) == (4, 2, 8, 5)

"""`penstock splat`: info, compress, render, play and view, from files to pictures."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.cli.splat_view import scene_name
from penstock.loaders.splats.formats import open_splats, stored_bytes
from penstock.runtime.splats.camera import look_at
from penstock.runtime.splats.images import to_pixels
from penstock.runtime.splats.renderer import SplatRenderer
from penstock.runtime.splats.view_server import ViewServer
from tests.cli.conftest import COMMAND, Cli
from tests.cli.splat_scenes import cameras_file, scene_files
from tests.conftest import ROOT
from tests.loaders.splats import test_spacetime_ply as spacetime
from tests.loaders.splats.splat_builder import ply_bytes
from tests.needs import needs
from tests.runtime.splats.scenes import psnr

SMALL = ["--width", "64", "--height", "48", "--threads", "1"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return scene_files(tmp_path_factory.mktemp("splats"))


def picture(path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    image = pytest.importorskip("PIL.Image", reason="Pillow is an extra")
    with image.open(path) as opened:
        return np.asarray(opened.convert("RGB"))


# ---------------------------------------------------------------- info


def test_info(cli: Cli, files: dict[str, Path]) -> None:
    result = cli("splat", "info", files["moving"])
    assert result.code == 0 and result.err == ""
    for text in ("500", "degree 1", "0 to 2 s", "10 frames a second", "bytes"):
        assert text in result.out
    document = cli("splat", "info", files["moving psplat"], "--json").json
    assert (document["count"], document["degree"], document["dynamic"]) == (500, 1, True)
    assert document["bytes"] == files["moving psplat"].stat().st_size
    assert (document["start"], document["end"], document["fps"]) == (0, 2, 10)


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")
def test_a_film_has_the_size_that_is_said(cli: Cli, files: dict[str, Path], tmp_path: Path) -> None:
    """Of odd sides ffmpeg makes even ones."""
    out = tmp_path / "a.mp4"
    odd = ["--width", "63", "--height", "47", "--frames", "2", "--json"]
    found = cli("splat", "render", files["moving"], out, *odd).json
    assert (found["width"], found["height"]) == (64, 48)
    facts = subprocess.run(
        ["ffmpeg", "-hide_banner", "-i", str(out)], capture_output=True, text=True
    ).stderr
    assert "64x48" in facts


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("more", [[], ["--json"]])
def test_an_output_that_is_full_is_no_fault_of_ours(
    files: dict[str, Path], more: list[str], unbuffered: str
) -> None:
    line = [*COMMAND, "splat", "info", str(files["still"]), *more]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            line, stdout=full, stderr=subprocess.PIPE, cwd=ROOT, text=True, env=environment
        )
    assert done.returncode == 1
    assert done.stderr == "Error: the output: No space left on device\n"


def test_what_is_no_splats(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("<!doctype html>")
    for command in (["info"], ["play"], ["view", "--port", "0"]):
        result = cli("splat", *command, path, "--json")
        assert result.code == 1 and result.json["error"]["code"] == "FormatError"
    result = cli("splat", "render", path, tmp_path / "a.png")
    assert result.code == 1 and str(path) in result.err
    assert cli("splat", "info", tmp_path / "missing.ply").code == 1
    assert os.listdir(tmp_path) == ["page.html"]
    empty = tmp_path / "empty.psplat"
    empty.touch()
    assert "the file is empty" in cli("splat", "info", empty).err


# ---------------------------------------------------------------- render


def test_a_picture_is_the_renderers(cli: Cli, files: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("PIL.Image", reason="Pillow is an extra")
    out = tmp_path / "a.png"
    cameras = cameras_file(tmp_path)
    line = ["--cameras", cameras, "--camera", "1", "--background", "#204060", "--threads", "1"]
    result = cli("splat", "render", files["still"], out, *line)
    assert result.code == 0, result.err
    assert result.out == "" and f"Wrote {out}: 1 picture of 80 x 40" in result.err
    camera = look_at((2, -1, -2), (0, 0, 0), width=80, height=40)
    colour = [0x20 / 255, 0x40 / 255, 0x60 / 255]
    renderer = SplatRenderer(open_splats(files["still"]), threads=1, background=colour)
    assert psnr(picture(out), to_pixels(renderer.render(camera).image)) > 60
    wide = cli("splat", "render", files["still"], tmp_path / "b.png", *line, "--width", "160")
    assert wide.code == 0 and picture(tmp_path / "b.png").shape == (80, 160, 3)


def test_a_picture_is_of_its_camera_s_time(
    cli: Cli, files: dict[str, Path], tmp_path: Path
) -> None:
    """Of a moving scene, where no other time is asked for; a film plays from the start."""
    path = cameras_file(tmp_path)
    document = json.loads(path.read_text())
    document["frames"][1]["time"] = 1.5
    path.write_text(json.dumps(document))
    line = ["--cameras", path, "--camera", "1", "--threads", "1", "--json"]
    starts = {}
    for name, more in {
        "photo.png": [],
        "other.png": ["--time", "0.5"],
        "film.apng": ["--frames", "2"],
    }.items():
        result = cli("splat", "render", files["moving"], tmp_path / name, *line, *more)
        assert result.code == 0, result.err
        starts[name] = result.json["start"]
    assert starts == {"photo.png": 1.5, "other.png": 0.5, "film.apng": 0.0}


@pytest.mark.parametrize("name", ["moving", "moving psplat"])
def test_json_has_times(cli: Cli, files: dict[str, Path], tmp_path: Path, name: str) -> None:
    out = tmp_path / "film.apng"
    result = cli("splat", "render", files[name], out, *SMALL, "--json")
    assert result.code == 0, result.err
    found = result.json
    assert (found["frames"], found["fps"], found["width"], found["height"]) == (20, 10, 64, 48)
    assert found["bytes"] == out.stat().st_size and found["splats"] == 500
    assert 0 < found["frame_ms"]["p50"] <= found["frame_ms"]["p95"] <= found["frame_ms"]["max"]
    stages = {"load", "colour", "project", "sort", "bin", "blend", "write"}
    assert set(found["stage_ms"]) == stages and found["stage_ms"]["write"] > 0
    assert 0 < found["visible"] <= 500 and found["splat_bytes"] > 0 and found["memory"] is None
    assert result.err == ""


@needs("PIL")
def test_films_of_every_kind(cli: Cli, files: dict[str, Path], tmp_path: Path) -> None:
    from PIL import Image

    for name, options, frames in (
        ("a.webp", [], 1), ("b.webp", ["--orbit"], 20), ("c.png", ["--frames", "3"], 3),
        ("d.apng", ["--fps", "5"], 10), ("e.webp", ["--orbit", "--time", "1", "--frames", "4"], 4),
    ):  # fmt: skip
        result = cli("splat", "render", files["moving"], tmp_path / name, *SMALL, *options)
        assert result.code == 0, result.err
        with Image.open(tmp_path / name) as opened:
            assert getattr(opened, "n_frames", 1) == frames, name
    turn = cli("splat", "render", files["still"], tmp_path / "f.apng", *SMALL, "--orbit", "--json")
    assert turn.json["frames"] == 120


def test_a_moment_is_held_still(cli: Cli, files: dict[str, Path], tmp_path: Path) -> None:
    for name, time in (("a", "0.5"), ("b", "0.5"), ("c", "1.5")):
        out = tmp_path / f"{name}.png"
        assert cli("splat", "render", files["moving"], out, *SMALL, "--time", time).code == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "c.png").read_bytes()


def test_a_moment_outside_of_the_scene(cli: Cli, files: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "a.png"
    result = cli("splat", "render", files["moving psplat"], out, *SMALL, "--time", "2.2")
    assert result.code == 2 and "from 0 to 2 s" in result.err
    assert cli("splat", "render", files["still"], out, *SMALL, "--time", "2.2").code == 0


def test_the_camera_goes_where_it_is_told(cli: Cli, files: dict[str, Path], tmp_path: Path) -> None:
    seen = set()
    for n, options in enumerate(
        ([], ["--azimuth", "90"], ["--elevation", "-20"], ["--distance", "9"], ["--fov", "30"])
    ):
        out = tmp_path / f"{n}.png"
        assert cli("splat", "render", files["still"], out, *SMALL, *options).code == 0
        seen.add(out.read_bytes())
    assert len(seen) == 5


def test_nothing_is_replaced_unasked(cli: Cli, files: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "a.png"
    out.write_text("mine")
    result = cli("splat", "render", files["still"], out, *SMALL)
    assert result.code == 2 and "--overwrite" in result.err and out.read_text() == "mine"
    assert cli("splat", "render", files["still"], out, *SMALL, "--overwrite").code == 0
    assert out.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "options, said",
    [
        (["out.gif"], "written as"), (["out.mp4"], "nothing moves"),
        (["out.apng"], "nothing moves"),
        (["out.png", "--time", "nan"], "--time"), (["out.png", "--background", "pink"], "colour"),
        (["out.png", "--memory", "1GiB"], "only .psplat"), (["out.png", "--fov", "nan"], "--fov"),
        (["out.png", "--orbit", "--cameras", "CAMERAS"], "not both"),
        (["out.png", "--cameras", "CAMERAS", "--camera", "2"], "count from 0"),
        (["out.png", "--camera", "2"], "--cameras FILE"),
        (["out.png", "--cameras", "CAMERAS", "--azimuth", "0"], "--azimuth"),
        (["out.png", "--cameras", "CAMERAS", "--fov", "60"], "choose one"),
    ],
)  # fmt: skip
def test_wrong_usage(
    cli: Cli, files: dict[str, Path], tmp_path: Path, options: list[str], said: str
) -> None:
    cameras = cameras_file(tmp_path)
    given = [str(cameras) if word == "CAMERAS" else word for word in options]
    given[0] = str(tmp_path / given[0])
    result = cli("splat", "render", files["still"], *given)
    assert result.code == 2 and said in result.err, result.err
    assert os.listdir(tmp_path) == [cameras.name]


def test_a_budget_that_is_too_small(cli: Cli, files: dict[str, Path], tmp_path: Path) -> None:
    small = ["--memory", "20KiB"]
    result = cli("splat", "render", files["moving psplat"], tmp_path / "a.png", *small, "--json")
    assert result.code == 1 and result.json["error"]["code"] == "BudgetError"
    least = result.json["error"]["least_bytes"]
    enough = ["--memory", str(least), "--json"]
    again = cli("splat", "render", files["moving psplat"], tmp_path / "a.png", *enough)
    assert again.code == 0, again.err
    assert again.json["memory"] == least and again.json["splat_bytes"] <= least


# ---------------------------------------------------------------- play


def test_every_frame_is_played(cli: Cli, files: dict[str, Path]) -> None:
    result = cli(
        "splat", "play", files["moving psplat"], *SMALL, "--fast", "--loops", "2", "--json"
    )
    assert result.code == 0, result.err
    found = result.json
    assert (found["drawn"], found["dropped"], found["in_time"]) == (40, 0, False)
    assert found["frames_per_second"] > 0 and found["frame_ms"]["p50"] > 0


def test_a_scene_plays_for_the_seconds_that_are_given(
    cli: Cli, files: dict[str, Path], tmp_path: Path
) -> None:
    """Whose file says none."""
    clip = tmp_path / "clip.ply"
    clip.write_bytes(ply_bytes([("vertex", spacetime.COLUMNS, [spacetime.row(x=1)])]))
    play = ["splat", "play", clip, *SMALL, "--fast", "--fps", "8", "--json"]
    for seconds, frames in (([], 8), (["--seconds", "2"], 16)):
        result = cli(*play, *seconds)
        assert result.code == 0 and result.json["drawn"] == frames, result.err
    result = cli("splat", "convert", clip, tmp_path / "a.ply", "--seconds", "2.5")
    assert result.code == 0, result.err
    assert cli("splat", "info", tmp_path / "a.ply", "--json").json["end"] == 2.5
    for wrong, said in (("nan", "expected over 0"), ("1e12", "at most 1e+09")):
        result = cli(*play[:-1], "--seconds", wrong)
        assert result.code == 2 and said in result.err, result.err
    result = cli(*play[:-1], "--seconds", "1e9")
    assert result.code == 2 and "are 8000000000 frames" in result.err, result.err
    for command, out in (("play", []), ("render", [tmp_path / "b.png"]), ("view", [])):
        result = cli("splat", command, files["moving psplat"], *out, "--seconds", "2")
        assert result.code == 2 and "can be given for" in result.err, result.err


def test_in_time(cli: Cli, files: dict[str, Path]) -> None:
    result = cli("splat", "play", files["moving"], *SMALL, "--orbit")
    assert result.code == 0 and result.out == ""
    assert re.match(r"\d+ frames in [2-9]\.\d\d s, ", result.err)  # two seconds, or a busy machine
    assert "ms to draw a frame" in result.err


# ---------------------------------------------------------------- progress


@pytest.mark.parametrize(
    "command, seen",
    [
        (["render", "OUT.png", *SMALL], ["reading"]),
        (["render", "OUT.png", *SMALL, "--frames", "2"], ["reading", "frames"]),
        (["play", *SMALL, "--fast"], ["reading", "frames"]),
        (["play", *SMALL, "--fast", "--json"], []),
        (["compress", "OUT.psplat", "--exact", "--threads", "1"], ["reading"]),
        (["view", "--port", "0"], ["reading"]),
    ],
)
def test_a_person_sees_what_is_done(
    cli: Cli, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    command: list[str], seen: list[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(ViewServer, "wait", lambda self, ready: ready())
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    name, *rest = (word.replace("OUT", str(tmp_path / "out")) for word in command)
    result = cli("splat", name, files["still"], *rest)
    assert result.code == 0, result.err
    assert [text for text in ("reading", "frames") if text in result.err] == seen


# ---------------------------------------------------------------- view


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_view_serves_until_it_is_stopped(files: dict[str, Path], number: signal.Signals) -> None:
    line = [*COMMAND, "splat", "view", str(files["moving psplat"]), "--port", "0"]
    with subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    ) as child:
        assert child.stdout is not None
        first = child.stdout.readline()
        match = re.fullmatch(r"Viewing moving\.psplat at http://127\.0\.0\.1:(\d+)/\n", first)
        assert match is not None, first + (child.stderr.read() if child.stderr else "")
        with closing(http.client.HTTPConnection("127.0.0.1", int(match[1]), timeout=30)) as link:
            for path in ("/", "/model"):
                link.request("GET", path)
                answer = link.getresponse()
                assert answer.status == 200 and answer.read()
        child.send_signal(number)
        _, err = child.communicate(timeout=60)
    assert (child.returncode, err) == (0, "Stopped.\n")


def test_a_scene_has_the_name_of_its_file_or_of_its_folders(tmp_path: Path) -> None:
    folder = tmp_path / "playbot" / "3_0"
    folder.mkdir(parents=True)
    assert scene_name(folder) == scene_name(folder / "meta.json") == "playbot/3_0"
    assert scene_name(tmp_path / "flame.psplat") == "flame.psplat"


def test_view_as_json(files: dict[str, Path]) -> None:
    line = [*COMMAND, "splat", "view", str(files["still"]), "--port", "0", "--json"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True, cwd=ROOT) as child:
        assert child.stdout is not None
        document = json.loads("".join(child.stdout.readline() for _ in range(5)))
        child.terminate()
    assert document["splats"] == 500 and document["url"].startswith("http://127.0.0.1:")


# ---------------------------------------------------------------- real files


@pytest.mark.parametrize("name", ["biker.spz", "biker.compressed.ply", "playbot/6_0"])
@needs("PIL", "zstandard")
def test_real_files(cli: Cli, shared_dir: Path, tmp_path: Path, name: str) -> None:
    path = shared_dir / "data" / "splats" / name
    if not path.exists():
        pytest.skip(f"{path} is not there")
    info = cli("splat", "info", path, "--json")
    assert info.code == 0 and info.json["count"] > 1000
    assert info.json["bytes"] == stored_bytes(path)
    out = tmp_path / "a.png"
    result = cli("splat", "render", path, out, "--width", "320", "--height", "240")
    assert result.code == 0, result.err
    seen = picture(out)
    assert (seen.max(axis=2) > 30).mean() > 0.05  # something is there, and not all over
    assert (seen.max(axis=2) < 5).mean() > 0.05

"""`penstock splat compress` and `convert`: from files to files."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from penstock.cli.splat_compress import Stages
from penstock.errors import UsageError
from penstock.loaders.splats.formats import open_splats
from tests.cli.conftest import Cli
from tests.cli.splat_scenes import cameras_file, scene_files
from tests.loaders.splats import test_spacetime_ply as spacetime
from tests.needs import needs
from tests.runtime.splats.scenes import random_model


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return scene_files(tmp_path_factory.mktemp("splats"))


# ---------------------------------------------------------------- compress


def test_compress(cli: Cli, files: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "small.psplat"
    # Few small pictures: what the stages do has tests of its own.
    quick = ["--views", cameras_file(tmp_path), "--threads", "1"]
    quick += ["--refine-steps", "2", "--final-steps", "3", "--tune-steps", "2", "--keep", "60%"]
    result = cli("splat", "compress", files["moving"], out, *quick, "--json")
    assert result.code == 0, result.err
    found = result.json
    assert found["bytes"] == out.stat().st_size == found["nbytes"]
    assert found["source_splats"] == 500 and 0 < found["splats"] <= 300
    assert open_splats(out).count == found["splats"]
    stages = [stage["stage"] for stage in found["stages"]]
    assert "sampling" in stages and "pruning" in stages and stages[-1] == "coding"
    assert found["file_bytes"] == files["moving"].stat().st_size
    again = cli("splat", "compress", files["moving"], out, *quick)
    assert again.code == 2 and "--overwrite" in again.err
    off = [*quick[:4], "--no-sampling", "--no-pruning", "--no-merging", "--overwrite"]
    off += ["--tune-steps", "0"]
    plain = cli("splat", "compress", files["moving"], out, *off)
    assert plain.code == 0 and "coding" in plain.out
    share = 100 * out.stat().st_size / files["moving"].stat().st_size
    assert f"{share:.1f} % of {files['moving']}." in plain.err
    assert open_splats(out).count == 500
    # What is overwritten with itself was as large as it was.
    size = out.stat().st_size
    once_more = cli("splat", "compress", out, out, *off, "--json")
    assert once_more.json["file_bytes"] == size


def test_stages_have_switches_both_ways() -> None:
    moving, still = random_model(3, dynamic=True), random_model(3)
    plain = Stages().settings(moving)
    assert plain.merging and not Stages().settings(still).merging
    assert Stages(sampling=True).settings(moving).sampling
    assert Stages(keep=0.5).settings(moving) == Stages(keep=0.5, sampling=True).settings(moving)
    assert not Stages(merging=False).settings(moving).merging
    assert Stages(merging=True).settings(still).merging
    assert Stages(final_steps=7).settings(moving).final_steps == 7
    assert not Stages(paper=True, sampling=False).settings(moving).sampling
    assert Stages(final_steps=7, merging=True).settings(still).final_steps == 7
    with pytest.raises(UsageError, match="nothing is trained"):
        Stages(final_steps=7).settings(still)


def test_photos_of_a_moving_scene_need_times(
    cli: Cli, files: dict[str, Path], tmp_path: Path
) -> None:
    path = cameras_file(tmp_path)
    document = json.loads(path.read_text())
    for frame in document["frames"]:
        frame.pop("time", None)
    document.pop("time", None)
    path.write_text(json.dumps(document))
    result = cli("splat", "compress", files["moving"], tmp_path / "a.psplat", "--views", path)
    assert result.code == 1 and f"{path}: frame 0 has no 'time'" in result.err


def test_every_splat_stays_with_exact(cli: Cli, files: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "exact.psplat"
    line = ["--exact", "--threads", "1", "--json"]
    result = cli("splat", "compress", files["still"], out, *line)
    assert result.code == 0, result.err
    assert result.json["splats"] == 500
    same = [*line, "--no-merging", "--no-sampling", "--overwrite"]
    assert cli("splat", "compress", files["still"], out, *same).code == 0
    both = cli("splat", "compress", files["still"], tmp_path / "b.psplat", "--exact", "--paper")
    assert both.code == 2 and "--exact" in both.err


def test_contradictions(cli: Cli, files: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "a.psplat"
    line = ["--keep", "50%", "--no-sampling"]
    assert cli("splat", "compress", files["still"], out, *line).code == 2
    assert cli("splat", "compress", files["still"], out, "--exact", "--keep", "50%").code == 2
    assert cli("splat", "compress", files["moving"], out, "--finer", "2").code == 2
    assert cli("splat", "compress", files["still"], tmp_path / "no" / "a.psplat").code == 1
    other = cli("splat", "compress", files["still"], tmp_path / "a.ply")
    assert other.code == 2 and ".psplat" in other.err
    assert os.listdir(tmp_path) == []


def test_contradictions_are_found_before_a_file_is_read(cli: Cli, tmp_path: Path) -> None:
    missing, out = tmp_path / "missing.ply", tmp_path / "a.psplat"
    for given in (
        ["--keep", "50%", "--no-sampling"], ["--exact", "--paper"], ["--exact", "--keep", "50%"],
        ["--paper", "--finer", "2"], ["--footprint", "wide"],
    ):  # fmt: skip
        result = cli("splat", "compress", missing, out, *given)
        assert result.code == 2, (given, result.err)


def test_finer_is_next_to_the_default() -> None:
    still, moving = random_model(3), random_model(3, dynamic=True)
    plain = Stages().settings(still).finer
    assert Stages(finer=1.0).settings(still).finer == plain
    assert Stages(finer=2.0).settings(still).finer == 2 * plain
    with pytest.raises(UsageError, match="do not move"):
        Stages(finer=2.0).settings(moving)


@needs("PIL")
def test_the_footprint_is_that_of_the_pictures(
    cli: Cli, files: dict[str, Path], tmp_path: Path
) -> None:
    """Photos of a sentinel's training are those of its own footprints, and of no others."""
    cameras, out = cameras_file(tmp_path), tmp_path / "a.psplat"
    document = json.loads(cameras.read_text())
    for number, frame in enumerate(document["frames"]):
        photo = tmp_path / f"{number}.png"
        line = ["--cameras", cameras, "--camera", number, "--footprint", "omg4-sentinel"]
        assert cli("splat", "render", files["still"], photo, *line).code == 0
        frame["file_path"] = photo.name
    cameras.write_text(json.dumps(document))
    found = {}
    for name in ("exact", "omg4-sentinel"):
        line = ["--views", cameras, "--footprint", name, "--threads", "1", "--overwrite", "--json"]
        result = cli("splat", "compress", files["still"], out, *line)
        assert result.code == 0, result.err
        assert result.json["settings"]["footprint"] == name
        found[name] = result.json["quality"]["model_truth"]
    assert found["omg4-sentinel"] > 45 > 35 > found["exact"]


# ---------------------------------------------------------------- convert


@pytest.mark.parametrize(
    "name, ending, most",
    [("still", ".ply", 1e-5), ("moving psplat", ".ply", 1e-5), ("still", ".spz", 0.02),
     ("moving", ".npz", 1e-4)],
)  # fmt: skip
def test_convert(
    cli: Cli, files: dict[str, Path], tmp_path: Path, name: str, ending: str, most: float
) -> None:
    out = tmp_path / f"scene{ending}"
    result = cli("splat", "convert", files[name], out)
    assert result.code == 0, result.err
    assert result.out == "" and f"Wrote {out}: 500 splats" in result.err
    model, read = open_splats(files[name]), open_splats(out)
    assert np.abs(read.means - model.means).max() < most
    assert np.abs(read.opacities - model.opacities).max() < most
    assert (read.motion is None) == (model.motion is None)
    again = cli("splat", "convert", files[name], out, "--json")
    assert again.code == 2 and "--overwrite" in again.json["error"]["message"]
    found = cli("splat", "convert", files[name], out, "--overwrite", "--json").json
    assert found["bytes"] == out.stat().st_size and found["splats"] == 500 and found["lost"]


def test_what_reading_loses_is_said(cli: Cli, tmp_path: Path) -> None:
    path = spacetime.spacetime(tmp_path, spacetime.row(motion=[0.0] * 3 + [0.5] * 6))
    result = cli("splat", "convert", path, tmp_path / "one.ply")
    assert result.code == 0, result.err
    assert f"Read otherwise than {path} has it: curves read as lines" in result.err
    found = cli("splat", "convert", path, tmp_path / "two.ply", "--json").json
    assert set(found["lost_in_reading"]) == {"curves", "turning"}
    out = tmp_path / "a.psplat"
    assert "Read otherwise" in cli("splat", "compress", path, out, "--exact").err
    found = cli("splat", "convert", out, tmp_path / "three.ply", "--json").json
    assert found["lost_in_reading"] == {}


@pytest.mark.parametrize(
    "name, out, said",
    [("moving", "a.spz", "moves, which .spz cannot hold; write .ply or .npz"),
     ("still", "a.npz", "does not move, which .npz cannot hold; write .ply or .spz"),
     ("still", "a.psplat", "splat compress"), ("still", "a", "what is written is .ply")],
)  # fmt: skip
def test_what_a_format_does_not_hold(
    cli: Cli, files: dict[str, Path], tmp_path: Path, name: str, out: str, said: str
) -> None:
    result = cli("splat", "convert", files[name], tmp_path / out)
    assert result.code == 2 and said in result.err, result.err
    assert os.listdir(tmp_path) == []


@needs("zstandard")
def test_convert_to_spz_4(cli: Cli, files: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "a.spz"
    assert cli("splat", "convert", files["still"], out, "--spz-version", "4").code == 0
    assert "v4" in cli("splat", "info", out).out and open_splats(out).count == 500

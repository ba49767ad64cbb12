"""The whole compression: stages by their switches, the file that comes out, and the report."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from penstock.errors import FormatError, UsageError
from penstock.export.omg4.drawing import draw_model
from penstock.export.omg4.pipeline import Compressed, compress, plain_bytes
from penstock.export.omg4.psplat_writer import write_psplat
from penstock.export.omg4.rasteriser import NativeRasteriser
from penstock.export.omg4.report import ROTOR_BYTES, mean_psnr, render
from penstock.export.omg4.settings import BookSizes, CompressionSettings
from penstock.export.omg4.views import Truth
from penstock.export.report import Progress
from penstock.loaders.splats.model import SplatModel, SplatMotion, check_model
from penstock.loaders.splats.psplat_file import PsplatFile
from penstock.runtime.splats.camera import View
from tests.export.omg4.scenes import cloud, views

QUICK = CompressionSettings(
    sampling=True,
    keep=0.5,
    pruning_quantile=0.8,
    merge_rounds=1,
    merge_steps=3,
    merge_similarity=-0.01,
    refine_steps=4,
    final_steps=5,
    colour_steps=2,
    tune_steps=3,
    net_steps=20,
    own_views=False,
    threads=1,
)


def redundant(count: int = 80, copies: int = 6, *, moving: bool = True) -> SplatModel:
    """A cloud whose every splat is there several times, nearly: there is something to merge."""
    model = cloud(count, seed=1, moving=moving)
    rng = np.random.default_rng(2)
    rows = np.repeat(np.arange(count), copies)

    def near(values: np.ndarray, size: float) -> np.ndarray:
        return (values[rows] + rng.normal(size=(len(rows), *values.shape[1:])) * size).astype("f4")

    motion = model.motion
    if motion is not None:
        motion = SplatMotion(
            motion.velocities[rows], motion.t_centers[rows], motion.t_sigmas[rows], 0.0, 2.0, 12.0
        )
    return SplatModel(
        near(model.means, 0.001),
        model.scales[rows],
        model.rotations[rows],
        (1 - (1 - 0.4 * model.opacities[rows]) ** (1 / copies)).astype(np.float32),
        near(model.sh, 0.001),
        motion,
    )


def stages(found: Compressed) -> list[str]:
    return [one.stage for one in found.report.stages]


def photos(model: SplatModel, count: int) -> list[View]:
    rasteriser = NativeRasteriser(1)
    return [
        replace(view, image=draw_model(rasteriser, model, view.camera, view.time))
        for view in views(count, moving=model.dynamic)
    ]


def test_a_moving_scene_goes_through_every_stage(tmp_path: Path) -> None:
    model = redundant()
    told: list[Progress] = []
    found = compress(model, photos(model, 9), QUICK, told.append)
    assert stages(found) == [
        "source", "drawable", "settling", "sampling", "pruning", "merging 1", "training",
        "quantization", "coding",
    ]  # fmt: skip
    report = found.report
    splats = [one.splats for one in report.stages]
    assert splats == sorted(splats, reverse=True) and splats[0] == 480 and splats[3] == 240
    assert (report.views, report.held_out, report.own) == (8, 1, False)
    quality = report.quality
    assert quality.compressed_truth is not None and quality.compressed_model is not None
    assert 5 < quality.compressed_truth < 100
    steps = {one.stage: one.total for one in reversed(told)}  # as it began
    assert {"scores", "refinement after pruning", "merging 1", "colours"} <= set(steps)
    assert steps["refinement after sampling"] == 4 and steps["training"] == 5
    assert "refinement after merging 1" not in steps  # the last stage has its own training

    path = tmp_path / "scene.psplat"
    sizes = write_psplat(path, found.encoded)
    assert sizes.total == report.nbytes == path.stat().st_size
    assert report.stages[-1].nbytes == report.nbytes
    assert sum(report.parts.values()) == pytest.approx(report.nbytes, abs=1)
    assert report.rotor_ratio == pytest.approx(ROTOR_BYTES * 480 / report.nbytes)
    with PsplatFile.open(path) as file:
        again = file.read_all()
    check_model(again, path)
    # The file has its own order: compare what does not depend on it.
    for name in ("means", "opacities", "scales"):
        a, b = (np.sort(getattr(one, name).ravel()) for one in (again, found.model))
        assert a == pytest.approx(b, abs=1e-6)


def test_what_no_photo_shows_stays() -> None:
    model = redundant(40)
    ring = photos(model, 24)
    front = [*ring[:3], *ring[-2:]]
    behind = Truth(views(24)[11:14], model, NativeRasteriser(1))

    def left(own: bool) -> float:
        settings = QUICK.with_changes(
            sampling=False, pruning=False, tune_steps=0, final_steps=60, own_views=own
        )
        found = compress(model, front, settings, test_views=ring[:1])
        assert found.report.views == len(front) + (192 if own else 0)
        assert not found.report.own
        decibels = mean_psnr(NativeRasteriser(1), found.model, behind)
        assert decibels is not None
        return decibels

    a, b = left(True), left(False)
    assert a > b + 1


@pytest.mark.parametrize("switch", ["sampling", "pruning", "merging"])
def test_each_stage_has_its_switch(switch: str) -> None:
    off = {"sampling": False, "pruning": False, "merging": False}
    found = compress(redundant(30), views(8), QUICK.with_changes(**{**off, switch: True}))
    kept = [one for one in stages(found) if one.startswith(switch)]
    others = {"sampling", "pruning", "merging 1"} - set(kept)
    assert len(kept) == 1 and not others & set(stages(found))
    assert found.model.count < 180
    none = compress(redundant(30), views(8), QUICK.with_changes(**off))
    assert stages(none) == ["source", "drawable", "settling", "quantization", "coding"]
    assert none.model.count == 180


def test_merging_brings_back_what_there_was() -> None:
    only = QUICK.with_changes(sampling=False, pruning=False, final_steps=0, merge_quantile=0.0)
    found = compress(redundant(), views(8), only)
    merged = next(one for one in found.report.stages if one.stage == "merging 1")
    assert 80 <= merged.splats < 240
    assert found.report.quality.compressed_truth is None  # there are no photos
    assert found.report.quality.compressed_model is not None
    assert found.report.quality.compressed_model > 22


def test_without_quantization_hardly_anything_is_lost() -> None:
    off = QUICK.with_changes(sampling=False, pruning=False, merging=False)
    coarse = compress(redundant(30), views(8), off)
    fine = compress(redundant(30), views(8), off.with_changes(quantization=False))
    a, b = coarse.report.quality.compressed_model, fine.report.quality.compressed_model
    assert a is not None and b is not None and b > a and b > 45
    assert fine.report.nbytes > coarse.report.nbytes


def test_bytes_before_entropy_coding_count_everything(tmp_path: Path) -> None:
    off = QUICK.with_changes(sampling=False, pruning=False, merging=False, entropy=False)
    for changes in ({}, {"appearance": "nets"}, {"coding": "scalars"}):
        found = compress(redundant(30), views(8), off.with_changes(**changes))
        before, after = (one.nbytes for one in found.report.stages[-2:])
        assert before == plain_bytes(found.encoded)
        # A file without models has these bytes, a head, and positions that are delta-coded.
        parts = found.report.parts
        cells = before - sum(parts[part.name] for part in found.encoded.parts)
        cells -= parts["codebooks"] + parts["nets"]
        assert 0 < cells < 180 * 3 * 21 / 8 + 180
        assert parts["positions"] < cells + 60
        path = tmp_path / f"{len(changes)}{after}.psplat"
        assert write_psplat(path, found.encoded, entropy=False).total == after


def test_the_report_says_what_was_not_done() -> None:
    distinct = CompressionSettings(
        sampling=False, pruning=False, colour_steps=0, tune_steps=0, threads=1
    )
    notes = compress(cloud(20, seed=6), views(4), distinct).report.notes
    assert any("no splats that look alike" in note for note in notes)
    assert any("too few views" in note for note in notes)
    notes = compress(cloud(20, seed=6), views(8), distinct.with_changes(merging=False)).report.notes
    assert not any("alike" in note or "too few" in note for note in notes)


def test_few_photos_are_held_against_themselves_and_that_is_said() -> None:
    model = redundant(30)
    settings = QUICK.with_changes(own_views=True)
    few = compress(model, photos(model, 3), settings).report
    assert any("too few views" in note for note in few.notes) and few.held_out == 3
    many = compress(model, photos(model, 8), settings).report
    assert not any("too few views" in note for note in many.notes) and many.held_out == 1


def test_as_many_photos_to_measure_by_as_to_train_with() -> None:
    model = redundant(30)
    ring = photos(model, 4)
    others = [replace(view, image=np.array(view.image) * np.float32(0.9)) for view in ring]
    report = compress(model, ring, QUICK, test_views=others).report
    assert (report.views, report.held_out) == (4, 4)
    assert not any("too few views" in note for note in report.notes)


def test_photos_of_other_times_are_named() -> None:
    model = redundant(30)
    late = [replace(view, time=10.0 * (view.time or 0)) for view in photos(model, 8)]
    notes = compress(model, late, QUICK).report.notes
    assert any("7 of 8 views are outside of the scene's 0 to 2 s" in note for note in notes)
    assert not any("outside" in note for note in compress(model, views(8), QUICK).report.notes)


def test_training_that_was_dropped_is_named() -> None:
    model = redundant(30)
    wild = QUICK.with_changes(rates=900.0, final_steps=2, sampling=False, pruning=False)
    notes = compress(model, views(8), wild).report.notes
    assert any(note.startswith("training: 2 steps made nothing better") for note in notes)


def test_what_nobody_sees_leaves_a_black_picture() -> None:
    model = replace(cloud(30, size=0.3), opacities=np.full(30, 0.01, np.float32))
    found = compress(model, photos(cloud(30, size=0.3), 8), QUICK)
    hidden = replace(model, opacities=np.zeros(30, np.float32))
    gone = compress(hidden, photos(cloud(30, size=0.3), 8), QUICK)
    assert gone.model.count == 0 and found.model.count > 0
    last = gone.report.stages[-1].psnr
    assert last is not None and 0 < last < 30  # not "the same"


def test_implicit_nets_are_an_option(tmp_path: Path) -> None:
    found = compress(redundant(30), views(8), QUICK.with_changes(appearance="nets"))
    assert {net.name for net in found.encoded.nets} == {"cont", "dc", "view", "opacity", "frame"}
    assert found.report.parts["nets"] > 20_000
    check_model(found.model, "nets")
    path = tmp_path / "nets.psplat"
    write_psplat(path, found.encoded)
    with PsplatFile.open(path) as file:
        assert np.sort(file.read_all().opacities) == pytest.approx(
            np.sort(found.model.opacities), abs=1e-5
        )


@pytest.mark.parametrize("settings", [None, CompressionSettings.exact()])
def test_a_static_scene_is_quantized_only(settings: CompressionSettings | None) -> None:
    model = cloud(300, seed=3, moving=False, coefficients=9)
    found = compress(model, settings=settings)
    seen = ["drawable"] if settings is None else []
    assert stages(found) == ["source", *seen, "quantization", "coding"]
    assert found.model.count == 300 and found.model.motion is None
    quality = found.report.quality.compressed_model
    assert quality is not None and quality > 35
    assert found.report.own and any("no photos" in note for note in found.report.notes)


def test_exact_coding_keeps_what_nobody_sees() -> None:
    model = cloud(50, seed=5, moving=False)
    model.opacities[:7] = 0
    assert compress(model, settings=CompressionSettings.exact()).model.count == 50
    assert compress(model).model.count == 43


def test_harmonics_are_cut_as_asked() -> None:
    model = cloud(60, seed=4, coefficients=16)
    found = compress(model, views(8), QUICK.with_changes(degree=1, sampling=False))
    assert found.model.degree == 1
    assert "harmonics of degree 3 were cut to 1" in found.report.notes
    same = compress(cloud(60, seed=4), views(8), QUICK.with_changes(degree=3))
    assert same.model.degree == 1 and not any("cut to" in note for note in same.report.notes)


def test_colours_learn_to_live_with_places_that_were_kept() -> None:
    model = cloud(200, seed=7, coefficients=4)
    coarse = BookSizes(scale=(3, 3, 3), rotation=(3, 3, 3), position=7, position_parts=None)
    off = QUICK.with_changes(sampling=False, pruning=False, merging=False, books=coarse,
                             settling=False, tune_steps=0)  # fmt: skip
    plain = compress(model, views(8), off.with_changes(colour_steps=0))
    learned = compress(model, views(8), off.with_changes(colour_steps=60))
    for one in learned.encoded.parts:
        other = next(part for part in plain.encoded.parts if part.name == one.name)
        same = (one.indices == other.indices).all()
        assert same == (one.attribute not in ("opacity", "opponent", "rest")), one.name
    assert (learned.encoded.cells == plain.encoded.cells).all()
    a, b = learned.report.quality.compressed_model, plain.report.quality.compressed_model
    assert a is not None and b is not None and a > b + 0.2


def test_the_same_seed_gives_the_same_file(tmp_path: Path) -> None:
    names = [tmp_path / "a.psplat", tmp_path / "b.psplat"]
    for path in names:
        write_psplat(path, compress(redundant(30), views(8), QUICK).encoded)
    assert names[0].read_bytes() == names[1].read_bytes()


@pytest.mark.parametrize("moving", [False, True])
@pytest.mark.parametrize("count", [0, 1, 2])
def test_hardly_any_splats(count: int, moving: bool) -> None:
    model = cloud(count, moving=moving)
    found = compress(model, views(4, moving=moving), QUICK)
    assert found.model.count <= count
    assert found.report.nbytes > 0


def test_the_report_is_for_people_and_machines() -> None:
    found = compress(redundant(20), views(8), QUICK)
    values = json.loads(json.dumps(found.report.to_dict(), allow_nan=False))
    assert values["splats"] == found.model.count and values["rotor_ratio"] > 1
    assert values["stages"][0] == {
        "stage": "source",
        "splats": 120,
        "nbytes": redundant(20).nbytes,
        "psnr": None,
        "seconds": values["stages"][0]["seconds"],
    }
    out = io.StringIO()
    Console(width=120, file=out).print(render(found.report))
    text = out.getvalue()
    assert "times smaller than the 120" in text and "quantization" in text
    empty = compress(cloud(0), views(4), QUICK).report.to_dict()
    assert empty["bytes_a_splat"] is None
    json.dumps(empty, allow_nan=False)


def test_models_and_views_that_cannot_be_are_refused() -> None:
    model = cloud(10)
    broken = replace(model, means=model.means * np.float32(np.nan))
    with pytest.raises(FormatError, match="the model to compress: means of splat 0"):
        compress(broken, views(3), QUICK)
    with pytest.raises(UsageError, match="view 0 has time None"):
        compress(model, views(3, moving=False), QUICK)
    small = [replace(view, image=np.zeros((4, 4, 3), np.uint8)) for view in views(3)]
    with pytest.raises(UsageError, match=r"shape \(4, 4, 3\); its camera expects"):
        compress(model, small, QUICK)

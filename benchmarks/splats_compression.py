"""Compression of the fitted 4D scene: three comparisons, stage by stage, beside other formats."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from hashlib import sha256
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.splat_fit import FitSettings, as_camera, as_view, fit
from benchmarks.splat_metrics import Scores, Shown, score
from benchmarks.splat_truth_scene import Shot, cameras, frame_times, shoot_all
from benchmarks.splats_controls import controls
from benchmarks.splats_part import Job, Part, table
from benchmarks.splats_peers import fourdgs_file, half_zstd
from penstock.export.omg4.pipeline import Compressed, compress
from penstock.export.omg4.psplat_writer import write_content
from penstock.export.omg4.report import ROTOR_BYTES
from penstock.export.omg4.settings import CompressionSettings
from penstock.loaders.partial_file import partial_file
from penstock.loaders.splats.formats import open_splats
from penstock.loaders.splats.model import SplatModel, SplatMotion, named_arrays
from penstock.runtime.splats.camera import View
from penstock.runtime.splats.renderer import SplatRenderer

VERSION = 2  # of how the model is fitted
PAPER_BYTES = 22.75  # a splat, of OMG4 before entropy coding
MOST_LOST, LEAST_RATIO = 0.5, 300.0  # decibels; against rotor splats
ABLATION_STEPS = 500  # of training, in each row


@dataclass(frozen=True)
class Setting:
    """Sizes of the experiment."""

    width: int
    height: int
    frames: int
    fit: FitSettings


FULL = Setting(320, 240, 60, FitSettings(spacing=0.018))
QUICK = Setting(96, 72, 8, FitSettings(spacing=0.12, tolerance=0.03, degree=1, steps=20))
Pictures = list[np.ndarray[Any, np.dtype[np.float32]]]


@dataclass(frozen=True)
class Scene:
    """The truth, the model that was fitted to it, and who looks on."""

    train: list[Shot]
    test: list[Shot]  # camera by camera, in time
    fresh: list[Shot]  # likewise; nothing was tuned by these
    model: SplatModel
    fit_seconds: float

    @property
    def views(self) -> list[View]:
        """What the compression sees: the training pictures."""
        return [as_view(shot) for shot in self.train]


@cache
def fitted(job: Job) -> Scene:
    """Made once for all parts, and kept in the folder where the run keeps what it makes."""
    setting = QUICK if job.quick else FULL
    groups = cameras(setting.width, setting.height)
    times = frame_times(setting.frames)
    folder = job.work / "splats"
    folder.mkdir(parents=True, exist_ok=True)
    looks = {
        name: [(camera, time) for camera in chosen for time in times]
        for name, chosen in (("train", groups["train"]),
                             ("test", groups["test"] + groups["off_arc"]),
                             ("fresh", groups["fresh"]))
    }  # fmt: skip
    train, test, fresh = (shoot_all(look, folder) for look in looks.values())
    path = folder / f"fitted_{'quick' if job.quick else 'full'}_{_key(setting)}.npz"
    begin = perf_counter()
    if not path.is_file():
        model = fit(train, setting.fit, threads=job.threads)
        _save(path, model)
    seconds = perf_counter() - begin
    return Scene(train, test, fresh, _load(path), seconds)


def _key(setting: Setting) -> str:
    return sha256(f"{VERSION} {setting!r}".encode()).hexdigest()[:12]


def _save(path: Path, model: SplatModel) -> None:
    motion = model.motion
    assert motion is not None
    with partial_file(path) as (handle, _):
        span = np.array([motion.start, motion.end, motion.fps or 0])
        np.savez(handle, span=span, **named_arrays(model))  # type: ignore[arg-type]


def _load(path: Path) -> SplatModel:
    with np.load(path) as kept:
        a = {name: kept[name] for name in kept.files}
    start, end, fps = a["span"].tolist()
    motion = SplatMotion(
        a["velocities"], a["t_centers"], a["t_sigmas"], start, end, fps if fps > 0 else None
    )
    return SplatModel(a["means"], a["scales"], a["rotations"], a["opacities"], a["sh"], motion)


def compression(job: Job) -> Part:
    """Size and quality of the whole pipeline, and others on the same splats."""
    scene, part = fitted(job), Part()
    settings = _settings(job)
    begin = perf_counter()
    made = compress(scene.model, scene.views, settings)
    seconds = perf_counter() - begin
    out = job.work / "splats" / "fitted.psplat"
    write_content(out, made.file)
    nbytes, small = out.stat().st_size, open_splats(out)

    truth = as_pictures(scene.test)
    before, after = (drawn(model, scene.test, job.threads) for model in (scene.model, small))
    rows = {
        "model against truth": scores(before, truth, scene.test),
        "compressed against truth": scores(after, truth, scene.test),
        "compressed against model": scores(after, before, scene.test),
    }
    part.tables.append(_scores_table(rows))
    part.tables.append(_places(scene, before, after, truth))
    each = nbytes / max(1, small.count)
    ratio = ROTOR_BYTES * scene.model.count / nbytes
    lost = rows["model against truth"].psnr - rows["compressed against truth"].psnr
    fixed = made.encoded.fixed_bits / 8
    part.lines.append(
        f"{scene.model.count:,} splats from {len(scene.train)} pictures of "
        f"{scene.train[0].camera.width} x {scene.train[0].camera.height}, fitted in "
        f"{scene.fit_seconds:.0f} s (0: kept from an earlier run); compressed in {seconds:.0f} s "
        f"to {small.count:,} splats, {nbytes:,} bytes: {fixed:.2f} bytes a splat before entropy "
        f"coding, {each:.2f} in the file; {ratio:.0f} times smaller than rotor splats; "
        f"{lost:.2f} dB lost"
    )
    part.lines.append(
        f"{scene.model.nbytes / nbytes:.0f} times smaller than the fitted model's own "
        f"{scene.model.nbytes / scene.model.count:.0f} bytes a splat, whose harmonics are of "
        f"degree {scene.model.degree}"
    )
    fresh = as_pictures(scene.fresh)
    unseen = [
        scores(drawn(model, scene.fresh, job.threads), fresh, scene.fresh).psnr
        for model in (scene.model, small)
    ]
    part.lines.append(
        f"three more cameras, which no setting was chosen by: the model {unseen[0]:.2f} dB, "
        f"compressed {unseen[1]:.2f}, {unseen[0] - unseen[1]:.2f} lost"
    )
    part.tables.append(_peers(job, scene, made, nbytes, truth))
    part.tables.append(_controls(job, scene, settings, small.count, nbytes, truth))
    part.report = {
        "splats": scene.model.count,
        "fit_seconds": scene.fit_seconds,
        "seconds": seconds,
        "bytes": nbytes,
        "bytes_a_splat": each,
        "fixed_bytes_a_splat": fixed,
        "rotor_ratio": ratio,
        "scores": {name: found.to_dict() for name, found in rows.items()},
        "fresh": {"model": unseen[0], "compressed": unseen[1]},
        "pipeline": made.report.to_dict(),
    }
    part.bar(fixed < PAPER_BYTES, f"{fixed:.2f} bytes a splat before coding, bar {PAPER_BYTES}")
    part.bar(each < PAPER_BYTES, f"{each:.2f} bytes a splat in the file, bar {PAPER_BYTES}")
    part.bar(lost <= MOST_LOST, f"{lost:.2f} dB lost on held-out cameras, bar {MOST_LOST}")
    part.bar(ratio >= LEAST_RATIO, f"{ratio:.0f} times smaller, bar {LEAST_RATIO:.0f}")
    return part


def ablation(job: Job) -> Part:
    """Each stage alone, and all of them but one."""
    scene, part = fitted(job), Part()
    base = _settings(job)
    if not job.quick:
        base = base.with_changes(final_steps=ABLATION_STEPS)
    none = base.with_changes(sampling=False, pruning=False, merging=False, settling=False,
                             degree=None, colour_steps=0, tune_steps=0)  # fmt: skip
    variants: dict[str, CompressionSettings] = {
        "quantization alone": none,
        "settling alone": none.with_changes(settling=True),
        "sampling alone, half stay": none.with_changes(sampling=True, keep=0.5),
        "pruning alone": none.with_changes(pruning=True),
        "merging alone": none.with_changes(merging=True),
        "all": base,
        "all, and sampling, 80 % stay": base.with_changes(sampling=True, keep=0.8),
        "all, without pruning": base.with_changes(pruning=False),
        "all, without settling": base.with_changes(settling=False),
        "all, without own views": base.with_changes(own_views=False),
        "all, without any training": base.with_changes(refine_steps=0, merge_steps=0, final_steps=0,
                                                       colour_steps=0, tune_steps=0),
        "all, without the final training": base.with_changes(final_steps=0),
        "all, colours not trained again": base.with_changes(colour_steps=0),
        "all, codebooks not tuned": base.with_changes(tune_steps=0),
        "all, shape of one member": base.with_changes(merge_shape="representative"),
        "all, scalars instead of codebooks": base.with_changes(coding="scalars"),
        "all, harmonics of degree 2": base.with_changes(degree=2),
        "all, without harmonics": base.with_changes(degree=0),
        "all, the paper's codebooks": base.with_changes(books=type(base.books).omg4()),
        "all, implicit nets": base.with_changes(appearance="nets"),
        "the paper's shares: 20 % stay": base.with_changes(sampling=True, keep=0.2,
                                                           pruning=True, pruning_quantile=0.8),
    }  # fmt: skip
    if job.quick:
        variants = {name: variants[name] for name in ("quantization alone", "all")}
    truth = as_pictures(scene.test)
    made = table("stages of the compression", "stages", "splats", "bytes", "a splat", "times rotor",
                 "PSNR", "there", "moving", "seconds")  # fmt: skip
    part.lines.append(f"final training: {base.final_steps} steps, where splats went")
    start = scores(drawn(scene.model, scene.test, job.threads), truth, scene.test)
    made.add_row("the fitted model", f"{scene.model.count:,}", f"{scene.model.nbytes:,}",
                 f"{scene.model.nbytes / scene.model.count:.1f}", "", f"{start.psnr:.2f}",
                 f"{start.there:.2f}", f"{start.moving:.2f}", "")  # fmt: skip
    rows = []
    for name, settings in variants.items():
        begin = perf_counter()
        done = compress(scene.model, scene.views, settings)
        seconds = perf_counter() - begin
        found = scores(drawn(done.model, scene.test, job.threads), truth, scene.test)
        nbytes, count = done.report.nbytes, done.report.splats
        ratio = ROTOR_BYTES * scene.model.count / nbytes
        made.add_row(name, f"{count:,}", f"{nbytes:,}", f"{nbytes / max(1, count):.2f}",
                     f"{ratio:.0f}", f"{found.psnr:.2f}", f"{found.there:.2f}",
                     f"{found.moving:.2f}", f"{seconds:.0f}")  # fmt: skip
        rows.append({"name": name, "splats": count, "bytes": nbytes, "seconds": seconds,
                     "scores": found.to_dict()})  # fmt: skip
        # All rows take half an hour.
        print(f"{name}: {nbytes:,} bytes, {found.psnr:.2f} dB, {seconds:.0f} s", file=sys.stderr)
    part.tables.append(made)
    part.report = {"model": start.to_dict(), "rows": rows}
    return part


def _settings(job: Job) -> CompressionSettings:
    settings = CompressionSettings(threads=job.threads)
    if job.quick:
        settings = replace(settings, refine_steps=5, final_steps=5, colour_steps=2, tune_steps=2,
                           merge_steps=2, net_steps=5)  # fmt: skip
    return settings


def _peers(job: Job, scene: Scene, made: Compressed, nbytes: int, truth: Pictures) -> Any:
    """Others' formats on the fitted splats, and on those that our stages left."""
    shown = table("other formats on the same splats", "format", "splats", "bytes", "a splat",
                  "PSNR")  # fmt: skip

    def row(name: str, count: int, size: int, model: SplatModel) -> None:
        found = scores(drawn(model, scene.test, job.threads), truth, scene.test)
        shown.add_row(
            name, f"{count:,}", f"{size:,}", f"{size / max(1, count):.2f}", f"{found.psnr:.2f}"
        )

    row("ours, all stages", made.model.count, nbytes, made.model)
    for what, model in (("fitted", scene.model), ("ours, decoded", made.model)):
        for name, run in (("half floats, zstd", half_zstd), (".4dgs", _through_fourdgs(job))):
            try:
                size, back = run(model)
            except ImportError as error:
                shown.add_row(f"{name}, {what}", f"not installed: {error.name}", "", "", "")
                continue
            row(f"{name}, {what}", model.count, size, back)
    return shown


def _places(scene: Scene, before: Pictures, after: Pictures, truth: Pictures) -> Any:
    """What is lost camera by camera: one looks from where no training camera is."""
    shown = table("held-out cameras one by one", "camera", "model", "compressed", "lost")
    cameras = list({id(shot.camera): shot.camera for shot in scene.test}.values())
    for number, camera in enumerate(cameras):
        mine = [n for n, shot in enumerate(scene.test) if shot.camera is camera]
        shots = [scene.test[n] for n in mine]
        one, other = (
            scores([made[n] for n in mine], [truth[n] for n in mine], shots).psnr
            for made in (before, after)
        )
        name = "off the arcs" if number == len(cameras) - 1 else f"between the arcs, {number + 1}"
        shown.add_row(name, f"{one:.2f}", f"{other:.2f}", f"{one - other:.2f}")
    return shown


def _controls(
    job: Job,
    scene: Scene,
    settings: CompressionSettings,
    count: int,
    nbytes: int,
    truth: Pictures,
) -> Any:
    """What the figures owe to a dense model, and to further training."""
    shown = table("controls", "", "splats", "bytes", "PSNR", "seconds")
    shown.add_row("ours, all stages", f"{count:,}", f"{nbytes:,}", "", "")
    fitted_by = (QUICK if job.quick else FULL).fit
    for made in controls(job, scene.train, scene.views, scene.model, fitted_by, settings, count):
        found = scores(drawn(made.model, scene.test, job.threads), truth, scene.test)
        shown.add_row(made.name, f"{made.model.count:,}", f"{made.nbytes:,}",
                      f"{found.psnr:.2f}", f"{made.seconds:.0f}")  # fmt: skip
    return shown


def _through_fourdgs(job: Job) -> Callable[[SplatModel], tuple[int, SplatModel]]:
    def run(model: SplatModel) -> tuple[int, SplatModel]:
        path = job.work / "splats" / "peer.4dgs"
        size = fourdgs_file(model, path)
        return size, open_splats(path)

    return run


def as_pictures(shots: Sequence[Shot]) -> Pictures:
    """The truth, 0 to 1."""
    return [shot.pixels.astype(np.float32) / np.float32(255) for shot in shots]


def drawn(model: SplatModel, shots: Sequence[Shot], threads: int) -> Pictures:
    """The pictures of a model from the shots' cameras, as a screen would have them: 0 to 1."""
    renderer = SplatRenderer(model, threads=threads)
    return [
        np.clip(renderer.render(as_camera(shot.camera), shot.time).image, 0, 1) for shot in shots
    ]


def scores(ours: Pictures, truth: Pictures, shots: Sequence[Shot]) -> Scores:
    """One row of pictures against another; shots say what is where, camera by camera."""
    return score(
        [
            Shown(a, b, shot.there, shot.moving, n > 0 and shots[n - 1].camera is shot.camera)
            for n, (a, b, shot) in enumerate(zip(ours, truth, shots, strict=True))
        ]
    )


def _scores_table(rows: dict[str, Scores]) -> Any:
    shown = table("held-out cameras", "", "PSNR", "worst", "where something is", "what moves",
                  "SSIM", "over time")  # fmt: skip
    for name, found in rows.items():
        values = list(asdict(found).values())
        cells = [f"{v:.4f}" if n == 4 else f"{v:.2f}" for n, v in enumerate(values)]
        shown.add_row(name, *cells)
    return shown

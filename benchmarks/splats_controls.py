"""What else could explain the compression's figures: a model that is denser than it need be, and
training that only the compressed one had."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from time import perf_counter

from benchmarks.splat_fit import FitSettings, fit
from benchmarks.splat_truth_scene import Shot
from benchmarks.splats_part import Job
from penstock.export.omg4.pipeline import compress
from penstock.export.omg4.refinement import refine
from penstock.export.omg4.settings import CompressionSettings
from penstock.loaders.splats.model import SplatModel
from penstock.runtime.splats.camera import View

MOST_STEPS = 1500  # of training all splats further, as many as they had


@dataclass(frozen=True)
class Control:
    """A model, the bytes of its file or of its floats, and seconds that it took to make."""

    name: str
    model: SplatModel
    nbytes: int
    seconds: float


def controls(
    job: Job,
    train: list[Shot],
    views: list[View],
    model: SplatModel,
    fitted: FitSettings,
    settings: CompressionSettings,
    count: int,
) -> Iterator[Control]:
    """The fitted model after more training; and one that had about `count` splats from the start,
    trained as long as the fitted and the compressed one together, quantized alone."""
    more = min(MOST_STEPS, settings.final_steps)
    begin = perf_counter()
    further = refine(model, views, settings.with_changes(refine_steps=more))
    yield Control(
        f"the model, {more} steps further", further, further.nbytes, perf_counter() - begin
    )

    begin = perf_counter()
    sparse = replace(
        fitted,
        spacing=fitted.spacing * (model.count / max(1, count)) ** 0.5,
        # As ours: its fit, the training between stages, that of merging and that after them.
        steps=fitted.steps + settings.refine_steps + settings.merge_steps + settings.final_steps,
        rates=settings.rates,
        degree=fitted.degree if settings.degree is None else min(fitted.degree, settings.degree),
    )
    few = fit(train, sparse, threads=job.threads)
    alone = settings.with_changes(sampling=False, pruning=False, merging=False)
    made = compress(few, views, alone)
    yield Control(
        f"as few from the start ({sparse.spacing:.3f} apart)",
        made.model,
        made.report.nbytes,
        perf_counter() - begin,
    )

"""Trains what a model's splats are, against the views, with the rasteriser's own gradients.

Adam on colours, opacities, means, shapes, velocities and times; no splat is added or removed. Each
array has the units in which a step of a fixed size makes sense: logits of opacities, logarithms of
scales and of t_sigmas, quaternions of any length.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from penstock.export.omg4.adam import Adam, rows_of
from penstock.export.omg4.drawing import Drawing, ModelGradients
from penstock.export.omg4.losses import loss
from penstock.export.omg4.rasteriser import Rasteriser, rasteriser_for
from penstock.export.omg4.settings import CompressionSettings
from penstock.export.omg4.settling import settled
from penstock.export.omg4.training_loops import TrainingLoops
from penstock.export.omg4.views import Truth, own_views
from penstock.export.report import Progress, ProgressCallback
from penstock.loaders.splats.activations import logit, sigmoid
from penstock.loaders.splats.model import Floats, SplatModel, SplatMotion, unit_rotations

if TYPE_CHECKING:
    from penstock.runtime.splats.camera import View

# Learning rates of 3D Gaussian splatting's later steps. Those of means and velocities are shares of
# the scene's radius, of velocities and times of its duration.
RATES = {
    "means": 1.6e-4,
    "dc": 2.5e-3,
    "rest": 2.5e-3 / 20,
    "opacity": 0.025,
    "scales": 5e-3,
    "rotations": 1e-3,
    "velocities": 1.6e-4,
    "t_centers": 1e-4,
    "t_sigmas": 5e-3,
}
LAST = 0.1  # of the rates, at the last step
MOST_LOGIT, MOST_LN = 12.0, 30.0
LEAST_OPACITY = 1e-5  # that training starts from, and as far from 1: else no gradient is left
CHECKED = 8  # views that say whether it became better


def refine(
    model: SplatModel,
    views: Sequence[View] | None,
    settings: CompressionSettings,
    progress: ProgressCallback | None = None,
) -> SplatModel:
    """The model after `settings.refine_steps` steps against the views.

    Args:
        views: None or empty: the model's own pictures, which leave nothing to learn.

    Raises:
        UsageError, FormatError, StorageError: a view's image or time cannot be used.
        BackendMissingError: the device is "cuda" and torch or a GPU is missing.
    """
    rasteriser = rasteriser_for(settings)
    truth = Truth(views or own_views(model), model, rasteriser)
    return refine_against(model, truth, rasteriser, settings, progress=progress)


def refine_against(
    model: SplatModel,
    truth: Truth,
    rasteriser: Rasteriser,
    settings: CompressionSettings,
    *,
    steps: int | None = None,
    only: Collection[str] | None = None,
    stage: str = "refinement",
    progress: ProgressCallback | None = None,
) -> SplatModel:
    """The same with a truth of the caller's; the model itself where it did not become better.

    Args:
        steps: None: `settings.refine_steps`.
        only: which arrays are trained, by their names in `RATES`; None: all.
    """
    steps = settings.refine_steps if steps is None else steps
    if steps == 0 or model.count == 0:
        return model
    parameters = Parameters(model)
    optimizers = {
        name: Adam(values, RATES[name] * parameters.unit(name) * settings.rates, rasteriser.loops)
        for name, values in parameters.arrays.items()
        if only is None or name in only
    }
    fixed = _fixed(model) if settings.settling else {}
    for step, chosen in enumerate(batches(len(truth), settings.batch, steps, settings.seed)):
        current = parameters.model()
        totals = {name: np.zeros_like(parameters.arrays[name]) for name in optimizers}
        seen = []
        for found in gradients_of(current, chosen, truth, rasteriser, settings):
            seen.append(found.active)
            for name, gradient in parameters.raw_gradients(
                current, found, rasteriser.loops, totals
            ).items():
                rasteriser.loops.add_rows(totals[name], found.active, gradient)
        rows = rows_of(model.opacities.shape, seen)
        factor = decay(step, steps)
        for name, optimizer in optimizers.items():
            free = rows[~fixed[name][rows]] if name in fixed else rows
            optimizer.step(free, totals[name], factor)
        parameters.keep_in_range()
        if progress is not None:
            progress(Progress(stage, step + 1, steps, "steps"))
    return better_of(model, parameters.model(), truth, rasteriser, settings)


def gradients_of(
    model: SplatModel,
    chosen: Sequence[int],
    truth: Truth,
    rasteriser: Rasteriser,
    settings: CompressionSettings,
) -> Iterator[ModelGradients]:
    """Of the loss of each of the chosen views, by the model's splats."""
    for number in chosen:
        view = truth.views[number]
        # First the truth: the rasteriser may draw that, too, and knows its last picture only.
        wanted = truth.picture(number)
        drawing = Drawing(rasteriser, model, view.camera, view.time)
        _, by_image = loss(drawing.image, wanted, kind=settings.loss, ssim=settings.ssim)
        yield drawing.gradients(by_image)


class Parameters:
    """A model's arrays in the units that are trained."""

    def __init__(self, model: SplatModel) -> None:
        self.arrays: dict[str, Floats] = {
            "means": model.means.copy(),
            "dc": model.sh[:, :1].copy(),
            "rest": model.sh[:, 1:].copy(),
            "opacity": logit(np.clip(model.opacities, LEAST_OPACITY, 1 - LEAST_OPACITY)),
            "scales": np.log(np.maximum(model.scales, np.float32(1e-12))),
            "rotations": model.rotations.copy(),
        }
        self._motion = model.motion
        if model.motion is not None:
            self.arrays["velocities"] = model.motion.velocities.copy()
            self.arrays["t_centers"] = model.motion.t_centers.copy()
            self.arrays["t_sigmas"] = np.log(model.motion.t_sigmas)
        # Copies keep the order of what they copy, and Adam wants rows.
        self.arrays = {name: np.ascontiguousarray(a) for name, a in self.arrays.items()}
        low, high = np.percentile(model.means, [1, 99], axis=0)
        self._radius = max(0.5 * float(np.max(high - low)), 1e-6)

    def unit(self, name: str) -> float:
        """What a learning rate of 1 means for this array."""
        span = 1.0 if self._motion is None else self._motion.end - self._motion.start
        span = span if span > 0 else 1.0
        return {
            "means": self._radius,
            "velocities": self._radius / span,
            "t_centers": span,
        }.get(name, 1.0)

    def model(self) -> SplatModel:
        """As it is now; shares no memory with the arrays that are trained."""
        a = self.arrays
        motion = None
        if self._motion is not None:
            motion = SplatMotion(
                a["velocities"].copy(),
                a["t_centers"].copy(),
                np.exp(a["t_sigmas"]),
                self._motion.start,
                self._motion.end,
                self._motion.fps,
            )
        return SplatModel(
            a["means"].copy(),
            np.exp(a["scales"]),
            unit_rotations(a["rotations"]),
            sigmoid(a["opacity"]),
            np.concatenate([a["dc"], a["rest"]], axis=1),
            motion,
        )

    def raw_gradients(
        self,
        model: SplatModel,
        found: ModelGradients,
        loops: TrainingLoops,
        wanted: Collection[str],
    ) -> dict[str, Floats]:
        """By the rows `found.active` of the wanted arrays; `model` is what was drawn."""
        part = found.active
        opacity = model.opacities[part]
        gradients = {
            "means": found.means,
            "dc": found.sh[:, :1],
            "rest": found.sh[:, 1:],
            "opacity": found.opacities * opacity * (1 - opacity),
        }
        if "scales" in wanted or "rotations" in wanted:
            by_scale, by_rotation = loops.shape_gradients(model, part, found.covariances)
            length = np.linalg.norm(self.arrays["rotations"][part], axis=1, keepdims=True)
            gradients["scales"] = by_scale
            gradients["rotations"] = by_rotation / np.maximum(length, np.float32(1e-12))
        motion = model.motion
        if motion is not None:
            if found.velocities is None or found.t_centers is None or found.t_sigmas is None:
                raise TypeError("a moving model has gradients by its motion")
            gradients["velocities"] = found.velocities
            gradients["t_centers"] = found.t_centers
            gradients["t_sigmas"] = found.t_sigmas * motion.t_sigmas[part]
        return {name: gradient for name, gradient in gradients.items() if name in wanted}

    def keep_in_range(self) -> None:
        """What no step may leave, so that the model stays one that can be drawn and stored."""
        a = self.arrays
        np.clip(a["opacity"], -MOST_LOGIT, MOST_LOGIT, out=a["opacity"])
        np.clip(a["scales"], -MOST_LN, MOST_LN, out=a["scales"])
        lengths = np.linalg.norm(a["rotations"], axis=1)
        a["rotations"][lengths < 1e-6] = (1, 0, 0, 0)
        if "t_sigmas" in a:
            np.clip(a["t_sigmas"], -MOST_LN, MOST_LN, out=a["t_sigmas"])


def _fixed(model: SplatModel) -> dict[str, NDArray[np.bool_]]:
    """Which rows [n] of which arrays are not trained: settling.py."""
    if model.motion is None:
        return {}
    found = settled(model)
    return {"velocities": found.still, "t_centers": found.lasting, "t_sigmas": found.lasting}


def batches(count: int, size: int, steps: int, seed: int) -> Iterator[list[int]]:
    """Numbers of the views of each step; every view once before any is seen again."""
    rng = np.random.default_rng(seed)
    waiting: list[int] = []
    for _ in range(steps):
        chosen = []
        for _ in range(min(size, count)):
            if not waiting:
                waiting = rng.permutation(count).tolist()
            chosen.append(waiting.pop())
        yield chosen


def decay(step: int, steps: int) -> float:
    """The share of the rates at a step: from 1 to `LAST` along a cosine."""
    along = step / max(steps - 1, 1)
    return LAST + (1 - LAST) * 0.5 * (1 + math.cos(math.pi * along))


def better_of(
    before: SplatModel,
    after: SplatModel,
    truth: Truth,
    rasteriser: Rasteriser,
    settings: CompressionSettings,
) -> SplatModel:
    """The one with the smaller loss over some views; `before` where `after` is not finite."""
    numbers = np.unique(np.linspace(0, len(truth) - 1, CHECKED).astype(np.intp)).tolist()

    def total(of: Callable[[int], Floats]) -> float:
        return sum(
            loss(of(k), truth.picture(k), kind=settings.loss, ssim=settings.ssim)[0]
            for k in numbers
        )

    def shown(model: SplatModel) -> Callable[[int], Floats]:
        return lambda k: (
            Drawing(rasteriser, model, truth.views[k].camera, truth.views[k].time).image
        )

    return after if total(shown(after)) < total(shown(before)) else before

"""Implicit appearance: trains OMG4's nets so that they give back a model's colours and opacities.

The paper trains them through the rasteriser. Here they learn the model's own harmonics directly,
which needs no pictures; what they miss is part of the report. They
are an option: others found that they cost 1.4 to 2 dB where codebooks of harmonics cost little.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penstock.export.omg4.adam import Adam
from penstock.export.omg4.refinement import decay
from penstock.export.omg4.training_loops import TrainingLoops
from penstock.export.report import Progress, ProgressCallback
from penstock.loaders.splats.model import Floats, SplatModel
from penstock.quant.appearance_nets import (
    COMMON,
    FEATURES,
    HIDDEN,
    AppearanceNets,
    Net,
    bend,
    net_shapes,
    place,
    read_nets,
    sigmoid,
)

RATE = 5e-3  # the paper's
BATCH = 4096
OPACITY = 4.0  # of its squared error against that of a coefficient


@dataclass(frozen=True)
class Appearance:
    """Nets as they are stored, and features [n, 6] of the splats."""

    nets: AppearanceNets
    features: Floats


def fit_appearance(
    model: SplatModel,
    *,
    weights: NDArray[np.floating] | None = None,
    steps: int = 3000,
    seed: int = 0,
    progress: ProgressCallback | None = None,
) -> Appearance:
    """Nets and features for a model whose means and t_centers are those that will be decoded.

    Args:
        weights: [n], of each splat's squared error.
    """
    rng = np.random.default_rng(seed)
    training = _Training(model, rng)
    share = np.ones(model.count) if weights is None else np.asarray(weights, np.float64)
    share = share / max(float(share.mean()), 1e-30) if model.count else share
    for step in range(steps if model.count else 0):
        rows = np.sort(rng.permutation(model.count)[:BATCH])
        training.step(rows, share[rows].astype(np.float32), decay(step, steps))
        if progress is not None and (step + 1) % 50 == 0:
            progress(Progress("appearance", step + 1, steps, "steps"))
    nets = read_nets(training.nets().arrays(), model.degree, "the nets just trained")
    return Appearance(nets, training.features)


class _Training:
    def __init__(self, model: SplatModel, rng: np.random.Generator) -> None:
        self._model = model
        motion = model.motion
        self._times = None if motion is None else motion.t_centers
        self._frame = _frame(model)
        self._first: dict[str, Floats] = {}
        self._second: dict[str, Floats] = {}
        self._leaks: dict[str, float] = {}
        for name, (inputs, outputs, leak) in net_shapes(model.degree).items():
            self._first[name] = _xavier(rng, HIDDEN, inputs)
            self._second[name] = _xavier(rng, outputs, HIDDEN)
            self._leaks[name] = leak
        self._gradients: list[tuple[Floats, Floats]] = []  # of the step: (matrix, by it)
        self.features = np.zeros((model.count, FEATURES), np.float32)
        self.features[:, :3] = model.sh[:, 0]  # the paper's start
        loops = TrainingLoops(1)  # its arrays are small
        self._adams = {
            id(array): Adam(array, RATE, loops)
            for array in (*self._first.values(), *self._second.values(), self.features)
        }

    def nets(self) -> AppearanceNets:
        """As they are now."""
        made = {
            name: Net(self._first[name], self._second[name], self._leaks[name])
            for name in self._first
        }
        return AppearanceNets(
            made["cont"],
            made["dc"],
            made["view"],
            made["opacity"],
            self._frame,
            self._model.degree,
        )

    def step(self, rows: NDArray[np.intp], share: Floats, factor: float) -> None:
        """One step of Adam for the nets and the features of these splats."""
        model = self._model
        times = None if self._times is None else self._times[rows]
        seen = place(self._frame, model.means[rows], times)
        own = self.features[rows]
        scale = share[:, None] / np.float32(len(rows))
        common, cont_bent = self._forward("cont", seen)
        static = np.concatenate([common, own[:, :3]], axis=1)
        view = np.concatenate([common, own[:, 3:]], axis=1)
        by_static, by_view = np.zeros_like(static), np.zeros_like(view)

        out, bent = self._forward("dc", static)
        by_static += self._backward("dc", static, bent, 2 * scale * (out - model.sh[rows, 0]))
        out, bent = self._forward("opacity", static)
        opacity = sigmoid(out)
        error = 2 * OPACITY * scale * (opacity - model.opacities[rows, None])
        by_static += self._backward("opacity", static, bent, error * opacity * (1 - opacity))
        if model.degree:
            out, bent = self._forward("view", view)
            error = 2 * scale * (out - model.sh[rows, 1:].reshape(len(rows), -1))
            by_view += self._backward("view", view, bent, error)
        self._backward("cont", seen, cont_bent, (by_static + by_view)[:, :COMMON])

        by_features = np.concatenate([by_static[:, COMMON:], by_view[:, COMMON:]], axis=1)
        for array, gradient in self._gradients:
            self._adams[id(array)].step(np.arange(len(array)), gradient, factor)
        self._gradients.clear()
        by_all = np.zeros_like(self.features)
        by_all[rows] = by_features
        self._adams[id(self.features)].step(rows, by_all, factor)

    def _forward(self, name: str, inputs: Floats) -> tuple[Floats, Floats]:
        """(outputs, the hidden layer after its bend)."""
        bent = bend(inputs @ self._first[name].T, self._leaks[name])
        return bent @ self._second[name].T, bent

    def _backward(self, name: str, inputs: Floats, bent: Floats, by_out: Floats) -> Floats:
        """By the inputs; keeps those by the matrices for the end of the step."""
        by_hidden: Floats = by_out @ self._second[name]
        by_hidden *= np.where(bent > 0, np.float32(1), np.float32(self._leaks[name]))
        self._gradients.append((self._second[name], by_out.T @ bent))
        self._gradients.append((self._first[name], by_hidden.T @ inputs))
        result: Floats = by_hidden @ self._first[name]
        return result


def _frame(model: SplatModel) -> NDArray[np.float64]:
    """Where most of the scene is, in numbers that float16 holds."""
    frame = np.array([0, 0, 0, 1, 0, 1], np.float64)
    if model.count:
        low, high = np.percentile(model.means, [5, 95], axis=0)
        frame[:3] = (low + high) / 2
        frame[3] = max(0.5 * float(np.max(high - low)), 1e-3)
    if model.motion is not None:
        frame[4] = model.motion.start
        frame[5] = max(model.motion.end - model.motion.start, 1e-3)
    rounded: NDArray[np.float64] = frame.astype(np.float16).astype(np.float64)
    return rounded


def _xavier(rng: np.random.Generator, outputs: int, inputs: int) -> Floats:
    limit = np.sqrt(6 / (inputs + outputs))
    return rng.uniform(-limit, limit, (outputs, inputs)).astype(np.float32)

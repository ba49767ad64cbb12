"""Implicit appearance: nets learn the model's colours, and travel through a file's arrays."""

from __future__ import annotations

import numpy as np
import pytest

from penstock.errors import FormatError
from penstock.export.omg4.appearance import fit_appearance
from penstock.export.report import Progress
from penstock.loaders.splats.model import SplatModel
from penstock.quant.appearance_nets import (
    FEATURES,
    HIDDEN,
    PLACE,
    AppearanceNets,
    evaluate,
    net_shapes,
    place,
    read_nets,
)
from tests.export.omg4.scenes import cloud


def smooth(count: int, coefficients: int = 4, moving: bool = True) -> SplatModel:
    """Colours that follow places, as a scene's do."""
    model = cloud(count, coefficients=coefficients, moving=moving)
    model.sh[:, 0] = np.sin(2 * model.means)
    model.sh[:, 1:] = 0.2 * np.cos(model.means)[:, None, :]
    model.opacities[:] = 0.5 + 0.4 * np.tanh(model.means[:, 0])
    return model


def evaluated(nets: AppearanceNets, model: SplatModel, features: np.ndarray) -> np.ndarray:
    times = None if model.motion is None else model.motion.t_centers
    sh, opacities = evaluate(nets, model.means, times, features)
    assert sh.shape == model.sh.shape
    return np.concatenate([sh.reshape(len(sh), -1), opacities[:, None]], axis=1)


@pytest.mark.parametrize("moving", [False, True])
def test_nets_learn_a_model(moving: bool) -> None:
    model = smooth(200, moving=moving)
    told: list[Progress] = []
    wanted = np.concatenate([model.sh.reshape(200, -1), model.opacities[:, None]], axis=1)
    start = fit_appearance(model, steps=0)
    found = fit_appearance(model, steps=150, progress=told.append)
    errors = [
        float(np.square(evaluated(one.nets, model, one.features) - wanted).mean())
        for one in (start, found)
    ]
    assert errors[1] < 0.005 * errors[0] and errors[1] < 1e-3
    assert found.features.shape == (200, FEATURES)
    assert told[-1].done == 150


def test_the_same_seed_gives_the_same_nets() -> None:
    model = smooth(50)
    a, b = (fit_appearance(model, steps=20, seed=4) for _ in range(2))
    assert (a.features == b.features).all()
    for name, values in a.nets.arrays().items():
        assert (values == b.nets.arrays()[name]).all()


@pytest.mark.parametrize("coefficients", [1, 4, 9, 16])
def test_arrays_have_the_paper_s_counts(coefficients: int) -> None:
    nets = fit_appearance(smooth(5, coefficients), steps=1).nets
    arrays = nets.arrays()
    # The paper's, but for its view net's three bands of time: 141 outputs instead of 45.
    assert len(arrays["cont"]) == 9024 and len(arrays["dc"]) == HIDDEN * 19
    assert len(arrays["opacity"]) == HIDDEN * 17
    assert ("view" in arrays) is (coefficients > 1)
    if coefficients == 16:
        assert len(arrays["view"]) == HIDDEN * (16 + 45)
    again = read_nets(arrays, nets.degree, "test")
    means = np.random.default_rng(0).normal(size=(9, 3))
    features = np.ones((9, 6), np.float32)
    one, other = (evaluate(n, means, None, features) for n in (nets, again))
    assert (one[0] == other[0]).all() and (one[1] == other[1]).all()


def test_places_are_sines_of_sixteen_octaves() -> None:
    frame = np.array([1.0, 2, 3, 2, 10, 4])
    means = np.array([[2.0, 2, 3], [1, 2, 3 + 20]])  # inside the ball; ten radii away
    seen = place(frame, means, np.array([12.0, 10])).reshape(2, 4, 16, 2)
    x = 0.5 / 4 + 0.5
    for octave in range(16):
        angle = np.pi * 2**octave * x
        assert seen[0, 0, octave] == pytest.approx([np.sin(angle), np.cos(angle)], abs=1e-6)
    assert seen[0, 3, 1] == pytest.approx([np.sin(np.pi), np.cos(np.pi)], abs=1e-6)  # half-way
    z = (2 - 1 / 10) / 4 + 0.5
    assert seen[1, 2, 0] == pytest.approx([np.sin(np.pi * z), np.cos(np.pi * z)], abs=1e-6)
    assert place(frame, means, None).shape == (2, PLACE)


def test_damaged_nets_are_refused() -> None:
    arrays = fit_appearance(smooth(5), steps=1).nets.arrays()
    for name in arrays:
        short = {**arrays, name: arrays[name][:-1]}
        with pytest.raises(FormatError, match=f"file: net '{name}' has shape"):
            read_nets(short, 1, "file")
        with pytest.raises(FormatError, match=f"net '{name}' is missing"):
            read_nets({k: v for k, v in arrays.items() if k != name}, 1, "file")
        broken = arrays[name].copy()
        broken[0] = np.inf
        with pytest.raises(FormatError, match=f"net '{name}' has a number that is not finite"):
            read_nets({**arrays, name: broken}, 1, "file")
    for place_, value in ((3, 0), (5, -1)):
        frame = arrays["frame"].copy()
        frame[place_] = value
        with pytest.raises(FormatError, match="expected more than 0"):
            read_nets({**arrays, "frame": frame}, 1, "file")
    assert net_shapes(0)["view"][1] == 0


def test_no_splats() -> None:
    found = fit_appearance(cloud(0), steps=10)
    sh, opacities = evaluate(found.nets, np.zeros((0, 3)), np.zeros(0), found.features)
    assert sh.shape == (0, 4, 3) and opacities.shape == (0,)

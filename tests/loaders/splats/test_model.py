"""The model of splats: what is refused, and selecting and joining."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given

from penstock.errors import FormatError
from penstock.loaders.splats.model import (
    SplatModel,
    check_model,
    concatenate,
    named_arrays,
    select,
    unit_rotations,
)
from tests.loaders.splats.splat_builder import models, random_model


@given(models)
def test_a_sane_model_is_given_back(model: SplatModel) -> None:
    assert check_model(model, "here") is model
    assert model.nbytes == sum(array.nbytes for array in named_arrays(model).values())
    assert model.dynamic == (model.motion is not None)


@pytest.mark.parametrize("name", ["means", "scales", "rotations", "opacities", "sh"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_with_field_and_splat(name: str, value: float) -> None:
    model = random_model(4, 1)
    getattr(model, name)[2] = value
    with pytest.raises(FormatError, match=f"here: {name} of splat 2 is"):
        check_model(model, "here")


@pytest.mark.parametrize("name", ["velocities", "t_centers", "t_sigmas"])
def test_so_are_times_and_speeds(name: str) -> None:
    model = random_model(4, dynamic=True)
    getattr(model.motion, name)[3] = np.nan
    with pytest.raises(FormatError, match=f"{name} of splat 3"):
        check_model(model, "here")


@pytest.mark.parametrize(
    ("name", "index", "value"),
    [
        ("scales", (1, 2), -1e-9),
        ("opacities", 1, 1.001),
        ("opacities", 1, -0.001),
        ("rotations", 1, 0.0),
        ("rotations", 1, 1.0),  # of length 2
    ],
)
def test_values_out_of_range_are_refused(name: str, index: Any, value: float) -> None:
    model = random_model(3)
    getattr(model, name)[index] = value
    with pytest.raises(FormatError, match=f"{name} of splat 1"):
        check_model(model, "here")


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_a_sigma_that_is_not_over_zero_is_refused(value: float) -> None:
    model = random_model(3, dynamic=True)
    assert model.motion is not None
    model.motion.t_sigmas[0] = value
    with pytest.raises(FormatError, match="t_sigmas of splat 0"):
        check_model(model, "here")


@pytest.mark.parametrize(
    "change",
    [
        {"means": np.zeros((3, 2), "f4")},
        {"scales": np.zeros((2, 3), "f4")},
        {"opacities": np.zeros((3, 1), "f4")},
        {"sh": np.zeros((3, 5, 3), "f4")},
        {"sh": np.zeros((3, 3), "f4")},
        {"means": np.zeros((3, 3), "f8")},
        {"means": np.float32(1)},
    ],
)
def test_shapes_and_types_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(FormatError, match="expected"):
        check_model(replace(random_model(3), **change), "here")


def test_a_scene_that_ends_before_it_starts_is_refused() -> None:
    model = random_model(3, dynamic=True)
    assert model.motion is not None
    for start, end, fps, message in [
        (1.0, 0.5, 30.0, "ends at 0.5 s, before"),
        (np.nan, 1.0, 30.0, "start is nan seconds"),
        (0.0, np.nan, 30.0, "end is nan seconds"),
        (-1e308, 1e308, 30.0, "start is -1e\\+308 seconds; expected at most 1e\\+09"),
        (0.0, 1.1e9, 30.0, "end is 1100000000.0 seconds"),
        (0.0, 1.0, 0.0, "fps is 0.0"),
    ]:
        motion = replace(model.motion, start=start, end=end, fps=fps)
        with pytest.raises(FormatError, match=message):
            check_model(replace(model, motion=motion), "here")


@given(models)
def test_parts_join_to_the_whole(model: SplatModel) -> None:
    middle = model.count // 2
    joined = concatenate([select(model, slice(middle)), select(model, slice(middle, None))])
    for name, array in named_arrays(model).items():
        assert np.array_equal(named_arrays(joined)[name], array)
    mask = np.arange(model.count) % 2 == 0
    assert np.array_equal(select(model, mask).means, model.means[::2])


def test_joining_fills_up_to_the_largest_degree() -> None:
    joined = concatenate([random_model(2, 0), random_model(3, 2)])
    assert joined.degree == 2 and not joined.sh[:2, 1:].any()


def test_static_and_moving_do_not_join() -> None:
    with pytest.raises(ValueError, match="static and moving"):
        concatenate([random_model(2), random_model(2, dynamic=True)])
    with pytest.raises(ValueError, match="no model"):
        concatenate([])


def test_quaternions_of_any_length_become_unit_ones_and_zeros_stay() -> None:
    q = unit_rotations(np.array([[0, 0, 0, 0], [3e-30, 4e-30, 0, 0], [0, 0, 2e30, 0]]))
    assert np.allclose(q, [[0.0] * 4, [0.6, 0.8, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]])

"""The splat benchmark's own judgement: what it compares, and when it may say that bars are met."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.splats_part import Job, Part
from benchmarks.splats_rendering import ACTIVE, _few_at_a_time, rendering
from benchmarks.splats_static import _equal, static
from penstock.loaders.splats.model import SEEN_SIGMAS, select
from tests.runtime.splats.scenes import random_model


@pytest.mark.parametrize("part", [rendering, static])
def test_without_the_shared_data_no_bar_is_met(part: object, tmp_path: Path) -> None:
    assert callable(part)
    found: Part = part(Job(tmp_path, None, quick=False, threads=1))
    assert len(found.missed) == 1 and "shared data is not there" in found.missed[0]
    assert found.lines and not found.tables


def test_quick_runs_have_no_bars(tmp_path: Path) -> None:
    found = static(Job(tmp_path, None, quick=True, threads=1))
    assert found.missed == [] and found.lines


@pytest.mark.parametrize("total", [60_000, 240_000])
def test_as_many_splats_are_active_however_many_there_are(total: int) -> None:
    motion = _few_at_a_time(total).motion
    assert motion is not None
    away = np.abs((motion.start + motion.end) / 2 - motion.t_centers) / motion.t_sigmas
    assert (away < SEEN_SIGMAS).sum() == pytest.approx(ACTIVE, rel=0.02)


def test_the_same_splats_in_another_order_are_equal() -> None:
    model = random_model(200, degree=1, seed=3)
    other = select(model, np.random.default_rng(0).permutation(200))
    other.rotations[::2] *= -1
    part = Part()
    _equal(part, "exact", model, other)
    assert part.missed == [] and "sh" in part.lines[0]


@pytest.mark.parametrize("name", ["means", "scales", "rotations", "opacities", "sh"])
def test_a_number_that_changed_is_seen(name: str) -> None:
    model = random_model(200, degree=1, seed=3)
    array = getattr(model, name).copy()
    array[7] += np.float32(1e-4)
    part = Part()
    _equal(part, "exact", model, replace(model, **{name: array}))
    assert part.missed


def test_a_splat_that_is_missing_is_seen() -> None:
    model, part = random_model(20, seed=3), Part()
    _equal(part, "exact", model, select(model, np.arange(19)))
    assert "19 splats of 20" in part.missed[0]

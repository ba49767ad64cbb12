"""Ranges of activations: onnxruntime's own min-max as the oracle, flat memory, named errors."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from penstock.errors import UsageError
from penstock.export.dataset import Dataset, synthetic
from penstock.export.onnx.calibration import activation_groups, calibrate
from penstock.export.onnx.libraries import quantization, quiet_libraries
from penstock.export.onnx.preparation import PreparedModel, prepare_model
from penstock.export.onnx.recipe import parse_recipe
from tests.export.onnx.conftest import Make

MINMAX = parse_recipe("static-int8 minmax")


@pytest.fixture(scope="module")
def prepared(conv_model: Path) -> PreparedModel:
    return prepare_model(conv_model)


class Reader:
    """Samples as onnxruntime's calibrators ask for them."""

    def __init__(self, dataset: Dataset) -> None:
        self.samples = dataset.samples()

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        sample = next(self.samples, None)
        return None if sample is None else sample.arrays


def test_minmax_is_that_of_onnxruntime(
    onnx: Any, prepared: PreparedModel, samples: Make, tmp_path: Path
) -> None:
    data = samples(prepared.source, 5)
    ours = calibrate(prepared, data, MINMAX)
    path = tmp_path / "prepared.onnx"
    onnx.save(prepared.model, str(path))
    with quiet_libraries():
        calibrator = quantization("calibrate").create_calibrator(
            path, augmented_model_path=str(tmp_path / "augmented.onnx")
        )
        calibrator.collect_data(Reader(data))
        theirs = calibrator.compute_data()
    common = set(ours) & set(theirs.keys())
    assert len(common) >= 8
    for name in common:
        low, high = (float(np.ravel(end)[0]) for end in theirs[name].range_value)
        assert ours[name].low == pytest.approx(low) and ours[name].high == pytest.approx(high)


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy"])
def test_groups_do_not_matter(prepared: PreparedModel, samples: Make, method: str) -> None:
    data = samples(prepared.source, 3)
    recipe = parse_recipe(f"static-int8 {method}")
    assert len(activation_groups(prepared.model, 40_000)) > 2
    whole = calibrate(prepared, data, recipe)
    assert calibrate(prepared, data, recipe, group_bytes=40_000) == whole


def test_a_limit_and_the_order_of_samples(prepared: PreparedModel, samples: Make) -> None:
    data = samples(prepared.source, 6)
    images = np.stack([sample.arrays["image"][0] for sample in data.samples()])
    backwards = samples(prepared.source, 6, image=images[::-1])
    recipe = parse_recipe("static-int8 entropy")
    assert calibrate(prepared, data, recipe) == calibrate(prepared, backwards, recipe)
    assert calibrate(prepared, data, recipe, limit=3) == calibrate(
        prepared, samples(prepared.source, 3, image=images[:3]), recipe
    )


def test_memory_does_not_grow_with_the_samples(prepared: PreparedModel) -> None:
    from penstock.loaders.onnx_file import read_onnx

    inputs = read_onnx(prepared.source).inputs
    recipe = parse_recipe("static-int8 entropy")
    calibrate(prepared, synthetic(inputs, 2), recipe)  # modules, arenas
    peaks = []
    for count in (10, 200):
        tracemalloc.start()
        try:
            calibrate(prepared, synthetic(inputs, count), recipe)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert peaks[1] < 1.05 * peaks[0]


def test_an_activation_that_overflows_is_named(prepared: PreparedModel, samples: Make) -> None:
    image = np.ones((2, 3, 16, 16), np.float32)
    image[1] = 3e38
    with pytest.raises(UsageError, match=r"npz\[1\].* gives (infinity|NaN) in tensor '"):
        calibrate(prepared, samples(prepared.source, 2, image=image), MINMAX)

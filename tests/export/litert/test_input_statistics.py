"""Statistics of layers' inputs. Oracle: LiteRT's own outputs, which are linear in the inputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.errors import UsageError
from penstock.export.dataset import Dataset, open_dataset
from penstock.export.litert import input_statistics as module
from penstock.export.litert.activation_ranges import activation_ranges
from penstock.export.litert.flatbuffer_model import buffer_array, read_model
from penstock.export.litert.input_statistics import input_statistics
from penstock.export.litert.weight_layers import float_weights, weight_layers
from penstock.runtime.backends.open_model import open_model
from tests.export.litert.model_maker import SIDE, ModelMaker, small_cnn

Images = Callable[..., Dataset]


def single(kind: str, kernel: int, stride: int, same: bool, dilation: int = 1) -> ModelMaker:
    """One layer without an activation, on images."""
    maker = ModelMaker((1, SIDE, SIDE, 3))
    if kind == "conv":
        maker.conv("layer", 5, kernel, stride, same)
    elif kind == "depthwise":
        maker.depthwise("layer", kernel, stride)
    else:
        maker.dense("layer", 5)
    options = maker.graph.operators[-1].builtinOptions
    options.fusedActivationFunction = 0
    if dilation > 1:
        options.dilationHFactor = options.dilationWFactor = dilation
    return maker


@pytest.mark.parametrize(
    ("kind", "kernel", "stride", "same", "dilation"),
    [
        ("conv", 1, 1, True, 1), ("conv", 3, 1, True, 1), ("conv", 3, 2, True, 1),
        ("conv", 3, 2, False, 1), ("conv", 2, 2, True, 1), ("conv", 3, 1, True, 2),
        ("depthwise", 3, 1, True, 1), ("depthwise", 3, 2, True, 1), ("dense", 0, 0, True, 1),
    ],
)  # fmt: skip
def test_mean_and_variance_of_outputs_follow_from_them(
    tmp_path: Path, images: Images, kind: str, kernel: int, stride: int, same: bool, dilation: int
) -> None:
    path = single(kind, kernel, stride, same, dilation).save(tmp_path / "one.tflite")
    data = images(12)
    graph, model = read_model(path)
    (layer,) = weight_layers(model)
    found = input_statistics(path.read_bytes(), graph, model, [layer], data)[layer.name]
    outputs = []
    with open_model(path, threads=1) as opened:
        for sample in data.samples():
            outputs.append(next(iter(opened.run(sample.arrays).values())))
    made = np.concatenate([out.reshape(-1, layer.channels) for out in outputs]).astype(np.float64)
    weights = float_weights(model, layer)
    bias = buffer_array(model, model.subgraphs[0].tensors[layer.bias])
    assert weights is not None and bias is not None
    rows = layer.rows(weights).astype(np.float64)
    assert found.count == len(made)
    mean = (rows * found.mean).sum(axis=1) + bias
    np.testing.assert_allclose(mean, made.mean(axis=0), rtol=1e-4, atol=1e-5)
    covariance = np.broadcast_to(found.covariance, (layer.channels, *found.covariance.shape[-2:]))
    variance = np.einsum("ri,rij,rj->r", rows, covariance, rows)
    np.testing.assert_allclose(variance, made.var(axis=0), rtol=1e-3, atol=1e-7)


def test_sums_in_several_passes_are_those_of_one(
    cnn_file: Path, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, model = read_model(cnn_file)
    content, layers, data = cnn_file.read_bytes(), weight_layers(model), images(6)
    told: list[tuple[int, int]] = []
    whole = input_statistics(content, graph, model, layers, data)
    monkeypatch.setattr(module, "SUMS_BYTES", 1)
    passes = input_statistics(
        content, graph, model, layers, data, on_sample=lambda *at: told.append(at)
    )
    assert whole.keys() == passes.keys() == {layer.name for layer in layers}
    for name, one in whole.items():
        np.testing.assert_array_equal(one.covariance, passes[name].covariance)
    assert told[-1] == (24, 24) and len(told) == 24
    monkeypatch.setattr(module, "MAX_COLUMNS", 10)
    assert set(input_statistics(content, graph, model, layers, data)) == {"depthwise_conv_2d_1"}


def test_a_limit_takes_the_first_samples(cnn_file: Path, images: Images) -> None:
    graph, model = read_model(cnn_file)
    content, layers = cnn_file.read_bytes(), weight_layers(model)[:1]
    few = input_statistics(content, graph, model, layers, images(3))
    limited = input_statistics(content, graph, model, layers, images(9), limit=3)
    assert few["conv_2d_0"].count == limited["conv_2d_0"].count


def test_ranges_are_those_of_the_outputs(cnn_file: Path, images: Images) -> None:
    graph, model = read_model(cnn_file)
    data, content = images(8), cnn_file.read_bytes()
    ranges = activation_ranges(content, graph, model, data, "minmax")
    with open_model(cnn_file, threads=1) as opened:
        made = np.stack([opened.run(s.arrays)["scores/out"] for s in data.samples()])
    seen, rank = ranges["scores/out"]
    assert (seen.low, seen.high, rank) == (made.min(), made.max(), 2)
    assert set(ranges) == {"x", "stem/out", "depthwise/out", "pointwise/out", "scores/out"}
    clipped = activation_ranges(content, graph, model, data, "percentile")["x"][0]
    assert ranges["x"][0].low <= clipped.low < clipped.high <= ranges["x"][0].high


def test_sixteen_bits_lose_nothing_by_a_wide_range(cnn_file: Path, tmp_path: Path) -> None:
    graph, model = read_model(cnn_file)
    tailed = np.random.default_rng(3).standard_t(2, (8, 12, 12, 3)).astype(np.float32)
    np.savez(tmp_path / "tailed.npz", x=tailed)
    data, content = open_dataset(tmp_path / "tailed.npz", graph.inputs), cnn_file.read_bytes()
    fine = activation_ranges(content, graph, model, data, "entropy", bits=16)["x"][0]
    coarse = activation_ranges(content, graph, model, data, "entropy")["x"][0]
    assert (fine.low, fine.high) == (tailed.min(), tailed.max())
    assert coarse.high < 0.9 * max(-fine.low, fine.high)


def test_what_does_not_fit_names_the_sample(
    cnn_file: Path, npz_of: Callable[..., Path], tmp_path: Path
) -> None:
    graph, model = read_model(cnn_file)
    layers, content = weight_layers(model), cnn_file.read_bytes()
    values: dict[str, Any] = {"x": np.load(npz_of(3))["x"]}
    values["x"][1, 0, 0, 0] = np.nan
    np.savez(tmp_path / "nan.npz", **values)
    with pytest.raises(UsageError, match=r"(?i)nan\.npz.*1.*(nan|finite)"):
        data = open_dataset(tmp_path / "nan.npz", graph.inputs)
        input_statistics(content, graph, model, layers, data)
    maker = small_cnn()
    maker.model.buffers[1].data = np.full(
        maker.model.buffers[1].data.size // 4, 3e38, np.float32
    ).view(np.uint8)
    huge = maker.save(tmp_path / "huge.tflite")
    graph, model = read_model(huge)
    data = open_dataset(npz_of(2), graph.inputs)
    with pytest.raises(UsageError, match="NaN or infinity of it, at the input of"):
        input_statistics(huge.read_bytes(), graph, model, weight_layers(model), data)

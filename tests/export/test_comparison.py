"""Metrics between two models, against what NumPy makes of their outputs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from penstock.errors import PenstockError, UsageError
from penstock.export.comparison import compare_models, evaluator, measure_latency, sqnr_db
from penstock.export.dataset import open_dataset, synthetic
from penstock.runtime.backends.open_model import open_model
from penstock.runtime.backends.tensor_model import TensorModel

Array = np.ndarray[Any, Any]
OpenLinear = Callable[..., TensorModel]


@pytest.fixture
def linear(tmp_path: Path) -> Iterator[OpenLinear]:
    """`linear(w, v, inputs="x", outputs=("y", "z"))`: y = x w, and z = x v where there is a v."""
    opened: list[TensorModel] = []

    def make(
        *weights: Array, name: str = "x", outputs: tuple[str, ...] = ("y", "z")
    ) -> TensorModel:
        helper, kind = onnx.helper, onnx.TensorProto.FLOAT
        used = outputs[: len(weights)]
        graph = helper.make_graph(
            [helper.make_node("MatMul", [name, f"w{i}"], [out]) for i, out in enumerate(used)],
            "linear",
            [helper.make_tensor_value_info(name, kind, [1, len(weights[0])])],
            [
                helper.make_tensor_value_info(out, kind, [1, w.shape[1]])
                for out, w in zip(used, weights, strict=True)
            ],
            [onnx.numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(weights)],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        path = tmp_path / f"{len(opened)}.onnx"
        onnx.save(model, path)
        opened.append(open_model(path, threads=1))
        return opened[-1]

    yield make
    for model in opened:
        model.close()


@pytest.fixture
def weights() -> tuple[Array, Array]:
    rng = np.random.default_rng(0)
    w = rng.normal(size=(6, 5)).astype(np.float32)
    return w, w + rng.normal(size=w.shape).astype(np.float32) * np.float32(0.3)


def save(path: Path, count: int, **more: Array) -> Array:
    x = np.random.default_rng(1).normal(size=(count, 6)).astype(np.float32)
    np.savez(path, x=x, **more)  # type: ignore[arg-type]
    return x


def test_metrics_are_numpy_s(
    linear: OpenLinear, weights: tuple[Array, Array], tmp_path: Path
) -> None:
    w, v = weights
    before, after = linear(w), linear(v)
    x = save(tmp_path / "d.npz", 40, labels=np.arange(40) % 5)
    dataset = open_dataset(tmp_path / "d.npz", before.inputs)
    found = {m.name: m for m in compare_models(before, after, dataset)}
    a, b = (x.astype(np.float64) @ m for m in (w, v))
    labels = np.arange(40) % 5
    assert found["sqnr_db"].after == pytest.approx(
        10 * np.log10((a**2).sum() / ((a - b) ** 2).sum()), rel=1e-4
    )
    cosine = (a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum())
    assert found["cosine"].after == pytest.approx(cosine, rel=1e-5)
    assert found["accuracy"].before == (a.argmax(1) == labels).mean()
    assert found["accuracy"].after == (b.argmax(1) == labels).mean()
    assert found["agreement"].after == (a.argmax(1) == b.argmax(1)).mean()
    assert {m.samples for m in found.values()} == {40}
    limited = compare_models(before, after, dataset, limit=7)
    assert {m.samples for m in limited} == {7}
    evaluation = evaluator(before, dataset)(after.path)
    assert evaluation.sqnr_db == found["sqnr_db"].after
    assert evaluation.metric == found["accuracy"].after


def test_several_outputs_and_other_names(
    linear: OpenLinear, weights: tuple[Array, Array], tmp_path: Path
) -> None:
    w, v = weights
    before = linear(w, w)
    after = linear(w, v, name="x_quantized", outputs=("y_quantized", "z_quantized"))
    x = save(tmp_path / "d.npz", 9)
    dataset = open_dataset(tmp_path / "d.npz", before.inputs)
    found = {m.name: m.after for m in compare_models(before, after, dataset)}
    a, b = (x.astype(np.float64) @ m for m in (w, v))
    worst = 10 * np.log10((a**2).sum() / ((a - b) ** 2).sum())
    assert found["sqnr_db:y"] == 200 and found["cosine:y"] == pytest.approx(1)
    assert found["sqnr_db"] == found["sqnr_db:z"] == pytest.approx(worst, rel=1e-4)
    assert "accuracy" not in found and "agreement" not in found


def test_labels_and_models_that_do_not_fit(
    linear: OpenLinear, weights: tuple[Array, Array], tmp_path: Path
) -> None:
    w, _ = weights
    before = linear(w)
    save(tmp_path / "d.npz", 3, labels=np.array([0, 5, 1]))
    dataset = open_dataset(tmp_path / "d.npz", before.inputs)
    with pytest.raises(UsageError, match=r"d.npz\[1\] has label 5, and the model has classes 0 to"):
        compare_models(before, before, dataset)
    with pytest.raises(UsageError, match="no row of scores"):
        compare_models(linear(w, w), linear(w, w), dataset)
    plain = synthetic(before.inputs, 2)
    with pytest.raises(UsageError, match="outputs y, z; the model it was made from has y"):
        compare_models(before, linear(w, w), plain)
    with pytest.raises(UsageError, match="output 'y' is"):
        compare_models(before, linear(w[:, :4]), plain)
    broken = linear(np.full_like(w, np.nan))
    with pytest.raises(PenstockError, match="not finite"):
        compare_models(before, broken, plain)


def test_latency_is_of_each_model(linear: OpenLinear, tmp_path: Path) -> None:
    small = np.ones((6, 2), np.float32)
    large = np.ones((6, 1_000_000), np.float32)
    models = [linear(small), linear(large)]
    sample = next(synthetic(models[0].inputs, 1).samples())
    begin = time.perf_counter()
    fast, slow = measure_latency(models, sample, runs=9, warmup=1)
    total = (time.perf_counter() - begin) * 1000
    assert fast.p50_ms * 5 < slow.p50_ms < total / 5
    assert fast.p50_ms <= fast.p95_ms and slow.runs == 9 and slow.threads == 1


def test_sqnr_of_edges() -> None:
    assert sqnr_db(1.0, 0.0) == 200 and sqnr_db(0.0, 1.0) == -200
    assert sqnr_db(0.0, 0.0) == 200
    assert sqnr_db(100.0, 1.0) == pytest.approx(20)

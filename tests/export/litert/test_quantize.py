"""Every recipe on a small model; what is refused; silent failures of the tools that are caught."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.errors import (
    BackendMissingError,
    FormatError,
    PenstockError,
    StorageError,
    UnsupportedModelError,
    UsageError,
)
from penstock.export.dataset import Dataset, open_dataset
from penstock.export.gates import Floors, GateError, change_gate
from penstock.export.litert import edge_quantizer
from penstock.export.litert import quantize as module
from penstock.export.litert.edge_quantizer import quantize_by_library
from penstock.export.litert.flatbuffer_model import parse, read_model
from penstock.export.litert.flatbuffer_writer import serialize
from penstock.export.litert.recipes import RECIPES, litert_recipe
from penstock.export.litert.repair import repair
from penstock.export.litert.weight_layers import stored_types
from penstock.export.precision_search import PrecisionSearch
from penstock.loaders.tflite_file import read_tflite
from penstock.runtime.backends.open_model import open_model
from tests.export.litert.model_maker import CLASSES, ModelMaker, small_cnn

Images = Callable[..., Dataset]
LEAST_DB = {
    "weight-int8": 36, "weight-int4": 14, "dynamic-int8": 25, "dynamic-int4": 8,
    "static-int8": 18, "static-int16": 18,
}  # fmt: skip


quantize_tflite = partial(module.quantize_tflite, threads=1)


@pytest.fixture(autouse=True)
def _library(litert_export: None) -> None:
    """Skips without ai-edge-quantizer."""


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_recipes(
    cnn_file: Path, tmp_path: Path, images: Images, recipe: str, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "small.tflite"
    report = quantize_tflite(
        cnn_file, out, recipe, calibration=images(16), evaluation=images(24, seed=2)
    )
    assert report.metric("sqnr_db").after > LEAST_DB[recipe]
    assert report.artifact_bytes == out.stat().st_size < report.source_bytes / 2
    assert {gate.name for gate in report.gates} >= {"loads", "finite", "changed", "smaller"}
    assert list(report.precisions) == [
        "conv_2d_0", "depthwise_conv_2d_1", "conv_2d_2", "fully_connected_3",
    ]  # fmt: skip
    wanted = RECIPES[recipe].weights
    assert report.precisions["conv_2d_2"] == report.precisions["fully_connected_3"] == wanted
    assert report.latency_before is not None and report.latency_after is not None
    assert report.latency_after.threads == 1
    assert any("signature" in note for note in report.notes)
    printed = capfd.readouterr()
    assert printed.out == ""
    assert all(line.startswith("INFO: Created") for line in printed.err.splitlines())
    with open_model(out, threads=1) as model:
        assert [spec.name for spec in model.inputs] == ["x"]


def test_histograms_lose_less_than_the_librarys_moving_average(
    cnn_file: Path, tmp_path: Path, images: Images
) -> None:
    data, found = images(32), {}
    for method in ("average", "minmax", "percentile", "entropy"):
        report = quantize_tflite(
            cnn_file, tmp_path / f"{method}.tflite", f"static-int8 {method}", calibration=data
        )
        assert report.recipe == f"static-int8 {method}"
        found[method] = report.metric("sqnr_db").after
    assert found["minmax"] > found["average"]


def test_the_librarys_ranges_in_batches_are_those_of_one_go(
    cnn_file: Path, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, model = read_model(cnn_file)
    repair(model, graph)
    content, recipe = serialize(model), litert_recipe("static-int8 average")
    made = []
    for batch in (5, 100):
        monkeypatch.setattr(edge_quantizer, "BATCH", batch)
        made.append(quantize_by_library(content, graph, recipe, images(12)))
    assert made[0] == made[1]


def test_other_ranges_than_those_asked_for_are_said(
    litert_export: None, tmp_path: Path, images: Images
) -> None:
    """What a second subgraph computes cannot be watched: the library's ranges are taken."""
    maker, second = small_cnn(), ModelMaker((1, 4))
    second.graph.inputs = []
    maker.model.subgraphs.append(second.graph)
    source = maker.save(tmp_path / "two.tflite")
    report = quantize_tflite(
        source, tmp_path / "a.tflite", "static-int8 percentile", calibration=images(9), samples=4
    )
    assert any("2 subgraphs: ranges are AI Edge Quantizer's" in note for note in report.notes)
    assert report.metric("sqnr_db").samples == 4  # --samples holds for the report on them, too
    plain = quantize_tflite(
        source, tmp_path / "b.tflite", "static-int8 average", calibration=images(9)
    )
    assert not any("subgraphs" in note for note in plain.notes)


def test_calibration_lowers_the_error_of_int4(
    cnn_file: Path, tmp_path: Path, images: Images
) -> None:
    test = images(32, seed=5)
    plain = quantize_tflite(cnn_file, tmp_path / "a.tflite", "weight-int4", evaluation=test)
    fed = quantize_tflite(
        cnn_file, tmp_path / "b.tflite", "weight-int4", calibration=images(32), evaluation=test
    )
    assert fed.metric("sqnr_db").after > plain.metric("sqnr_db").after + 3
    assert any("rounded to nearest" in note for note in plain.notes)
    assert not any("rounded to nearest" in note for note in fed.notes)


def test_without_data_the_report_says_that_it_saw_noise(cnn_file: Path, tmp_path: Path) -> None:
    report = quantize_tflite(cnn_file, tmp_path / "a.tflite", "int8")
    assert report.recipe == "weight-int8"
    assert any("random inputs" in note for note in report.notes)


def test_files_with_old_operator_codes_are_repaired(tmp_path: Path, images: Images) -> None:
    """Without it the library does nothing, says that it is done, and our gate must see it."""
    maker = small_cnn()
    for code in maker.model.operatorCodes:
        code.builtinCode = 0
    source = maker.save(tmp_path / "old.tflite")
    raw = quantize_by_library(
        source.read_bytes(), read_tflite(source), RECIPES["dynamic-int8"], None
    )
    before, after = stored_types(parse(source.read_bytes(), "")), stored_types(parse(raw, ""))
    changed = sum(x != y for x, y in zip(before, after, strict=True))
    assert changed == 0 and not change_gate(changed, len(before)).passed
    report = quantize_tflite(source, tmp_path / "new.tflite", "dynamic-int8")
    assert report.ratio > 2.2 and set(report.precisions.values()) == {"int8"}
    assert any("operator codes" in note for note in report.notes)


def test_a_library_that_does_nothing_is_refused(
    cnn_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "quantize_by_library", lambda content, *args, **named: content)
    with pytest.raises(GateError, match="changed: 0 of 4 weighted layers") as caught:
        quantize_tflite(cnn_file, tmp_path / "same.tflite", "dynamic-int8")
    assert not caught.value.report.passed
    assert [path.name for path in tmp_path.iterdir()] == ["cnn.tflite"]


@pytest.mark.parametrize(
    ("floors", "message"),
    [
        (Floors(min_ratio=50.0), "min-ratio"),
        (Floors({"sqnr_db": 90.0}), "sqnr_db"),
        (Floors({"agreement": 1.1}), "agreement"),
    ],
)
def test_floors_leave_nothing_behind(
    cnn_file: Path, tmp_path: Path, images: Images, floors: Floors, message: str
) -> None:
    out = tmp_path / "small.tflite"
    out.write_bytes(b"what was there before")
    with pytest.raises(GateError, match=f"refused, nothing was written: {message}"):
        quantize_tflite(
            cnn_file, out, "weight-int8", calibration=images(4), floors=floors, overwrite=True
        )
    assert out.read_bytes() == b"what was there before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cnn.tflite", "small.tflite"]
    with pytest.raises(UsageError, match="no metric 'perplexity'"):
        quantize_tflite(
            cnn_file, out, "weight-int8", floors=Floors({"perplexity": 9.0}), overwrite=True
        )


def test_an_artifact_that_makes_nan_is_refused(tmp_path: Path, cnn_file: Path) -> None:
    def broken(content: bytes, *args: Any, **named: Any) -> bytes:
        model = parse(content, "")
        bias = model.subgraphs[0].tensors[2]
        model.buffers[bias.buffer].data = np.full(16, np.nan, np.float32).view(np.uint8)
        return serialize(model)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "quantize_by_library", broken)
        with pytest.raises(GateError, match="finite: .*broken.tflite.*not finite"):
            quantize_tflite(cnn_file, tmp_path / "broken.tflite", "dynamic-int8")
        patch.setattr(module, "quantize_by_library", lambda content, *args, **named: content[:-900])
        with pytest.raises(PenstockError):
            quantize_tflite(cnn_file, tmp_path / "broken.tflite", "dynamic-int8")
    assert not (tmp_path / "broken.tflite").exists()


def test_what_is_quantized_already(cnn_file: Path, tmp_path: Path) -> None:
    small = tmp_path / "small.tflite"
    quantize_tflite(cnn_file, small, "dynamic-int8")
    with pytest.raises(UsageError, match=r"none of its 4 layers .* float32 \(4 int8\)"):
        quantize_tflite(small, tmp_path / "again.tflite", "weight-int4")


def test_mixes_and_sensitivity(cnn_file: Path, tmp_path: Path, images: Images) -> None:
    out = tmp_path / "mix.tflite"
    report = quantize_tflite(
        cnn_file,
        out,
        "weight-int8",
        calibration=images(16),
        evaluation=images(16, seed=3),
        search=PrecisionSearch(target_bytes=6_000),
    )
    assert out.stat().st_size <= 6_000
    assert {"int4"} < set(report.precisions.values()) <= {"int4", "int8", "float"}
    int8 = {one.layer: one.sqnr_db for one in report.sensitivity if one.precision == "int8"}
    int4 = {one.layer: one.sqnr_db for one in report.sensitivity if one.precision == "int4"}
    assert len(int8) >= 3 and all(int8[name] > int4[name] + 10 for name in int8)
    with pytest.raises(UsageError, match="cannot be met: the smallest mix"):
        quantize_tflite(
            cnn_file,
            tmp_path / "tiny.tflite",
            "weight-int8",
            search=PrecisionSearch(target_bytes=100),
        )
    with pytest.raises(UsageError, match="has one precision"):
        quantize_tflite(
            cnn_file,
            tmp_path / "tiny.tflite",
            "dynamic-int8",
            search=PrecisionSearch(sensitivity=True),
        )


def test_recipes_by_name() -> None:
    assert litert_recipe("static-int8, percentile").method == "percentile"
    assert str(litert_recipe("STATIC-int16")) == "static-int16 minmax"
    for wrong in ("", "int3", "weight-int8 entropy", "static-int8 minmax entropy", "static-int8 x"):
        with pytest.raises(UsageError, match="recipe"):
            litert_recipe(wrong)


def test_arguments_and_data_that_do_not_fit(
    cnn_file: Path, tmp_path: Path, npz_of: Callable[..., Path], images: Images
) -> None:
    out = tmp_path / "small.tflite"
    inputs = read_tflite(cnn_file).inputs
    with pytest.raises(UsageError, match="needs calibration data"):
        quantize_tflite(cnn_file, out, "static-int8")
    with pytest.raises(UsageError, match=r"ends in \.tflite"):
        quantize_tflite(cnn_file, tmp_path / "small.onnx", "weight-int8")
    with pytest.raises(UsageError, match="exists"):
        quantize_tflite(cnn_file, cnn_file, "weight-int8")
    with pytest.raises(UsageError, match="is the source"):
        quantize_tflite(cnn_file, cnn_file, "weight-int8", overwrite=True)
    with pytest.raises(StorageError, match="no such folder"):
        quantize_tflite(cnn_file, tmp_path / "absent" / "small.tflite", "weight-int8")
    labelled = npz_of(3, labels=np.array([0, 1, CLASSES]))
    with pytest.raises(UsageError, match="label"):
        quantize_tflite(cnn_file, out, "weight-int8", evaluation=open_dataset(labelled, inputs))
    wide = tmp_path / "wide.npz"
    np.savez(wide, x=np.zeros((2, 9, 9, 3), np.float32))
    with pytest.raises(UsageError, match=r"wide\.npz|shape"):
        quantize_tflite(cnn_file, out, "static-int8", calibration=open_dataset(wide, inputs))
    nan = tmp_path / "nan.npz"
    np.savez(nan, x=np.full((2, 12, 12, 3), np.nan, np.float32))
    for recipe in ("static-int8", "static-int8 average", "weight-int4"):
        with pytest.raises(UsageError, match=r"(?i)nan\.npz"):
            quantize_tflite(cnn_file, out, recipe, calibration=open_dataset(nan, inputs))
    assert not out.exists()


def test_accuracy_with_labels(cnn_file: Path, tmp_path: Path, npz_of: Callable[..., Path]) -> None:
    with open_model(cnn_file, threads=1) as model:
        data = open_dataset(npz_of(20), model.inputs)
        classes = [int(model.run(s.arrays)["scores/out"].argmax()) for s in data.samples()]
        inputs = model.inputs
    labels = np.array(classes)
    labels[:5] = (labels[:5] + 1) % CLASSES
    report = quantize_tflite(
        cnn_file,
        tmp_path / "small.tflite",
        "weight-int8",
        evaluation=open_dataset(npz_of(20, labels=labels), inputs),
        floors=Floors({"accuracy": 0.5}),
    )
    accuracy = report.metric("accuracy")
    assert accuracy.before == 0.75 and abs(accuracy.after - 0.75) <= 0.15


def test_damage_and_unsupported_operators(cnn_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.tflite"
    cut = tmp_path / "cut.tflite"
    cut.write_bytes(cnn_file.read_bytes()[:-5000])
    with pytest.raises(FormatError, match=r"cut\.tflite"):
        quantize_tflite(cut, out, "weight-int8")
    maker = ModelMaker((1, 8))
    maker.dense("scores", 4)
    custom = maker.schema.OperatorCodeT()
    custom.builtinCode = custom.deprecatedBuiltinCode = 32
    custom.customCode, custom.version = "TheirOwnOp", 1
    maker.model.operatorCodes.append(custom)
    node = maker.schema.OperatorT()
    node.opcodeIndex = 1
    node.inputs = np.array([maker.last], np.int32)
    maker.last = maker.tensor("theirs", (1, 4))
    node.outputs = np.array([maker.last], np.int32)
    maker.graph.operators.append(node)
    with pytest.raises(UnsupportedModelError, match=r"TheirOwnOp.*theirs"):
        quantize_tflite(maker.save(tmp_path / "custom.tflite"), out, "weight-int8")
    assert not out.exists()


def test_weights_that_are_not_finite(tmp_path: Path) -> None:
    maker = ModelMaker((1, 64))
    maker.dense("first", 64)
    maker.model.buffers[1].data.view(np.float32)[7] = np.inf
    source = maker.save(tmp_path / "inf.tflite")
    with pytest.raises(PenstockError, match="fully_connected_0|finite"):
        quantize_tflite(source, tmp_path / "out.tflite", "weight-int8")


@pytest.mark.parametrize(
    ("missing", "recipe"),
    [("ai_edge_quantizer", "dynamic-int8"), ("ai_edge_litert.schema_py_generated", "weight-int8")],
)
def test_what_is_not_installed(
    cnn_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str, recipe: str
) -> None:
    for name in [n for n in sys.modules if n.startswith(missing)]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, missing, None)
    if "." in missing:
        package, _, module = missing.rpartition(".")
        monkeypatch.delattr(sys.modules[package], module, raising=False)
    with pytest.raises(BackendMissingError, match=r"penstock\[litert-export\]"):
        quantize_tflite(cnn_file, tmp_path / "out.tflite", recipe)


def test_attached_files_are_carried_over(cnn_file: Path, tmp_path: Path) -> None:
    """As of the published MobileNets, which have their labels behind the model."""
    out = tmp_path / "out.tflite"
    with zipfile.ZipFile(cnn_file, "a") as archive:
        archive.writestr("labels.txt", "cat\ndog\n")
    report = quantize_tflite(cnn_file, out, "weight-int8")
    assert "carried over 1 attached files: labels.txt" in report.notes
    assert report.artifact_bytes == out.stat().st_size
    with zipfile.ZipFile(out) as archive:
        assert archive.read("labels.txt") == b"cat\ndog\n"
    with zipfile.ZipFile(cnn_file, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(65 << 20))
    report = quantize_tflite(cnn_file, out, "weight-int8", overwrite=True)
    assert any("left out: they are larger" in note for note in report.notes)
    assert not zipfile.is_zipfile(out)

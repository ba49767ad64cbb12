"""`export_gguf` against llama.cpp's quantizer, its runtime, transformers and the gguf package."""

from __future__ import annotations

import ctypes
import os
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter
from gguf.quants import dequantize
from numpy.typing import NDArray

from penstock.errors import (
    FormatError,
    PenstockError,
    StorageError,
    UnsupportedModelError,
    UsageError,
)
from penstock.export.gates import Floors, GateError
from penstock.export.gguf.evaluation import LlamaFile
from penstock.export.gguf.export import export_gguf
from penstock.export.gguf.plan import plan_header
from tests.export.conftest import ModelMaker
from tests.export.gguf.conftest import Files

Arrays = dict[str, NDArray[np.float32]]
TYPES = ("Q4_0", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "F16")
LLAMA_FILE_TYPES = {"F16": 1, "Q4_0": 2, "Q8_0": 7, "Q6_K": 18}


def weights_of(path: Path) -> Arrays:
    """Every tensor, decoded by the gguf package."""
    return {
        t.name: dequantize(t.data, t.tensor_type).reshape([int(n) for n in t.shape[::-1]])
        for t in GGUFReader(path).tensors
    }


def types_of(path: Path) -> dict[str, str]:
    return {t.name: t.tensor_type.name for t in GGUFReader(path).tensors}


def fields_of(path: Path) -> dict[str, tuple[list[Any], Any]]:
    reader = GGUFReader(path)
    return {
        key: (field.types, field.contents())
        for key, field in reader.fields.items()
        if not key.startswith("GGUF.")
    }


def quantize_with_llama(source: Path, out: Path, type_name: str) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = LLAMA_FILE_TYPES[type_name]
    params.nthread = 1
    result = llama_cpp.llama_model_quantize(
        os.fsencode(source), os.fsencode(out), ctypes.byref(params)
    )
    assert result == 0


@pytest.fixture(scope="module")
def exports(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The checkpoint in every type: (path, report)."""
    pytest.importorskip("llama_cpp")
    folder = tmp_path_factory.mktemp("exports")
    made = {}
    for name in TYPES:
        out = folder / f"{name}.gguf"
        report = export_gguf(checkpoint, out, name, evaluation_tokens=300, threads=1)
        made[name] = (out, report)
    return made


@pytest.mark.parametrize("arch", ["arcee", "llama"])
def test_the_f16_file_computes_what_transformers_does(
    checkpoint: Path, exports: dict[str, Any], make_model: ModelMaker, tmp_path: Path, arch: str
) -> None:
    import torch
    import transformers

    path = exports["F16"][0]
    if arch == "llama":
        checkpoint = make_model("llama", hidden_act="silu")
        path = tmp_path / "llama.gguf"
        export_gguf(checkpoint, path, "F16", evaluate=False)
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint).float().eval()
    tokens = np.random.default_rng(1).integers(2, 300, 24).tolist()
    with torch.no_grad():
        wanted = model(torch.tensor([tokens])).logits[0].numpy()
    with LlamaFile(path, threads=1) as file:
        made = file.logits(tokens)
    assert np.abs(made - wanted).max() < 2e-3 * np.abs(wanted).max()


def test_errors_are_what_the_gguf_package_decodes(
    checkpoint: Path, exports: dict[str, Any], weights: Any
) -> None:
    source = weights_of(exports["F16"][0])
    for name in TYPES[:-1]:
        path, report = exports[name]
        made = weights_of(path)
        assert {e.tensor for e in report.tensors} == set(report.precisions)
        for error in report.tensors:
            x, y = source[error.tensor].astype(np.float64), made[error.tensor]
            rmse = float(np.sqrt(((x - y) ** 2).sum() / (x**2).sum()))
            assert error.relative_rmse == pytest.approx(rmse, rel=1e-3)
        for kept in source.keys() - report.precisions.keys():
            assert (source[kept] == made[kept]).all()


def test_more_bits_are_nearer_to_the_source(exports: dict[str, Any]) -> None:
    divergence = [exports[name][1].metric("mean_kl").after for name in TYPES]
    assert divergence == sorted(divergence, reverse=True)
    assert divergence[-1] == 0 and divergence[-2] < 2e-3
    sizes = [exports[name][1].artifact_bytes for name in TYPES]
    assert sizes == sorted(sizes)
    for path, report in exports.values():
        assert report.passed and report.artifact_bytes == path.stat().st_size
        metric = report.metric("perplexity")
        assert metric.before is not None and metric.samples == 297
        assert not metric.higher_is_better
        assert report.latency_after is not None and report.latency_after.p50_ms > 0


def test_divergence_and_perplexity_are_those_of_the_logits(exports: dict[str, Any]) -> None:
    """Once more, from logits, in the plainest way."""
    text = "Once upon a time there was a king, and the queen said that there was a time."
    path, _ = exports["Q4_K"]
    with LlamaFile(exports["F16"][0], 1) as before, LlamaFile(path, 1) as after:
        tokens = before.tokenize(text * 3)
        from penstock.export.gguf.evaluation import compare_files

        found = {m.name: m for m in compare_files(before, after, text * 3, 1000, 4).metrics}
        wanted, made = (file.logits(tokens).astype(np.float64) for file in (before, after))
    p, q = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (wanted, made))
    kl = (p * np.log(p / q)).sum(1)[:-1].mean()
    nats = [-np.log(x[np.arange(len(tokens) - 1), tokens[1:]]).mean() for x in (p, q)]
    assert found["mean_kl"].after == pytest.approx(kl, rel=1e-6)
    assert found["perplexity"].before == pytest.approx(np.exp(nats[0]), rel=1e-6)
    assert found["perplexity"].after == pytest.approx(np.exp(nats[1]), rel=1e-6)


@pytest.mark.parametrize(
    ("name", "type_name", "changes"),
    [
        ("tiny-llama", "Q8_0", {}),
        ("tiny-llama", "Q6_K", {}),
        ("tiny-llama-tied", "Q6_K", {}),
        ("tiny-gemma2", "Q6_K", {}),
        ("tiny-olmoe", "Q6_K", {"experts": 4, "used": 2}),
        ("tiny-olmoe", "Q8_0", {"experts": 4, "used": 2}),
        ("tiny-deepseek2", "Q6_K", {"experts": 4, "used": 2}),
        ("tiny-granitemoe", "Q6_K", {"experts": 4, "used": 2}),
    ],
)
def test_types_are_llama_cpp_s(
    files: Files, tmp_path: Path, name: str, type_name: str, changes: dict[str, int]
) -> None:
    source = files(name, layers=2, **changes)
    out, theirs = tmp_path / "ours.gguf", tmp_path / "theirs.gguf"
    export_gguf(source, out, type_name, evaluate=False)
    quantize_with_llama(source, theirs, type_name)
    assert types_of(out) == types_of(theirs)
    ours, reference = fields_of(out), fields_of(theirs)
    assert ours.keys() == reference.keys()
    assert all(ours[key][1] == reference[key][1] for key in ours)


def test_rows_that_blocks_do_not_divide_get_llama_cpp_s_types(files: Files, tmp_path: Path) -> None:
    source = files("tiny-llama", layers=2, neurons=288, width=320, heads=5, kv_heads=5)
    for type_name in ("Q6_K", "Q4_0"):
        out, theirs = tmp_path / "ours.gguf", tmp_path / "theirs.gguf"
        report = export_gguf(source, out, type_name, evaluate=False, overwrite=True)
        quantize_with_llama(source, theirs, type_name)
        assert types_of(out) == types_of(theirs)
        assert any("256 does not divide" in note for note in report.notes)


def test_metadata_and_other_tensors_are_copied(files: Files, tmp_path: Path) -> None:
    source, out = files("tiny-qwen2", layers=1), tmp_path / "out.gguf"
    export_gguf(source, out, "Q4_0", evaluate=False)
    before, after = fields_of(source), fields_of(out)
    changed = {key for key in after if before.get(key) != after[key]}
    assert changed == {"general.file_type", "general.quantization_version"}
    assert list(before) == [key for key in after if key in before]
    assert types_of(source).keys() == types_of(out).keys()
    norms = {n for n, kind in types_of(out).items() if kind == "F32"}
    assert norms and all((weights_of(source)[n] == weights_of(out)[n]).all() for n in norms)


def test_experts_are_quantized_and_run(files: Files, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    source = files("tiny-olmoe", layers=1, experts=8)
    out = tmp_path / "out.gguf"
    report = export_gguf(source, out, "Q4_K", evaluation_tokens=64, threads=1)
    assert report.precisions["blk.0.ffn_up_exps.weight"] == "Q4_K"
    assert "blk.0.ffn_gate_inp.weight" not in report.precisions
    assert report.metric("mean_kl").after < 0.3


def test_quantizing_twice_is_said(files: Files, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    report = export_gguf(files("tiny-llama", "Q8_0"), out, "Q4_K", evaluate=False)
    assert any("quantized twice: 23 tensors" in note for note in report.notes)
    report = export_gguf(files("tiny-llama", "F16"), out, "Q8_0", evaluate=False, overwrite=True)
    assert not any("twice" in note for note in report.notes)


def test_output_and_embedding_by_choice(files: Files, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    export_gguf(files("tiny-llama"), out, "Q4_0", output="Q8_0", embedding="F16", evaluate=False)
    types = types_of(out)
    assert types["output.weight"] == "Q8_0" and types["token_embd.weight"] == "F16"
    assert types["blk.0.attn_q.weight"] == "Q4_0"
    with pytest.raises(UsageError, match="type 'Q3_K' is not known; expected Q4_K"):
        export_gguf(files("tiny-llama"), tmp_path / "x.gguf", "Q4_0", output="Q3_K")


def test_a_target_size_is_kept_and_used(exports: dict[str, Any], tmp_path: Path) -> None:
    source = exports["F16"][0]
    even, middle = exports["Q4_K"][1], exports["Q5_K"][1]
    target = (even.artifact_bytes + middle.artifact_bytes) // 2
    out = tmp_path / "mix.gguf"
    report = export_gguf(source, out, target_size=target, evaluation_tokens=300, threads=1)
    assert 0.97 * target < report.artifact_bytes <= target
    assert len(set(report.precisions.values())) > 1
    assert middle.metric("mean_kl").after < report.metric("mean_kl").after
    assert report.metric("mean_kl").after < even.metric("mean_kl").after
    with pytest.raises(UsageError, match=r"100000 bytes .* the smallest file .* has (\d+)") as said:
        export_gguf(source, out, target_size=100_000, overwrite=True)
    smallest = int(str(said.value).split()[-1])
    tight = export_gguf(source, out, target_size=smallest, evaluate=False, overwrite=True)
    assert tight.artifact_bytes == smallest < even.artifact_bytes
    assert set(tight.precisions.values()) == {"Q4_K"}


def test_what_fails_a_gate_is_not_kept(exports: dict[str, Any], tmp_path: Path) -> None:
    source, out = exports["F16"][0], tmp_path / "out.gguf"
    with pytest.raises(GateError, match="min-ratio: .* wanted 8x") as refused:
        export_gguf(source, out, "Q4_K", evaluate=False, floors=Floors(min_ratio=8.0))
    assert refused.value.report.ratio > 2
    with pytest.raises(GateError, match="changed: 0 of .*; smaller"):
        export_gguf(source, out, "F16", evaluate=False)
    with pytest.raises(GateError, match="mean_kl: .* wanted at most 1e-09"):
        export_gguf(
            source, out, "Q4_0", evaluation_tokens=32, floors=Floors({"mean_kl": 1e-9}), threads=1
        )
    with pytest.raises(GateError, match="smaller: .* 0.54x"):
        export_gguf(exports["Q8_0"][0], out, "F16", evaluate=False)
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_in_f16_may_stay_as_large(make_model: ModelMaker, tmp_path: Path) -> None:
    source, out = make_model("arcee", dtype="float16"), tmp_path / "out.gguf"
    report = export_gguf(source, out, "F16", evaluate=False)
    assert report.ratio < 1 and report.passed
    with pytest.raises(GateError, match="min-ratio"):
        export_gguf(
            source, out, "F16", evaluate=False, floors=Floors(min_ratio=1.5), overwrite=True
        )


def test_what_llama_cpp_loaded_before_must_load_after(
    exports: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A header with a wrong count of blocks, as a faulty writer would leave it."""

    def faulty(*args: Any) -> bytes:
        header = plan_header(*args)
        key = b"arcee.block_count"
        at = header.index(key) + len(key) + 4
        return header[:at] + (77).to_bytes(4, "little") + header[at + 4 :]

    monkeypatch.setattr("penstock.export.gguf.export.plan_header", faulty)
    with pytest.raises(GateError, match="loads: .*out.gguf: llama.cpp does not load it"):
        export_gguf(exports["F16"][0], tmp_path / "out.gguf", "Q8_0", evaluation_tokens=32)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_computes_nan_is_refused(
    exports: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A divergence of NaN must not pass for one of 0, which max(0, NaN) is."""

    def faulty(*args: Any) -> bytes:
        header = plan_header(*args)
        key = b"arcee.rope.freq_base"
        at = header.index(key) + len(key) + 4
        return header[:at] + np.float32(np.nan).tobytes() + header[at + 4 :]

    source, out = exports["F16"][0], tmp_path / "out.gguf"
    with monkeypatch.context() as patched:
        patched.setattr("penstock.export.gguf.export.plan_header", faulty)
        for floors in (Floors(), Floors({"mean_kl": 10.0})):
            with pytest.raises(GateError, match=r"finite: .*out\.gguf: llama.cpp computes logits"):
                export_gguf(source, out, "Q8_0", evaluation_tokens=32, floors=floors, threads=1)
        broken = tmp_path / "broken.gguf"
        export_gguf(source, broken, "Q8_0", evaluate=False)
    with pytest.raises(PenstockError, match=r"broken\.gguf: llama.cpp computes logits"):
        export_gguf(broken, out, "Q4_K", evaluation_tokens=32, threads=1)
    assert list(tmp_path.iterdir()) == [broken]


def test_a_source_that_llama_cpp_does_not_know_is_written_all_the_same(tmp_path: Path) -> None:
    source = tmp_path / "odd.gguf"
    writer = GGUFWriter(source, "not-an-architecture")
    values = np.random.default_rng(0).normal(size=(64, 256)).astype(np.float32)
    writer.add_tensor("blk.0.some.weight", values)
    writer.add_tensor("blk.0.some_norm.weight", values[0])
    for step in ("header", "kv_data", "tensors"):
        getattr(writer, f"write_{step}_to_file")()
    writer.close()
    out = tmp_path / "out.gguf"
    report = export_gguf(source, out, "Q4_K")
    assert types_of(out) == {"blk.0.some.weight": "Q4_K", "blk.0.some_norm.weight": "F32"}
    assert any("not run, neither before nor after" in note for note in report.notes)


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    source = tmp_path / "big.gguf"
    writer = GGUFWriter(source, "llama")
    values = np.ones((4096, 4096), np.float16)
    writer.add_tensor("blk.0.ffn_up.weight", values)
    for step in ("header", "kv_data", "tensors"):
        getattr(writer, f"write_{step}_to_file")()
    writer.close()
    tracemalloc.start()
    export_gguf(source, tmp_path / "out.gguf", "Q8_0", evaluate=False, threads=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 << 20 < 4 * values.size


def test_what_cannot_be_quantized_is_said(
    files: Files, make_model: ModelMaker, tmp_path: Path
) -> None:
    source, out = files("tiny-llama"), tmp_path / "out.gguf"
    with pytest.raises(StorageError, match="there is no such file"):
        export_gguf(tmp_path / "nowhere.gguf", out, "Q4_K")
    with pytest.raises(UnsupportedModelError, match="does not run this model as it is meant"):
        export_gguf(make_model("llama"), out, "Q4_K")
    scaled = {
        "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
    }  # fmt: skip
    with pytest.raises(UnsupportedModelError, match="rotary positions are scaled"):
        export_gguf(make_model("llama", hidden_act="silu", rope_parameters=scaled), out, "Q4_K")
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(source.read_bytes()[:-40000])
    with pytest.raises(FormatError, match="cut short"):
        export_gguf(cut, out, "Q4_K")
    with pytest.raises(UsageError, match="a type for the matrices, or a target size"):
        export_gguf(source, out, "Q4_K", target_size=100)
    with pytest.raises(UsageError, match="is the source"):
        export_gguf(cut, cut, "Q4_K", overwrite=True)
    out.write_bytes(b"there")
    with pytest.raises(UsageError, match="is there already"):
        export_gguf(source, out, "Q4_K")
    assert out.read_bytes() == b"there"


def test_values_that_are_not_finite_are_named(tmp_path: Path) -> None:
    source, out = tmp_path / "nan.gguf", tmp_path / "out.gguf"
    writer = GGUFWriter(source, "llama")
    values = np.zeros((64, 256), np.float32)
    values[7, 3] = np.nan
    writer.add_tensor("blk.0.ffn_up.weight", values)
    for step in ("header", "kv_data", "tensors"):
        getattr(writer, f"write_{step}_to_file")()
    writer.close()
    with pytest.raises(FormatError, match="nan.gguf: tensor 'blk.0.ffn_up.weight': row 7, column"):
        export_gguf(source, out, "Q4_K")
    assert not out.exists()


def test_parts_of_a_model_are_refused(tmp_path: Path) -> None:
    from benchmarks.gguf_shapes import SHAPES
    from benchmarks.synthetic_gguf import write_gguf

    parts = write_gguf(SHAPES["tiny-llama"], tmp_path / "model.gguf", parts=2)
    with pytest.raises(UnsupportedModelError, match="one of 2 parts.*--merge"):
        export_gguf(parts[0], tmp_path / "out.gguf", "Q4_K")

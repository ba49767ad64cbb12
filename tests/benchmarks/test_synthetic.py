"""Synthetic models: bundles that our reader accepts, and the same weights in llama.cpp's form."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

from benchmarks.ablation_rows import ROWS, row_plan, streamable
from benchmarks.active_sets import generate
from benchmarks.synthetic import SHAPES, Shape, opt, write_bundle, write_gguf
from penstock.loaders.bundle import open_bundle
from penstock.loaders.gguf_file import read_gguf
from penstock.loaders.probe import probe
from penstock.runtime.flash_engine import FlashEngine
from penstock.runtime.planner import PlanOptions, make_plan

TINY_OPT = opt("tiny", 6, 128, 512, 4, 320)
TINY_ARCEE = Shape("tiny", "arcee", 3, 128, 512, 4, 2, 320, 64, (32,) * 3, True)


@pytest.mark.parametrize("dtype", ["F16", "Q8_0"])
@pytest.mark.parametrize("shape", [TINY_OPT, TINY_ARCEE], ids=lambda s: s.arch)
def test_a_bundle_is_whole(tmp_path: Path, shape: Shape, dtype: str) -> None:
    write_bundle(shape, dtype, tmp_path / "m.gguf")
    bundle = open_bundle(tmp_path / "m.gguf")
    for layer in range(bundle.layers):
        bundle.verify_layer(layer)
    engine = FlashEngine(
        bundle, make_plan(bundle, probe(bundle.path, quick=True), PlanOptions(context=32))
    )
    for token in range(4):
        assert np.isfinite(engine.decode(token)).all()


@pytest.mark.parametrize("dtype", ["F16", "Q8_0"])
def test_both_files_hold_the_same_weights(tmp_path: Path, dtype: str) -> None:
    write_bundle(TINY_ARCEE, dtype, tmp_path / "b.gguf")
    write_gguf(TINY_ARCEE, dtype, tmp_path / "p.gguf")
    bundle, plain = open_bundle(tmp_path / "b.gguf"), read_gguf(tmp_path / "p.gguf")
    raw = {
        name: np.fromfile(tmp_path / "p.gguf", np.uint8, t.nbytes, offset=t.offset)
        for name, t in plain.tensors.items()
    }
    stored = np.fromfile(bundle.path, np.uint8)
    for name, info in bundle.resident.items():
        if ".fc" not in name:
            assert np.array_equal(stored[info.offset : info.offset + info.nbytes], raw[name]), name
    kind = gguf.GGMLQuantizationType[dtype]
    info, length = bundle.bundles[1], bundle.row_bytes
    rows = stored[info.offset : info.offset + info.nbytes].reshape(bundle.neurons, bundle.stride)
    up = gguf.quants.dequantize(np.ascontiguousarray(rows[:, :length]), kind)
    down = gguf.quants.dequantize(np.ascontiguousarray(rows[:, length : 2 * length]), kind)
    other = [
        gguf.quants.dequantize(
            raw[f"blk.1.ffn_{m}.weight"].reshape(
                plain.tensors[f"blk.1.ffn_{m}.weight"].shape[0], -1
            ),
            kind,
        )
        for m in ("up", "down")
    ]
    assert np.array_equal(up.astype(np.float32), other[0].astype(np.float32))
    assert np.array_equal(down.T.astype(np.float32), other[1].astype(np.float32))


def test_every_neuron_of_the_dense_shape_is_active(tmp_path: Path) -> None:
    write_bundle(TINY_ARCEE, "Q8_0", tmp_path / "m.gguf")
    bundle = open_bundle(tmp_path / "m.gguf")
    engine = FlashEngine.open_dense(bundle, context=32, batch=1)
    for token in range(8):
        engine.decode(token)
    stats = [engine.decoder.ffn_stats(n) for n in range(bundle.layers)]
    assert sum(s.active for s in stats) > 0.99 * sum(s.predicted for s in stats)


def test_the_rows_of_the_ablation_run_and_keep_to_their_memory(tmp_path: Path) -> None:
    write_bundle(TINY_OPT, "F16", tmp_path / "m.gguf")
    bundle = open_bundle(tmp_path / "m.gguf")
    profile = replace(probe(bundle.path, quick=True), depth=16)
    sets = generate(bundle.layers, bundle.neurons, 12)
    budget = 12 << 20
    read = {}
    for row in ROWS:
        plan = row_plan(bundle, profile, row, sets, budget, 1)
        assert plan.total <= budget or row.kind == "naive", row.name
        engine = FlashEngine(
            bundle, plan, overlap=row.overlap, bundled=row.bundled, reuse=row.reuse
        )
        assert engine.decoder.memory_bytes <= plan.total, row.name
        if row.kind == "window":
            engine.decoder.script(sets.ids, sets.offsets)
        for token in range(10):
            assert np.isfinite(engine.decode(token)).all()
            if token == 7:
                engine.decoder.reset_stats()
        read[row.name] = engine.decoder.stats().io_bytes
    assert read["naive"] > read["+ predictor"] > read["+ window"]


def test_naive_streams_every_matrix_that_can_be(tmp_path: Path) -> None:
    write_bundle(TINY_OPT, "F16", tmp_path / "m.gguf")
    names = streamable(open_bundle(tmp_path / "m.gguf"))
    assert len(names) == 4 * TINY_OPT.layers
    assert all(".attn_" in name for name in names)


def test_the_full_shape_is_the_paper_s() -> None:
    shape = SHAPES["opt-6.7b"]
    assert (shape.layers, shape.width, shape.neurons, shape.vocab) == (32, 4096, 16384, 50272)
    assert shape.ranks == (128,) * 28 + (1024,) * 4
    assert shape.stride("F16") == 16384 and shape.stride("Q8_0") == 8704

"""`penstock.load` and `penstock.plan` on ordinary GGUF files, and what they refuse."""

from __future__ import annotations

import os
import re
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import penstock
from benchmarks.gguf_shapes import SHAPES, Shape
from benchmarks.synthetic_gguf import part_paths, write_gguf, write_lora
from penstock.errors import BudgetError, FormatError, UsageError
from penstock.runtime.gguf.model import GgufModel
from penstock.runtime.gguf.plan import GgufPlan
from tests.bundle_builder import Shape as BundleShape
from tests.bundle_builder import write_tiny
from tests.runtime.gguf.plans import Files, Stock, prompt

pytestmark = pytest.mark.usefixtures("measured")


def load(path: Path, **options: Any) -> GgufModel:
    model = penstock.load(path, threads=2, **options)
    assert isinstance(model, GgufModel)
    return model


def planned(path: Path, **options: Any) -> GgufPlan:
    made = penstock.plan(path, threads=2, **options)
    assert isinstance(made, GgufPlan)
    return made


# ---------------------------------------------------------------- what it gives


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-olmoe"])
def test_where_all_fits_llama_cpp_runs_as_it_is(files: Files, llama_cpp: None, name: str) -> None:
    model = load(files(name))
    try:
        assert model.plan.mode == "resident" and model.engine.streamer is None
        assert "".join(model.generate("The thing", max_tokens=8)) and model.stats().read_bytes == 0
        assert model.stats().hit_rate == 1.0
        assert model.plan == planned(files(name))
    finally:
        model.close()


def test_a_file_of_version_2_is_the_same_model(
    files: Files, llama_cpp: None, tmp_path: Path
) -> None:
    newer = files("tiny-llama")
    (tmp_path / "v2.gguf").write_bytes(b"GGUF\2\0\0\0" + newer.read_bytes()[8:])
    texts = []
    for path in (newer, tmp_path / "v2.gguf"):
        model = load(path)
        texts.append("".join(model.generate("The thing", max_tokens=8)))
        model.close()
    assert texts[0] == texts[1] != ""


def test_any_part_of_a_split_file_is_the_model(
    files: Files, llama_cpp: None, tmp_path: Path
) -> None:
    paths = write_gguf(SHAPES["tiny-llama"], tmp_path / "m.gguf", parts=3)
    texts = []
    for path in (files("tiny-llama"), *paths):
        model = load(path)
        texts.append("".join(model.generate("The thing", max_tokens=8)))
        model.close()
    assert len(set(texts)) == 1
    paths[2].unlink()
    with pytest.raises(FormatError, match="m-00003-of-00003.gguf: this part of .* is missing"):
        load(paths[0])


def test_adapters_are_paths_with_or_without_a_scale(
    files: Files, llama_cpp: None, tmp_path: Path
) -> None:
    lora = tmp_path / "lora.gguf"
    write_lora(SHAPES["tiny-llama"], lora)
    path, seen = files("tiny-llama"), []
    for given in ([], [lora], [(str(lora), 0.0)], [(lora, 1.0)]):
        model = load(path, lora=given)
        assert model.plan.adapters == len(given) * lora.stat().st_size
        seen.append(model.engine.decode([5, 6, 7]).copy())
        model.close()
    assert np.array_equal(seen[1], seen[3]) and not np.array_equal(seen[0], seen[1])
    assert np.abs(seen[0] - seen[2]).max() < 1e-4
    with pytest.raises(UsageError, match="there is no such LoRA adapter"):
        load(path, lora=[tmp_path / "none"])


# ---------------------------------------------------------------- budgets


def heavy(dense: bool, **more: Any) -> Shape:
    """Large enough for the planner to stream, small enough to write in a moment."""
    if dense:
        values = {"layers": 4, "width": 768, "neurons": 3072, "heads": 12, "context": 1 << 17}
        return replace(SHAPES["tiny-llama"], **{**values, **more})
    return replace(SHAPES["tiny-olmoe"], width=512, neurons=512, heads=8, kv_heads=8, **more)


@pytest.mark.parametrize("dense", [True, False], ids=["dense", "mixture"])
def test_the_least_budget_works_and_less_is_refused(
    files: Files, llama_cpp: None, dense: bool
) -> None:
    path = files(heavy(dense))
    with pytest.raises(
        BudgetError, match="too little for 512 tokens .* it needs at least"
    ) as error:
        load(path, memory="1MiB", context=512)
    least = error.value.least_bytes
    assert least is not None
    with pytest.raises(BudgetError) as again:
        planned(path, memory=least - 1, context=512)
    assert again.value.least_bytes == least
    model = load(path, memory=least, context=512)
    try:
        assert model.plan.total <= least == model.plan.least and model.plan.mode != "resident"
        ids = prompt(512, 100)
        logits = model.engine.decode(ids)
        assert model.stats().read_bytes
        with Stock(path, model.plan) as stock:
            assert np.array_equal(logits, stock.decode(ids))
    finally:
        model.close()


def test_a_context_that_does_not_fit_is_answered_with_the_largest_that_does(
    files: Files, llama_cpp: None
) -> None:
    path = files(heavy(True))
    least = planned(path, context=256, memory="2GiB").least
    memory = least + (4 << 20)
    wanted = r"too little for 131072 tokens of context; the largest context that fits is (\d+) "
    with pytest.raises(BudgetError, match=wanted) as error:
        load(path, memory=memory, context=1 << 17)
    found = re.search(wanted, str(error.value))
    assert found is not None
    largest = int(found[1])
    assert 256 <= largest < 1 << 17 and error.value.least_bytes is not None
    assert planned(path, memory=memory, context=largest).total <= memory
    with pytest.raises(BudgetError):
        planned(path, memory=memory, context=largest + 256)
    assert error.value.least_bytes > memory
    assert planned(path, memory=error.value.least_bytes, context=1 << 17).context == 1 << 17


@pytest.mark.parametrize("dense", [True, False], ids=["dense", "mixture"])
def test_plans_spend_what_they_are_given(files: Files, dense: bool) -> None:
    path = files(heavy(dense))
    whole = planned(path)
    assert whole.mode == "resident" and whole.read_bytes == 0
    before = None
    for memory in np.linspace(whole.least, whole.total * 1.1, 12).astype(int).tolist():
        made = planned(path, memory=memory)
        assert made.total <= memory
        if before is not None and made.kv_type == before.kv_type and made.batch == before.batch:
            now, then = made.read_bytes, before.read_bytes
            assert now is not None and then is not None and now <= then
        before = made
    assert before is not None and before.mode == "resident"


def test_the_engine_streams_what_the_plan_says(files: Files, llama_cpp: None) -> None:
    path = files(heavy(True))
    least = planned(path, memory="1GiB").least
    model = load(path, memory=least + (8 << 20))
    try:
        engine, plan = model.engine, model.plan
        for _ in range(2):
            engine.decode([5])
        before = engine.streamer.stats()
        engine.decode([6])
        after = engine.streamer.stats()
        # Reads that are under way at either moment are not counted yet.
        assert plan.streamed > 0
        assert abs(after.bytes - before.bytes - plan.streamed) <= plan.ring
        assert before.pinned_bytes <= plan.pinned
    finally:
        model.close()


def test_a_small_budget_quantizes_the_cache(files: Files, llama_cpp: None) -> None:
    path = files(heavy(True))
    assert planned(path, memory="2GiB", context=1 << 14).kv_type == "f16"
    assert planned(path, memory="96MiB", context=1 << 14).kv_type == "q4_0"
    for kv_type in ("f16", "q8_0", "q4_0"):
        model = load(path, kv_type=kv_type, context=600)
        assert model.plan.kv_type == kv_type and np.isfinite(model.engine.decode([5])).all()
        model.close()


def test_heads_that_no_block_divides_keep_an_f16_cache(files: Files, llama_cpp: None) -> None:
    shape = heavy(True, head_dim=80)
    path = files(shape)
    model = load(path, memory="128MiB", context=1 << 13)
    assert model.plan.kv_type == "f16" and np.isfinite(model.engine.decode([5])).all()
    model.close()
    with pytest.raises(UsageError, match="q8_0.*80.*f16"):
        load(path, kv_type="q8_0")


# ---------------------------------------------------------------- refusals


def test_options_of_bundles_and_of_gguf_files_do_not_mix(files: Files, tmp_path: Path) -> None:
    path, bundle = files("tiny-llama"), tmp_path / "bundle.gguf"
    write_tiny(bundle, BundleShape())
    lora = tmp_path / "lora.gguf"
    write_lora(SHAPES["tiny-llama"], lora)
    for use in (penstock.load, penstock.plan):
        ours: list[dict[str, Any]] = [{"exact": True}, {"dense": True}, {"ffn_resident": 0.5}]
        theirs: list[dict[str, Any]] = [{"lora": [lora]}, {"kv_type": "f16"}, {"policy": "lru"}]
        for options in ours:
            with pytest.raises(UsageError, match=f"{next(iter(options))} is for Penstock bundles"):
                use(path, **options)
        for options in theirs:
            with pytest.raises(UsageError, match=f"{next(iter(options))} is for ordinary GGUF"):
                use(bundle, **options)


def test_values_out_of_range_are_refused(files: Files) -> None:
    path = files("tiny-llama")
    for options, wanted in (
        ({"kv_type": "q5_1"}, "no KV cache of type 'q5_1'; choose f16, q8_0, q4_0"),
        ({"policy": "mru"}, "no policy 'mru'; choose adaptive, lfu, lru, last-k"),
        ({"context": 0}, "context"),
        ({"context": -5}, "context"),
        ({"threads": 0}, "threads"),
        ({"memory": "some"}, "not a size"),
    ):
        with pytest.raises(UsageError, match=wanted):
            penstock.plan(path, **options)


def test_files_that_are_not_there_or_no_models(files: Files, tmp_path: Path) -> None:
    with pytest.raises(penstock.StorageError, match="none.gguf: cannot be read: No such file"):
        penstock.load(tmp_path / "none.gguf")
    lora = tmp_path / "lora.gguf"
    write_lora(SHAPES["tiny-llama"], lora)
    with pytest.raises(FormatError, match="block_count"):
        penstock.load(lora)


def edited(path: Path, folder: Path, edit: Callable[[bytes], bytes]) -> Path:
    out = folder / "edited.gguf"
    out.write_bytes(edit(path.read_bytes()))
    return out


def renamed(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    assert len(old) == len(new)
    return lambda raw: raw.replace(old, new)


DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "magic": (lambda raw: b"GGML" + raw[4:], "at offset 0: not a GGUF file"),
    "empty": (lambda raw: b"", "not a GGUF file"),
    "version": (lambda raw: raw[:4] + struct.pack("<I", 9) + raw[8:], "version is 9"),
    "short": (lambda raw: raw[:-4096], "the file is cut short"),
    "header": (lambda raw: raw[:900], "more than the file holds"),
    "count": (lambda raw: raw[:8] + b"\xff" * 8 + raw[16:], "the number of tensors"),
    "layers": (renamed(b"block_count", b"block_kount"), "block_count"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files_are_refused_before_they_are_used(
    files: Files, tmp_path: Path, damage: str
) -> None:
    edit, wanted = DAMAGE[damage]
    with pytest.raises(FormatError, match=wanted):
        penstock.load(edited(files("tiny-llama"), tmp_path, edit))


def test_a_tensor_past_the_end_of_a_part_is_refused(tmp_path: Path) -> None:
    paths = write_gguf(SHAPES["tiny-llama"], tmp_path / "m.gguf", parts=2)
    assert paths == part_paths(tmp_path / "m.gguf", 2)
    os.truncate(paths[1], paths[1].stat().st_size - 5000)
    with pytest.raises(FormatError, match="m-00002-of-00002.gguf: .* cut short"):
        penstock.load(paths[0])


def test_what_llama_cpp_refuses_is_told_in_its_words(
    files: Files, llama_cpp: None, tmp_path: Path
) -> None:
    path = edited(files("tiny-llama"), tmp_path, renamed(b"blk.1.attn_q", b"blk.1.attn_x"))
    with pytest.raises(penstock.UnsupportedModelError, match="edited.gguf: llama.cpp .*attn_q"):
        load(path)
    other = Path(shutil.copy(files("tiny-llama"), tmp_path / "m-00001-of-00001.gguf"))
    load(other).close()

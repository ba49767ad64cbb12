"""Synthetic GGUF models: files that llama.cpp runs, routing that is spread or realistic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader
from numpy.typing import NDArray

from benchmarks.gguf_blocks import FORMATS
from benchmarks.gguf_reuse import window
from benchmarks.gguf_shapes import SHAPES, Shape
from benchmarks.gguf_tensors import layout
from benchmarks.synthetic_gguf import CHAT_TEMPLATE, tensor_bytes, write_gguf, write_lora

QUANTIZED = [name for name in FORMATS if name != "F32"]
TINY = [name for name in SHAPES if name.startswith("tiny")]
REUSING = ["tiny-olmoe", "tiny-qwen3moe", "tiny-mixtral", "tiny-gpt-oss", "tiny-granitemoe"]
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def llama() -> Open:
    """Opens a file in llama.cpp."""
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    from benchmarks.gguf_routing import Model

    return Model


def random_tokens(vocab: int, count: int) -> list[int]:
    out: list[int] = np.random.default_rng(1).integers(4, vocab, count).tolist()
    return out


def contents(path: Path) -> dict[str, NDArray[np.uint8]]:
    return {t.name: np.array(t.data).view(np.uint8) for t in GGUFReader(path).tensors}


def test_sizes_of_the_large_shapes() -> None:
    assert tensor_bytes(SHAPES["llama-3b"]) == 3_204_329_472
    assert tensor_bytes(SHAPES["olmoe-7b"]) == 3_899_695_104
    olmoe = {t.name: t for t in layout(SHAPES["olmoe-7b"])}
    experts = olmoe["blk.15.ffn_up_exps.weight"]
    assert experts.shape == (64, 1024, 2048) and experts.nbytes == 64 * 1024 * 2048 // 32 * 18


@pytest.mark.parametrize("name", TINY)
def test_llama_cpp_runs_each_architecture(tmp_path: Path, llama: Open, name: str) -> None:
    run(tmp_path / "m.gguf", llama, SHAPES[name])


@pytest.mark.parametrize("dtype", QUANTIZED)
@pytest.mark.parametrize("name", ["tiny-llama", "tiny-olmoe"])
def test_llama_cpp_runs_each_format(tmp_path: Path, llama: Open, name: str, dtype: str) -> None:
    run(tmp_path / "m.gguf", llama, SHAPES[name].typed(dtype))


def run(path: Path, llama: Open, shape: Shape) -> None:
    write_gguf(shape, path)
    assert 0 < path.stat().st_size - tensor_bytes(shape) < 100_000
    assert path.stat().st_size < 30e6
    with llama(path) as model:
        trace = model.decode(random_tokens(shape.vocab, 96))
    assert np.isfinite(trace.logits).all()
    assert 1 < trace.logits.std() < 6
    assert len(np.unique(trace.logits.argmax(axis=1))) > 40
    for sizes in trace.sizes.values():
        assert (sizes > 0.5).all() and (sizes < 2.5).all()
    assert len(trace.experts) == (shape.layers - shape.dense if shape.experts else 0)
    for layer, chosen in trace.experts.items():
        counts = trace.counts(layer, shape.experts)
        assert counts.min() > 0.25 * counts.mean() and counts.max() < 3 * counts.mean()
        # Other layers choose otherwise: no expert number follows from the layer before.
        before = trace.experts.get(layer - 1)
        if before is not None:
            same = (chosen[:, :, None] == before[:, None, :]).any(axis=2).mean()
            assert abs(same - shape.used / shape.experts) < 0.12


@pytest.mark.parametrize("reuse", [0.35, 0.5])
@pytest.mark.parametrize("name", REUSING)
def test_neighbouring_tokens_share_experts(
    tmp_path: Path, llama: Open, name: str, reuse: float
) -> None:
    shape = replace(SHAPES[name], reuse=reuse)
    write_gguf(shape, tmp_path / "m.gguf")
    with llama(tmp_path / "m.gguf") as model:
        trace = model.decode(random_tokens(shape.vocab, 400))
    kept = np.array(list(trace.kept().values()))
    assert kept.mean() == pytest.approx(reuse, abs=0.05)
    assert np.abs(kept - reuse).max() < 0.09, "in every layer"
    # Far tokens do not: it is the neighbourhood, not that some experts are always chosen.
    far = np.mean(list(trace.kept(distance=40).values()))
    assert far < shape.used / shape.experts + 0.06
    assert np.isfinite(trace.logits).all()


def test_without_it_they_do_as_chance_has_it(tmp_path: Path, llama: Open) -> None:
    shape = SHAPES["tiny-olmoe"]
    write_gguf(shape, tmp_path / "m.gguf")
    with llama(tmp_path / "m.gguf") as model:
        trace = model.decode(random_tokens(shape.vocab, 200))
    assert np.mean(list(trace.kept().values())) == pytest.approx(0.25, abs=0.04)


def test_a_reuse_that_is_not_possible_is_refused() -> None:
    with pytest.raises(ValueError, match="a reuse of 0.100 is not possible for 4 of 16 experts"):
        layout(replace(SHAPES["tiny-olmoe"], reuse=0.1))
    with pytest.raises(ValueError, match="reuse is for mixtures"):
        layout(replace(SHAPES["tiny-llama"], reuse=0.3))
    with pytest.raises(ValueError, match="reuse needs F16, Q8_0 or Q4_0"):
        layout(replace(SHAPES["tiny-olmoe"].typed("Q6_K"), reuse=0.3))


def test_the_window_ends_even_in_a_long_context() -> None:
    weights = window(128, 10000.0, True, True, 2048).weights
    assert weights[:16].sum() > 0.97 and weights.argmax() == 0


def test_the_same_seed_gives_the_same_file(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_gguf(SHAPES["tiny-olmoe"], tmp_path / name, seed)
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b and a != c


def test_no_two_experts_and_no_two_layers_are_equal(tmp_path: Path) -> None:
    write_gguf(SHAPES["tiny-olmoe"], tmp_path / "m.gguf")
    found = contents(tmp_path / "m.gguf")
    experts = [
        e.tobytes() for name, data in found.items() if name.endswith("_exps.weight") for e in data
    ]
    assert len(set(experts)) == len(experts) == 3 * 4 * 16
    rows = np.concatenate([found[f"blk.0.ffn_{m}_exps.weight"] for m in ("gate", "up")])
    flat = rows.reshape(-1, rows.shape[-1])
    assert len({row.tobytes() for row in flat}) == len(flat)


def test_parts_hold_what_the_whole_file_holds(tmp_path: Path, llama: Open) -> None:
    shape = SHAPES["tiny-olmoe"]
    (whole,) = write_gguf(shape, tmp_path / "m.gguf")
    parts = write_gguf(shape, tmp_path / "m.gguf", parts=3)
    assert [p.name for p in parts] == [f"m-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    wanted = contents(whole)
    found = [contents(p) for p in parts]
    assert [name for part in found for name in part] == list(wanted)
    for part in found:
        for name, data in part.items():
            assert np.array_equal(data, wanted[name]), name
    for n, path in enumerate(parts):
        reader = GGUFReader(path)
        assert reader.fields["split.no"].contents() == n
        assert reader.fields["split.count"].contents() == 3
        assert reader.fields["split.tensors.count"].contents() == len(wanted)
        assert ("general.architecture" in reader.fields) == (n == 0)
    tokens = random_tokens(shape.vocab, 8)
    with llama(whole) as one, llama(parts[0]) as other:
        assert np.array_equal(one.decode(tokens).logits, other.decode(tokens).logits)


def test_an_adapter_changes_the_logits(tmp_path: Path, llama: Open) -> None:
    shape = SHAPES["tiny-llama"]
    write_gguf(shape, tmp_path / "m.gguf")
    names = write_lora(shape, tmp_path / "lora.gguf")
    assert len(names) == 2 * shape.layers
    tokens = random_tokens(shape.vocab, 8)
    with llama(tmp_path / "m.gguf") as plain:
        before = plain.decode(tokens).logits
    with llama(tmp_path / "m.gguf", adapter=tmp_path / "lora.gguf") as adapted:
        after = adapted.decode(tokens).logits
    assert np.isfinite(after).all() and np.abs(after - before).max() > 0.5


def test_the_tokenizer_gives_any_text_back(tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    write_gguf(SHAPES["tiny-llama"], tmp_path / "m.gguf")
    model = llama_cpp.Llama(str(tmp_path / "m.gguf"), vocab_only=True, verbose=False)
    text = "The thing, über 日本 \n\t0"
    tokens = model.tokenize(text.encode(), add_bos=True)
    assert tokens[0] == model.token_bos() == 0
    assert model.detokenize(tokens[1:]).decode() == text
    assert len(tokens) - 1 < len(text.encode()), "merges are used"
    assert model.token_eos() == 1
    assert model.metadata["tokenizer.chat_template"] == CHAT_TEMPLATE
    model.close()

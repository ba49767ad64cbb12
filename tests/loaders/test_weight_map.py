"""Which tensors are tables, matrices and experts, and which pages of them are whose."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.gguf_shapes import SHAPES, metadata
from benchmarks.synthetic_gguf import write_gguf
from penstock.errors import FormatError
from penstock.loaders.gguf_file import TensorInfo
from penstock.loaders.weight_map import (
    PAGE,
    SMALLEST_MATRIX,
    Weight,
    WeightMap,
    expert_order,
    expert_pages,
    inner_pages,
    map_weights,
    pinned_ranges,
    split_paths,
    streamed_pages,
)
from tests.bundle_builder import Parts, Stored, serialize

ALL = 1  # bytes of the smallest matrix: every matrix is one


def kinds(weights: WeightMap) -> dict[str, str]:
    return {w.info.name: w.kind for w in weights.weights}


def made(folder: Path, name: str, smallest: int = ALL) -> WeightMap:
    (path,) = write_gguf(SHAPES[name], folder / "m.gguf")
    return map_weights(path, smallest)


def with_tensors(folder: Path, shapes: dict[str, tuple[int, ...]]) -> Path:
    """A file of F32 tensors of these shapes."""
    parts = Parts({"general.architecture": "llama"})
    for name, shape in shapes.items():
        parts.tensors[name] = Stored(shape, 0, bytes(4 * math.prod(shape)))
    path = folder / "m.gguf"
    path.write_bytes(serialize(parts))
    return path


# ---------------------------------------------------------------- kinds


def test_kinds_of_a_dense_model(tmp_path: Path) -> None:
    weights = made(tmp_path, "tiny-llama")
    found = kinds(weights)
    assert found["token_embd.weight"] == "table"
    assert found["output.weight"] == found["blk.0.attn_q.weight"] == "matrix"
    assert found["blk.2.ffn_down.weight"] == "matrix"
    assert found["output_norm.weight"] == found["blk.1.ffn_norm.weight"] == "small"
    assert Counter(found.values()) == {"table": 1, "matrix": 3 * 7 + 1, "small": 3 * 2 + 1}
    assert weights.experts == weights.expert_bytes == weights.shared_pages == 0
    assert weights.expert_blocks == ()
    assert sum(weights.nbytes(k) for k in ("table", "matrix", "small", "expert")) < weights.size


def test_an_embedding_that_is_the_output_too_stays(tmp_path: Path) -> None:
    found = kinds(made(tmp_path, "tiny-llama-tied"))
    assert found["token_embd.weight"] == "small" and "output.weight" not in found


def test_kinds_of_a_mixture(tmp_path: Path) -> None:
    weights = made(tmp_path, "tiny-deepseek2")
    shape, found = SHAPES["tiny-deepseek2"], kinds(weights)
    assert weights.experts == shape.experts and weights.expert_blocks == (1, 2, 3)
    assert [n for n, k in found.items() if k == "expert"] == [
        w.info.name for w in weights.weights if w.info.name.endswith("_exps.weight")
    ]
    assert len(weights.of("expert")) == 3 * 3
    assert found["blk.0.ffn_down.weight"] == "matrix", "the dense layer"
    assert found["blk.1.ffn_down_shexp.weight"] == "matrix", "a shared expert"
    one = {w.stride for w in weights.of("expert")}
    assert weights.expert_bytes == 3 * one.pop() and not one
    assert weights.shared_pages == 9 * (shape.experts + 1) * PAGE


def test_biases_of_experts_are_not_experts(tmp_path: Path) -> None:
    found = kinds(made(tmp_path, "tiny-gpt-oss", SMALLEST_MATRIX))
    assert found["blk.0.ffn_up_exps.weight"] == "expert"
    assert found["blk.0.ffn_up_exps.bias"] == "small"


def test_small_matrices_are_not_worth_a_stop(tmp_path: Path) -> None:
    (path,) = write_gguf(SHAPES["tiny-llama"], tmp_path / "m.gguf")
    assert map_weights(path).of("matrix") == []
    largest = map_weights(path, ALL).largest_matrix()
    assert {w.info.nbytes for w in map_weights(path, largest).of("matrix")} == {largest}
    assert map_weights(path, largest + 1).of("matrix") == []


def test_experts_of_an_impossible_shape_are_refused(tmp_path: Path) -> None:
    path = with_tensors(tmp_path, {"blk.0.ffn_up_exps.weight": (4, 32)})
    with pytest.raises(FormatError, match=r"has shape \(4, 32\); expected three dimensions"):
        map_weights(path)


def test_layers_with_other_numbers_of_experts_are_refused(tmp_path: Path) -> None:
    shapes: dict[str, tuple[int, ...]]
    shapes = {"blk.0.ffn_up_exps.weight": (4, 2, 32), "blk.1.ffn_up_exps.weight": (5, 2, 32)}
    with pytest.raises(FormatError, match=r"different numbers of experts: \[4, 5\]"):
        map_weights(with_tensors(tmp_path, shapes))


def test_experts_are_read_in_the_order_of_use(tmp_path: Path) -> None:
    names = [f"blk.{b}.ffn_{m}_exps.weight" for b in (10, 2) for m in ("down", "gate", "up")]
    weights = map_weights(with_tensors(tmp_path, {n: (4, 2, 32) for n in names}))
    assert [w.info.name for w in expert_order(weights.of("expert"))] == [
        f"blk.{b}.ffn_{m}_exps.weight" for b in (2, 10) for m in ("up", "gate", "down")
    ]


def test_blocks_that_predict_further_tokens_are_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = SHAPES["tiny-deepseek2"]
    for last, blocks in ((1, (1, 2)), (2, (1,)), (0, (1, 2, 3)), (shape.layers, (1, 2, 3))):
        keys = {f"{shape.arch}.nextn_predict_layers": last}
        monkeypatch.setattr(
            "benchmarks.synthetic_gguf.metadata", lambda s, keys=keys: {**metadata(s), **keys}
        )
        weights = made(tmp_path, shape.name)
        assert weights.expert_blocks == blocks
        skipped = {w.block for w in weights.of("skipped")}
        assert skipped == {1, 2, 3} - {*blocks}
        assert {w.kind for w in weights.weights if w.block in skipped} <= {"skipped"}


# ---------------------------------------------------------------- split files


def test_any_part_names_the_whole(tmp_path: Path) -> None:
    shape = SHAPES["tiny-olmoe"]
    paths = write_gguf(shape, tmp_path / "m.gguf", parts=3)
    (whole,) = write_gguf(shape, tmp_path / "whole.gguf")
    wanted = kinds(map_weights(whole))
    for path in paths:
        weights = map_weights(path)
        assert split_paths(path) == paths == [f.path for f in weights.files]
        assert weights.path == paths[0]
        assert kinds(weights) == wanted
        assert weights.size == sum(p.stat().st_size for p in paths)
    for w in weights.weights:
        assert w.info.name in weights.files[w.file].tensors


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    paths = write_gguf(SHAPES["tiny-llama"], tmp_path / "m.gguf", parts=3)
    paths[1].unlink()
    with pytest.raises(FormatError, match="m-00002-of-00003.gguf: this part .* all 3 parts"):
        map_weights(paths[0])


def test_a_name_that_only_looks_alike_is_one_file(tmp_path: Path) -> None:
    for name in ("m-1-of-3.gguf", "m-00001-of-00003.bin", "00001-of-00002.gguf"):
        assert split_paths(tmp_path / name) == [tmp_path / name]


# ---------------------------------------------------------------- pages


def weight(offset: int, nbytes: int, experts: int = 0) -> Weight:
    return Weight(TensorInfo("blk.0.x", (1, nbytes), 0, offset, nbytes), 0, "matrix", 0, experts)


@given(
    offset=st.integers(0, 10 * PAGE),
    nbytes=st.integers(1, 40 * PAGE),
    share=st.floats(0, 1),
    most=st.integers(0, 40 * PAGE),
)
def test_streamed_pages_are_whole_and_at_the_end(
    offset: int, nbytes: int, share: float, most: int
) -> None:
    first, count = streamed_pages(weight(offset, nbytes), share, most)
    assert count % PAGE == 0 and 0 <= count <= min(nbytes * share, most)
    if count:
        assert first % PAGE == 0 and offset <= first
        assert 0 <= offset + nbytes - (first + count) < PAGE
    assert min(nbytes * share, most) - count < 2 * PAGE


@given(offset=st.integers(0, 10 * PAGE), nbytes=st.integers(1, 40 * PAGE))
def test_inner_pages_hold_nothing_else(offset: int, nbytes: int) -> None:
    first, count = inner_pages(weight(offset, nbytes))
    assert first % PAGE == count % PAGE == 0 and nbytes - count < 2 * PAGE
    if count:
        assert offset <= first and first + count <= offset + nbytes


@given(offset=st.integers(0, 10 * PAGE), stride=st.integers(1, 5 * PAGE), experts=st.integers(1, 9))
def test_no_page_has_two_experts(offset: int, stride: int, experts: int) -> None:
    found = expert_pages(weight(offset, stride * experts, experts))
    for first, count in found:
        assert first % PAGE == count % PAGE == 0 < count
        assert (first - offset) // stride == (first + count - 1 - offset) // stride
    assert stride * experts - sum(count for _, count in found) <= (experts + 1) * PAGE * 2


@given(
    st.integers(0, 8),
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=8),
    st.integers(0, 4),
)
def test_pinned_and_taken_pages_are_all_pages_once(
    first: int, pieces: list[tuple[int, int]], rest: int
) -> None:
    taken, at = [], first
    for gap, count in pieces:
        taken.append(((at + gap) * PAGE, count * PAGE))
        at += gap + count
    last = at + rest
    order = np.random.default_rng(len(pieces)).permutation(len(taken))
    pinned = pinned_ranges(first * PAGE, last * PAGE, [taken[i] for i in order])
    pages = [
        page
        for offset, count in pinned + taken
        for page in range(offset // PAGE, (offset + count) // PAGE)
    ]
    assert sorted(pages) == list(range(first, last))
    ends = [offset + count for offset, count in pinned]
    assert all(o > e for (o, _), e in zip(pinned[1:], ends, strict=False)), "merged"


@given(st.lists(st.booleans(), max_size=40), st.lists(st.booleans(), max_size=40))
def test_of_a_mapping_with_holes_each_piece_is_pinned_by_itself(
    mapped: list[bool], left: list[bool]
) -> None:
    """Taken ranges may lie across a hole, or in it."""

    def runs(flags: list[bool]) -> list[tuple[int, int]]:
        edges = np.flatnonzero(np.diff([False, *flags, False])).reshape(-1, 2)
        return [(int(a) * PAGE, int(b) * PAGE) for a, b in edges]

    taken = [(begin, end - begin) for begin, end in runs(left)]
    pinned = [p for begin, end in runs(mapped) for p in pinned_ranges(begin, end, taken)]
    pages = [p for at, count in pinned for p in range(at // PAGE, (at + count) // PAGE)]
    wanted = np.flatnonzero([m and not (left + [False] * 40)[i] for i, m in enumerate(mapped)])
    assert pages == wanted.tolist()


def test_a_wide_model_is_spread_evenly() -> None:
    """A share of each matrix, so that reads are spread over a token."""
    whole = [weight(32 + n * 100 * PAGE, 100 * PAGE) for n in range(8)]
    parts = [streamed_pages(w, 0.5, 50 * PAGE)[1] for w in whole]
    assert max(parts) - min(parts) <= PAGE
    assert replace(whole[0], experts=4).stride == 25 * PAGE

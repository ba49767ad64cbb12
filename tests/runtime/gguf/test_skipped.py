"""Files with blocks that llama.cpp does not use: those that predict tokens after the next (MTP)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.gguf_blocks import FORMATS
from benchmarks.gguf_shapes import SHAPES, Shape, metadata
from benchmarks.gguf_tensors import Tensor, layout
from benchmarks.synthetic_gguf import write_gguf
from penstock.errors import StorageError, UnsupportedModelError
from penstock.loaders import file_mapping
from penstock.loaders.file_mapping import FileMapping, MappedRange, mapped_ranges
from penstock.runtime.gguf import streaming
from penstock.runtime.gguf.model import GgufModel
from tests.runtime.gguf.plans import Files, Floats, Open, Stock, follow, weights_of

SHAPE = SHAPES["tiny-deepseek2"]
BLOCK = SHAPE.layers  # the one that is added


def ones(shape: Shape) -> Callable[[np.random.Generator], Floats]:
    return lambda rng: np.ones(shape.width, np.float32)


def predicting(s: Shape) -> list[Tensor]:
    """What such a block has beside an ordinary one's tensors."""
    at = f"blk.{s.layers - 1}.nextn."
    matrix = Tensor(f"{at}eh_proj.weight", FORMATS["Q8_0"], (s.width, 2 * s.width), 0.05)
    names = ("enorm", "hnorm", "shared_head_norm")
    norms = [Tensor(f"{at}{n}.weight", FORMATS["F32"], (s.width,), draw=ones(s)) for n in names]
    return [matrix, *norms]


@pytest.fixture(params=["last", "before the output", "split"])
def path(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model with one such block. Where it is last, llama.cpp unmaps it, but for half a page."""

    def ordered(s: Shape) -> list[Tensor]:
        of_blocks = [t for t in layout(s) if not t.name.startswith("output")]
        outputs = [t for t in layout(s) if t.name.startswith("output")]
        if request.param == "before the output":
            return [*of_blocks, *predicting(s), *outputs]
        return [*outputs, *of_blocks, *predicting(s)]

    nextn = {f"{SHAPE.arch}.nextn_predict_layers": 1}
    monkeypatch.setattr("benchmarks.synthetic_gguf.metadata", lambda s: {**metadata(s), **nextn})
    monkeypatch.setattr("benchmarks.synthetic_gguf.layout", ordered)
    parts = 12 if request.param == "split" else 1  # some parts have nothing that is used
    shape = replace(SHAPE, layers=SHAPE.layers + 1)
    return write_gguf(shape, tmp_path / "m.gguf", parts=parts)[0]


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_the_rest_is_streamed(path: Path, open_engine: Open, share: float) -> None:
    engine = open_engine(path, share)
    assert BLOCK not in engine.weights.expert_blocks and len(engine.weights.expert_blocks) == 3
    with Stock(path, engine.plan) as stock:
        expected = follow(stock.decode, stock.vocab)
    assert follow(engine.decode, engine.vocab).differs(expected) == ""
    stats = engine.streamer.stats()
    assert stats.bytes >= len(expected.logits) * engine.plan.streamed
    used = [w for w in engine.weights.weights if w.kind != "skipped"]
    assert all(w.block < BLOCK for w in used)
    dense = sum(w.info.nbytes for w in used if w.kind in ("matrix", "small"))
    edges = 2 * 4096 * (len(engine.weights.weights) + len(engine.weights.files))
    assert stats.pinned_bytes <= dense - engine.plan.streamed + edges + engine.weights.shared_pages


def test_a_router_is_recorded_for_each_layer_that_runs(
    path: Path, open_engine: Open, tmp_path: Path
) -> None:
    model = GgufModel(open_engine(path, 0.25))
    with model.record_trace(tmp_path / "trace"):
        assert "".join(model.generate("x", max_tokens=4))
    assert (tmp_path / "trace").stat().st_size > 0


def test_what_is_not_mapped_is_skipped_whatever_it_is(files: Files) -> None:
    """A block that the keys do not tell of."""
    weights = weights_of(files("tiny-olmoe"))
    gone = [w.info for w in weights.weights if w.block == 3]
    begin, end = min(i.offset for i in gone), max(i.offset + i.nbytes for i in gone)
    first = MappedRange(1 << 20, 0, -(-begin // 4096) * 4096)
    after = end // 4096 * 4096
    last = MappedRange((1 << 20) + after, after, weights.size + -weights.size % 4096 - after)
    found = streaming.used_weights(weights, [FileMapping((first, last))])
    assert found.expert_blocks == (0, 1, 2)
    skipped = {w.info.name for w in found.of("skipped")}
    large = {i.name for i in gone if i.nbytes > 8192}
    assert large <= skipped <= {i.name for i in gone}, "small ones may share a page that is mapped"


def test_a_file_of_which_nothing_is_mapped_is_refused(
    files: Files, open_engine: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """llama.cpp would have read it into memory of its own, past the budget."""
    monkeypatch.setattr("penstock.runtime.gguf.engine.mapped_ranges", lambda path: [])
    with pytest.raises(StorageError, match="llama.cpp mapped nothing of the file"):
        open_engine(files("tiny-llama"))


def test_what_the_core_does_not_take_is_an_unsupported_model(
    files: Files, open_engine: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(path: Path) -> list[MappedRange]:
        return [replace(r, offset=r.offset + 512) for r in mapped_ranges(path)]

    monkeypatch.setattr("penstock.runtime.gguf.engine.mapped_ranges", wrong)
    with pytest.raises(UnsupportedModelError, match="cannot be streamed: mapped: a mapping is"):
        open_engine(files("tiny-llama"))
    assert file_mapping.mapped_ranges(files("tiny-llama")) == [], "what was mapped is given back"

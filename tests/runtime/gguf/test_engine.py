"""The engine's edges: adapters, files that change, two models at once, memory given back."""

from __future__ import annotations

import ctypes
import gc
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.gguf_shapes import SHAPES
from benchmarks.synthetic_gguf import write_lora
from penstock.errors import FormatError, StorageError, UnsupportedModelError, UsageError
from penstock.loaders.file_mapping import mapped_ranges
from penstock.loaders.probe import probe
from penstock.runtime.gguf.engine import Adapter, GgufEngine
from penstock.runtime.gguf.library import llama
from penstock.runtime.gguf.model import GgufModel
from tests.runtime.gguf.plans import (
    Files,
    Floats,
    Open,
    Run,
    Stock,
    follow,
    narrow,
    prompt,
    weights_of,
)

BOTH = ["tiny-llama", "tiny-olmoe"]


@pytest.fixture(params=BOTH)
def copy(request: pytest.FixtureRequest, files: Files, tmp_path: Path) -> Path:
    """A file that a test may damage."""
    return Path(shutil.copy(files(request.param), tmp_path / "m.gguf"))


# ---------------------------------------------------------------- adapters


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lora") / "lora.gguf"
    write_lora(SHAPES["tiny-llama"], path)
    return path


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_an_adapter_changes_what_it_changes_in_llama_cpp(
    files: Files, open_engine: Open, stock: Callable[..., Run], lora: Path, share: float
) -> None:
    path, adapters = files("tiny-llama"), [Adapter(lora, 0.5)]
    engine = open_engine(path, share, adapters=adapters)
    run = follow(engine.decode, engine.vocab, count=50)
    with Stock(path, engine.plan, adapters) as model:
        assert run.differs(follow(model.decode, model.vocab, count=50)) == ""
    plain = stock(path).logits[:51]
    assert np.abs(run.logits[:3] - plain[:3]).max() > 0.1


def test_an_adapter_of_another_model_is_refused(
    files: Files, open_engine: Open, lora: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.gguf"
    write_lora(SHAPES["tiny-qwen2"], other)
    for wrong, path in ((other, "tiny-llama"), (lora, "tiny-olmoe"), (files("tiny-llama"),) * 2):
        with pytest.raises(FormatError, match="not a LoRA adapter of"):
            open_engine(files(path) if isinstance(path, str) else path, adapters=[Adapter(wrong)])
    with pytest.raises(FormatError, match="not a LoRA adapter of"):
        open_engine(files("tiny-llama"), adapters=[Adapter(tmp_path / "none.gguf")])


# ---------------------------------------------------------------- files that change


def test_a_file_cut_short_in_use_fails_and_works_again(
    copy: Path, open_engine: Open, stock: Callable[..., Run], files: Files
) -> None:
    whole, then = copy.read_bytes(), os.stat(copy)
    engine = open_engine(copy, 0.25)
    ids = prompt(engine.vocab, 40)
    expected = engine.decode(ids).copy()
    os.truncate(copy, len(whole) // 2)
    with pytest.raises(StorageError, match="m.gguf"):
        engine.decode([7])
    with pytest.raises(StorageError, match="m.gguf"):
        list(GgufModel(engine).generate("x"))
    copy.write_bytes(whole)
    os.utime(copy, ns=(then.st_atime_ns, then.st_mtime_ns))
    engine.truncate(0)
    assert np.array_equal(engine.decode(ids), expected)
    engine.truncate(0)
    path = files(SHAPES["tiny-llama" if engine.plan.mode == "stream" else "tiny-olmoe"])
    assert follow(engine.decode, engine.vocab).differs(stock(path)) == ""


def test_a_read_that_fails_in_the_middle_of_a_pass(
    copy: Path, open_engine: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The look at the file before a pass sees nothing: the file shrinks after it."""
    whole, then = copy.read_bytes(), os.stat(copy)
    engine = open_engine(copy, 0.25)
    monkeypatch.setattr(engine, "check_unchanged", lambda: None)
    ids = prompt(engine.vocab, 40)
    expected = engine.decode(ids).copy()
    table = engine.weights.of("table")[0].info
    os.truncate(copy, table.offset + table.nbytes + 4096)  # the embedding is used as it is mapped
    for tokens in ([7], ids[:30]):
        with pytest.raises(StorageError, match="m.gguf"):
            engine.decode(tokens)
        assert engine.length in (0, 40)
    copy.write_bytes(whole)
    os.utime(copy, ns=(then.st_atime_ns, then.st_mtime_ns))
    for _ in range(2):
        engine.truncate(0)
        assert np.array_equal(engine.decode(ids), expected)


def test_a_file_written_to_in_use_is_noticed(copy: Path, open_engine: Open) -> None:
    model = GgufModel(open_engine(copy))
    assert "".join(model.generate("x", max_tokens=3))
    with open(copy, "r+b") as handle:
        handle.seek(-1, os.SEEK_END)
        handle.write(b"\0")
    with pytest.raises(StorageError, match="m.gguf: it was changed while in use; load the model"):
        list(model.generate("x", max_tokens=3))


def test_a_file_replaced_or_deleted_in_use_stays_as_it_was(copy: Path, open_engine: Open) -> None:
    engine = open_engine(copy, 0.25)
    expected = engine.decode(prompt(engine.vocab, 40)).copy()
    new = copy.with_name("new.gguf")
    new.write_bytes(b"another file")
    new.rename(copy)
    for _ in range(2):
        engine.truncate(0)
        assert np.array_equal(engine.decode(prompt(engine.vocab, 40)), expected)
        copy.unlink(missing_ok=True)


def test_a_name_that_is_not_utf8(
    files: Files, open_engine: Open, lora: Path, tmp_path: Path
) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    path = Path(shutil.copy(files("tiny-llama"), folder / os.fsdecode(b"mod\xe8le\x85\n.gguf")))
    adapter = Path(shutil.copy(lora, folder / "lora.gguf"))
    assert probe(path, quick=True).sequential_bytes_per_second > 0
    found, expected = (
        open_engine(p, 0.25, adapters=[Adapter(a)]).decode([5, 6, 7]).copy()
        for p, a in ((path, adapter), (files("tiny-llama"), lora))
    )
    assert np.array_equal(found, expected)


# ---------------------------------------------------------------- memory and lifetimes


def resident() -> int:
    """Bytes of this process in memory."""
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGESIZE")


@pytest.mark.parametrize("name", BOTH)
def test_closing_gives_memory_back(files: Files, open_engine: Open, name: str) -> None:
    path = files(name)

    def once() -> None:
        engine = open_engine(path, 0.6)
        engine.decode(prompt(engine.vocab, 100))
        assert mapped_ranges(path), "tables stay in llama.cpp's mapping"
        engine.close()

    once()
    gc.collect()
    files_open, before = len(os.listdir("/proc/self/fd")), resident()
    for _ in range(8):
        once()
    assert resident() - before < path.stat().st_size
    assert len(os.listdir("/proc/self/fd")) == files_open
    assert mapped_ranges(path) == []


def mapped_and_resident(path: Path) -> int:
    """Bytes of the file itself in memory, through this process's mappings of it."""
    found, of_file = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split(maxsplit=5)
        if "-" in first and not first.endswith(":"):
            of_file = rest[-1] == str(path)
        elif of_file and first == "Rss:":
            found += int(rest[0]) * 1024
    return found


def test_of_a_table_only_the_rows_that_are_used_are_in_memory(
    files: Files, open_engine: Open
) -> None:
    path = files(replace(SHAPES["tiny-llama"], vocab=32000))
    engine = open_engine(path, 0.5)
    assert engine.plan.tables > 8 << 20 and mapped_ranges(path)
    assert mapped_and_resident(path) <= 64 << 10, "llama.cpp had read all of it"
    with open(path, "rb") as file:  # or pages of 2 MiB, made when it was written, map all at once
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    engine.decode(prompt(engine.vocab, 20))
    # A row may lie across two pages, and the system may bring the neighbours of one that it has.
    assert 0 < mapped_and_resident(path) <= 20 * 2 * (64 << 10)


def test_a_closed_model_says_so(files: Files, open_engine: Open) -> None:
    model = GgufModel(open_engine(files("tiny-llama")))
    begun = model.generate("x", max_tokens=9)
    next(begun)
    model.close()
    model.close()
    for use in (
        lambda: list(begun),
        lambda: list(model.generate("x")),
        lambda: list(model.chat([{"role": "user", "content": "x"}])),
        lambda: model.tokenize("x", add_special=False),
        lambda: model.piece(5),
        lambda: model.engine.decode([5]),
        lambda: model.engine.truncate(0),
        lambda: model.reset(),
    ):
        with pytest.raises(UsageError, match="closed"):
            use()
    assert model.stats().tokens > 0


def test_two_models_do_not_disturb_each_other(
    files: Files, open_engine: Open, stock: Callable[..., Run]
) -> None:
    one, other = files("tiny-llama"), files("tiny-olmoe")
    # The same file twice, too: each has a mapping of its own.
    engines = [open_engine(one, 0.25), open_engine(other, 0.25), open_engine(one, 0.5)]
    turns = [prompt(512, 30), *([t] for t in (9, 8, 7))]
    seen = [[e.decode(t).copy() for e in engines] for t in turns]
    with Stock(one, engines[0].plan) as dense, Stock(other, engines[1].plan) as mixture:
        for tokens, found in zip(turns, seen, strict=True):
            wanted = [m.decode(tokens).copy() for m in (dense, mixture)]
            for logits, expected in zip(found, [*wanted, wanted[0]], strict=True):
                assert np.array_equal(logits, expected)
    engines[0].close()
    assert np.array_equal(engines[2].decode([5]), engines_again(open_engine, one, turns))


def engines_again(open_engine: Open, path: Path, turns: list[list[int]]) -> Floats:
    engine = open_engine(path, 1.0)
    return [engine.decode(tokens) for tokens in [*turns, [5]]][-1]


# ---------------------------------------------------------------- the CPU alone


@pytest.mark.parametrize("streamed", [True, False])
def test_nothing_is_left_to_a_gpu(
    files: Files, llama_cpp: None, monkeypatch: pytest.MonkeyPatch, streamed: bool
) -> None:
    """A build for GPUs would send large batches there, and the streamer would not see it."""
    lib, seen = llama(), dict[str, Any]()

    def watched(name: str) -> Callable[..., Any]:
        call = getattr(lib, name)

        def watch(of: Any, params: Any) -> Any:
            if name == "llama_model_load_from_file":
                seen["devices"] = ctypes.cast(params.devices, ctypes.POINTER(ctypes.c_void_p))[:1]
            seen[name] = params
            return call(of, params)

        return watch

    for name in ("llama_model_load_from_file", "llama_init_from_model"):
        monkeypatch.setattr(lib, name, watched(name))
    weights = weights_of(files("tiny-llama"))
    plan = narrow(weights, 0.5)
    engine = GgufEngine(weights, plan if streamed else replace(plan, mode="resident"))
    engine.close()
    assert seen["llama_model_load_from_file"].n_gpu_layers == 0
    assert seen["devices"] == [None], "a list, and nothing in it; no list means all devices"
    context = seen["llama_init_from_model"]
    assert not context.op_offload and not context.offload_kqv


# ---------------------------------------------------------------- refusals


def test_what_does_not_fit_the_context_is_refused(files: Files, open_engine: Open) -> None:
    engine = open_engine(files("tiny-llama"))
    engine.decode(prompt(engine.vocab, 500))
    for tokens in ([], prompt(engine.vocab, 13)):
        with pytest.raises(UsageError, match=rf"500 \+ {len(tokens)} tokens do not fit"):
            engine.decode(tokens)
    engine.decode(prompt(engine.vocab, 12))
    assert engine.length == 512


def test_a_window_too_small_for_a_batch_says_so_and_smaller_batches_work(
    files: Files, llama_cpp: None
) -> None:
    weights = weights_of(files("tiny-olmoe"))
    plan = narrow(weights, 1.0, 0.25)
    engine = GgufEngine(weights, replace(plan, window=4 * weights.expert_bytes))
    try:
        with pytest.raises(StorageError, match="window is too small for the experts"):
            engine.decode(prompt(engine.vocab, 40))
        for token in prompt(engine.vocab, 20):
            logits = engine.decode([token])
        with Stock(weights.path, plan) as stock:
            for token in prompt(engine.vocab, 20):
                expected = stock.decode([token])
            assert np.array_equal(logits, expected)
    finally:
        engine.close()


def test_an_architecture_that_llama_cpp_does_not_know(
    files: Files, open_engine: Open, tmp_path: Path
) -> None:
    raw = files("tiny-llama").read_bytes().replace(b"llama", b"lhama")
    (tmp_path / "m.gguf").write_bytes(raw)
    with pytest.raises(UnsupportedModelError, match=r"architecture 'lhama'.*unknown model archi"):
        open_engine(tmp_path / "m.gguf")

"""A contender of the GGUF benchmark, in a process of its own under a cap: a prompt, then tokens."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks.task_file import read_task


@dataclass(frozen=True)
class GgufTask:
    """What to run.

    Attributes:
        contender: 'penstock'; 'fresh' and 'huge', the same with fresh pages, usual or huge, instead
            of a ring; 'mmap', 'direct' (read whole, past the page cache), 'mlock', 'default'
            (llama.cpp as it comes), or 'nothing' (the baseline: imports only).
        memory: the budget that is given to penstock.
        warm, tokens: decoded before, and while, it is measured.
        vocab: tokens are drawn below it.
        trace: file for what the routers choose after the prompt; '': none.
    """

    contender: str
    model: str
    memory: int
    threads: int
    context: int
    prompt: int
    warm: int
    tokens: int
    seed: int
    vocab: int
    trace: str = ""


OURS = {"penstock": "aliases", "fresh": "fresh", "huge": "huge"}
LOAD_MODES = {"mmap": 1, "direct": 4, "mlock": 2}


def run(task: GgufTask) -> dict[str, Any]:
    import penstock.runtime.load  # noqa: F401

    lib = _library(task)
    if task.contender == "nothing":
        return {}
    began = perf_counter()
    decode, close, figures, facts = (_ours if task.contender in OURS else _llama)(task, lib)
    loaded = perf_counter() - began
    random = np.random.default_rng(task.seed)

    def draw(count: int) -> list[int]:
        ids: list[int] = random.integers(5, task.vocab, count).tolist()
        return ids

    began = perf_counter()
    decode(draw(task.prompt))
    prompt = perf_counter() - began
    for _ in range(task.warm):
        decode(draw(1))
    before, read = figures(), _read_bytes()
    seconds = []
    for _ in range(task.tokens):
        began = perf_counter()
        decode(draw(1))
        seconds.append(perf_counter() - began)
    after = figures()
    out: dict[str, Any] = {"load_s": loaded, "prompt_s": prompt, "seconds": seconds}
    out["read_bytes"] = (_read_bytes() - read) / task.tokens
    out |= {key: after[key] - before[key] for key in after}
    out["peak_rss"] = _peak()
    out |= facts()
    close()
    return out


def _library(task: GgufTask) -> Any:
    """llama.cpp's module: ours as the engine sets it up, a peer's as it comes."""
    if task.contender in OURS or task.contender == "nothing":
        from penstock.runtime.gguf.library import llama

        return llama()
    import llama_cpp

    llama_cpp.llama_backend_init()
    return llama_cpp


def _ours(task: GgufTask, lib: Any) -> Any:
    from penstock.loaders.expert_trace import TraceRecorder, write_trace
    from penstock.runtime.gguf import streaming
    from penstock.runtime.gguf.model import GgufModel
    from penstock.runtime.load import load

    streaming.RING_MEMORY = OURS[task.contender]
    model = load(task.model, memory=task.memory, context=task.context, threads=task.threads)
    assert isinstance(model, GgufModel)
    engine = model.engine

    def figures() -> dict[str, float]:
        if engine.streamer is None:
            return {}
        s, e = engine.streamer.stats(), engine.streamer.expert_stats()
        return {
            "wait_s": s.wait_ns * 1e-9, "busy_s": s.busy_ns * 1e-9, "streamed": s.bytes,
            "reads": s.reads, "stops": s.stops, "used": e.used, "misses": e.misses,
        }  # fmt: skip

    recorder = TraceRecorder(len(engine.weights.expert_blocks), engine.weights.experts)
    if task.trace:
        engine.start_recording(recorder)

    def facts() -> dict[str, Any]:
        plan = engine.plan
        if task.trace:
            engine.stop_recording()
            name = Path(task.model).stem
            write_trace(Path(task.trace), recorder.trace(name, plan.arch, plan.experts_used))
        most = engine.weights.size - task.memory + engine.weights.largest_block()
        share = plan.window / plan.expert_total if plan.expert_total else 0.0
        return {"mode": plan.mode, "most_bytes": most, "window_share": share, "batch": plan.batch}

    return engine.decode, model.close, figures, facts


def _llama(task: GgufTask, lib: Any) -> Any:
    import ctypes

    params = lib.llama_model_default_params()
    params.n_gpu_layers = 0
    if task.contender in LOAD_MODES:
        params.load_mode = LOAD_MODES[task.contender]
        params.use_extra_bufts = False
    model = lib.llama_model_load_from_file(task.model.encode(), params)
    if not model:
        raise SystemExit("llama.cpp could not load the model")
    settings = lib.llama_context_default_params()
    settings.n_ctx = settings.n_batch = task.context
    settings.n_ubatch = min(512, task.context)
    settings.n_threads = settings.n_threads_batch = task.threads
    settings.no_perf = True
    context = lib.llama_init_from_model(model, settings)

    def decode(tokens: list[int]) -> None:
        ids = (ctypes.c_int32 * len(tokens))(*tokens)
        if lib.llama_decode(context, lib.llama_batch_get_one(ids, len(tokens))):
            raise SystemExit("llama_decode failed")

    def close() -> None:
        lib.llama_free(context)
        lib.llama_model_free(model)

    return decode, close, dict, dict


def _read_bytes() -> int:
    for line in Path("/proc/self/io").read_text().splitlines():
        if line.startswith("read_bytes:"):
            return int(line.split()[1])
    return 0


def _peak() -> int:
    from penstock.runtime.budget import peak_memory

    return peak_memory()


def main() -> None:
    print(json.dumps(run(read_task(Path(sys.argv[1]), GgufTask))))


if __name__ == "__main__":
    main()

"""Tiny models streamed through tiny windows, beside stock llama.cpp with everything resident.

The fixed buffers of `penstock.load` are larger than a model of some megabytes, so plans are made
below it: the planner's plan with other shares in memory.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.gguf_shapes import Shape
from penstock.loaders.weight_map import WeightMap, map_weights, streamed_pages
from penstock.runtime.gguf.engine import FLASH_ATTENTION, Adapter, GgufEngine
from penstock.runtime.gguf.library import llama
from penstock.runtime.gguf.plan import KV_TYPES, GgufPlan
from penstock.runtime.gguf.planner import GgufOptions, plan_gguf
from tests.bundle_builder import profile

Floats = NDArray[np.float32]
Decode = Callable[[Sequence[int]], Floats]
Files = Callable[..., Path]  # a shape's file, and its parts
CONTEXT, BATCH = 512, 64
PROMPT = (180, 1, 119)  # tokens of a prompt, in the calls that run them
DRAWN, MANY = 60, 200  # tokens drawn after it: as a rule; once for each architecture


def weights_of(path: Path) -> WeightMap:
    """Every matrix can be streamed, however small."""
    return map_weights(path, smallest_matrix=1)


def narrow(
    weights: WeightMap, pinned: float, window: float | None = None, *, kv_type: str = "f16",
    context: int = CONTEXT, batch: int = BATCH, policy: str = "lfu", backend: str = "threads",
    direct: bool = True, adapters: int = 0, threads: int = 1,
) -> GgufPlan:  # fmt: skip
    """A plan that keeps a share of each dense matrix and of all experts (the same by default).

    A window is at least one layer's experts, since a batch of the prompt uses all of them.
    """
    options = GgufOptions(1 << 33, context, threads, batch, kv_type, policy, adapters)
    made = plan_gguf(weights, profile(direct=direct, backend=backend), options)
    share = 1.0 - pinned
    most = max(1, int(weights.largest_matrix() * share))
    parts = [streamed_pages(w, share, most)[1] for w in weights.of("matrix")] if share else []
    experts = weights.nbytes("expert")
    kept = int(experts * (pinned if window is None else window))
    return replace(
        made,
        mode="experts" if experts else "stream",
        share=share,
        largest_part=most,
        streamed=sum(parts),
        ring=3 * max(parts, default=0),
        window=max(kept, weights.experts * weights.expert_bytes),
    )


@dataclass(frozen=True)
class Run:
    """What a model made of a prompt: tokens drawn, and the logits (calls, vocab)."""

    tokens: list[int]
    logits: Floats

    def first(self, count: int) -> Run:
        """The same run, ended after so many drawn tokens."""
        calls = len(self.logits) - len(self.tokens) + count
        return Run(self.tokens[:count], self.logits[:calls])

    def differs(self, other: Run) -> str:
        """Where the two are not equal bit for bit; empty when they are."""
        same = (self.logits.view(np.uint32) == other.logits.view(np.uint32)).all(axis=1)
        if not same.all():
            return f"logits of calls {np.flatnonzero(~same)[:8].tolist()} of {len(same)}"
        return "" if self.tokens == other.tokens else "tokens"


def prompt(vocab: int, count: int = sum(PROMPT)) -> list[int]:
    """Tokens as random as their seed."""
    out: list[int] = np.random.default_rng(1).integers(4, vocab, count).tolist()
    return out


def follow(
    decode: Decode, vocab: int, parts: Sequence[int] = PROMPT, count: int = DRAWN, seed: int = 2
) -> Run:
    """Run a prompt in calls of these lengths, then draw tokens: same logits, same tokens."""
    random, ids = np.random.default_rng(seed), prompt(vocab, sum(parts))
    logits, at = [], 0
    for length in parts:
        logits.append(decode(ids[at : at + length]).copy())
        at += length
    tokens: list[int] = []
    for _ in range(count):
        tokens.append(int(np.argmax(logits[-1] + random.gumbel(size=vocab))))
        logits.append(decode(tokens[-1:]).copy())
    return Run(tokens, np.stack(logits))


class Stock:
    """Unmodified llama.cpp, all weights resident and none repacked: what must come out."""

    def __init__(self, path: Path, plan: GgufPlan, adapters: Sequence[Adapter] = ()) -> None:
        self.lib = llama()
        params = self.lib.llama_model_default_params()
        params.n_gpu_layers, params.use_extra_bufts = 0, False
        self.model = self.lib.llama_model_load_from_file(str(path).encode(), params)
        assert self.model, f"llama.cpp does not load {path}"
        options = self.lib.llama_context_default_params()
        options.n_ctx = options.n_batch = plan.context
        options.n_ubatch = plan.batch
        options.n_threads = options.n_threads_batch = plan.threads
        options.type_k = options.type_v = KV_TYPES[plan.kv_type]
        if plan.kv_type != "f16":
            options.flash_attn_type = FLASH_ATTENTION
        self.context = self.lib.llama_init_from_model(self.model, options)
        assert self.context, f"llama.cpp makes no context for {path}"
        for adapter in adapters:
            handle = self.lib.llama_adapter_lora_init(self.model, str(adapter.path).encode())
            assert handle
            handles = (self.lib.llama_adapter_lora_p_ctypes * 1)(handle)
            scales = (ctypes.c_float * 1)(adapter.scale)
            self.lib.llama_set_adapters_lora(self.context, handles, 1, scales)
        vocab = self.lib.llama_model_get_vocab(self.model)
        self.vocab = int(self.lib.llama_vocab_n_tokens(vocab))

    def __enter__(self) -> Stock:
        return self

    def __exit__(self, *details: object) -> None:
        self.lib.llama_free(self.context)
        self.lib.llama_model_free(self.model)

    def decode(self, tokens: Sequence[int]) -> Floats:
        """The logits after the last of these tokens."""
        ids = (ctypes.c_int32 * len(tokens))(*tokens)
        batch = self.lib.llama_batch_get_one(ids, len(tokens))
        assert self.lib.llama_decode(self.context, batch) == 0
        found = self.lib.llama_get_logits_ith(self.context, -1)
        return np.ctypeslib.as_array(found, (self.vocab,))


class Open:
    """Engines that are closed when the test ends."""

    def __init__(self) -> None:
        self.engines: list[GgufEngine] = []

    def __call__(
        self,
        path: Path,
        pinned: float = 0.5,
        window: float | None = None,
        adapters: Sequence[Adapter] = (),
        **plan: Any,
    ) -> GgufEngine:
        weights = weights_of(path)
        engine = GgufEngine(weights, narrow(weights, pinned, window, **plan), adapters)
        self.engines.append(engine)
        return engine

    def close(self) -> None:
        for engine in self.engines:
            engine.close()


def file_key(shape: Shape, parts: int) -> str:
    """A name for a file of this shape."""
    return f"{shape.name}-{shape.dtype}-{shape.reuse}-{abs(hash(shape)):x}-{parts}"

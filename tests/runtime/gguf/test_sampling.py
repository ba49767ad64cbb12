"""llama.cpp's samplers leave the tokens that the engine for bundles would draw from."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest

from penstock.runtime.gguf.library import llama
from penstock.runtime.gguf.model import _Sampler
from penstock.runtime.sampling import Sampler, SamplingParams
from tests.runtime.gguf.plans import Floats


def left_by_llama_cpp(logits: Floats, params: SamplingParams) -> dict[int, float]:
    """The tokens that one is drawn from, and their shares."""
    lib = llama()
    entries = (lib.llama_token_data * len(logits))(
        *(lib.llama_token_data(i, float(x), 0.0) for i, x in enumerate(logits))
    )
    array = lib.llama_token_data_array(entries, len(logits), -1, False)
    sampler = _Sampler(lib, len(logits), params, [])
    try:
        lib.llama_sampler_apply(sampler._chain, ctypes.byref(array))
    finally:
        sampler.close()
    return {array.data[i].id: array.data[i].p for i in range(array.size)}


@pytest.mark.usefixtures("llama_cpp")
@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
@pytest.mark.parametrize(
    "options", [{"top_p": 0.7}, {"min_p": 0.05}, {"top_k": 40, "top_p": 0.8, "min_p": 0.02}, {}]
)
def test_both_engines_draw_from_the_same_tokens(temperature: float, options: Any) -> None:
    logits = np.random.default_rng(3).normal(0, 3, 300).astype(np.float32)
    params = SamplingParams(temperature=temperature, seed=1, **options)
    ids, weights = Sampler(params)._candidates(logits)
    wanted = dict(zip(ids.tolist(), (weights / weights.sum()).tolist(), strict=True))
    found = left_by_llama_cpp(logits, params)
    assert found.keys() == wanted.keys()
    assert all(found[i] == pytest.approx(wanted[i], rel=1e-4) for i in wanted)


@pytest.mark.usefixtures("llama_cpp")
def test_a_high_temperature_lets_more_tokens_pass() -> None:
    """It is applied before the others; after them, it would not change which are left."""
    logits = np.random.default_rng(3).normal(0, 3, 300).astype(np.float32)
    counts = [
        len(left_by_llama_cpp(logits, SamplingParams(temperature=t, seed=1, top_p=0.7)))
        for t in (0.5, 1.0, 2.0)
    ]
    assert counts == sorted(set(counts))

"""Perplexity on held-out text: of a bundle by the engine, of a checkpoint by transformers.

The text is cut into windows of tokens; in each, every token but the first is predicted from those
before it. Where the tokenizer starts texts with a BOS token, each window does. All modes see the
same windows, so their figures can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from penstock.errors import UsageError
from penstock.export.calibration import encode_text
from penstock.export.report import PerplexityReport
from penstock.loaders.bundle import Bundle

if TYPE_CHECKING:
    from penstock.runtime.flash_engine import FlashEngine

WINDOW = 512
Tick = Callable[[int], None]


@dataclass(frozen=True)
class HeldOutText:
    """Windows of token ids, each (tokens,) int32, and the characters that the predicted ones
    spell."""

    windows: tuple[NDArray[np.int32], ...]
    characters: int

    @property
    def tokens(self) -> int:
        """How many are predicted."""
        return sum(len(w) - 1 for w in self.windows)

    def report(self, nats: float, label: str, mode: str) -> PerplexityReport:
        mean = nats / self.tokens
        bits = nats / math.log(2) / max(1, self.characters)
        perplexity = math.exp(min(mean, 700.0))
        return PerplexityReport(label, mode, self.tokens, self.characters, mean, perplexity, bits)


def held_out_text(bundle: Bundle, text: str, tokens: int | None) -> HeldOutText:
    """Cut a text with the bundle's own tokenizer. Raises UsageError when it is too short."""
    from penstock.runtime.tokenizer import Tokenizer

    tokenizer = Tokenizer(bundle.file.metadata)
    ids, start = encode_text(bundle, text)
    ids = ids[:tokens]
    window = min(WINDOW, bundle.file.get_int(f"{bundle.arch}.context_length", low=2))
    step = window - len(start)
    windows = [start + ids[i : i + step] for i in range(0, len(ids), step)]
    windows = [w for w in windows if len(w) >= 16]
    if not windows:
        raise UsageError(f"the evaluation text has {len(ids)} tokens; expected 16 or more")
    characters = sum(len(tokenizer.decode(w)) - len(tokenizer.decode(w[:1])) for w in windows)
    return HeldOutText(tuple(np.array(w, np.int32) for w in windows), characters)


def bundle_perplexity(
    bundle: Bundle,
    text: HeldOutText,
    mode: str,
    threads: int | None = None,
    tick: Tick = lambda _: None,
) -> float:
    """Nats over the whole text.

    Args:
        mode: `dense`, in batches; `predictor` or `exact`, token by token as in generation.
    """
    from penstock.loaders.probe import load_profile
    from penstock.runtime.flash_engine import FlashEngine
    from penstock.runtime.planner import PlanOptions, make_plan

    context = max(len(w) for w in text.windows)
    options = PlanOptions(mode=mode, context=context, threads=threads)
    engine = FlashEngine(bundle, make_plan(bundle, load_profile(bundle.path), options))
    return engine_nats(engine, text, mode == "dense", tick)


def engine_nats(
    engine: FlashEngine, text: HeldOutText, batched: bool, tick: Tick = lambda _: None
) -> float:
    """Nats over the whole text, of an engine that is open."""
    nats = 0.0
    for window in text.windows:
        engine.reset()
        inputs, targets = window[:-1], window[1:]
        if batched:
            step = engine.plan.batch
            for at in range(0, len(inputs), step):
                logits = engine.prefill(inputs[at : at + step], at, all_logits=True)
                nats += _nats(logits, targets[at : at + step])
                tick(len(logits))
        else:
            for at, (token, target) in enumerate(zip(inputs.tolist(), targets, strict=True)):
                nats += _nats(engine.decode(token, at)[None, :], target[None])
                tick(1)
    return nats


def _nats(logits: NDArray[np.float32], targets: NDArray[np.int32]) -> float:
    """Sum of -log softmax at the targets; logits (n, vocab)."""
    top = logits.max(1, keepdims=True)
    total = np.log(np.exp((logits - top).astype(np.float64)).sum(1)) + top[:, 0]
    return float((total - logits[np.arange(len(targets)), targets]).sum())


def transformers_nats(folder: Path, text: HeldOutText, tick: Tick = lambda _: None) -> float | None:
    """Nats of a Hugging Face checkpoint in float32; None where transformers cannot load it as it
    is."""
    try:
        import torch
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging
    except ImportError:
        return None
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            str(folder), dtype=torch.float32, use_safetensors=True, local_files_only=True
        ).eval()
    except (ValueError, OSError, KeyError, RuntimeError):
        return None  # a model type that only its own remote code knows
    finally:
        if shown:
            logging.enable_progress_bar()
    nats = 0.0
    with torch.no_grad():
        for window in text.windows:
            logits = model(torch.from_numpy(window[None, :-1].astype(np.int64))).logits[0]
            nats += _nats(logits.numpy(), window[1:])
            tick(len(window) - 1)
    return nats

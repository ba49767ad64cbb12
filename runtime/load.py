"""`penstock.load` and `penstock.plan`: pick the engine from the file."""

from __future__ import annotations

import os
from pathlib import Path

from penstock.errors import FormatError, UnsupportedModelError, UsageError
from penstock.loaders.bundle import Bundle, check_bundle, is_bundle
from penstock.loaders.gguf_file import read_gguf
from penstock.loaders.probe import load_profile
from penstock.runtime.budget import parse_size
from penstock.runtime.flash_engine import FlashEngine, verify_bundles
from penstock.runtime.flash_model import FlashModel
from penstock.runtime.plan import Plan
from penstock.runtime.planner import PlanOptions, make_plan
from penstock.runtime.tokenizer import Tokenizer


def load(
    path: str | os.PathLike[str],
    *,
    memory: str | int | None = None,
    ffn_resident: float | None = None,
    exact: bool = False,
    dense: bool = False,
    context: int | None = None,
    threads: int | None = None,
) -> FlashModel:
    """Load a model under a memory budget.

    Args:
        path: a Penstock bundle.
        memory: '24MiB', '2GiB', bytes, or '50%' of the file; None: up to 80 % of the free memory.
        ffn_resident: share of the feed-forward weights in memory; with `memory`, at most that.
        exact: the same tokens as dense evaluation, always; predictors are not used.
        dense: compute every neuron, for comparison.
        context: tokens of the KV cache; None: what the model was made for, at most 2,048.
        threads: of compute; None: all cores.

    Raises:
        FormatError, UnsupportedModelError, BudgetError, StorageError, UsageError.
    """
    bundle, chosen = _plan(path, memory, ffn_resident, exact, dense, context, threads)
    verify_bundles(bundle)
    tokenizer = Tokenizer(bundle.file.metadata)
    engine = FlashEngine(bundle, chosen)
    if tokenizer.vocab_size > engine.vocab:
        raise FormatError(
            f"{path}: the tokenizer has {tokenizer.vocab_size} entries, the embedding "
            f"{engine.vocab} rows; they do not belong together, export the model again"
        )
    return FlashModel(engine, tokenizer)


def plan(
    path: str | os.PathLike[str],
    *,
    memory: str | int | None = None,
    ffn_resident: float | None = None,
    exact: bool = False,
    dense: bool = False,
    context: int | None = None,
    threads: int | None = None,
) -> Plan:
    """What `load` with the same arguments would keep in memory, and how fast that should be."""
    return _plan(path, memory, ffn_resident, exact, dense, context, threads)[1]


def _plan(
    path: str | os.PathLike[str],
    memory: str | int | None,
    ffn_resident: float | None,
    exact: bool,
    dense: bool,
    context: int | None,
    threads: int | None,
) -> tuple[Bundle, Plan]:
    if exact and dense:
        raise UsageError("exact and dense are two ways to evaluate; ask for one")
    file = read_gguf(Path(path))
    if not is_bundle(file):
        arch = file.metadata.get("general.architecture", "unknown")
        raise UnsupportedModelError(
            f"{path}: an ordinary GGUF file (architecture '{arch}'), not a Penstock bundle. If "
            "its activation is sparse (ReLU, squared ReLU), make a bundle with `penstock export "
            "llm SOURCE OUT`; streaming of ordinary GGUF files is not part of this version."
        )
    bundle = check_bundle(file)
    mode = "dense" if dense else "exact" if exact else "predictor"
    if mode == "predictor" and not any(bundle.predictors):
        mode = "exact"  # there is nothing to predict with
    options = PlanOptions(
        memory=None if memory is None else parse_size(memory, file.size),
        ffn_share=ffn_resident,
        mode=mode,
        context=context,
        threads=threads,
    )
    return bundle, make_plan(bundle, load_profile(bundle.path), options)

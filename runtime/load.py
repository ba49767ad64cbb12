"""`penstock.load` and `penstock.plan`: pick the engine from the file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from penstock.errors import FormatError, UsageError
from penstock.loaders.bundle import Bundle, check_bundle, is_bundle
from penstock.loaders.file_kind import TENSOR_KINDS, file_kind
from penstock.loaders.gguf_file import GGUFFile, read_gguf
from penstock.loaders.probe import load_profile
from penstock.loaders.weight_map import WeightMap, map_weights
from penstock.runtime.backends.open_model import open_model
from penstock.runtime.budget import parse_size
from penstock.runtime.flash_engine import FlashEngine, verify_bundles
from penstock.runtime.flash_model import FlashModel
from penstock.runtime.gguf.engine import Adapter, GgufEngine
from penstock.runtime.gguf.model import GgufModel
from penstock.runtime.gguf.plan import KV_TYPES, POLICIES, GgufPlan
from penstock.runtime.gguf.planner import GgufOptions, plan_gguf
from penstock.runtime.plan import Plan
from penstock.runtime.planner import PlanOptions, make_plan
from penstock.runtime.tokenizer import Tokenizer

Model = FlashModel | GgufModel
"""What `load` gives of language models; both are `LanguageModel`s."""


def load(
    path: str | os.PathLike[str],
    *,
    memory: str | int | None = None,
    ffn_resident: float | None = None,
    exact: bool = False,
    dense: bool = False,
    context: int | None = None,
    threads: int | None = None,
    lora: Sequence[str | os.PathLike[str] | tuple[str | os.PathLike[str], float]] = (),
    kv_type: str | None = None,
    policy: str | None = None,
) -> Model | Any:
    """Load a language model under a memory budget, or a model that takes and gives arrays.

    Of an ONNX or TFLite file this is a `TensorModel`, and `threads` the only option. Typed code
    calls `penstock.runtime.backends.open_model.open_model`, which gives nothing else.

    Args:
        path: a Penstock bundle, or any GGUF file that llama.cpp reads (of a split file, any part);
            or an ONNX or TFLite file.
        memory: '24MiB', '2GiB', bytes, or '50%' of the file; None: up to 80 % of the free memory.
        ffn_resident: share of the feed-forward weights in memory; with `memory`, at most that.
            Bundles only, as are `exact` and `dense`.
        exact: the same tokens as dense evaluation, always; predictors are not used.
        dense: compute every neuron, for comparison.
        context: tokens of the KV cache; None: what the model was made for, at most 2,048.
        threads: of compute; None: all cores.
        lora: LoRA adapters in GGUF, each a path or (path, scale). Ordinary GGUF files only, as are
            the following.
        kv_type: 'f16', 'q8_0' or 'q4_0'; None: the first whose cache is a small part of the budget.
        policy: which expert leaves the window: 'lfu', 'lru' or 'last-k'; None: the best measured.

    Raises:
        FormatError, UnsupportedModelError, BackendMissingError, BudgetError, StorageError,
        UsageError.
    """
    if file_kind(path) in TENSOR_KINDS:
        others = (memory, ffn_resident, context, kv_type, policy)
        if exact or dense or lora or any(option is not None for option in others):
            raise UsageError(f"{path}: of the options of load, an {_ARRAYS} takes threads alone")
        return open_model(path, threads=threads)
    if not is_bundle(read_gguf(Path(path))):
        _refuse_bundle_options(path, ffn_resident, exact, dense)
        adapters = [_adapter(entry) for entry in lora]
        weights, plan = _plan_gguf(path, memory, context, threads, kv_type, policy, adapters)
        return GgufModel(GgufEngine(weights, plan, adapters))
    _refuse_gguf_options(path, lora, kv_type, policy)
    return load_bundle(
        path,
        memory=memory,
        ffn_resident=ffn_resident,
        exact=exact,
        dense=dense,
        context=context,
        threads=threads,
    )


_ARRAYS = "ONNX or TFLite model"


def refuse_arrays(path: str | os.PathLike[str]) -> None:
    """For what needs a language model: raise a UsageError for any other.

    Raises:
        UsageError: the file is of a format of models that take and give arrays.
    """
    if file_kind(path) in TENSOR_KINDS:
        raise UsageError(
            f"{path}: an {_ARRAYS}, which takes and gives arrays and not text; `penstock inspect` "
            "shows its inputs, and penstock.load(...).run({...}) runs it from Python"
        )


def load_bundle(
    path: str | os.PathLike[str],
    *,
    memory: str | int | None = None,
    ffn_resident: float | None = None,
    exact: bool = False,
    dense: bool = False,
    context: int | None = None,
    threads: int | None = None,
) -> FlashModel:
    """`load` for what is known to be a bundle."""
    file = read_gguf(Path(path))
    bundle, chosen = _plan_bundle(file, memory, ffn_resident, exact, dense, context, threads)
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
    lora: Sequence[str | os.PathLike[str] | tuple[str | os.PathLike[str], float]] = (),
    kv_type: str | None = None,
    policy: str | None = None,
) -> Plan | GgufPlan:
    """What `load` with the same arguments would keep in memory, and how fast that should be."""
    refuse_arrays(path)
    if not is_bundle(read_gguf(Path(path))):
        _refuse_bundle_options(path, ffn_resident, exact, dense)
        adapters = [_adapter(entry) for entry in lora]
        return _plan_gguf(path, memory, context, threads, kv_type, policy, adapters)[1]
    _refuse_gguf_options(path, lora, kv_type, policy)
    return plan_bundle(
        path,
        memory=memory,
        ffn_resident=ffn_resident,
        exact=exact,
        dense=dense,
        context=context,
        threads=threads,
    )


def plan_bundle(
    path: str | os.PathLike[str],
    *,
    memory: str | int | None = None,
    ffn_resident: float | None = None,
    exact: bool = False,
    dense: bool = False,
    context: int | None = None,
    threads: int | None = None,
) -> Plan:
    """`plan` for what is known to be a bundle."""
    file = read_gguf(Path(path))
    return _plan_bundle(file, memory, ffn_resident, exact, dense, context, threads)[1]


def _plan_bundle(
    file: GGUFFile,
    memory: str | int | None,
    ffn_resident: float | None,
    exact: bool,
    dense: bool,
    context: int | None,
    threads: int | None,
) -> tuple[Bundle, Plan]:
    if exact and dense:
        raise UsageError("exact and dense are two ways to evaluate; ask for one")
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


def _plan_gguf(
    path: str | os.PathLike[str],
    memory: str | int | None,
    context: int | None,
    threads: int | None,
    kv_type: str | None,
    policy: str | None,
    adapters: Sequence[Adapter],
) -> tuple[WeightMap, GgufPlan]:
    if kv_type is not None and kv_type not in KV_TYPES:
        raise UsageError(f"there is no KV cache of type '{kv_type}'; choose {', '.join(KV_TYPES)}")
    if policy is not None and policy not in POLICIES:
        raise UsageError(f"there is no policy '{policy}'; choose {', '.join(POLICIES)}")
    weights = map_weights(Path(path))
    options = GgufOptions(
        memory=None if memory is None else parse_size(memory, weights.size),
        context=context,
        threads=threads,
        kv_type=kv_type,
        policy=policy or POLICIES[0],
        adapters=sum(a.path.stat().st_size for a in adapters),
    )
    return weights, plan_gguf(weights, load_profile(weights.path), options)


def _adapter(entry: str | os.PathLike[str] | tuple[str | os.PathLike[str], float]) -> Adapter:
    path, scale = entry if isinstance(entry, tuple) else (entry, 1.0)
    if not Path(path).is_file():
        raise UsageError(f"{path}: there is no such LoRA adapter")
    return Adapter(Path(path), scale)


def _refuse_bundle_options(
    path: str | os.PathLike[str], ffn_resident: float | None, exact: bool, dense: bool
) -> None:
    given = [("ffn_resident", ffn_resident is not None), ("exact", exact), ("dense", dense)]
    named = [name for name, is_given in given if is_given]
    if named:
        raise UsageError(
            f"{path}: {' and '.join(named)} is for Penstock bundles; this is an ordinary GGUF "
            "file, whose result is always that of llama.cpp"
        )


def _refuse_gguf_options(
    path: str | os.PathLike[str], lora: Sequence[object], kv_type: str | None, policy: str | None
) -> None:
    given = [("lora", bool(lora)), ("kv_type", kv_type is not None), ("policy", policy is not None)]
    named = [name for name, is_given in given if is_given]
    if named:
        raise UsageError(
            f"{path}: {' and '.join(named)} is for ordinary GGUF files; this is a bundle"
        )

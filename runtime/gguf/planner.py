"""Spends a memory budget on an ordinary GGUF file.

In this order: caches, buffers and the tokenizer, what every token needs anyway (norms, routers,
biases), then dense matrices, then experts. Dense matrices are all pinned if they fit; else the same
share of each is streamed, so that reads are spread evenly over a token. What is left is the expert
window.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from penstock import _native
from penstock.errors import BudgetError, UsageError
from penstock.loaders.cores import compute_threads
from penstock.loaders.probe import DeviceProfile
from penstock.loaders.weight_map import WeightMap, streamed_pages
from penstock.runtime.budget import available_memory, format_size
from penstock.runtime.gguf.plan import KV_TYPES, GgufPlan
from penstock.runtime.gguf.sizes import (
    CONTEXT,
    KV_BYTES,
    Sizes,
    buffer_bytes,
    check_countable,
    kv_bytes,
    read_sizes,
)

BATCHES = (512, 256, 128, 64, 32)
KV_SHARE = 0.15  # of the budget; beyond it the KV cache is quantized
RING_PARTS = 3  # of the largest streamed part: one in use, two ahead
RING_LEAST = 8 << 20
RING_MOST = 64 << 20  # reads ahead even out what storage and graph take from node to node
RING_SHARE = 24  # of what weights may take, one part; not more
FREE_SHARE = 0.8  # of the free memory, when no budget is given


@dataclass(frozen=True)
class GgufOptions:
    """What the caller may choose. memory: bytes. adapters: bytes of LoRA files."""

    memory: int | None = None
    context: int | None = None
    threads: int | None = None
    batch: int | None = None
    kv_type: str | None = None
    policy: str = "adaptive"
    adapters: int = 0


def plan_gguf(weights: WeightMap, profile: DeviceProfile, options: GgufOptions) -> GgufPlan:
    """Decide what stays in memory.

    Raises:
        BudgetError: the budget is too small; the message has the least that works.
        UnsupportedModelError: what the model needs cannot be counted, and there is a budget.
        UsageError: an option is out of its range.
    """
    sizes = read_sizes(weights)
    _check(options)
    if options.memory is not None:
        check_countable(sizes, weights.path)
    kv_types = _kv_types(options, sizes)
    context = options.context or min(sizes.trained, CONTEXT)
    memory = options.memory
    if memory is None:
        memory = int(available_memory() * FREE_SHARE)
    least = min(_least(weights, sizes, options, context, kv) for kv in kv_types)
    for kv_type in kv_types:
        if kv_bytes(sizes, context, kv_type) > KV_SHARE * memory and kv_type != kv_types[-1]:
            continue
        batches = [options.batch] if options.batch else BATCHES
        tried = (
            _try(weights, profile, options, sizes, memory, context, kv_type, batch, least)
            for batch in batches
        )
        made = _best_batch(tried, weights, memory)
        if made is not None:
            return made
    raise _too_small(weights, sizes, options, kv_types, memory, context, least)


def _best_batch(
    plans: Iterable[GgufPlan | None], weights: WeightMap, memory: int
) -> GgufPlan | None:
    """The largest batch whose buffers do not cost tokens more than one block's bytes.

    Buffers take the place of weights, which are then read for each token: at most what the budget
    lacks and one block; where a long context makes that impossible, and the KV cache.
    """
    most = weights.size - memory + weights.largest_block()
    seen = []
    for plan in plans:  # planning takes time: no more of it than is needed
        if plan is not None:
            if plan.streamed <= most:
                return plan
            seen.append(plan)
    fallback = seen[0] if seen else None
    return next((p for p in seen if p.streamed <= most + p.kv_cache), fallback)


def _mapped(plan: GgufPlan) -> GgufPlan:
    """What becomes of a plan where pages under llama.cpp's mapping cannot be replaced.

    Nothing of weights is in it, and no forecast: how much is read depends on what the system keeps
    in memory.
    """
    note = (
        "weights cannot be streamed on this system, which has no way to replace pages under "
        "llama.cpp's mapping of the file: it runs in that mapping, the system decides what of the "
        "weights is in memory, and the budget covers only the rest"
    )
    return replace(
        plan,
        mode="mapped",
        pinned=0,
        streamed=0,
        share=0.0,
        largest_part=0,
        ring=0,
        window=0,
        policy="none",
        depth=0,
        backend="none",
        direct=False,
        read_bytes=None,
        tokens_per_second=None,
        note=note,
    )


def _check(options: GgufOptions) -> None:
    for name in ("context", "threads", "batch"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UsageError(f"{name} must be at least 1, not {value}")


def _kv_types(options: GgufOptions, sizes: Sizes) -> list[str]:
    """Number formats to choose from, best first: those whose blocks divide the heads."""
    heads = sizes.head_dims
    fit = [t for t in KV_TYPES if all(dim % KV_BYTES[t][0] == 0 for dim in heads)]
    if options.kv_type is None:
        return fit
    if options.kv_type not in fit:
        raise UsageError(
            f"a KV cache of type {options.kv_type} has blocks of {KV_BYTES[options.kv_type][0]}, "
            f"which do not divide the model's heads of {heads[0]} and {heads[1]}; choose "
            f"{', '.join(fit)}"
        )
    return [options.kv_type]


def _try(
    weights: WeightMap, profile: DeviceProfile, options: GgufOptions, sizes: Sizes, memory: int,
    context: int, kv_type: str, batch: int, least: int,
) -> GgufPlan | None:  # fmt: skip
    kv_cache = kv_bytes(sizes, context, kv_type)
    buffers = buffer_bytes(weights, sizes, context, batch)
    # A batch that leaves little for weights costs more in reads than it saves.
    if buffers > memory // 8 and batch > BATCHES[-1] and not options.batch:
        return None
    left = memory - kv_cache - buffers - options.adapters - _fixed(weights, sizes)
    small, matrices = weights.nbytes("small") + _edges(weights), weights.nbytes("matrix")
    experts = weights.nbytes("expert")
    share, parts, largest, ring, window, mode = 0.0, 0, 0, 0, 0, "resident"
    fits = small + matrices + experts <= left
    if not fits and not _native.address_space_supported():
        mode = "mapped"
        if left < 0:
            return None
    elif not fits:
        mode = "experts" if experts else "stream"
        small += weights.shared_pages
        window_least = min(experts, _window_least(weights, sizes, batch))
        room = left - small - window_least
        found = _share(weights, room)
        if found is None:
            return None
        share, parts, largest, ring = found
        window = min(experts, left - small - (matrices - parts) - ring)
    else:
        window = experts
    hits = window / experts if experts else 1.0
    per_token = parts + _experts_per_token(weights, sizes) * (1.0 - hits)
    touched = small + matrices + _experts_per_token(weights, sizes)
    seconds = max(
        per_token / profile.sequential_bytes_per_second, touched / profile.memory_bytes_per_second
    )
    made = GgufPlan(
        path=str(weights.path),
        arch=weights.files[0].get_str("general.architecture"),
        mode=mode,
        budget=options.memory,
        least=least,
        context=context,
        batch=min(batch, context),
        threads=compute_threads(options.threads),
        kv_type=kv_type,
        kv_cache=kv_cache,
        buffers=buffers,
        tokenizer=weights.vocabulary.nbytes,
        state=max(0, sizes.state),
        pinned=small + matrices - parts,
        tables=weights.nbytes("table"),
        adapters=options.adapters,
        streamed=parts,
        share=share,
        largest_part=largest,
        ring=ring,
        experts=weights.experts,
        experts_used=sizes.experts_used,
        expert_bytes=weights.expert_bytes,
        expert_total=experts,
        window=window,
        policy=options.policy,
        depth=profile.depth,
        backend=profile.backend,
        direct=profile.direct,
        read_bytes=per_token,
        tokens_per_second=1.0 / max(seconds, 1e-9),
        profile=profile,
        note=_cache_note(options, kv_type),
    )
    return _mapped(made) if mode == "mapped" else made


def _share(weights: WeightMap, room: int) -> tuple[float, int, int, int] | None:
    """(share, bytes streamed, largest part, ring) so that pinned matrices and ring fit `room`.

    The largest part is what is asked of one matrix at most; whole pages of it may be less.
    """
    matrices = weights.of("matrix")
    whole = sum(w.info.nbytes for w in matrices)
    if whole <= room:
        return 0.0, 0, 0, 0
    for ring in (max(RING_LEAST, min(RING_MOST, room // RING_SHARE)), RING_LEAST):
        found = _share_beside(weights, room, ring)
        if found is not None:
            return found
    return None


def _share_beside(
    weights: WeightMap, room: int, least_ring: int
) -> tuple[float, int, int, int] | None:
    matrices = weights.of("matrix")
    whole = sum(w.info.nbytes for w in matrices)
    most = weights.largest_matrix()

    def spent(share: float) -> tuple[int, int, int, int]:
        parts = [streamed_pages(w, share, max(1, int(most * share)))[1] for w in matrices]
        ring = max(least_ring, RING_PARTS * max(parts, default=0))
        return whole - sum(parts) + ring, sum(parts), max(parts, default=0), ring

    low, high = 0.0, 1.0
    if spent(1.0)[0] > room:
        return None
    for _ in range(30):
        middle = (low + high) / 2
        if spent(middle)[0] > room:
            low = middle
        else:
            high = middle
    _, parts_bytes, _, ring = spent(high)
    return high, parts_bytes, max(1, int(most * high)), ring


def _least(weights: WeightMap, sizes: Sizes, options: GgufOptions, context: int, kv: str) -> int:
    """Bytes with everything streamed that can be, and the smallest batch."""
    batch = options.batch or BATCHES[-1]
    fixed = kv_bytes(sizes, context, kv) + buffer_bytes(weights, sizes, context, batch)
    fixed += options.adapters + _fixed(weights, sizes)
    if not _native.address_space_supported():
        return fixed
    fixed += weights.nbytes("small") + _edges(weights) + weights.shared_pages
    matrices = weights.of("matrix")
    most = weights.largest_matrix()
    parts = [streamed_pages(w, 1.0, max(1, most))[1] for w in matrices]
    pinned = sum(w.info.nbytes for w in matrices) - sum(parts)
    dense = min(
        pinned + max(RING_LEAST, RING_PARTS * max(parts, default=0)), weights.nbytes("matrix")
    )
    window = min(weights.nbytes("expert"), _window_least(weights, sizes, batch))
    return int(fixed + dense + window)


def _fixed(weights: WeightMap, sizes: Sizes) -> int:
    """Bytes that no option changes."""
    return weights.vocabulary.nbytes + max(0, sizes.state)


def _window_least(weights: WeightMap, sizes: Sizes, batch: int) -> int:
    """What one layer may need at once, and one more expert to turn around in."""
    return (min(weights.experts, sizes.experts_used * batch) + 1) * weights.expert_bytes


def _experts_per_token(weights: WeightMap, sizes: Sizes) -> float:
    if not weights.experts:
        return 0.0
    return weights.nbytes("expert") * sizes.experts_used / weights.experts


def _edges(weights: WeightMap) -> int:
    """Pages at the ends of what is not pinned, which belong to two tensors."""
    return 2 * 4096 * (sum(w.kind in ("matrix", "table", "skipped") for w in weights.weights) + 1)


def _too_small(
    weights: WeightMap, sizes: Sizes, options: GgufOptions, kv_types: list[str], memory: int,
    context: int, least: int,
) -> BudgetError:  # fmt: skip
    head = f"{weights.path}: {format_size(memory)} is too little for {context} tokens of context; "
    fits = [
        c
        for c in range(256, context, 256)
        if min(_least(weights, sizes, options, c, kv) for kv in kv_types) <= memory
    ]
    if fits:
        return BudgetError(
            head + f"the largest context that fits is {fits[-1]} (--context {fits[-1]}), "
            f"and {context} tokens need at least {_up(least)}",
            least,
        )
    return BudgetError(head + f"it needs at least {_up(least)}", least)


def _cache_note(options: GgufOptions, kv_type: str) -> str:
    """What is said of a KV cache that the budget made smaller than llama.cpp's own."""
    if kv_type == "f16" or options.kv_type is not None:
        return ""
    return (
        f"the KV cache is kept in {kv_type} to fit the budget, which changes texts a little; "
        "--kv-type f16 keeps llama.cpp's own, and a smaller --context needs less of it"
    )


def _up(nbytes: int) -> str:
    """A size that is enough when it is given as a budget."""
    return f"{-(-nbytes // (1 << 20))} MiB"

"""Spends a memory budget: what stays resident, how wide each layer's window is, what is streamed.

The fixed part (attention, embeddings, norms, predictors, KV cache, buffers) comes first. What is
left goes to the feed-forward layers, one step of a layer's measured miss curve at a time, always to
the layer where a byte of memory saves most bytes of reading.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, replace

from penstock.errors import BudgetError, UsageError
from penstock.loaders.bundle import Bundle
from penstock.loaders.cores import compute_threads
from penstock.loaders.probe import DeviceProfile
from penstock.runtime.budget import available_memory, format_size
from penstock.runtime.plan import LayerPlan, Plan
from penstock.runtime.program import Hyperparameters

PAGE = 4096
OVERFLOW_SLOTS = 64  # decoder.cpp's
NEURON_SCRATCH = 288  # bytes of scratch a neuron of the widest layer, decoder.cpp grow_scratch
SLOT_TABLE, NEURON_TABLE = 44, 12  # NeuronWindow::table_bytes
# What buffers are charged for, whatever was measured: the least budget must not depend on noise.
MERGE_GAP_MOST = 32 << 10
BURST_DEPTH = 64  # what storage has to like for that
DEPTH_MOST = 256
THREADS_MOST = 32  # each read of that back end holds a thread and its stacks
MODES = ("predictor", "exact", "dense")


@dataclass(frozen=True)
class PlanOptions:
    """What the user may ask for; None means that the planner chooses."""

    memory: int | None = None
    ffn_share: float | None = None  # of the feed-forward weights in memory, instead of `memory`
    mode: str = "predictor"
    context: int | None = None
    batch: int | None = None
    threads: int | None = None
    window_tokens: int = 0
    depth: int | None = None
    backend: str | None = None


def make_plan(bundle: Bundle, profile: DeviceProfile, options: PlanOptions) -> Plan:
    """Decide. Raises BudgetError, with the least that works, when the budget is too small."""
    if options.mode not in MODES:
        raise UsageError(f"mode must be one of {', '.join(MODES)}, not '{options.mode}'")
    if options.ffn_share is not None and not 0 <= options.ffn_share <= 1:
        raise UsageError(f"the resident share of the FFN must be 0 to 1, not {options.ffn_share}")
    config = Hyperparameters.read(bundle)
    context = options.context or min(config.context, 2048)
    if not 1 <= context <= config.context:
        raise UsageError(f"context must be 1 to {config.context} tokens, not {context}")
    threads = compute_threads(options.threads or None)  # 0 means: choose
    least = _Fixed.of(bundle, config, options.mode, context, 8, bundle.stride * 32)
    if options.memory is None and options.ffn_share is not None:
        allowed = least.total + bundle.ffn_bytes + (64 << 20)
    else:
        allowed = options.memory or int(available_memory() * 0.8)
    if least.total > allowed:
        raise BudgetError(
            f"{bundle.path} needs at least {format_size(least.total)} ({least.total} bytes) with "
            f"a context of {context} tokens (weights {format_size(least.weights)}, tokenizer "
            f"{format_size(least.tokenizer)}, KV cache {format_size(least.kv_cache)}); the budget "
            f"is {format_size(allowed)}. Allow more, or a shorter --context.",
            least.total,
        )
    fixed = _with_buffers(bundle, config, options, context, allowed, least)
    left = allowed - fixed.total
    if options.ffn_share is not None:
        left = min(left, int(options.ffn_share * bundle.ffn_bytes) + bundle.layers * PAGE)
    layers = _spend(bundle, options.mode, left, profile.alignment)
    return _assemble(bundle, profile, options, fixed, context, threads, layers, least.total)


def _with_buffers(
    bundle: Bundle,
    c: Hyperparameters,
    options: PlanOptions,
    context: int,
    allowed: int,
    least: _Fixed,
) -> _Fixed:
    """Larger prompt batches and staging, as long as they take little and cost no residency."""
    whole = bundle.layers * _pages(bundle.neurons * bundle.stride)
    fits_whole = allowed - least.total >= whole
    chosen = least
    for batch in (options.batch,) if options.batch else (16, 32, 64, 128):
        staging = max(bundle.stride * 32, min(4 << 20, (allowed - least.total) // 32))
        larger = _Fixed.of(bundle, c, options.mode, context, batch, staging)
        little = larger.total - least.total <= allowed // 8 or options.batch is not None
        keeps = not fits_whole or allowed - larger.total >= whole
        if little and keeps and larger.total <= allowed:
            chosen = larger
    return chosen


@dataclass(frozen=True)
class _Fixed:
    """The part of memory that does not depend on the windows."""

    weights: int
    predictors: int
    kv_cache: int
    buffers: int
    tokenizer: int
    batch: int
    staging: int

    @property
    def total(self) -> int:
        return self.weights + self.predictors + self.kv_cache + self.buffers + self.tokenizer

    @staticmethod
    def of(
        b: Bundle, c: Hyperparameters, mode: str, context: int, batch: int, staging: int
    ) -> _Fixed:
        used = [q for q in b.predictors if q is not None] if mode == "predictor" else []
        names = {q.fc1.name for q in b.predictors if q} | {q.fc2.name for q in b.predictors if q}
        names |= {q.bias.name for q in b.predictors if q and q.bias}
        weights = sum(_pages(t.nbytes) for name, t in b.resident.items() if name not in names)
        predictors = sum(
            _pages(t.nbytes) for q in used for t in (q.fc1, q.fc2, q.bias) if t is not None
        )
        kv_width = c.kv_heads * c.head_dim
        kv_cache = 2 * c.layers * _pages(context * kv_width * 2)
        widths = 3 * c.width + 2 * c.heads * c.head_dim + 2 * kv_width + c.width
        registers = batch * widths * 4 + 8 * PAGE
        widest = max(c.width, c.heads * c.head_dim, *(q.rank for q in used), 1)
        reads = max_reads(b)
        buffers = (
            registers
            + batch * (widest + 32) * 5 // 4 + 3 * PAGE  # activations in int8 blocks
            + 2 * (staging + 4 * PAGE)
            + b.neurons * NEURON_SCRATCH
            + b.layers * b.neurons * NEURON_TABLE
            + OVERFLOW_SLOTS * b.stride + MERGE_GAP_MOST + 2 * PAGE
            + c.heads * context * 4  # attention scores
            + batch * c.rope_dims * 4
            + reads * 40
            + (2 + batch) * c.vocab * 4  # logits of a batch, and the sampler's copies
            + (512 << 10)  # stacks of the threads, and what the allocator rounds up
        )  # fmt: skip
        # The tokenizer's tables in memory take a multiple of their size in the file.
        tokenizer = (2 << 20) + 14 * len(b.file.header)
        return _Fixed(weights, predictors, kv_cache, buffers, tokenizer, batch, staging)


def max_reads(bundle: Bundle) -> int:
    """Reads that may be queued at once: a layer's misses in parts, and the staging's pieces."""
    return 3 * bundle.neurons + 64 + DEPTH_MOST


def _pages(nbytes: int) -> int:
    return -(-nbytes // PAGE) * PAGE


@dataclass
class _Layer:
    """A layer while memory is handed out: its steps, from no memory to all of it."""

    residency: str
    entry: int  # bytes that it takes before the first row (exact mode's up rows)
    slot: int  # bytes of a row in memory, its bookkeeping included
    steps: list[tuple[float, float]]  # lower hull of (share of rows, misses per token as a share)
    at: int = 0

    def gain(self, neurons: int, stride: int) -> float:
        """Bytes of reading that the next step saves, per byte of memory."""
        (w0, m0), (w1, m1) = self.steps[self.at], self.steps[self.at + 1]
        return (m0 - m1) * stride / ((w1 - w0) * self.slot)

    def cost(self, neurons: int) -> int:
        return int((self.steps[self.at + 1][0] - self.steps[self.at][0]) * neurons * self.slot) + 1


def _spend(bundle: Bundle, mode: str, left: int, alignment: int) -> list[LayerPlan]:
    n, stride = bundle.neurons, bundle.stride
    whole = bundle.layers * _pages(n * stride)
    if left >= whole:
        return [_resident(bundle, i, mode) for i in range(bundle.layers)]
    layers = [_layer(bundle, mode, i, alignment) for i in range(bundle.layers)]
    # exact mode: a layer whose up rows do not fit is streamed whole, which is exact as well.
    for layer in layers:
        if layer.entry > left:
            layer.residency, layer.entry, layer.slot = "stream", 0, stride
            layer.steps = [(0.0, 1.0), (1.0, 0.0)]
        left -= layer.entry
    queue = [(-layer.gain(n, stride), i) for i, layer in enumerate(layers)]
    heapq.heapify(queue)
    share = [0.0] * bundle.layers
    while queue:
        _, i = heapq.heappop(queue)
        layer = layers[i]
        cost = layer.cost(n)
        if cost > left:  # a part of the step
            share[i] = layer.steps[layer.at][0] + left / (n * layer.slot)
            left = 0
            break
        left -= cost
        layer.at += 1
        share[i] = layer.steps[layer.at][0]
        if layer.at + 1 < len(layer.steps):
            heapq.heappush(queue, (-layer.gain(n, stride), i))
    return [_planned(bundle, mode, i, layer, share[i]) for i, layer in enumerate(layers)]


def _layer(bundle: Bundle, mode: str, index: int, alignment: int) -> _Layer:
    profile, predictor = bundle.profiles[index], bundle.predictors[index]
    if mode == "dense" or (mode == "predictor" and predictor is None):
        return _Layer("stream", 0, bundle.stride, [(0.0, 1.0), (1.0, 0.0)])
    exact = mode == "exact"
    if profile is None:  # nothing was measured: a plain guess, the same for each layer
        curve = [(0.0, 0.3), (0.25, 0.05), (1.0, 0.0)]
    else:
        misses = profile.exact_misses if exact else profile.misses
        active = profile.active if exact else profile.predicted
        curve = [(float(w), float(m)) for w, m in zip(profile.window, misses, strict=True)]
        if curve[0][0] > 0:
            curve.insert(0, (0.0, active))
    if not exact:
        return _Layer("window", 0, bundle.stride + SLOT_TABLE, _hull(curve))
    up = (bundle.rows - 1) * bundle.row_bytes
    slot = _slot_bytes(bundle, "exact", alignment)
    return _Layer("exact", _pages(bundle.neurons * up), slot + SLOT_TABLE, _hull(curve))


def _hull(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Lower convex hull from no memory to all: greedy steps along it are optimal."""
    points = sorted({w: m for w, m in points}.items())
    if points[-1][0] < 1.0:
        points.append((1.0, 0.0))
    hull: list[tuple[float, float]] = []
    for p in points:
        while len(hull) >= 2 and _cross(hull[-2], hull[-1], p) <= 0:
            hull.pop()
        hull.append(p)
    return hull


def _cross(o: tuple[float, float], a: tuple[float, float], b: tuple[float, float]) -> float:
    return (a[0] - o[0]) * (b[1] - o[1]) - (a[1] - o[1]) * (b[0] - o[0])


def _resident(bundle: Bundle, index: int, mode: str) -> LayerPlan:
    predictor = mode == "predictor" and bundle.predictors[index] is not None
    nbytes = _pages(bundle.neurons * bundle.stride)
    return LayerPlan(index, "resident", bundle.neurons, 1.0, nbytes, predictor, 0.0)


def _planned(bundle: Bundle, mode: str, index: int, layer: _Layer, share: float) -> LayerPlan:
    rows = min(bundle.neurons, int(share * bundle.neurons))
    if rows == bundle.neurons and layer.residency != "exact":
        return _resident(bundle, index, mode)
    profile = bundle.profiles[index]
    if layer.residency == "stream":
        missed = 1.0 - rows / bundle.neurons
        read = missed * bundle.neurons * bundle.stride
    else:
        shares, misses = zip(*layer.steps, strict=True)
        missed = profile.miss_share(share, mode == "exact") if profile else 0.0
        if profile and share < profile.window[0]:
            missed = _interpolate(share, shares, misses)
        if profile is None:
            missed = _interpolate(share, shares, misses)
        read = missed * bundle.neurons * (layer.slot - SLOT_TABLE)
    nbytes = layer.entry + rows * layer.slot
    predictor = layer.residency == "window"
    return LayerPlan(index, layer.residency, rows, rows / bundle.neurons, nbytes, predictor, read)


def _interpolate(x: float, xs: tuple[float, ...], ys: tuple[float, ...]) -> float:
    for (x0, y0), (x1, y1) in zip(
        zip(xs, ys, strict=True), zip(xs[1:], ys[1:], strict=True), strict=False
    ):
        if x <= x1:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return ys[-1]


def _assemble(
    bundle: Bundle, p: DeviceProfile, options: PlanOptions, fixed: _Fixed, context: int,
    threads: int, layers: list[LayerPlan], least: int,
) -> Plan:  # fmt: skip
    merge_gap = min(p.merge_gap, MERGE_GAP_MOST)
    scattered = sum(layer.read_bytes for layer in layers if layer.residency != "stream")
    layers = [_with_gaps(bundle, layer, merge_gap, p.alignment) for layer in layers]
    read = sum(layer.read_bytes for layer in layers)
    storage = scattered / p.random_bytes_per_second(bundle.stride)
    storage += (read - scattered) / p.sequential_bytes_per_second
    touched = float(fixed.weights + fixed.predictors)
    for layer in layers:
        touched += _touched(bundle, options.mode, layer)
    seconds = storage + touched / p.memory_bytes_per_second
    backend = options.backend or p.backend
    direct = p.direct and bundle.stride % max(p.alignment, 1) == 0
    return Plan(
        path=bundle.path,
        arch=bundle.arch,
        mode=options.mode,
        budget=options.memory,
        least=least,
        context=context,
        batch=fixed.batch,
        threads=threads,
        weights=fixed.weights,
        predictors=fixed.predictors,
        kv_cache=fixed.kv_cache,
        buffers=fixed.buffers,
        tokenizer=fixed.tokenizer,
        ffn=sum(layer.nbytes for layer in layers),
        ffn_whole=bundle.ffn_bytes,
        layers=tuple(layers),
        staging=fixed.staging,
        merge_gap=merge_gap,
        read_max=1 << 20,
        depth=_depth(options.depth, p.depth, backend),
        backend=backend,
        direct=direct,
        window_tokens=options.window_tokens,
        read_bytes=read,
        tokens_per_second=1.0 / max(seconds, 1e-9),
        profile=p,
    )


def _depth(wanted: int | None, measured: int, backend: str) -> int:
    """Reads in flight. A layer's misses come at once, and while hits are computed nobody refills
    the queue: where storage likes many reads, it may have a whole layer's."""
    most = THREADS_MOST if backend == "threads" else DEPTH_MOST
    if wanted is None and measured >= BURST_DEPTH:
        wanted = most
    return min(wanted or measured, most)


def _with_gaps(bundle: Bundle, layer: LayerPlan, merge_gap: int, alignment: int) -> LayerPlan:
    """Add the gaps that merged reads read through, with misses spread at random over the layer.

    Gaps are then exponential with mean g, and of each the reader takes those up to G:
    g (1 - exp(-G / g) (1 + G / g)) bytes a miss. The neuron order makes the truth a little less.
    """
    if layer.residency not in ("window", "exact") or layer.read_bytes <= 0 or merge_gap <= 0:
        return layer
    slot = _slot_bytes(bundle, layer.residency, alignment)
    misses = layer.read_bytes / slot
    gap = bundle.neurons / misses * bundle.stride - slot
    if gap <= 0:
        return layer
    ratio = merge_gap / gap
    through = misses * gap * (1 - math.exp(-ratio) * (1 + ratio))
    return replace(layer, read_bytes=layer.read_bytes + through)


def _slot_bytes(bundle: Bundle, residency: str, alignment: int) -> int:
    """Bytes of a bundle that a slot holds; in exact mode from the block of the down row on."""
    if residency != "exact":
        return bundle.stride
    up = (bundle.rows - 1) * bundle.row_bytes
    return bundle.stride - up // max(alignment, 1) * max(alignment, 1)


def _touched(bundle: Bundle, mode: str, layer: LayerPlan) -> float:
    """Bytes of feed-forward weights that a token's arithmetic reads from memory."""
    profile = bundle.profiles[layer.layer]
    whole = bundle.neurons * bundle.stride
    if layer.residency == "window" or (layer.predictor and layer.residency == "resident"):
        return whole * (profile.predicted if profile else 0.3)
    if layer.residency == "stream" or profile is None:
        return float(whole)
    up = (bundle.rows - 1) / bundle.rows
    return whole * (up + (1 - up) * profile.active)

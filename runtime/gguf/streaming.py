"""Puts our own memory under llama.cpp's mapping, as the plan says."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from penstock import _native
from penstock.errors import PenstockError, StorageError, UnsupportedModelError
from penstock.loaders.file_mapping import FileMapping, forget_cached
from penstock.loaders.file_names import native_name
from penstock.loaders.weight_map import (
    SKIPPED,
    WeightMap,
    expert_order,
    expert_pages,
    inner_pages,
    pinned_ranges,
    streamed_pages,
)
from penstock.runtime.gguf.layout import find_layout
from penstock.runtime.gguf.plan import GgufPlan

# Of the ring through which dense weights are streamed: "aliases" of one piece of memory. "fresh"
# and "huge" pages are there for the benchmark, which measures them beside it.
RING_MEMORY = "aliases"


def used_weights(weights: WeightMap, found: Sequence[FileMapping]) -> WeightMap:
    """The weights of which those are skipped that llama.cpp did not map: it does not use them.

    Raises:
        StorageError: it mapped none of a file, and may have copied it.
    """
    for number, file in enumerate(weights.files):
        if not found[number].pieces and any(
            w.file == number and w.kind != SKIPPED for w in weights.weights
        ):
            raise StorageError(
                f"{file.path}: llama.cpp mapped nothing of the file; this version of llama.cpp "
                "cannot be streamed under"
            )
    return weights.without(lambda w: not found[w.file].holds(w.info.offset, w.info.nbytes))


def start_streamer(
    weights: WeightMap, plan: GgufPlan, found: Sequence[FileMapping], library: Path
) -> Any:
    """A streamer that has read what is pinned.

    Args:
        weights: as `used_weights` gave them.
        library: folder of llama.cpp's libraries.

    Raises:
        StorageError: a read failed.
        UnsupportedModelError: the core does not take what the file has, or the library is unknown.
    """
    layout = find_layout(library)
    try:
        with ExitStack() as names:
            paths = [names.enter_context(native_name(file.path)) for file in weights.files]
            s = _native.WeightStreamer(paths, plan.direct, plan.backend, plan.depth)
        _describe(s, weights, plan, found)
        s.access(*layout.accessors, layout.sources_offset, layout.sources)
        blocks = max(weights.expert_blocks, default=-1) + 1
        layer_of = [
            weights.expert_blocks.index(b) if b in weights.expert_blocks else -1
            for b in range(blocks)
        ]
        s.start(plan.ring, plan.window, plan.policy, layer_of, RING_MEMORY)
        _give_back(weights, found)
    except PenstockError:
        raise
    except ValueError as error:
        raise UnsupportedModelError(
            f"{plan.path}: this file cannot be streamed: {error}; give it a budget that all of it "
            "fits, and please report this"
        ) from error
    return s


def _describe(s: Any, weights: WeightMap, plan: GgufPlan, found: Sequence[FileMapping]) -> None:
    """Tell the streamer where everything is, and what becomes of it."""
    for number, mapping in enumerate(found):
        if mapping.pieces:
            span = mapping.span
            s.mapped(number, span.offset, span.address, span.nbytes)
    taken: list[list[tuple[int, int]]] = [[] for _ in found]
    for w in weights.weights:
        if w.kind != SKIPPED:
            s.expect(w.info.name, w.file, w.info.offset)
        if w.kind in ("table", SKIPPED):
            taken[w.file].append(inner_pages(w))
        elif w.kind == "matrix" and plan.share > 0:
            offset, nbytes = streamed_pages(w, plan.share, plan.largest_part)
            if nbytes:
                s.stream(w.file, offset, nbytes)
                taken[w.file].append((offset, nbytes))
    for w in expert_order(weights.of("expert")):
        layer = weights.expert_blocks.index(w.block)
        s.experts(layer, w.file, w.info.offset, w.stride, w.experts)
        taken[w.file] += expert_pages(w)
    for number, mapping in enumerate(found):
        for piece in mapping.pieces:
            end = piece.offset + piece.nbytes
            for offset, nbytes in pinned_ranges(piece.offset, end, taken[number]):
                s.pin(number, offset, nbytes)


def _give_back(weights: WeightMap, found: Sequence[FileMapping]) -> None:
    """What stays mapped comes in again by the rows that are used: llama.cpp read the whole file."""
    for w in weights.weights:
        if w.kind in ("table", SKIPPED):
            found[w.file].give_back(*inner_pages(w))
    for file in weights.files:
        forget_cached(file.path)


def give_heap_back() -> None:
    """Return what is free on the C heap to the system: a header that was parsed, for instance."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # GNU's C library alone has it
    if trim is not None:
        trim(0)

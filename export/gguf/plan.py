"""The format of each tensor of the new file, before anything is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from penstock.errors import UsageError
from penstock.export.gguf.allocation import aligned_bytes, choose_types
from penstock.export.gguf.header import TensorEntry, encode_entry, encode_header
from penstock.export.gguf.importance import Importance
from penstock.export.gguf.tensor_types import (
    FILE_TYPES,
    FLOATS,
    NO_WEIGHTS,
    OUTPUT,
    QUANTIZATION_VERSION,
    WIDER,
    TypeChoice,
    can_be_quantized,
)
from penstock.export.gguf.weights import Weights, WeightTensor
from penstock.export.report import ProgressCallback
from penstock.loaders.gguf_file import TYPE_NAMES, TYPE_SIZES
from penstock.quant.blocks import BlockFormat

STORED: dict[str, BlockFormat] = {
    name: BlockFormat(name, number, *TYPE_SIZES[number]) for number, name in TYPE_NAMES.items()
}


@dataclass(frozen=True)
class GgufPlan:
    """What is written.

    Attributes:
        types: format of each tensor, by name; one that keeps its own is copied.
        matrices: names of those that may be quantized.
        recipe: for the report.
    """

    types: Mapping[str, str]
    matrices: frozenset[str]
    recipe: str

    @property
    def mostly(self) -> str:
        """The format that most matrices have; for `general.file_type`."""
        counts = Counter(self.types[name] for name in sorted(self.matrices))
        return counts.most_common(1)[0][0] if counts else "F32"


def fixed_plan(weights: Weights, choice: TypeChoice) -> GgufPlan:
    """One format for all matrices; see `TypeChoice`."""
    matrices = _matrices(weights)
    tied = all(tensor.name != OUTPUT for tensor in weights.tensors)
    types = {
        tensor.name: choice.of(tensor.name, tensor.shape, tied)
        if tensor.name in matrices
        else tensor.type_name
        for tensor in weights.tensors
    }
    extra = [f"output {choice.output}"] if choice.output else []
    extra += [f"embedding {choice.embedding}"] if choice.embedding else []
    return GgufPlan(types, frozenset(matrices), ", ".join([choice.matrices, *extra]))


def target_plan(
    weights: Weights,
    target_bytes: int,
    importance: Importance | None,
    threads: int,
    progress: ProgressCallback | None = None,
) -> GgufPlan:
    """A format for each matrix, so that the file has at most so many bytes; see `choose_types`."""
    matrices = _matrices(weights)
    kept = {tensor.name: tensor.type_name for tensor in weights.tensors}
    rest = [tensor for tensor in weights.tensors if tensor.name not in matrices]
    header = len(plan_header(weights, GgufPlan(kept, frozenset(), ""), importance))
    fixed = header + sum(
        aligned_bytes(tensor, STORED[tensor.type_name], weights.alignment) for tensor in rest
    )
    chosen = choose_types(weights, matrices, target_bytes, fixed, importance, threads, progress)
    return GgufPlan(kept | chosen, frozenset(matrices), f"mix for {target_bytes} bytes")


def plan_header(weights: Weights, plan: GgufPlan, importance: Importance | None) -> bytes:
    """The new file's header: the source's metadata, with what llama.cpp says of quantization."""
    keys: dict[str, str | int] = {
        "general.file_type": FILE_TYPES[plan.mostly],
        "general.quantization_version": QUANTIZATION_VERSION,
    }
    if importance is not None:
        keys["quantize.imatrix.file"] = importance.path.name
        keys["quantize.imatrix.dataset"] = importance.dataset
        keys["quantize.imatrix.entries_count"] = len(importance.weights)
        keys["quantize.imatrix.chunks_count"] = importance.chunks
    entries = weights.entries | {key: encode_entry(key, value) for key, value in keys.items()}
    return encode_header(entries, tensor_entries(weights, plan), weights.alignment)


def tensor_entries(weights: Weights, plan: GgufPlan) -> list[TensorEntry]:
    """What the header says of each tensor, in order."""
    entries = []
    for tensor in weights.tensors:
        form = STORED[plan.types[tensor.name]]
        nbytes = tensor.rows * form.row_bytes(tensor.columns)
        entries.append(TensorEntry(tensor.name, tensor.shape, form.ggml_type, nbytes))
    return entries


def plan_notes(weights: Weights, plan: GgufPlan, importance: Importance | None) -> list[str]:
    """What a person should know of the plan."""
    notes = []
    changed = [t for t in weights.tensors if plan.types[t.name] != t.type_name]
    twice = Counter(t.type_name for t in changed if t.type_name not in FLOATS)
    if twice:
        kinds = ", ".join(f"{count} of {name}" for name, count in twice.items())
        notes.append(
            f"quantized twice: {sum(twice.values())} tensors were quantized before ({kinds}); "
            "errors are against those, the original's are larger"
        )
    odd = [t for t in changed if plan.types[t.name] in WIDER.values() and t.columns % 256]
    if odd:
        kinds = ", ".join(sorted({plan.types[t.name] for t in odd}))
        notes.append(f"{len(odd)} tensors have rows that 256 does not divide: {kinds}")
    if importance is not None:
        users = [t for t in changed if plan.types[t.name].endswith("_K")]
        with_it = sum(importance.of(t) is not None for t in users)
        if not with_it:
            raise UsageError(
                f"{importance.path}: no importance for any tensor that becomes a K-quant; it is of "
                "another model, or the type is one that takes none"
            )
        notes.append(f"importance weights for {with_it} of {len(users)} K-quant tensors")
    return notes


def _matrices(weights: Weights) -> dict[str, WeightTensor]:
    """Tensors that may be quantized, and that numbers can be had of."""
    return {
        tensor.name: tensor
        for tensor in weights.tensors
        if can_be_quantized(tensor.name, tensor.shape) and tensor.type_name not in NO_WEIGHTS
    }

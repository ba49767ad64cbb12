"""What an ordinary GGUF file holds, as streaming sees it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from penstock.loaders.gguf_file import GGUFFile
from penstock.loaders.weight_map import WeightMap, map_weights

KINDS = ("table", "expert", "matrix", "small", "skipped")


@dataclass(frozen=True)
class Part:
    """Tensors that have something in common."""

    tensors: int
    nbytes: int


@dataclass(frozen=True)
class GgufSummary:
    """A model, all parts of a split file together.

    Attributes:
        files: the parts, or the one file.
        arch: '' where the file names none.
        context: that the model was made for; None where the file does not say, as of the others.
        kinds: sizes by what streaming does with a tensor: see `weight_map`.
        types: sizes by number format, largest first.
        expert_bytes: of one expert of the layer with the largest.
    """

    files: tuple[Path, ...]
    size: int
    name: str | None
    arch: str
    blocks: int | None
    width: int | None
    context: int | None
    expert_blocks: int
    experts: int
    experts_used: int | None
    expert_bytes: int
    kinds: dict[str, Part]
    types: dict[str, Part]

    def to_dict(self) -> dict[str, Any]:
        """For --json."""
        return asdict(self)


def summarize(path: Path) -> GgufSummary:
    """Read the headers of a model's files.

    Raises:
        FormatError: a header is damaged, or a part is missing.
    """
    weights = map_weights(path)
    head = weights.files[0]
    name, arch = (head.metadata.get(f"general.{key}") for key in ("name", "architecture"))
    arch = arch if isinstance(arch, str) else ""
    return GgufSummary(
        files=tuple(file.path for file in weights.files),
        size=weights.size,
        name=name if isinstance(name, str) else None,
        arch=arch,
        blocks=_number(head, f"{arch}.block_count"),
        width=_number(head, f"{arch}.embedding_length"),
        context=_number(head, f"{arch}.context_length"),
        expert_blocks=len(weights.expert_blocks),
        experts=weights.experts,
        experts_used=_number(head, f"{arch}.expert_used_count"),
        expert_bytes=weights.expert_bytes,
        kinds={kind: Part(len(weights.of(kind)), weights.nbytes(kind)) for kind in KINDS},
        types=_types(weights),
    )


def _types(weights: WeightMap) -> dict[str, Part]:
    found: dict[str, Part] = {}
    for weight in weights.weights:
        old = found.get(weight.info.type_name, Part(0, 0))
        found[weight.info.type_name] = Part(old.tensors + 1, old.nbytes + weight.info.nbytes)
    return dict(sorted(found.items(), key=lambda entry: -entry[1].nbytes))


def _number(file: GGUFFile, key: str) -> int | None:
    value = file.metadata.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else None

"""What the tensors of a GGUF file are for streaming: tables, experts, matrices, and the rest.

| kind | tensors | what becomes of it |
|---|---|---|
| table | embeddings that are only ever read by rows | stays in llama.cpp's mapping |
| expert | one matrix of each of a layer's experts (3-D) | expert window |
| matrix | 2-D weights of a block, and the output matrix | pinned, or a part of each streamed |
| small | norms, biases, routers, everything else | pinned |
| skipped | what llama.cpp does not use: blocks that predict further tokens (MTP) | left alone |
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from penstock.errors import FormatError
from penstock.loaders.gguf_file import GGUFFile, TensorInfo, Value, read_gguf
from penstock.loaders.vocabulary import Vocabulary, measure_vocabulary

PAGE = 4096
SKIPPED = "skipped"
LONGEST_ARRAY = 4096  # of values that are kept: one for each layer, and the like
SMALLEST_MATRIX = 1 << 20  # smaller ones are not worth a stop of the graph

_EXPERTS = re.compile(r"blk\.(\d+)\.ffn_(gate|up|down|gate_up)_exps\.weight")
_BLOCK = re.compile(r"blk\.(\d+)\.")
_SPLIT = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")
_TABLES = ("token_embd.weight", "per_layer_token_embd.weight", "position_embd.weight")
# In the order in which graphs use them.
_EXPERT_TURN = {"gate_up": 0, "up": 1, "gate": 2, "down": 3}


@dataclass(frozen=True)
class Weight:
    """One tensor. file: which part of a split file; block: -1 outside of blocks."""

    info: TensorInfo
    file: int
    kind: str
    block: int
    experts: int = 0

    @property
    def stride(self) -> int:
        """Bytes of one expert."""
        return self.info.nbytes // self.experts


@dataclass(frozen=True)
class WeightMap:
    """All weights of a model.

    Attributes:
        files: parts of a split file, or the one file; the first has the metadata. Without what is
            large and not needed again: the vocabulary, long arrays, the headers' bytes.
        expert_blocks: blocks that have experts, ascending.
    """

    files: tuple[GGUFFile, ...]
    weights: tuple[Weight, ...]
    expert_blocks: tuple[int, ...]
    experts: int
    vocabulary: Vocabulary

    @property
    def path(self) -> Path:
        return self.files[0].path

    def without(self, skipped: Callable[[Weight], bool]) -> WeightMap:
        """The same with some of the weights as of the kind 'skipped'."""
        weights = tuple(replace(w, kind=SKIPPED) if skipped(w) else w for w in self.weights)
        return replace(self, weights=weights, expert_blocks=_expert_blocks(weights))

    def of(self, kind: str) -> list[Weight]:
        return [w for w in self.weights if w.kind == kind]

    def nbytes(self, kind: str) -> int:
        return sum(w.info.nbytes for w in self.of(kind))

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(f.size for f in self.files)

    @property
    def expert_bytes(self) -> int:
        """Of the largest expert, all its tensors together."""
        blocks: dict[int, int] = {}
        for w in self.of("expert"):
            blocks[w.block] = blocks.get(w.block, 0) + w.stride
        return max(blocks.values(), default=0)

    @property
    def shared_pages(self) -> int:
        """Bytes of pages that two experts share, which stay in memory."""
        return sum((w.experts + 1) * PAGE for w in self.of("expert"))

    def largest_matrix(self) -> int:
        return max((w.info.nbytes for w in self.of("matrix") if w.block >= 0), default=0)

    def largest_block(self) -> int:
        """Bytes of the largest block's tensors."""
        blocks: dict[int, int] = {}
        for w in self.weights:
            if w.block >= 0 and w.kind != SKIPPED:
                blocks[w.block] = blocks.get(w.block, 0) + w.info.nbytes
        return max(blocks.values(), default=0)


def split_paths(first: Path) -> list[Path]:
    """All parts of a split file, given any of them; the file itself when it is not split.

    Raises:
        FormatError: a part is missing.
    """
    match = _SPLIT.fullmatch(first.name)
    if match is None:
        return [first]
    stem, count = match[1], int(match[3])
    paths = [first.with_name(f"{stem}-{n:05d}-of-{count:05d}.gguf") for n in range(1, count + 1)]
    for path in paths:
        if not path.exists():
            raise FormatError(
                f"{path}: this part of the split model is missing; put all {count} parts "
                "in one folder"
            )
    return paths


def map_weights(path: Path, smallest_matrix: int = SMALLEST_MATRIX) -> WeightMap:
    """Read the headers of a GGUF file, or of all its parts, and classify its tensors.

    Args:
        smallest_matrix: bytes of the smallest tensor that is a matrix; lower ones are pinned.

    Raises:
        FormatError: a header is damaged, a part is missing, or experts have an impossible shape.
    """
    read: list[GGUFFile] = []
    vocabulary = Vocabulary()
    for part in split_paths(path):
        file = read_gguf(part)
        vocabulary = vocabulary if read else measure_vocabulary(file)
        read.append(_slim(file))
    files = tuple(read)
    names = {name for f in files for name in f.tensors}
    weights = [
        _weight(file, number, info, names, smallest_matrix)
        for number, file in enumerate(files)
        for info in file.tensors.values()
    ]
    experts = {w.experts for w in weights if w.experts}
    if len(experts) > 1:
        raise FormatError(
            f"{path}: its blocks have different numbers of experts: {sorted(experts)}"
        )
    most = max(experts, default=0)
    found = WeightMap(files, tuple(weights), _expert_blocks(weights), most, vocabulary)
    last = _predicting_blocks(files[0])
    return found.without(lambda w: w.block in last) if last else found


def _slim(file: GGUFFile) -> GGUFFile:
    """A header without what takes tens of megabytes in some files."""
    kept: dict[str, Value] = {
        key: value
        for key, value in file.metadata.items()
        if not isinstance(value, list)
        and not (isinstance(value, np.ndarray) and value.size > LONGEST_ARRAY)
    }
    return replace(file, metadata=kept, value_offsets={}, header=b"")


def _expert_blocks(weights: Sequence[Weight]) -> tuple[int, ...]:
    return tuple(sorted({w.block for w in weights if w.kind == "expert"}))


def _predicting_blocks(file: GGUFFile) -> range:
    """The last blocks where they predict tokens after the next: llama.cpp is told to skip them."""
    arch = file.metadata.get("general.architecture")
    blocks, last = (
        file.metadata.get(f"{arch}.{key}") for key in ("block_count", "nextn_predict_layers")
    )
    if not isinstance(blocks, int) or not isinstance(last, int) or not 0 < last < blocks:
        return range(0)
    return range(blocks - last, blocks)


def _weight(
    file: GGUFFile, number: int, info: TensorInfo, names: set[str], smallest: int
) -> Weight:
    block = _BLOCK.match(info.name)
    at = int(block[1]) if block else -1
    if _EXPERTS.fullmatch(info.name):
        count = info.shape[0]
        if len(info.shape) != 3 or count < 1 or info.nbytes % count:
            raise FormatError(
                f"{file.path}: tensor '{info.name}' has shape {info.shape}; expected three "
                "dimensions, experts first"
            )
        return Weight(info, number, "expert", at, count)
    if info.name in _TABLES and not (info.name == _TABLES[0] and "output.weight" not in names):
        return Weight(info, number, "table", at)
    large = len(info.shape) == 2 and info.nbytes >= smallest
    # An embedding that is the output matrix too is read by rows first: it stays in memory.
    if large and (at >= 0 or info.name == "output.weight"):
        return Weight(info, number, "matrix", at)
    return Weight(info, number, "small", at)


def expert_order(weights: list[Weight]) -> list[Weight]:
    """Experts' tensors by block, in the order of use."""

    def turn(w: Weight) -> tuple[int, int]:
        match = _EXPERTS.fullmatch(w.info.name)
        return w.block, _EXPERT_TURN[match[2]] if match else 0

    return sorted(weights, key=turn)


def streamed_pages(weight: Weight, share: float, most: int) -> tuple[int, int]:
    """(offset, bytes) of the whole pages at a matrix's end that are streamed; bytes may be 0.

    Args:
        share: of the matrix, 0 to 1.
        most: bytes.
    """
    begin, end = weight.info.offset, weight.info.offset + weight.info.nbytes
    wanted = min(int(weight.info.nbytes * share), most)
    last = end // PAGE * PAGE
    first = max(-(-begin // PAGE) * PAGE, -(-(end - wanted) // PAGE) * PAGE)
    return first, max(0, last - first)


def pinned_ranges(first: int, last: int, taken: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """(offset, bytes) of the pages in [first, last) that are in none of `taken`, merged.

    Args:
        first, last: page multiples; what is mapped of the file, or a piece of it.
        taken: (offset, bytes) of page ranges that are streamed, experts' own, or left as they are;
            also those outside of the piece.
    """
    out, at = [], first
    for offset, nbytes in sorted(taken):
        begin, end = max(offset, first), min(offset + nbytes, last)
        if end <= begin:
            continue
        if begin > at:
            out.append((at, begin - at))
        at = max(at, end)
    if last > at:
        out.append((at, last - at))
    return out


def expert_pages(weight: Weight) -> list[tuple[int, int]]:
    """(offset, bytes) of the whole pages of each expert of a tensor."""
    out = []
    for e in range(weight.experts):
        begin = weight.info.offset + e * weight.stride
        first, last = -(-begin // PAGE) * PAGE, (begin + weight.stride) // PAGE * PAGE
        if last > first:
            out.append((first, last - first))
    return out


def inner_pages(weight: Weight) -> tuple[int, int]:
    """(offset, bytes) of a tensor's whole pages."""
    begin, end = weight.info.offset, weight.info.offset + weight.info.nbytes
    first, last = -(-begin // PAGE) * PAGE, end // PAGE * PAGE
    return first, max(0, last - first)

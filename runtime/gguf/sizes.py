"""What of a file's figures memory depends on, beside the weights: caches, states and buffers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from penstock.errors import FormatError, UnsupportedModelError
from penstock.loaders.gguf_file import GGUFFile
from penstock.loaders.weight_map import WeightMap

CONTEXT = 2048  # of a file that does not say what it was made for
KV_BYTES = {"f16": (1, 2), "q8_0": (32, 34), "q4_0": (32, 18)}  # elements in a block, bytes
SLACK = 20 << 20  # llama.cpp's tables, page tables, pages of the embedding, Python's objects
MAPPED_SHARE = 0.003  # page tables and the like, of what is mapped
PART_BYTES = 64 << 10  # the queue of reads of each part of a split file
# Keys of layers that keep a state instead of keys and values.
_RECURRENT = ("ssm.", "wkv.", "shortconv.", "kda.")


@dataclass(frozen=True)
class Sizes:
    """The file's figures that the budget depends on.

    Attributes:
        vocab: rows of the embedding.
        kv_row: elements of keys and values of a token, all layers.
        trained: tokens of context that the model was made for.
        head_dims: of keys and of values.
        state: bytes of recurrent layers' state; -1 where the keys do not tell.
        inner: elements of a token inside of a recurrent layer.
    """

    layers: int
    width: int
    ffn: int
    heads: int
    vocab: int
    kv_row: int
    trained: int
    experts_used: int
    head_dims: tuple[int, int]
    state: int = 0
    inner: int = 0


def read_sizes(weights: WeightMap) -> Sizes:
    """The figures of a model.

    Raises:
        FormatError: a key is missing or not a number, or the model is none of language.
    """
    file = weights.files[0]
    number = _numbers(file)
    layers, width, heads = (
        number("block_count", None),
        number("embedding_length", None),
        number("attention.head_count", 1),
    )
    if layers < 1 or width < 1:
        raise FormatError(
            f"{file.path}: it has {layers} blocks of width {width}; this is no language model"
        )
    kv_heads = number("attention.head_count_kv", heads)
    head = width // max(heads, 1)
    dims = number("attention.key_length", head), number("attention.value_length", head)
    vocab = next(
        (w.info.shape[0] for w in weights.weights if w.info.name == "token_embd.weight"), 1
    )
    state, inner = _recurrent(file, number, layers, width, heads)
    return Sizes(
        layers=layers,
        width=width,
        ffn=number("feed_forward_length", 0),
        heads=heads,
        vocab=vocab,
        kv_row=layers * kv_heads * sum(dims),
        trained=number("context_length", CONTEXT),
        experts_used=number("expert_used_count", 0) if weights.experts else 0,
        head_dims=dims,
        state=state,
        inner=inner,
    )


def _numbers(file: GGUFFile) -> Callable[[str, int | None], int]:
    arch = file.get_str("general.architecture")

    def number(name: str, default: int | None) -> int:
        value = file.metadata.get(f"{arch}.{name}", default)
        if isinstance(value, np.ndarray) and value.size:  # one for each layer
            value = int(value.max())
        if isinstance(value, bool) or not isinstance(value, int):
            raise file.wrong(f"{arch}.{name}", "a whole number", value)
        return value

    return number


def _recurrent(
    file: GGUFFile, number: Callable[[str, int | None], int], layers: int, width: int, heads: int
) -> tuple[int, int]:
    """Bytes of the state of all layers, as if each were recurrent, and the width inside of one.

    llama.cpp's rules: a state in F32 of each layer, and the last tokens of a convolution.
    """
    arch = file.get_str("general.architecture")
    if not any(key.startswith(f"{arch}.{name}") for key in file.metadata for name in _RECURRENT):
        return 0, 0
    conv = number("ssm.conv_kernel", 0)
    rows, inner = number("ssm.state_size", 0), number("ssm.inner_size", 0)
    wide = inner + 2 * number("ssm.group_count", 0) * rows
    counted = [(max(conv - 1, 0) * wide + rows * inner, wide)]
    head = number("wkv.head_size", 0)
    counted.append(((head + number("token_shift_count", 2)) * width if head else 0, 4 * width))
    taps = number("shortconv.l_cache", 0)
    counted.append(((taps - 1) * width if taps else 0, 3 * width))
    head = number("kda.head_dim", 0)
    before = 3 * (conv - 1 if conv else 3)  # of queries, keys and values
    counted.append(((before + head) * heads * head, 3 * heads * head))
    elements = max(count for count, _ in counted)
    if elements <= 0:
        return -1, width
    return 4 * layers * elements, max(wide for count, wide in counted if count)


def check_countable(sizes: Sizes, path: object) -> None:
    """Raises UnsupportedModelError where no budget would hold."""
    if sizes.state < 0:
        raise UnsupportedModelError(
            f"{path}: the model has recurrent layers, and its keys do not tell how large their "
            "state is, so that no memory budget would hold; load it without one"
        )


def kv_bytes(sizes: Sizes, context: int, kv_type: str) -> int:
    """The KV cache."""
    block, nbytes = KV_BYTES[kv_type]
    padded = -(-context // 256) * 256
    return int(padded * sizes.kv_row * nbytes / block)


def buffer_bytes(weights: WeightMap, sizes: Sizes, context: int, batch: int) -> int:
    """llama.cpp's compute buffer, counted high, and what else grows with the model.

    Of a batch live at once: the residual stream and a few copies of it, the wide FFN tensors, those
    of recurrent layers with what they make their state of, and the attention scores where attention
    is not fused.
    """
    ffn = max(sizes.ffn, sizes.experts_used * _expert_ffn(weights))
    tensors = batch * 4 * (5 * sizes.width + max(3 * ffn, 8 * sizes.inner))
    states = 4 * max(sizes.state, 0) // sizes.layers
    scores = batch * context * 4 * min(sizes.heads, 8)
    logits = 2 * 4 * sizes.vocab
    parts = PART_BYTES * len(weights.files)
    return int(tensors + states + scores + logits + parts + SLACK + MAPPED_SHARE * weights.size)


def _expert_ffn(weights: WeightMap) -> int:
    return max((max(w.info.shape[1:]) for w in weights.of("expert")), default=0)

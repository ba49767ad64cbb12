"""Which number format each tensor of a GGUF gets, and how it is encoded.

The rules are llama.cpp's (src/llama-quant.cpp): matrices are quantized, what is small or steers the
model stays as it is, rows that a format's blocks do not divide get the next wider format, and the
output matrix, or the embedding where it is the output too, gets six bits or eight.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize
from numpy.typing import NDArray

from penstock.errors import UnsupportedModelError, UsageError
from penstock.loaders.gguf_file import TYPE_NAMES
from penstock.quant.blocks import F32, FORMATS, BlockFormat, encode_rows
from penstock.quant.k_quants import K_FORMATS, encode_q4_k, encode_q5_k, encode_q6_k

TYPES: dict[str, BlockFormat] = {
    "F32": F32,
    **FORMATS,
    "BF16": BlockFormat("BF16", 30, 1, 2),
    "Q5_0": BlockFormat("Q5_0", 6, 32, 22),
    "Q5_1": BlockFormat("Q5_1", 7, 32, 24),
    **K_FORMATS,
}
TARGETS = ("Q4_K", "Q5_K", "Q6_K", "Q8_0", "Q4_0", "F16")
FLOATS = frozenset({"F32", "F16", "BF16"})
NO_WEIGHTS = frozenset({"I8", "I16", "I32", "I64", "F64"})  # tables; copied
_K_ENCODERS = {"Q4_K": encode_q4_k, "Q5_K": encode_q5_k, "Q6_K": encode_q6_k}

# llama.cpp's `general.file_type` of a file that is mostly of one format.
FILE_TYPES = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q4_K": 14, "Q5_K": 16,
    "Q6_K": 18, "BF16": 32,
}  # fmt: skip
QUANTIZATION_VERSION = 2

WIDER = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}  # where 256 does not divide a row
# Small matrices, positions, routers and what is no weight of a product.
_LEFT_ALONE = re.compile(
    r"_norm\.weight|ffn_gate_inp\.weight|ffn_gate_tid2eid|altup|laurel|per_layer_model_proj"
    r"|^position_embd\.weight|^token_types\.weight|ssm_conv1d|shortconv\.conv\.weight"
    r"|time_mix_(first|w[012]|v[012]|a[012]|g[12]|decay_w[12]|lerp_fused)\.weight"
    r"|attn_rel_b\.weight|\.position_embd\."
)
EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"


@dataclass(frozen=True)
class TypeChoice:
    """What the caller wants.

    Attributes:
        matrices: format of all matrices but these two.
        output: of the output matrix, or of the embedding where it serves as output; None: Q6_K
            (Q8_0 where 256 does not divide its rows, or `matrices` is Q8_0; F16 where that is).
        embedding: of the token embedding, where there is an output matrix; None: `matrices`.
    """

    matrices: str
    output: str | None = None
    embedding: str | None = None

    def __post_init__(self) -> None:
        """Raises UsageError: there is no such format."""
        for name in (self.matrices, self.output, self.embedding):
            if name is not None and name not in TARGETS:
                raise UsageError(f"type '{name}' is not known; expected {', '.join(TARGETS)}")

    def of(self, name: str, shape: tuple[int, ...], tied: bool) -> str:
        """The format of a tensor that `can_be_quantized`."""
        columns = shape[-1]
        if name == OUTPUT or (name == EMBEDDING and tied):
            wanted = self.output
            if wanted is None:
                wide = self.matrices in ("Q8_0", "F16")
                wanted = self.matrices if wide else "Q6_K"
        elif name == EMBEDDING and self.embedding is not None:
            wanted = self.embedding
        else:
            wanted = self.matrices
        return fitting(wanted, columns)


def can_be_quantized(name: str, shape: tuple[int, ...]) -> bool:
    """Whether it is a matrix, or experts' matrices, that llama.cpp would quantize."""
    dims = len(shape) - next((i for i, size in enumerate(shape) if size > 1), len(shape) - 1)
    return dims >= 2 and name.endswith("weight") and not _LEFT_ALONE.search(name)


def fitting(wanted: str, columns: int) -> str:
    """The format, or the next wider one whose blocks divide a row."""
    for name in (wanted, WIDER.get(wanted, "F16")):
        if columns % TYPES[name].block == 0:
            return name
    return "F16"


def encode(
    rows: NDArray[np.float32], form: BlockFormat, weights: NDArray[np.float32] | None = None
) -> NDArray[np.uint8]:
    """Rows (n, columns) as bytes (n, row_bytes).

    Args:
        weights: importance, (columns,) or (n, columns); K-quants use them, other formats do not.

    Raises:
        FormatError: a value that the format cannot hold. UsageError: a weight that is not one.
    """
    if form.name in _K_ENCODERS:
        return _K_ENCODERS[form.name](rows, weights)
    return encode_rows(rows, form)


def decode(data: NDArray[np.uint8], ggml_type: int) -> NDArray[np.float32]:
    """Rows (n, row_bytes) of any of ggml's formats, as the `gguf` package decodes them.

    Raises:
        UnsupportedModelError: it does not know this one.
    """
    try:
        rows: NDArray[np.float32] = dequantize(data, GGMLQuantizationType(ggml_type))
    except (NotImplementedError, ValueError, KeyError):
        name = TYPE_NAMES.get(ggml_type, f"type {ggml_type}")
        raise UnsupportedModelError(
            f"weights of {name} cannot be decoded by this version of the gguf package; start from "
            "a file with F16, BF16 or F32 weights"
        ) from None
    return rows

"""Where a model comes from: a Hugging Face folder or an ordinary GGUF file, behind one protocol."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from penstock.errors import FormatError, StorageError
from penstock.export.model_spec import MetadataValue, ModelSpec
from penstock.quant.blocks import BlockFormat


class Source(Protocol):
    """A model read piece by piece: nothing is loaded before it is asked for.

    Attributes:
        path: the folder or file.
        spec: shape and arithmetic.
        shapes: llama.cpp's name -> shape of every tensor: `blk.0.ffn_up.weight` (neurons, width),
            `blk.0.ffn_down.weight` (width, neurons)...
        parameters: how many weights; weight_bytes: of them, in the source's own format.
        weight_format: that format's name.
        tokenizer: `tokenizer.*` keys of the bundle.
    """

    path: Path
    spec: ModelSpec
    parameters: int
    weight_bytes: int
    weight_format: str

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...

    @property
    def tokenizer(self) -> Mapping[str, MetadataValue]: ...

    def vector(self, name: str) -> NDArray[np.float32]:
        """A bias or norm, (elements,)."""
        ...

    def rows(self, name: str, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Rows of a matrix, in the order of `ids`; (len(ids), columns)."""
        ...

    def encoded_rows(
        self, name: str, ids: NDArray[np.int64], form: BlockFormat
    ) -> NDArray[np.uint8] | None:
        """The same as bytes (len(ids), row_bytes) when the source already has this format, else
        None."""
        ...


def open_source(path: str | os.PathLike[str], activation: str | None = None) -> Source:
    """Open a Hugging Face folder or a GGUF file.

    Args:
        activation: for a GGUF that does not say, `relu`, `relu2`, `drelu` or `fatrelu:THRESHOLD`.

    Raises:
        FormatError: not a model, damaged, or weights in a format that could run code.
        StorageError: it cannot be read.
        UnsupportedModelError: an architecture or activation that does not work here.
    """
    from penstock.export.sources.gguf import GGUFSource
    from penstock.export.sources.huggingface import HuggingFaceSource

    where = Path(path)
    if where.is_dir():
        return HuggingFaceSource(where)
    if not where.exists():
        raise StorageError(
            f"{where}: there is no such file or folder; give a Hugging Face folder or a GGUF file"
        )
    with open(where, "rb") as handle:
        if handle.read(4) == b"GGUF":
            return GGUFSource(where, activation)
    raise FormatError(
        f"{where}: neither a Hugging Face folder nor a GGUF file; give the folder that has "
        "config.json, "
        "or a file that ends in .gguf"
    )

"""A Hugging Face folder: config.json, tokenizer.json, safetensors in one file or in shards."""

from __future__ import annotations

import math
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from penstock.errors import FormatError, UnsupportedModelError
from penstock.export import architectures
from penstock.export.hf_config import HFConfig, read_json
from penstock.export.hf_tokenizer import tokenizer_metadata
from penstock.export.model_spec import MappedTensor, MetadataValue
from penstock.export.sources.safetensors_file import SafetensorsFile
from penstock.quant.blocks import BlockFormat

INDEX = "model.safetensors.index.json"


class HuggingFaceSource:
    """See `Source`. Weights are read by rows from the shards; no file is mapped or loaded whole."""

    def __init__(self, path: Path, architecture: architectures.Architecture | None = None) -> None:
        """Of an architecture; None: the one of `architectures` that the config names."""
        self.path = path
        if not (path / "config.json").is_file():
            raise FormatError(f"{path}: has no config.json; expected a Hugging Face model folder")
        self.config = HFConfig(path / "config.json")
        architecture = architecture or architectures.find(self.config)
        self.spec = architecture.read_spec(self.config)
        self._check_spec()
        files = [SafetensorsFile(path / name) for name in _shards(path)]
        self._file_of = {name: file for file in files for name in file.tensors}
        self._map = architecture.map_tensors(self.spec, self.config, self._file_of)
        self.shapes = {name: mapped.shape for name, mapped in self._map.items()}
        stored = {m.source: self._file_of[m.source].tensors[m.source] for m in self._map.values()}
        formats = [s.dtype for s in stored.values() if len(s.shape) > 1]
        self.parameters = sum(math.prod(s.shape) for s in stored.values())
        self.weight_bytes = sum(s.nbytes for s in stored.values())
        self.weight_format = max(set(formats), key=formats.count)
        self._right: tuple[str, NDArray[np.float32]] | None = None
        for name, mapped in self._map.items():
            self._check_shape(name, mapped)

    @cached_property
    def tokenizer(self) -> dict[str, MetadataValue]:
        return tokenizer_metadata(self.path, self.config, self.spec.vocab)

    def vector(self, name: str) -> NDArray[np.float32]:
        (length,) = self.shapes[name]
        return self.rows(name, np.arange(length)).reshape(-1)

    def rows(self, name: str, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        mapped = self._map[name]
        at = ids if mapped.rows is None else mapped.rows[ids]
        values = self._file_of[mapped.source].rows(mapped.source, at)
        if mapped.right is not None:
            values = values @ self._right_matrix(mapped)
        if mapped.scale != 1.0:
            values *= np.float32(mapped.scale)
        if mapped.add:
            values += np.float32(mapped.add)
        return values

    def encoded_rows(
        self, name: str, ids: NDArray[np.int64], form: BlockFormat
    ) -> NDArray[np.uint8] | None:
        return None

    def _right_matrix(self, mapped: MappedTensor) -> NDArray[np.float32]:
        assert mapped.right is not None
        if self._right is None or self._right[0] != mapped.right:
            file = self._file_of[mapped.right]
            matrix = file.rows(mapped.right, np.arange(file.tensors[mapped.right].shape[0]))
            self._right = mapped.right, matrix.T.copy() if mapped.right_transposed else matrix
        return self._right[1]

    def _check_spec(self) -> None:
        s = self.spec
        if s.heads % s.kv_heads or s.head_dim % 2 or (s.rope_dims or 0) % 2:
            raise UnsupportedModelError(
                f"{self.config.path}: {s.heads} heads over {s.kv_heads} key-value heads of "
                f"{s.head_dim} "
                "dimensions; expected a whole ratio and an even number of dimensions"
            )

    def _check_shape(self, name: str, mapped: MappedTensor) -> None:
        file = self._file_of[mapped.source]
        stored = file.tensors[mapped.source].shape
        expected: tuple[int, ...] = mapped.shape
        if mapped.right is not None:
            right = self._file_of[mapped.right].tensors[mapped.right].shape
            expected = (mapped.shape[0], right[1] if mapped.right_transposed else right[0])
        least = expected[0] if mapped.rows is None else int(mapped.rows.max()) + 1
        if stored != (least, *expected[1:]):
            raise FormatError(
                f"{file.path}: tensor '{mapped.source}' ('{name}' of the bundle) has shape "
                f"{stored}; "
                f"config.json asks for {(least, *expected[1:])}. Weights and config do not belong "
                "together."
            )


def _shards(path: Path) -> list[str]:
    """File names of the weights. Raises FormatError where only a pickle is there."""
    if (path / INDEX).is_file():
        weight_map = read_json(path / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise FormatError(f"{path / INDEX}: has no 'weight_map'; fetch it again")
        names = sorted({str(v) for v in weight_map.values()})
        for name in names:
            if Path(name).name != name or not name.endswith(".safetensors"):
                raise FormatError(
                    f"{path / INDEX}: shard '{name}' is not a plain *.safetensors file name"
                )
        return names
    names = sorted(p.name for p in path.glob("*.safetensors"))
    if "model.safetensors" in names:
        return ["model.safetensors"]
    if len(names) == 1:
        return names
    pickles = [*path.glob("*.bin"), *path.glob("*.pt"), *path.glob("*.pth")]
    if pickles:
        raise FormatError(
            f"{path}: its weights are '{pickles[0].name}', a pickle, which can run code when it "
            "is opened and "
            'is not read here. Convert it once, where you trust it: python -c "from transformers '
            "import "
            "AutoModelForCausalLM as M; "
            f"M.from_pretrained('{path}').save_pretrained('{path}-safetensors')\""
        )
    raise FormatError(f"{path}: has no model.safetensors and no {INDEX}; fetch the model's weights")

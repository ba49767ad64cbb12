"""One file an architecture: how a Hugging Face checkpoint of it becomes a bundle's tensors.

Each module has the same three names; adding an architecture is one such file and a test.

    MODEL_TYPES                        `model_type`s of config.json that it takes
    read_spec(config) -> ModelSpec     hyperparameters, checked
    map_tensors(spec, config, names)   llama.cpp's name -> MappedTensor; names: the checkpoint's
"""

from __future__ import annotations

import pkgutil
from collections.abc import Collection
from importlib import import_module
from types import ModuleType
from typing import Protocol, cast

from penstock.errors import UnsupportedModelError
from penstock.export.hf_config import HFConfig
from penstock.export.model_spec import MappedTensor, ModelSpec


class Architecture(Protocol):
    MODEL_TYPES: tuple[str, ...]

    def read_spec(self, config: HFConfig) -> ModelSpec: ...

    def map_tensors(
        self, spec: ModelSpec, config: HFConfig, names: Collection[str]
    ) -> dict[str, MappedTensor]: ...


def modules() -> dict[str, ModuleType]:
    """The shipped architectures, by file name."""
    names = sorted(m.name for m in pkgutil.iter_modules(__path__))
    return {name: import_module(f"{__name__}.{name}") for name in names}


def find(config: HFConfig) -> Architecture:
    """The architecture of a checkpoint. Raises UnsupportedModelError, with those that exist."""
    model_type = config.text("model_type")
    known: list[str] = []
    for module in modules().values():
        if model_type in module.MODEL_TYPES:
            return cast(Architecture, module)
        known += module.MODEL_TYPES
    raise UnsupportedModelError(
        f"{config.path}: model type '{model_type}' is not supported for neuron streaming. "
        f"Supported: {', '.join(known)}. Others run as ordinary GGUF files with llama.cpp."
    )


def require(names: Collection[str], tensor: str, config: HFConfig) -> str:
    """A tensor that the checkpoint must have. Raises UnsupportedModelError."""
    if tensor not in names:
        raise UnsupportedModelError(
            f"{config.path.parent}: tensor '{tensor}' is missing from the checkpoint; a "
            f"'{config.text('model_type')}' model has it. Fetch every shard of it again."
        )
    return tensor

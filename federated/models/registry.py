"""Which model: its name, its input, its classes and its widths; nothing else travels."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from penstock.errors import BackendMissingError, FormatError, UnsupportedModelError, UsageError
from penstock.federated.submodels import ModelSpec, check_ratio

if TYPE_CHECKING:
    from torch import nn

FILES = {
    "image-cnn": "image_cnn",
    "sensing-mlp": "sensing_mlp",
    "sensing-cnn": "sensing_cnn",
}
MOST_WIDTH, MOST_INPUT, MOST_CLASSES, MOST_LAYERS = 8192, 1 << 24, 65_536, 16


@dataclass(frozen=True)
class ModelOptions:
    """A model's description.

    Attributes:
        name: one of `model_names()`.
        input_shape: of one sample, without the batch: (1, 28, 28) channels, height, width;
            (43,) features; (9, 128) channels, time.
        classes: outputs.
        widths: channels of each hidden layer; empty: the model's default.
    """

    name: str
    input_shape: tuple[int, ...]
    classes: int
    widths: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.name not in FILES:
            raise UnsupportedModelError(
                f"model {self.name!r} is not known; this version has {', '.join(FILES)}"
            )
        size = 1
        for length in self.input_shape:
            if not 1 <= length <= MOST_INPUT:
                raise UsageError(f"input_shape is {self.input_shape}, expected positive lengths")
            size *= length
        if not self.input_shape or size > MOST_INPUT:
            raise UsageError(
                f"input_shape is {self.input_shape}, expected 1 to {MOST_INPUT} values"
            )
        if not 2 <= self.classes <= MOST_CLASSES:
            raise UsageError(f"classes is {self.classes}, expected 2 to {MOST_CLASSES}")
        if len(self.widths) > MOST_LAYERS or any(not 1 <= w <= MOST_WIDTH for w in self.widths):
            raise UsageError(f"widths is {self.widths}, expected 1 to {MOST_WIDTH} each")

    def to_json(self) -> str:
        """As one line, for a message or a checkpoint."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str, source: str = "model options") -> ModelOptions:
        """Back from `to_json`.

        Raises:
            FormatError: not such a line; UsageError, UnsupportedModelError: its values.
        """
        try:
            fields = json.loads(text)
            known = {"name", "input_shape", "classes", "widths"}
            if not isinstance(fields, dict) or set(fields) - known:
                raise ValueError(f"expected an object with {sorted(known)}")
            shape, widths = fields["input_shape"], fields.get("widths", [])
            values = [*shape, *widths, fields["classes"]]
            if not isinstance(fields["name"], str) or any(type(v) is not int for v in values):
                raise ValueError("expected a name and whole numbers")
            name, classes = fields["name"], fields["classes"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise FormatError(f"{source}: not a model's description: {error}") from error
        return cls(name, tuple(shape), classes, tuple(widths))


def model_names() -> tuple[str, ...]:
    """Names of the models."""
    return tuple(FILES)


def model_spec(options: ModelOptions) -> ModelSpec:
    """The model's tensors at full width; `.at(ratio)` gives a sub-model's.

    Raises:
        UsageError: the input shape or the widths do not suit this model.
    """
    spec = cast("Callable[[ModelOptions], ModelSpec]", _file(options).spec)(options)
    spec.groups()
    return spec


def build_module(options: ModelOptions, ratio: float = 1.0) -> nn.Module:
    """The torch module, its parameters freshly initialised.

    Raises:
        BackendMissingError: torch is not installed.
        UsageError: as `model_spec`, or the ratio is not in (0, 1].
    """
    check_ratio(ratio)
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise BackendMissingError(
            "training needs torch, which is not installed: pip install 'penstock[federated]'"
        ) from error
    build = cast("Callable[[ModelOptions, float], nn.Module]", _file(options).module)
    return build(options, ratio)


def _file(options: ModelOptions) -> Any:
    return import_module(f"penstock.federated.models.{FILES[options.name]}")

"""Options that run, chat and plan share as a whole: how to load a model, how to choose tokens.

A command takes a group as one parameter; to Typer each of its fields is an option.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import typer

from penstock.cli import options
from penstock.cli.console import say

if TYPE_CHECKING:
    from penstock.runtime.load import Model
    from penstock.runtime.sampling import SamplingParams


@dataclass(frozen=True)
class Loading:
    """How to load, in the names of `penstock.load`."""

    memory: options.Memory = None
    ffn_resident: options.FfnResident = None
    exact: options.Exact = False
    dense: options.Dense = False
    context: options.Context = None
    threads: options.Threads = None
    lora: options.Lora = None
    kv_type: options.KvType = None
    policy: options.Policy = None

    def __post_init__(self) -> None:
        if self.exact and self.dense:
            raise typer.BadParameter("choose --exact or --dense, not both")

    def arguments(self) -> dict[str, Any]:
        """For `penstock.load` and `penstock.plan`."""
        return {**dataclasses.asdict(self), "lora": [_adapter(entry) for entry in self.lora or []]}

    def load(self, path: Path) -> Model:
        """The model; what the person should know of its plan is said."""
        import penstock
        from penstock.runtime.gguf.model import GgufModel
        from penstock.runtime.load import refuse_arrays

        refuse_arrays(path)
        model: Model = penstock.load(path, **self.arguments())
        if isinstance(model, GgufModel) and model.plan.note:
            say(f"Note: {model.plan.note}.")
        return model


@dataclass(frozen=True)
class Sampling:
    """How to choose tokens, in the names of SamplingParams. Defaults are llama.cpp's, less its
    top-k and min-p."""

    temperature: options.Temperature = 0.8
    top_k: options.TopK = 0
    top_p: options.TopP = 0.95
    min_p: options.MinP = 0.0
    repetition_penalty: options.RepetitionPenalty = 1.0
    seed: options.Seed = None
    stop: options.Stop = None

    def params(self, max_tokens: int) -> SamplingParams:
        """The same for the sampler. Raises UsageError where a value is out of its range."""
        from penstock.runtime.sampling import SamplingParams

        values = {**dataclasses.asdict(self), "stop": tuple(self.stop or ())}
        return SamplingParams(max_tokens=max_tokens, **values)


def _adapter(entry: str) -> str | tuple[str, float]:
    """'adapter.gguf' or 'adapter.gguf:0.5'."""
    path, colon, scale = entry.rpartition(":")
    try:
        return (path, float(scale)) if colon else entry
    except ValueError:
        return entry  # a colon of the path's own


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """The command with each parameter that is a group replaced by the group's fields."""
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {
        n: hint for n, hint in hints.items() if dataclasses.is_dataclass(hint)
    }
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        if parameter.name not in groups:
            parameters.append(parameter.replace(annotation=hints[parameter.name]))
            continue
        group = groups[parameter.name]
        of_fields = get_type_hints(group, include_extras=True)
        for field in dataclasses.fields(group):
            parameters.append(
                parameter.replace(
                    name=field.name, default=field.default, annotation=of_fields[field.name]
                )
            )

    @functools.wraps(command)
    def with_groups(**values: Any) -> None:
        for name, group in groups.items():
            names = [field.name for field in dataclasses.fields(group)]
            values[name] = group(**{n: values.pop(n) for n in names})
        command(**values)

    with_groups.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return with_groups

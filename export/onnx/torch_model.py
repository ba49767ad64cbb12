"""A torch module as a `TensorModel`, so that what is made of it can be held against it."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.errors import BackendMissingError, PenstockError, UsageError
from penstock.export.dataset import Sample
from penstock.loaders.closing import Closing
from penstock.loaders.tensor_graph import TensorSpec

NOISY_EXAMPLES = 3


@dataclass(frozen=True)
class TorchSource:
    """A module with the inputs that it is exported with.

    Attributes:
        program: the `torch.nn.Module`, or the `ExportedProgram`, that is exported.
        module: to call; in evaluation mode while it runs.
        name: for people.
        inputs: example tensors; input_names: as many.
    """

    program: Any
    module: Any
    name: str
    inputs: tuple[Any, ...]
    input_names: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        """Of parameters and buffers."""
        tensors = [*self.module.parameters(), *self.module.buffers()]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def specs(self) -> tuple[TensorSpec, ...]:
        """Of the inputs, in the shapes of the examples."""
        return tuple(
            TensorSpec(name, str(tensor.numpy().dtype), tuple(tensor.shape))
            for name, tensor in zip(self.input_names, self.inputs, strict=True)
        )

    def call(self, tensors: Sequence[Any]) -> list[NDArray[Any]]:
        """Outputs in their order, of nested ones too."""
        torch = torch_library()
        was = set_training(self.module, False)
        try:
            with torch.no_grad():
                made = self.module(*tensors)
        finally:
            set_training(self.module, was)
        leaves, _ = torch.utils._pytree.tree_flatten(made)
        return [leaf.detach().cpu().numpy() for leaf in leaves]


def torch_source(
    program: Any,
    example_inputs: Sequence[Any] | None,
    input_names: Sequence[str] | None = None,
    name: str | None = None,
) -> TorchSource:
    """Check what is to be exported.

    Args:
        example_inputs: tensors or arrays; None: those that an exported program was made with.
        input_names: None: of `forward`'s arguments, or of the program's inputs.

    Raises:
        UsageError: no module; no examples, or one is no tensor; wrong names.
        BackendMissingError: torch is not installed.
    """
    torch = torch_library()
    if isinstance(program, torch.export.ExportedProgram):
        module = program.module()
        known = tuple(str(one) for one in program.graph_signature.user_inputs)
        if example_inputs is None:
            args, named = program.example_inputs or ((), {})
            example_inputs = () if named else args
    elif isinstance(program, torch.nn.Module):
        module = program
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        parameters = inspect.signature(program.forward).parameters.values()
        known = tuple(p.name for p in parameters if p.kind in kinds)
    else:
        kind = type(program).__name__
        raise UsageError(f"a {kind} was given, expected a torch.nn.Module or an ExportedProgram")
    tensors = tuple(_tensor(torch, i, value) for i, value in enumerate(example_inputs or ()))
    if not tensors:
        raise UsageError("there are no example inputs: shapes come from them; give some, in order")
    names = tuple(input_names or known[: len(tensors)])
    if len(names) != len(tensors) or len(set(names)) < len(names):
        raise UsageError(f"{len(tensors)} example inputs for the inputs {', '.join(names)}")
    return TorchSource(program, module, name or type(program).__name__, tensors, names)


@dataclass(frozen=True)
class Examples:
    """The example inputs, then normal noise of their shapes in place of their floats, as a
    `Dataset`."""

    source: TorchSource

    name = "the example inputs and noise of their shapes"
    labels = None

    def __len__(self) -> int:
        return 1 + NOISY_EXAMPLES

    def samples(self, limit: int | None = None) -> Iterator[Sample]:
        given = [tensor.numpy() for tensor in self.source.inputs]
        for index in range(len(self) if limit is None else min(limit, len(self))):
            rng = np.random.default_rng(index)
            arrays = [
                rng.normal(size=a.shape).astype(a.dtype) if index and a.dtype.kind == "f" else a
                for a in given
            ]
            yield Sample(
                f"example[{index}]", dict(zip(self.source.input_names, arrays, strict=True))
            )


class TorchModel(Closing):
    """See `TensorModel`; outputs are named as the file that was exported names them."""

    backend = "torch"

    def __init__(self, source: TorchSource, outputs: Sequence[TensorSpec], threads: int) -> None:
        torch = torch_library()
        self.path = Path(source.name)
        self.inputs = tuple(TensorSpec(spec.name, spec.dtype, None) for spec in source.specs())
        self.outputs = tuple(outputs)
        self.threads = threads
        self._source = source
        self._threads_before = torch.get_num_threads()
        torch.set_num_threads(threads)

    def run(
        self, inputs: Mapping[str, NDArray[Any]], *, floats: bool = False, finite: bool = False
    ) -> dict[str, NDArray[Any]]:
        """Run the module once; see `TensorModel`."""
        from penstock.runtime.backends.arrays import check_inputs, finish_outputs

        torch = torch_library()
        fed = check_inputs(self.path, self.inputs, inputs, floats, finite)
        try:
            made = self._source.call([torch.from_numpy(np.array(a)) for a in fed.values()])
        except Exception as error:  # whatever the module raises
            raise PenstockError(f"{self.path}: torch failed: {error}") from None
        return finish_outputs(self.path, self.outputs, made, floats, finite)

    def close(self) -> None:
        """Give torch its threads back."""
        torch_library().set_num_threads(self._threads_before)


def torch_library() -> Any:
    """The module.

    Raises:
        BackendMissingError: it is not installed, or cannot be imported.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import torch
    except ImportError as error:
        raise BackendMissingError(
            f"torch modules are exported with torch, which cannot be imported ({error}); install "
            "it with: pip install 'penstock[export]'"
        ) from None
    return torch


def set_training(module: Any, training: bool) -> bool:
    """Set the mode; what it was. Exported programs have none."""
    was = bool(module.training)
    if was != training:
        try:
            module.train(training)
        except NotImplementedError:
            return training
    return was


def _tensor(torch: Any, index: int, value: Any) -> Any:
    value = torch.from_numpy(value) if isinstance(value, np.ndarray) else value
    if not isinstance(value, torch.Tensor):
        kind = type(value).__name__
        raise UsageError(f"example input {index} is a {kind}, expected a tensor or an array")
    return value.detach().cpu()

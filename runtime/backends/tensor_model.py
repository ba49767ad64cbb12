"""What every backend gives: named arrays in, named arrays out.

`open_model` chooses the backend from the file. What uses a model is written against this protocol
and knows no library.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from numpy.typing import NDArray

from penstock.loaders.tensor_graph import TensorSpec

Arrays = dict[str, NDArray[Any]]


class TensorModel(Protocol):
    """A loaded model on the CPU; for one thread at a time."""

    @property
    def path(self) -> Path:
        """The file."""
        ...

    @property
    def backend(self) -> str:
        """'onnx' or 'litert'."""
        ...

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What `run` takes: every one of them."""
        ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What `run` gives."""
        ...

    @property
    def threads(self) -> int:
        """Threads of compute, at most."""
        ...

    def run(
        self, inputs: Mapping[str, NDArray[Any]], *, floats: bool = False, finite: bool = False
    ) -> Arrays:
        """Run the model once.

        Args:
            inputs: an array for each input, of its type and shape. Nothing is cast.
            floats: take floats for quantized inputs, and give floats for quantized outputs. Of a
                model that is not quantized it changes nothing.
            finite: refuse NaN and infinity, in the inputs and in what comes out.

        Raises:
            UsageError: a name, shape or type is wrong, a value is refused, or the model is closed.
            PenstockError: the library failed with these inputs, or, with `finite`, an output is
                not finite. The model can be used again.
        """
        ...

    def close(self) -> None:
        """Give the memory back; twice is no error."""
        ...

    def __enter__(self) -> TensorModel: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

"""What a TFLite model computes inside, sample by sample."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

from numpy.typing import NDArray

from penstock.errors import FormatError, PenstockError, UsageError
from penstock.export.dataset import Dataset, Sample
from penstock.loaders.tensor_graph import TensorGraph


class TensorTap:
    """A model that keeps every tensor of a run, for one sample at a time."""

    def __init__(self, content: bytes, graph: TensorGraph, threads: int) -> None:
        """Raises FormatError, BackendMissingError: LiteRT refuses it, or is not there."""
        from penstock.runtime.backends.litert_model import interpreter_class

        self._graph = graph
        self._shapes: list[tuple[int, ...] | None] = [None] * len(graph.inputs)
        create = interpreter_class()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that keeping all tensors is for debugging
            try:
                self._interpreter = create(
                    model_content=content,
                    num_threads=threads,
                    experimental_preserve_all_tensors=True,
                )
                self._interpreter.allocate_tensors()
            except (RuntimeError, ValueError) as error:
                raise FormatError(f"{graph.path}: LiteRT refuses it: {error}") from None

    def samples(
        self,
        dataset: Dataset,
        limit: int | None,
        on_sample: Callable[[int, int], None] | None = None,
    ) -> Iterator[Sample]:
        """Run the samples one after another; `tensor` gives what each made.

        Raises:
            UsageError: a sample does not fit the inputs, or has NaN or infinity; there are none.
            PenstockError: LiteRT fails with a sample.
        """
        count = len(dataset) if limit is None else min(limit, len(dataset))
        if count < 1:
            raise UsageError(f"{dataset.name}: no samples to calibrate on")
        for done, sample in enumerate(dataset.samples(limit), 1):
            self._run(sample)
            yield sample
            if on_sample is not None:
                on_sample(done, count)

    def tensor(self, index: int) -> NDArray[Any]:
        """A tensor of the first subgraph, by its number."""
        array: NDArray[Any] = self._interpreter.get_tensor(index)
        return array

    def _run(self, sample: Sample) -> None:
        from penstock.runtime.backends.arrays import check_inputs

        graph, interpreter = self._graph, self._interpreter
        try:
            fed = check_inputs(graph.path, graph.inputs, sample.arrays, True, True)
        except UsageError as error:
            raise UsageError(f"{sample.name}: {error}") from None
        ports = list(zip(graph.ports, fed.values(), strict=False))
        try:
            shapes: list[tuple[int, ...] | None] = [array.shape for _, array in ports]
            if shapes != self._shapes:
                for index, array in ports:
                    interpreter.resize_tensor_input(index, array.shape)
                interpreter.allocate_tensors()
                self._shapes = shapes
            for index, array in ports:
                interpreter.set_tensor(index, array)
            interpreter.invoke()
        except (RuntimeError, ValueError) as error:
            raise PenstockError(f"{sample.name}: LiteRT failed with it: {error}") from None

"""TFLite models, run by LiteRT (ai-edge-litert), or by tflite-runtime where only that exists."""

from __future__ import annotations

import importlib
import importlib.util
import re
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.errors import BackendMissingError, FormatError, PenstockError, UsageError
from penstock.errors import UnsupportedModelError as Unsupported
from penstock.loaders.closing import Closing
from penstock.loaders.tensor_graph import Dim, Operation, TensorGraph
from penstock.loaders.tflite_graph import CUSTOM_DOMAIN
from penstock.loaders.tflite_operators import KNOWN_CUSTOM
from penstock.runtime.backends.arrays import (
    NUMPY_DTYPES,
    check_inputs,
    check_ports,
    describe,
    finish_outputs,
)
from penstock.runtime.backends.onnx_operators import operator_with_nodes
from penstock.runtime.backends.tensor_model import Arrays

LIBRARIES = ("ai_edge_litert", "tflite_runtime")  # the first that is there
BUILTIN = re.compile(r"builtin opcode '(\w+)'")
ADVICE = "pip install 'penstock[litert]'"


class LitertModel(Closing):
    """A model in LiteRT; see `TensorModel`."""

    backend = "litert"

    def __init__(self, graph: TensorGraph, threads: int) -> None:
        check_ports(graph.path, (*graph.inputs, *graph.outputs), NUMPY_DTYPES)
        self.path = graph.path
        self.inputs = graph.inputs
        self.outputs = graph.outputs
        self.threads = threads
        self._in, self._out = graph.ports[: len(graph.inputs)], graph.ports[len(graph.inputs) :]
        self._interpreter: Any = _interpreter(graph, threads)
        self._shapes = [_fixed(spec.shape) for spec in graph.inputs]
        self._allocated = True
        self._busy = threading.Lock()

    def run(
        self, inputs: Mapping[str, NDArray[Any]], *, floats: bool = False, finite: bool = False
    ) -> Arrays:
        """Run the model once; see `TensorModel`."""
        if not self._busy.acquire(blocking=False):
            raise UsageError(f"{self.path}: another thread uses this model; load it once for each")
        try:
            if self._interpreter is None:
                raise UsageError(f"{self.path}: the model is closed; load it again")
            fed = check_inputs(self.path, self.inputs, inputs, floats, finite)
            empty = [name for name, array in fed.items() if array.size == 0]
            if empty:
                raise UsageError(f"{self.path}: input '{empty[0]}' is empty")
            made = self._invoke(fed)
        finally:
            self._busy.release()
        return finish_outputs(self.path, self.outputs, made, floats, finite)

    def _invoke(self, fed: Arrays) -> list[NDArray[Any]]:
        interpreter = self._interpreter
        try:
            for place, (index, array) in enumerate(zip(self._in, fed.values(), strict=True)):
                if array.shape != self._shapes[place]:
                    self._allocated = False
                    interpreter.resize_tensor_input(index, array.shape)
                    self._shapes[place] = array.shape
            if not self._allocated:
                interpreter.allocate_tensors()
                self._allocated = True
            for index, array in zip(self._in, fed.values(), strict=True):
                interpreter.set_tensor(index, array)
            interpreter.invoke()
            return [np.asarray(interpreter.get_tensor(index)) for index in self._out]
        except (RuntimeError, ValueError) as error:
            self._allocated = False
            raise PenstockError(
                f"{self.path}: LiteRT failed with {describe(fed)}: {_message(error)}"
            ) from None

    def close(self) -> None:
        """Give the memory back."""
        self._interpreter = None


def interpreter_class() -> Any:
    """LiteRT's Interpreter.

    Raises:
        BackendMissingError: no library is there, or the one that is cannot be imported.
    """
    name = next((name for name in LIBRARIES if _is_there(name)), None)
    if name is None:
        raise BackendMissingError(
            "TFLite models run on LiteRT (ai-edge-litert), which is not installed; install it "
            f"with: {ADVICE}"
        )
    if name == "tflite_runtime" and int(np.__version__.split(".")[0]) >= 2:
        raise BackendMissingError(
            "of the libraries for TFLite models only tflite-runtime is installed, which works "
            f"with NumPy 1 alone, and this is NumPy {np.__version__}; {ADVICE} brings one that "
            "works with it, or install 'numpy<2'"
        )
    try:
        return importlib.import_module(f"{name}.interpreter").Interpreter
    except ImportError as error:
        raise BackendMissingError(
            f"{name} is installed but cannot be imported ({error}); install LiteRT again with: "
            f"{ADVICE}"
        ) from None


def _fixed(shape: tuple[Dim, ...] | None) -> tuple[int, ...] | None:
    """The shape that an input has; None where the caller's decides."""
    dims = tuple(dim for dim in shape or () if isinstance(dim, int))
    return dims if shape is not None and len(dims) == len(shape) else None


def _is_there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ValueError:  # sys.modules has None, or a module without a spec, under the name
        return False


def _interpreter(graph: TensorGraph, threads: int) -> Any:
    create = interpreter_class()
    try:
        interpreter = create(**_source(graph), num_threads=threads)
        interpreter.allocate_tensors()
        return interpreter
    except (RuntimeError, ValueError) as error:
        message = _message(error)
    missing = _missing_operators(graph, message)
    if missing:
        raise Unsupported(
            f"{graph.path}: LiteRT does not have {len(missing)} of its operators: "
            f"{'; '.join(missing)}"
        )
    raise FormatError(f"{graph.path}: LiteRT refuses it: {message}")


def _source(graph: TensorGraph) -> dict[str, str | bytes]:
    path = str(graph.path)
    try:
        path.encode()
    except UnicodeEncodeError:  # the library wants UTF-8
        return {"model_content": graph.path.read_bytes()}
    return {"model_path": path}


def _missing_operators(graph: TensorGraph, message: str) -> list[str]:
    """Operators that made the library refuse the model, each with its nodes."""
    named = set(BUILTIN.findall(message))
    if "custom op" in message or "Select TensorFlow op" in message:
        named |= {o.kind for o in graph.operations if o.domain == CUSTOM_DOMAIN} - KNOWN_CUSTOM
    kinds: dict[str, list[Operation]] = {}
    for operation in graph.operations:
        if operation.kind in named:
            kinds.setdefault(operation.kind, []).append(operation)
    return [operator_with_nodes(kind, nodes) for kind, nodes in kinds.items()]


def _message(error: Exception) -> str:
    return " ".join(str(error).split())

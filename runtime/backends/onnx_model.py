"""ONNX models, run by onnxruntime on the CPU."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from penstock.errors import BackendMissingError, FormatError, PenstockError, UsageError
from penstock.errors import UnsupportedModelError as Unsupported
from penstock.loaders.closing import Closing
from penstock.loaders.tensor_graph import TensorGraph, TensorSpec
from penstock.runtime.backends.arrays import (
    NUMPY_DTYPES,
    check_inputs,
    check_ports,
    describe,
    finish_outputs,
)
from penstock.runtime.backends.onnx_operators import missing_operators
from penstock.runtime.backends.tensor_model import Arrays

PROVIDER = "CPUExecutionProvider"
FATAL = 4  # of onnxruntime's log: what it has to say comes as an exception, too
Values = dict[str, Any]
"""onnxruntime's own values by name."""
TOO_NEW = re.compile(r"IR version|only \*guarantees\* support|under development", re.IGNORECASE)


class OnnxModel(Closing):
    """A model in onnxruntime; see `TensorModel`."""

    backend = "onnx"

    def __init__(self, graph: TensorGraph, threads: int, data: bytes | None = None) -> None:
        """Load it from its path, or from `data` where the graph is a part of another file."""
        check_ports(graph.path, (*graph.inputs, *graph.outputs), NUMPY_DTYPES | {"string"})
        self.path = graph.path
        self.threads = threads
        self._session: Any = _session(graph, threads, data)
        self.inputs = graph.inputs
        self.outputs = tuple(
            _with_shape(spec, info.shape)
            for spec, info in zip(graph.outputs, self._session.get_outputs(), strict=True)
        )

    def run(
        self, inputs: Mapping[str, NDArray[Any]], *, floats: bool = False, finite: bool = False
    ) -> Arrays:
        """Run the model once; see `TensorModel`."""
        session = self._session
        if session is None:
            raise UsageError(f"{self.path}: the model is closed; load it again")
        fed = check_inputs(self.path, self.inputs, inputs, floats, finite)
        try:
            made = session.run([spec.name for spec in self.outputs], fed)
        except Exception as error:  # onnxruntime's own kinds have no common base
            raise PenstockError(
                f"{self.path}: onnxruntime failed with {describe(fed)}: {_message(error)}"
            ) from None
        return finish_outputs(self.path, self.outputs, made, floats, finite)

    def value(self, array: NDArray[Any]) -> Any:
        """An array as onnxruntime's value, for `run_values`."""
        return onnxruntime().OrtValue.ortvalue_from_numpy(array)

    def run_values(self, values: Mapping[str, Any]) -> Values:
        """Run on onnxruntime's own values: what goes from graph to graph is not copied.

        Raises:
            UsageError: the model is closed.
            PenstockError: onnxruntime failed with these inputs.
        """
        if self._session is None:
            raise UsageError(f"{self.path}: the model is closed; load it again")
        names = [spec.name for spec in self.outputs]
        try:
            made = self._session.run_with_ort_values(names, dict(values))
        except Exception as error:  # onnxruntime's own kinds have no common base
            raise PenstockError(f"{self.path}: onnxruntime failed: {_message(error)}") from None
        return dict(zip(names, made, strict=True))

    def close(self) -> None:
        """Give the memory back."""
        self._session = None


def onnxruntime() -> Any:
    """The module.

    Raises:
        BackendMissingError: it is not installed, or cannot be imported.
    """
    try:
        import onnxruntime as module
    except ModuleNotFoundError as error:
        if error.name != "onnxruntime":
            raise _broken(error) from None
        raise BackendMissingError(
            "ONNX models run on onnxruntime, which is not installed; install it with: "
            "pip install 'penstock[onnx]'"
        ) from None
    except ImportError as error:
        raise _broken(error) from None
    return module


def _broken(error: ImportError) -> BackendMissingError:
    return BackendMissingError(
        f"onnxruntime is installed but cannot be imported ({error}); install it again with: "
        "pip install --force-reinstall 'penstock[onnx]'"
    )


def _session(graph: TensorGraph, threads: int, data: bytes | None) -> Any:
    ort = onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = FATAL
    try:
        source = _source(graph) if data is None else data
        return ort.InferenceSession(source, options, providers=[PROVIDER])
    except Exception as error:  # onnxruntime's own kinds have no common base
        message, version = _message(error), ort.__version__
    missing = missing_operators(ort, graph, message)
    if missing:
        raise Unsupported(
            f"{graph.path}: onnxruntime {version} does not have {len(missing)} of its operators: "
            f"{'; '.join(missing)}"
        )
    if TOO_NEW.search(message):
        raise Unsupported(
            f"{graph.path}: {graph.version}, too new for onnxruntime {version}; install a newer "
            f"one, or export for an older opset ({message})"
        )
    raise FormatError(f"{graph.path}: onnxruntime {version} refuses it: {message}")


def _source(graph: TensorGraph) -> str | bytes:
    """The path, by which files beside it are found; the library wants it in UTF-8."""
    path = str(Path(graph.path).absolute())
    try:
        path.encode()
    except UnicodeEncodeError:
        if graph.external:
            raise UsageError(
                f"{graph.path}: onnxruntime needs a path in UTF-8 to find the weights beside it"
            ) from None
        return graph.path.read_bytes()
    return path


def _message(error: Exception) -> str:
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(error))
    return " ".join(text.split())


def _with_shape(spec: TensorSpec, shape: list[int | str | None]) -> TensorSpec:
    """An output whose shape the file leaves open, with the one that onnxruntime inferred."""
    if spec.shape is not None or not shape:
        return spec
    dims = tuple(dim if isinstance(dim, int) and dim >= 0 else None for dim in shape)
    return TensorSpec(spec.name, spec.dtype, dims)

"""An ONNX graph of a captioner file, in onnxruntime on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from penstock.errors import FormatError, PenstockError
from penstock.loaders.captioner_file import CaptionerFile
from penstock.loaders.onnx_file import read_onnx_bytes
from penstock.loaders.tensor_graph import TensorSpec
from penstock.runtime.backends.arrays import NUMPY_DTYPES, check_ports
from penstock.runtime.backends.onnx_model import FATAL, PROVIDER, onnxruntime

Values = dict[str, Any]
"""onnxruntime's own values by name: they go from graph to graph without a copy."""


class MemberGraph:
    """A member of a captioner file, loaded and ready to run.

    Attributes:
        where: file and member, for messages.
        inputs, outputs: by name.

    Raises:
        FormatError: not ONNX, damaged, or onnxruntime refuses it.
        UnsupportedModelError: an input or output is no array of numbers.
        BackendMissingError: onnxruntime is not installed.
    """

    def __init__(self, file: CaptionerFile, name: str, threads: int) -> None:
        self.where = f"{file.path}: {name}"
        data = file.read(name)
        graph = read_onnx_bytes(Path(self.where), data)
        check_ports(Path(self.where), (*graph.inputs, *graph.outputs), NUMPY_DTYPES)
        self._ort = onnxruntime()
        options = self._ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = FATAL
        try:
            self._session: Any = self._ort.InferenceSession(data, options, providers=[PROVIDER])
        except Exception as error:  # onnxruntime's own kinds have no common base
            raise FormatError(
                f"{self.where}: onnxruntime {self._ort.__version__} refuses it: "
                f"{' '.join(str(error).split())}"
            ) from None
        self.inputs: dict[str, TensorSpec] = {spec.name: spec for spec in graph.inputs}
        self.outputs: dict[str, TensorSpec] = {spec.name: spec for spec in graph.outputs}

    def expect(self, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> None:
        """Check that these are its inputs and outputs, all of them.

        Raises:
            FormatError: they are not.
        """
        for kind, wanted, seen in (
            ("inputs", inputs, self.inputs),
            ("outputs", outputs, self.outputs),
        ):
            if set(wanted) != set(seen):
                odd = sorted(set(wanted) ^ set(seen))
                raise FormatError(
                    f"{self.where}: its {kind} are not those of its architecture: "
                    f"{', '.join(odd[:4])} missing or not known; export the model again"
                )

    def value(self, array: NDArray[Any]) -> Any:
        """An array as onnxruntime's value."""
        return self._ort.OrtValue.ortvalue_from_numpy(array)

    def run(self, inputs: Mapping[str, Any]) -> Values:
        """Run the graph on values; all outputs by name.

        Raises:
            PenstockError: onnxruntime failed with these inputs.
        """
        names = list(self.outputs)
        try:
            made = self._session.run_with_ort_values(names, dict(inputs))
        except Exception as error:  # onnxruntime's own kinds have no common base
            raise PenstockError(
                f"{self.where}: onnxruntime failed: {' '.join(str(error).split())}"
            ) from None
        return dict(zip(names, made, strict=True))

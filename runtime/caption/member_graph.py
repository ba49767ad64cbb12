"""An ONNX graph of a captioner file: the `onnx` backend's model, read from a member."""

from __future__ import annotations

from pathlib import Path

from penstock.errors import FormatError
from penstock.loaders.captioner_file import CaptionerFile
from penstock.loaders.onnx_file import read_onnx_bytes
from penstock.runtime.backends.arrays import NUMPY_DTYPES, check_ports
from penstock.runtime.backends.onnx_model import OnnxModel


class MemberGraph(OnnxModel):
    """A member of a captioner file, loaded and ready to run.

    Attributes:
        where: file and member, for messages.

    Raises:
        FormatError: not ONNX, damaged, or onnxruntime refuses it.
        UnsupportedModelError: an input or output is no array of numbers.
        BackendMissingError: onnxruntime is not installed.
    """

    def __init__(self, file: CaptionerFile, name: str, threads: int) -> None:
        self.where = f"{file.path}: {name}"
        data = file.read(name)
        graph = read_onnx_bytes(Path(self.where), data)
        check_ports(graph.path, (*graph.inputs, *graph.outputs), NUMPY_DTYPES)  # no strings
        super().__init__(graph, threads, data)

    def expect(self, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> None:
        """Check that these are its inputs and outputs, all of them.

        Raises:
            FormatError: they are not.
        """
        for kind, wanted, seen in (
            ("inputs", inputs, self.inputs),
            ("outputs", outputs, self.outputs),
        ):
            odd = sorted(set(wanted) ^ {spec.name for spec in seen})
            if odd:
                raise FormatError(
                    f"{self.where}: its {kind} are not those of its architecture: "
                    f"{', '.join(odd[:4])} missing or not known; export the model again"
                )

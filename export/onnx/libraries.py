"""The libraries that write ONNX: imported when first used, kept quiet while they work."""

from __future__ import annotations

import importlib
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

from penstock.errors import BackendMissingError

SILENT, WARNINGS = 4, 2  # of onnxruntime's log: the default is 2, and there is no way to ask
_quiet = 0  # how many times `quiet_libraries` is entered
ADVICE = "pip install 'penstock[quantize]'"


def onnxruntime_library() -> Any:
    """The module `onnxruntime`.

    Raises:
        BackendMissingError: it is not installed, or cannot be imported.
    """
    from penstock.runtime.backends.onnx_model import onnxruntime

    return onnxruntime()


def onnx_library() -> Any:
    """The module `onnx`.

    Raises:
        BackendMissingError: it is not installed, or cannot be imported.
    """
    try:
        return importlib.import_module("onnx")
    except ImportError as error:
        raise BackendMissingError(
            f"ONNX models are written with the library onnx, which cannot be imported ({error}); "
            f"install it with: {ADVICE}"
        ) from None


def quantization(module: str = "") -> Any:
    """`onnxruntime.quantization`, or one of its modules.

    Raises:
        BackendMissingError: it, or what it imports, is not installed.
    """
    onnxruntime_library()
    onnx_library()
    try:
        with quiet_libraries():
            return importlib.import_module("onnxruntime.quantization" + (module and f".{module}"))
    except ImportError as error:
        raise BackendMissingError(
            f"onnxruntime's quantization tools cannot be imported ({error}); install what they "
            f"need with: {ADVICE}"
        ) from None


@contextmanager
def quiet_libraries() -> Iterator[io.StringIO]:
    """Nothing on the terminal from libraries that log, warn and print; gives what they printed.

    Their advice ("please consider to run pre-processing") is followed here, and what matters of
    the rest is measured on the artifact.
    """
    global _quiet
    said = io.StringIO()
    ort = onnxruntime_library()
    was = logging.root.manager.disable
    ort.set_default_logger_severity(SILENT)
    logging.disable(logging.CRITICAL)
    _quiet += 1
    try:
        with warnings.catch_warnings(), redirect_stdout(said), redirect_stderr(said):
            warnings.simplefilter("ignore")
            yield said
    finally:
        logging.disable(was)
        _quiet -= 1
        if not _quiet:
            ort.set_default_logger_severity(WARNINGS)

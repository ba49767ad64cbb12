"""Lets torch's ONNX exporter collect its operators once a process."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any


def keep_torchlib() -> None:
    """Each export parses the sources of all of onnxscript's operators anew, a second of a core.

    They do not change. Where another version of torch has no such place, exports take that longer.
    """
    registration: Any = import_module("torch.onnx._internal.exporter._registration")
    made = getattr(getattr(registration, "onnxscript_apis", None), "get_torchlib_ops", None)
    if made is not None and not hasattr(made, "cache_info"):
        registration.onnxscript_apis.get_torchlib_ops = cache(made)

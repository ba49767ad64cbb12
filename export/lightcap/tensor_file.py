"""Checkpoints as named tensors, whatever kind of file they are; no file's code is ever run.

safetensors           a header and the bytes
torch, .pt and .bin   `torch.load(weights_only=True)`, which makes tensors and nothing else
TorchScript           what OpenAI distributes: see `script_archive`
"""

from __future__ import annotations

import errno
import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from penstock.errors import FormatError, StorageError, UnsupportedModelError
from penstock.export.lightcap.script_archive import ScriptArchive, is_script_archive
from penstock.export.predictor import import_torch
from penstock.export.sources.safetensors_file import SafetensorsFile
from penstock.loaders.zip_errors import ZIP_ERRORS, zip_error

if TYPE_CHECKING:
    from torch import Tensor

Shape = tuple[int, ...]
WRAPPERS = ("state_dict", "model_state_dict", "model", "module")


class TensorFile(Protocol):
    """Named tensors in a file: their shapes at once, their values when they are asked for."""

    @property
    def shapes(self) -> Mapping[str, Shape]: ...

    def read(self, name: str) -> Tensor:
        """A tensor as float32."""


def open_tensors(path: Path) -> TensorFile:
    """Open a checkpoint.

    Raises:
        BackendMissingError: torch is not installed.
        FormatError: it is damaged, no checkpoint, or a pickle that wants more than tensors.
        StorageError: it cannot be read.
    """
    import_torch()
    try:
        with open(path, "rb") as file:
            head = file.read(16)
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror or error}") from None
    if path.suffix == ".safetensors" or head[8:9] == b"{":
        return _Safetensors(path)
    if is_script_archive(path):
        return _Script(path)
    return _Torch(path)


class _Safetensors:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = SafetensorsFile(path)
        self.shapes = {name: t.shape for name, t in self.file.tensors.items()}

    def read(self, name: str) -> Tensor:
        torch, shape = import_torch(), self.shapes[name]
        if not shape:
            raise FormatError(f"{self.path}: tensor '{name}' is a single number")
        out: Tensor = torch.from_numpy(self.file.rows(name, np.arange(shape[0]))).view(shape)
        return _finite(self.path, name, out)


class _Script:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.archive = ScriptArchive(path)
        self.shapes = self.archive.shapes

    def read(self, name: str) -> Tensor:
        values = self.archive.read(name)
        if values.dtype.kind != "f":
            raise _no_floats(self.path, name, str(values.dtype))
        out: Tensor = import_torch().from_numpy(np.array(values, np.float32, order="C"))
        return _finite(self.path, name, out)


class _Torch:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.tensors = _unwrapped(path, _load(path))
        self.shapes: dict[str, Shape] = {n: tuple(t.shape) for n, t in self.tensors.items()}

    def read(self, name: str) -> Tensor:
        values = self.tensors[name]
        if not values.dtype.is_floating_point:
            raise _no_floats(self.path, name, str(values.dtype).removeprefix("torch."))
        return _finite(self.path, name, values.detach().float().contiguous())


def _load(path: Path) -> Any:
    torch = import_torch()
    _check_zip(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise FormatError(
            f"{path}: {_first_line(error)} Penstock reads a checkpoint's tensors and never runs "
            "its code; if you trust the file, save its tensors with "
            "safetensors.torch.save_file(state_dict, FILE)"
        ) from None
    except Exception as error:  # of what is damaged: RuntimeError, EOFError, KeyError...
        if isinstance(error, OSError) and error.errno == errno.EIO:
            raise StorageError(f"{path}: cannot be read: {error.strerror}") from None
        raise FormatError(
            f"{path}: neither safetensors nor a file of torch.save ({_first_line(error)}); cut "
            "short, or a Git LFS pointer? Fetch it again"
        ) from None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200] if lines else ''}"


def _check_zip(path: Path) -> None:
    """Refuse an archive that would become more than it is when it is unpacked."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(info.file_size for info in archive.infolist())
    except ZIP_ERRORS as error:
        raise zip_error(path, error, f"a damaged archive ({error}); fetch it again") from None
    size = os.path.getsize(path)
    if unpacked > size:
        raise FormatError(
            f"{path}: its {size} bytes would become {unpacked}; torch does not compress, so this "
            "is no checkpoint"
        )


def _unwrapped(path: Path, loaded: object) -> dict[str, Any]:
    """The tensors by name; training scripts put them under a name, and `module.` before each."""
    torch = import_torch()
    for name in WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(name), Mapping):
            loaded = loaded[name]
    if not isinstance(loaded, Mapping):
        raise FormatError(f"{path}: holds a {type(loaded).__name__}, expected tensors by name")
    found = {str(n): t for n, t in loaded.items() if isinstance(t, torch.Tensor)}
    if not found:
        raise FormatError(f"{path}: has no tensors; expected a state_dict")
    for name, tensor in found.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            raise UnsupportedModelError(
                f"{path}: tensor '{name}' is sparse, quantized or without values; save plain ones"
            )
    if all(name.startswith("module.") for name in found):
        found = {name.removeprefix("module."): t for name, t in found.items()}
    return found


def _finite(path: Path, name: str, values: Tensor) -> Tensor:
    if not bool(values.isfinite().all()):
        raise FormatError(
            f"{path}: tensor '{name}' has values that are not finite; the training that made it "
            "went wrong, or the file is damaged"
        )
    return values


def _no_floats(path: Path, name: str, dtype: str) -> FormatError:
    return FormatError(f"{path}: tensor '{name}' is {dtype}, expected floating point")

"""Weights of an ONNX model in files beside it: the paths and ranges, checked.

A model names these files itself. A name that leads out of the model's folder would let a download
read any file of the machine, and onnxruntime takes one name for an address in memory.
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath, PureWindowsPath

from penstock.errors import FormatError, StorageError

ADVICE = "paths must stay inside the model's folder"


class ExternalData:
    """The files that the tensors of one model are in.

    Attributes:
        nbytes: of all files together.
    """

    def __init__(self, model: Path) -> None:
        self._model = model
        self._sizes: dict[str, int] = {}
        self.nbytes = 0

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(self._model.parent / location for location in self._sizes)

    def check(self, tensor: str, entries: dict[str, str], wanted: int | None) -> str:
        """The file of a tensor, of which the range that the model names is there.

        Raises:
            FormatError: the path leads out of the model's folder, or the range out of the file.
            StorageError: there is no such file.
        """
        where = f"{self._model}: the weights of '{tensor}'"
        location = entries.get("location", "")
        size = self._size(where, location)
        try:
            offset = int(entries.get("offset") or 0)
            length = int(entries.get("length") or (wanted or 0))
        except ValueError:
            raise FormatError(
                f"{where} in '{location}' have offset {entries.get('offset')!r} and length "
                f"{entries.get('length')!r}; expected whole numbers"
            ) from None
        if wanted is not None and length != wanted:
            raise FormatError(f"{where} in '{location}' have {length} bytes, expected {wanted}")
        if offset < 0 or length < 0 or offset + length > size:
            raise FormatError(
                f"{where} are bytes {offset} to {offset + length} of '{location}', which has "
                f"{size}; the file is cut short or is of another model, fetch it again"
            )
        return location

    def _size(self, where: str, location: str) -> int:
        if location in self._sizes:
            return self._sizes[location]
        posix, windows = PurePosixPath(location), PureWindowsPath(location)
        absolute = posix.is_absolute() or windows.drive or windows.root
        if not location or "\0" in location or absolute or ".." in {*posix.parts, *windows.parts}:
            raise FormatError(f"{where} are said to be in '{location}'; {ADVICE}")
        path = self._model.parent / location
        real = Path(os.path.realpath(path))
        # Or in the folder of the file that the model's name is a link to, as in Hugging Face's
        # cache, where all are links into one folder.
        folders = (Path(os.path.realpath(self._model.parent)), self._real_model().parent)
        if not any(real.is_relative_to(folder) for folder in folders):
            raise FormatError(f"{where} are in '{location}', a link to '{real}'; {ADVICE}")
        if not real.is_file():
            raise StorageError(
                f"{where} are in '{location}', which is not beside the model; fetch that file too"
            )
        size = real.stat().st_size
        self._sizes[location] = size
        self.nbytes += size
        return size

    def _real_model(self) -> Path:
        return Path(os.path.realpath(self._model))

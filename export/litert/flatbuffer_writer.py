"""Writes the objects of a TFLite model as a FlatBuffer, smaller and better aligned than as is.

The generated code writes every vector again, wherever it stands, and a buffer at any multiple of 4
bytes. Here equal vectors of numbers, which quantized layers have many of (zero points), are stored
once, and buffers begin at multiples of 16, as the schema demands (`force_align: 16`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.errors import UnsupportedModelError

MAGIC = b"TFL3"
ALIGNMENT = 16
MAX_BYTES = 2_000_000_000
SHARED_BYTES = 1 << 16  # of a vector that is looked for among those written


def serialize(model: Any) -> bytes:
    """The file of a `ModelT`.

    Raises:
        UnsupportedModelError: it would be larger than a FlatBuffer can be.
    """
    total = sum(0 if buffer.data is None else len(buffer.data) for buffer in model.buffers)
    if total > MAX_BYTES:
        raise UnsupportedModelError(
            f"weights of {total} bytes do not fit one FlatBuffer, which ends at {MAX_BYTES}; "
            "models of this size are run, not edited"
        )
    import flatbuffers

    class Writer(flatbuffers.Builder):  # type: ignore[misc]
        head: int

        def __init__(self) -> None:
            super().__init__(1 << 16)
            self.written: dict[tuple[str, bytes], int] = {}

        def CreateNumpyVector(self, x: NDArray[Any]) -> int:
            key = (x.dtype.str, x.tobytes()) if x.nbytes <= SHARED_BYTES else None
            if key is not None and x.dtype != np.uint8 and key in self.written:
                return self.written[key]
            place = int(self._vector(x))
            if key is not None:
                self.written[key] = place
            return place

        def _vector(self, x: NDArray[Any]) -> int:
            aligned = ALIGNMENT if x.dtype == np.uint8 and x.size else x.dtype.alignment
            self.StartVector(x.itemsize, x.size, aligned)
            payload = x.astype(x.dtype.newbyteorder("<"), copy=False).tobytes()
            head = self.head - len(payload)
            self.head = head
            self.Bytes[head : head + len(payload)] = payload
            return int(self.EndVector())

    writer = Writer()
    writer.Finish(model.Pack(writer), MAGIC)
    return bytes(writer.Output())

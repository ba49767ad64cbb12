"""Our messages as Flower's records, and back: arrays in one record, plain values in another.

Flower is imported inside the functions: the switches of `no_calls_home` must be set before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from penstock.errors import RefusedUpdateError
from penstock.federated.array_file import pack_arrays, unpack_arrays
from penstock.federated.arrays import Arrays
from penstock.federated.flower_env import no_calls_home as no_calls_home
from penstock.federated.protocol import ARRAYS, MESSAGE, MOST_BYTES, Record

if TYPE_CHECKING:
    from flwr.app import RecordDict


PACKED = "npz"  # the one array in the record of arrays


def to_content(record: Record | None, arrays: Mapping[str, NDArray[Any]] | None) -> RecordDict:
    """What a Flower message carries; nothing at all for a query without a notice.

    A model is one array of bytes: Flower sends every array by two requests of its own, and a round
    trip for each tensor would be most of a short round.
    """
    from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

    content = RecordDict()
    if record is not None:
        content[MESSAGE] = ConfigRecord(dict(record.to_record()))
    if arrays is not None:
        packed = np.frombuffer(pack_arrays(arrays), np.uint8)
        content[ARRAYS] = ArrayRecord({PACKED: Array(packed)})
    return content


def from_content(content: RecordDict, source: str) -> tuple[dict[str, Any], Arrays | None]:
    """The plain values, for `Record.from_record`, and the arrays where there are some.

    The arrays are not yet checked against a model.

    Raises:
        RefusedUpdateError: other records, an array that is not one, or too many bytes.
    """
    from flwr.app import ArrayRecord, ConfigRecord, RecordDict

    if not isinstance(content, RecordDict):  # Flower puts any object in its place
        raise RefusedUpdateError(f"{source} sent a {type(content).__name__} instead of records")
    foreign = sorted(set(content) - {ARRAYS, MESSAGE})
    if foreign:
        raise RefusedUpdateError(
            f"{source} sent a record {foreign[0]!r}, expected {MESSAGE!r} and {ARRAYS!r}: not a "
            "message of Penstock"
        )
    record = content.get(MESSAGE)
    if not isinstance(record, ConfigRecord):
        raise RefusedUpdateError(f"{source} sent no record {MESSAGE!r}: not a message of Penstock")
    sent = content.get(ARRAYS)
    if sent is None:
        return dict(record), None
    if not isinstance(sent, ArrayRecord) or set(sent) != {PACKED}:
        raise RefusedUpdateError(f"{source}: the record {ARRAYS!r} holds no packed arrays")
    total = len(sent[PACKED].data)
    if total > MOST_BYTES:
        raise RefusedUpdateError(f"{source} sent {total:,} bytes, at most {MOST_BYTES:,} are taken")
    try:
        packed = sent[PACKED].numpy()
        if packed.dtype != np.uint8 or packed.ndim != 1:
            raise ValueError(f"{packed.dtype} {packed.shape}")
        return dict(record), unpack_arrays(packed.tobytes(), source)
    except Exception as error:  # np.load of foreign bytes: AttributeError, MemoryError and more
        raise RefusedUpdateError(f"{source} sent no arrays: {error}") from error

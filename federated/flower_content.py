"""Our messages as Flower's records, and back: arrays in one record, plain values in another.

Flower is imported inside the functions: the switches of `no_calls_home` must be set before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from penstock.errors import RefusedUpdateError
from penstock.federated.arrays import Arrays
from penstock.federated.flower_env import no_calls_home as no_calls_home
from penstock.federated.protocol import ARRAYS, MESSAGE, MOST_BYTES, Record

if TYPE_CHECKING:
    from flwr.app import RecordDict


def to_content(record: Record | None, arrays: Mapping[str, NDArray[Any]] | None) -> RecordDict:
    """What a Flower message carries; nothing at all for a query."""
    from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

    content = RecordDict()
    if record is not None:
        content[MESSAGE] = ConfigRecord(dict(record.to_record()))
    if arrays is not None:
        content[ARRAYS] = ArrayRecord(
            {name: Array(np.asarray(array, order="C")) for name, array in arrays.items()}
        )
    return content


def from_content(content: RecordDict, source: str) -> tuple[dict[str, Any], Arrays | None]:
    """The plain values, for `Record.from_record`, and the arrays where there are some.

    The arrays are not yet checked against a model.

    Raises:
        RefusedUpdateError: other records, an array that is not one, or too many bytes.
    """
    from flwr.app import ArrayRecord, ConfigRecord

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
    if not isinstance(sent, ArrayRecord):
        raise RefusedUpdateError(f"{source}: the record {ARRAYS!r} holds no arrays")
    total = sum(len(array.data) for array in sent.values())
    if total > MOST_BYTES:
        raise RefusedUpdateError(f"{source} sent {total:,} bytes, at most {MOST_BYTES:,} are taken")
    arrays: Arrays = {}
    for name, array in sent.items():
        try:
            arrays[name] = array.numpy()
        except (ValueError, TypeError, EOFError, OSError) as error:
            raise RefusedUpdateError(f"{source}: {name} is not an array: {error}") from error
    return dict(record), arrays

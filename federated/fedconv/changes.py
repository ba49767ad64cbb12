"""What a device's training changed, apart from what the compression had changed before it.

The sub-model that is sent is a slice of the global model plus a correction, which makes that
*narrow* model work and means nothing to the full one. Averaged as it comes back, it would end up in
the global model. Taken out again, compression and dilation are inverses: a device that trains
nothing gives back the slice that it was sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from penstock.federated.arrays import Arrays
from penstock.federated.fedconv.dilation import dilate
from penstock.federated.fedconv.filters import FILTERED
from penstock.federated.fedconv.profiles import Profile
from penstock.federated.slicing import extract, static_channels
from penstock.federated.submodels import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor


def without_correction(
    trained: Mapping[str, NDArray[Any]],
    sent: Mapping[str, NDArray[Any]],
    base: Mapping[str, NDArray[Any]],
    spec: ModelSpec,
    ratio: float,
) -> Arrays:
    """The slice of the global model plus what training changed; statistics as they came back.

    Args:
        trained, sent: the sub-model after and before training.
        base: the global model that it was made from.
    """
    cut = extract(base, spec, static_channels(spec, ratio))
    result = {name: np.array(array) for name, array in trained.items()}
    for tensor in spec:
        if tensor.kind in FILTERED:
            name = tensor.name
            result[name] = cut[name] + (trained[name] - sent[name])
    return result


def dilate_onto(base: Mapping[str, Tensor], cut: Mapping[str, Tensor]) -> Any:
    """A `dilate` whose result is the global model plus the dilated change.

    Args:
        base: the global model; cut: its slice.
    """

    def transform(
        arrays: Mapping[str, Tensor],
        filters: Mapping[str, Tensor],
        spec: ModelSpec,
        ratio: float,
        profile: Profile,
    ) -> dict[str, Tensor]:
        kinds = {tensor.name: tensor.kind for tensor in spec}
        change = {
            name: value - cut[name] if kinds[name] in FILTERED else value
            for name, value in arrays.items()
        }
        grown = dilate(change, filters, spec, ratio, profile)
        result: dict[str, Tensor] = {}
        for name, kind in kinds.items():
            if kind in FILTERED:
                result[name] = base[name] + grown[name]
            else:  # statistics of channels that the device does not have are the global model's
                result[name] = arrays[name].clone() if kind == "counter" else base[name].clone()
        return result

    return transform

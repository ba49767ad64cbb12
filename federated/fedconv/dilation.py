"""From a device's sub-model back to the full width: each tensor through transposed filters.

Padded with zeros, and with statistics 0 and 1 where there are none, the full model computes exactly
what the sub-model does: a channel of zeros stays zero through BatchNorm and ReLU.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from penstock.federated.fedconv.filters import FILTERED, filtered, from_images, to_images
from penstock.federated.fedconv.profiles import Profile
from penstock.federated.submodels import ModelSpec, TensorSpec

if TYPE_CHECKING:
    from torch import Tensor


def dilate(
    arrays: Mapping[str, Tensor],
    filters: Mapping[str, Tensor],
    spec: ModelSpec,
    ratio: float,
    profile: Profile,
) -> dict[str, Tensor]:
    """The full model's shapes again, differentiable in the filters; ratio 1 is the identity.

    Args:
        arrays: the sub-model's.
        filters: of this device at this ratio: `filters.filter_shapes`; empty: padding with zeros.
    """
    result: dict[str, Tensor] = {}
    flatten = profile.flatten_linear
    for full, sub in zip(spec, spec.at(ratio), strict=True):
        value = arrays[full.name]
        if full.kind not in FILTERED:
            result[full.name] = pad(value, full).clone()
        elif ratio == 1.0:
            result[full.name] = value
        elif not filters:
            result[full.name] = pad(value, full)
        else:
            images = filtered(to_images(value, sub, flatten), full, filters, profile, grow=True)
            grown = from_images(images, full, flatten)
            result[full.name] = grown + pad(value, full) if profile.start == "slice" else grown
    return result


def pad(value: Tensor, full: TensorSpec) -> Tensor:
    """The first channels are the sub-model's, the others 0; variances 1."""
    padded = value.new_full(full.shape, 1 if full.kind == "running_var" else 0)
    padded[tuple(slice(n) for n in value.shape)] = value
    return padded

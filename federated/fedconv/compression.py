"""From the full model to a sub-model: each tensor through its filters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from penstock.federated.fedconv.filters import FILTERED, filtered, from_images, to_images
from penstock.federated.fedconv.profiles import Profile
from penstock.federated.submodels import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor


def compress(
    arrays: Mapping[str, Tensor],
    filters: Mapping[str, Tensor],
    spec: ModelSpec,
    ratio: float,
    profile: Profile,
) -> dict[str, Tensor]:
    """The sub-model of this ratio, differentiable in the filters (and in the weights).

    Ratio 1 is the identity. BatchNorm's statistics are the first channels' (they depend on the
    data: see `norm_statistics`), its counter is copied; both as copies, since training moves them.

    Args:
        arrays: the full model's.
        filters: of this ratio: `filters.filter_shapes`; empty: the plain slice.
    """
    result: dict[str, Tensor] = {}
    flatten = profile.flatten_linear
    for full, sub in zip(spec, spec.at(ratio), strict=True):
        value = arrays[full.name]
        if full.kind not in FILTERED:
            result[full.name] = value[tuple(slice(n) for n in sub.shape)].clone()
        elif ratio == 1.0:
            result[full.name] = value
        else:
            images = to_images(value, full, flatten)
            cut = to_images(value[tuple(slice(n) for n in sub.shape)], sub, flatten)
            if not filters:
                images = cut
            elif profile.start == "slice":
                images = cut + filtered(images, full, filters, profile, grow=False)
            else:
                images = filtered(images, full, filters, profile, grow=False)
            result[full.name] = from_images(images, sub, flatten)
    return result

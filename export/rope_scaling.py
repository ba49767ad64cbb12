"""Rotary frequencies of a checkpoint, scaled as transformers scales them.

    default     inverse frequencies follow from base and dimensions; nothing is stored
    linear      positions divided by a factor
    llama3      low frequencies divided, high ones kept, a ramp between (Llama 3.1)
    yarn        the same with another ramp, and cos and sin times a factor (YaRN, arXiv 2309.00071)

Each is computed by transformers' own function. YaRN's factor multiplies the rotated q and k; when
every dimension is rotated it is folded into their weights, since (f q) k f = f^2 (q k).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from penstock.errors import BackendMissingError, UnsupportedModelError
from penstock.export.hf_config import HFConfig

FIXED = ("linear", "llama3", "yarn")


@dataclass(frozen=True)
class Rope:
    """Rotary positions of a model: see ModelSpec; `qk_scale` goes into the rows of q and k."""

    base: float
    dims: int
    inv_freq: tuple[float, ...] | None = None
    qk_scale: float = 1.0


def read_rope(config: HFConfig, head_dim: int, default_partial: float = 1.0) -> Rope:
    """Rotary parameters from `rope_parameters` (transformers 5) or `rope_theta`, `rope_scaling`.

    Raises:
        UnsupportedModelError: a scaling whose frequencies depend on the text's length.
        BackendMissingError: a scaling is to be computed and transformers is not installed.
    """
    values = _parameters(config)
    base = HFConfig(config.path, values).number("rope_theta", default=10000.0)
    default = config.number("partial_rotary_factor", default=default_partial)
    partial = HFConfig(config.path, values).number("partial_rotary_factor", default=default)
    dims = int(head_dim * partial)
    kind = values.get("rope_type") or values.get("type") or "default"
    if kind == "default":
        return Rope(base, dims)
    if kind not in FIXED:
        raise UnsupportedModelError(
            f"{config.path}: rotary scaling '{kind}' is not supported: its frequencies change with "
            f"the length of the text. Supported: default, {', '.join(FIXED)}."
        )
    inv_freq, factor = _computed(
        config, {**values, "rope_type": kind, "rope_theta": base}, head_dim
    )
    if factor != 1.0 and dims != head_dim:
        raise UnsupportedModelError(
            f"{config.path}: rotary scaling '{kind}' with an attention factor of {factor:g} on "
            f"{dims} of "
            f"{head_dim} dimensions is not supported; only with all of them rotated"
        )
    return Rope(base, dims, inv_freq, factor)


def _parameters(config: HFConfig) -> dict[str, Any]:
    scaling = config.values.get("rope_parameters")
    if scaling is None:
        scaling = {
            "rope_theta": config.values.get("rope_theta"),
            **(config.values.get("rope_scaling") or {}),
        }
    if not isinstance(scaling, dict) or any(isinstance(v, dict) for v in scaling.values()):
        raise config.wrong(
            "rope_parameters", "one set of rotary parameters for all layers", scaling
        )
    return {k: v for k, v in scaling.items() if v is not None}


def _computed(
    config: HFConfig, parameters: dict[str, Any], head_dim: int
) -> tuple[tuple[float, ...], float]:
    try:
        from transformers import LlamaConfig
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    except ImportError:
        raise BackendMissingError(
            f"{config.path}: rotary scaling '{parameters['rope_type']}' is computed by "
            "transformers, which "
            "is not installed; install it with: pip install 'penstock[export]'"
        ) from None
    stand_in = LlamaConfig(
        hidden_size=config.integer("hidden_size"),
        num_attention_heads=config.integer("num_attention_heads"),
        head_dim=head_dim,
        max_position_embeddings=config.integer("max_position_embeddings", default=2048),
        rope_parameters=copy.deepcopy(parameters),
    )
    try:
        inv_freq, factor = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](stand_in)
    except (KeyError, TypeError, ValueError) as error:
        raise config.wrong("rope_parameters", f"valid parameters ({error})", parameters) from None
    return tuple(float(f) for f in inv_freq.tolist()), float(factor)

"""What the planner decided, as values that are printed before anything runs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from penstock.loaders.probe import DeviceProfile


@dataclass(frozen=True)
class LayerPlan:
    """Where one layer's feed-forward weights are.

    Attributes:
        residency: 'resident' (all in memory), 'window' (predictor and neuron window), 'exact' (up
            rows in memory, down columns of active neurons in the window), 'stream' (the first rows
            in memory, the others read for every token).
        rows: window slots, or rows in memory.
        share: rows as a share of the layer's neurons.
        nbytes: what it takes, predictor not included.
        predictor: whether the predictor is used.
        read_bytes: bytes expected to be read for a token.
    """

    layer: int
    residency: str
    rows: int
    share: float
    nbytes: int
    predictor: bool
    read_bytes: float


@dataclass(frozen=True)
class Plan:
    """The memory budget, spent. All sizes are bytes.

    Attributes:
        mode: 'predictor', 'exact' or 'dense'.
        budget: what was allowed; None: as much as the model can use.
        least: the smallest budget that works in this mode and context.
        streamed: resident-type tensors that are streamed instead (only in ablations).
        read_bytes: bytes expected to be read from storage for a token, in steady state.
        tokens_per_second: expected, from the device's profile.
    """

    path: str
    arch: str
    mode: str
    budget: int | None
    least: int
    context: int
    batch: int
    threads: int
    weights: int
    predictors: int
    kv_cache: int
    buffers: int
    tokenizer: int
    ffn: int
    ffn_whole: int
    layers: tuple[LayerPlan, ...]
    staging: int
    merge_gap: int
    read_max: int
    depth: int
    backend: str
    direct: bool
    window_tokens: int
    read_bytes: float
    tokens_per_second: float
    profile: DeviceProfile
    streamed: frozenset[str] = frozenset()

    @property
    def total(self) -> int:
        """All of the above that takes memory."""
        return (
            self.weights
            + self.predictors
            + self.kv_cache
            + self.buffers
            + self.tokenizer
            + self.ffn
        )

    def to_dict(self) -> dict[str, Any]:
        """For --json."""
        out = asdict(self)
        out["streamed"] = sorted(self.streamed)
        out["total"] = self.total
        return out

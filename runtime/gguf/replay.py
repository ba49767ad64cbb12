"""What each replacement policy would have kept of a recorded run, beside the best possible.

Belady's rule drops what is used again last. It knows the future, so no policy can follow it; it
says how much of the misses is the policy's fault and how much is the window's size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from penstock import _native
from penstock.errors import UsageError
from penstock.loaders.expert_trace import ExpertTrace
from penstock.runtime.gguf.plan import POLICIES

SHARES = (0.25, 0.5, 0.75)
OPTIMUM = "belady"


@dataclass(frozen=True)
class Replay:
    """One window size.

    Attributes:
        share: of all experts of all layers; capacity: the same in experts.
        hit_rates: of each policy; optimum: of Belady's rule.
    """

    share: float
    capacity: int
    hit_rates: dict[str, float]
    optimum: float

    @property
    def best(self) -> str:
        """The policy with the most hits."""
        return max(self.hit_rates, key=lambda name: self.hit_rates[name])

    def behind(self, policy: str) -> float:
        """Percentage points between a policy and the optimum."""
        return 100 * (self.optimum - self.hit_rates[policy])

    def to_dict(self) -> dict[str, Any]:
        """For --json."""
        return {
            "share": self.share,
            "capacity_experts": self.capacity,
            "hit_rates": self.hit_rates,
            "belady": self.optimum,
            "points_behind_belady": {name: self.behind(name) for name in self.hit_rates},
            "best": self.best,
        }


def replay(trace: ExpertTrace, shares: Sequence[float] = SHARES) -> list[Replay]:
    """Every policy on the single tokens of a run, from an empty window, for each window size.

    Prompts are left out: they use nearly every expert, whichever policy there is.

    Raises:
        UsageError: a share is not above 0 and at most 1, or the run had no single tokens.
    """
    for share in shares:
        if not 0 < share <= 1:
            raise UsageError(f"a window of {share:.0%} of the experts; expected over 0 % to 100 %")
    if not trace.tokens:
        raise UsageError(
            f"the trace of {trace.model} has {trace.passes} passes, all of prompts; record a run "
            "that generates some tokens"
        )
    ids, offsets = trace.steps()
    everything = trace.layers * trace.experts

    def hit_rate(policy: str, capacity: int) -> float:
        misses, used = _native.replay_experts(
            policy, everything, capacity, trace.layers, ids, offsets
        )
        return 1.0 - misses / used if used else 1.0

    out = []
    for share in shares:
        capacity = max(1, int(share * everything))
        rates = {policy: hit_rate(policy, capacity) for policy in POLICIES}
        out.append(Replay(share, capacity, rates, hit_rate(OPTIMUM, capacity)))
    return out

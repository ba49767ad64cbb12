"""The training loop: Adam over batches, within a time budget and a memory budget."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from penstock.errors import RefusedUpdateError
from penstock.federated.training.adam import Adam
from penstock.federated.training.local_update import LocalUpdate
from penstock.federated.training.time_budget import TimeBudget

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class LoopResult:
    """What the loop did.

    Attributes:
        loss: mean over the steps; 0 without any.
        steps: of the optimizer.
        stopped: it ended before its last epoch.
    """

    loss: float
    steps: int
    stopped: bool


def run_loop(
    module: nn.Module,
    update: LocalUpdate,
    *,
    learning_rate: float,
    largest_part: int,
    budget: TimeBudget,
    should_stop: Callable[[], bool],
    rng: np.random.Generator,
) -> LoopResult:
    """Train the module in place.

    Args:
        largest_part: windows trained at once; gradients of a batch's parts are added up.

    Raises:
        RefusedUpdateError: the loss is no longer finite.
    """
    module.train()
    optimizer = Adam(module.parameters(), learning_rate)
    losses: list[float] = []
    budget.begin_steps()
    for whole in update.batches(rng):
        if should_stop() or not budget.allows_step():
            return LoopResult(_mean(losses), len(losses), stopped=True)
        optimizer.clear_gradients()
        loss = 0.0
        for part in whole.parts(largest_part):
            share = update.loss(part, whole, rng)
            share.backward()  # type: ignore[no-untyped-call]
            loss += share.item()
        if not math.isfinite(loss):
            raise RefusedUpdateError(
                f"training diverged: the loss is {loss} in step {len(losses) + 1} at learning rate "
                f"{learning_rate}; the update is thrown away, the model here stays as it was"
            )
        optimizer.step()
        losses.append(loss)
        update.step_done()
        budget.step_done()
    return LoopResult(_mean(losses), len(losses), stopped=False)


def _mean(losses: list[float]) -> float:
    return float(np.mean(losses)) if losses else 0.0

"""The least noise under a number of bytes, one option of each layer: a multiple-choice knapsack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penstock.errors import UsageError

STEPS = 8192  # that the room above the smallest mix is divided into


@dataclass(frozen=True)
class Option:
    """One precision of one layer: its bytes, and the noise power it adds."""

    precision: str
    nbytes: int
    noise: float


def best_mix(options: Mapping[str, Sequence[Option]], room: int) -> dict[str, Option]:
    """The least sum of noise with at most `room` bytes: one option of each layer.

    Dynamic programming in steps of 1/8192 of what `room` leaves above the smallest mix, bytes
    rounded up; what rounding left is then spent where it saves most.

    Raises:
        UsageError: even the smallest mix is larger.
    """
    names = list(options)
    least = {name: min(option.nbytes for option in options[name]) for name in names}
    spare = room - sum(least.values())
    if spare < 0:
        raise UsageError(
            f"{room} bytes for layers are too few: the smallest mix takes {sum(least.values())}"
        )
    step = max(1, -(-spare // STEPS))
    width = spare // step + 1
    cost: NDArray[np.float64] = np.zeros(width)
    taken = np.zeros((len(names), width), np.int16)
    for row, name in enumerate(names):
        best = np.full(width, np.inf)
        for index, option in enumerate(options[name]):
            units = -(-(option.nbytes - least[name]) // step)
            if units >= width:
                continue
            with_it = cost[: width - units] + option.noise
            better = with_it < best[units:]
            best[units:][better] = with_it[better]
            taken[row, units:][better] = index
        cost = best
    mix, at = {}, width - 1
    for row in range(len(names) - 1, -1, -1):
        name = names[row]
        mix[name] = options[name][taken[row, at]]
        at -= -(-(mix[name].nbytes - least[name]) // step)
    return _spend({name: mix[name] for name in names}, options, room)


def _spend(
    mix: dict[str, Option], options: Mapping[str, Sequence[Option]], room: int
) -> dict[str, Option]:
    """Better options while there are bytes for them, the greatest saving of noise first."""
    left = room - sum(option.nbytes for option in mix.values())
    while True:
        steps = [
            (mix[name].noise - option.noise, name, option)
            for name in mix
            for option in options[name]
            if option.nbytes - mix[name].nbytes <= left and option.noise < mix[name].noise
        ]
        if not steps:
            return mix
        _, name, option = max(steps, key=lambda step: step[0])
        left -= option.nbytes - mix[name].nbytes
        mix[name] = option

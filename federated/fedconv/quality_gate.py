"""A filter must be better than the plain slice on the public hold-out, or the slice is taken.

A failed filter would hand devices a useless model (sub-models at 10 to 12 % accuracy were seen in
the notes' probe, section 1.6). The release starts again for as long as it takes; here a fresh
filter is tried `restarts` times.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from penstock.federated.arrays import Arrays
from penstock.federated.fedconv.profiles import Profile
from penstock.federated.public_training import Score


@dataclass(frozen=True)
class Candidate:
    """A model that filters made: they, the model, and how it does on the hold-out."""

    filters: Arrays = field(repr=False)
    model: Arrays = field(repr=False)
    score: Score


@dataclass(frozen=True)
class Passed:
    """What came through.

    Attributes:
        chosen: a trained filter's model, or the plain one, whose filters are empty.
        fell_back: the plain one was taken although the gate's filters were tried.
        restarts: fresh filters that were tried.
    """

    chosen: Candidate
    fell_back: bool
    restarts: int


def pass_gate(
    plain: Candidate,
    kept: Arrays,
    profile: Profile,
    fresh: Callable[[], Arrays],
    train: Callable[[Arrays], Candidate],
    out_of_time: Callable[[], bool],
) -> Passed:
    """Train the kept filters, then fresh ones, until one is no worse than the plain model.

    Without the profile's gate the first ones are taken as they are.

    Args:
        kept: filters of the round before; what `fresh` gives in the first.
    """
    filters = kept
    for attempt in range(profile.restarts + 1):
        if out_of_time():
            break
        candidate = train(filters)
        if not profile.gate or not plain.score.beats(candidate.score):
            return Passed(candidate, fell_back=False, restarts=attempt)
        filters = fresh()
    return Passed(plain, fell_back=True, restarts=attempt)

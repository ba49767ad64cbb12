"""Active sets that replay the published statistics of OPT-6.7B (LLM in a flash, arXiv 2312.11514).

A generator, not a recording. Each neuron of a layer has a score that is the sum of three
independent normals: a
popularity that never changes, a topic that drifts (an AR(1) process), and noise of the token. The
neurons with scores in
the layer's upper tail are active, a tail three times as wide is what the predictor names. Two
shares of
variance are fitted (`fit`) so that a window of five tokens meets the published figures.
Co-activation beyond
popularity and topic is not modelled, so neighbours on storage are active together only by chance,
which is
the hard case for merged reads.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

WINDOW_TOKENS = 5
# Truly active shares that the paper gives for layers 1, 16 and 32; its average is 3.30 %.
PUBLISHED_LAYERS = ((0.0, 0.0156), (15 / 31, 0.0266), (1.0, 0.0536))
OVER_PREDICTION = 3.0  # predicted neurons for each that is truly active


@dataclass(frozen=True)
class Targets:
    """Published averages, as shares of a layer's neurons."""

    active: float = 0.033
    predicted: float = 0.099
    fresh: float = 0.024  # predicted now and in none of the last WINDOW_TOKENS tokens
    window: float = 0.24  # predicted in at least one of WINDOW_TOKENS tokens


@dataclass(frozen=True)
class Persistence:
    """Shares of the scores' variance, and what a token keeps of the topic. The rest is noise."""

    popularity: float
    topic: float
    keep: float = 0.6


FITTED = Persistence(popularity=0.485, topic=0.435)  # what fit(Targets()) finds


@dataclass(frozen=True)
class Measured:
    """What a generated script has, averaged over tokens and layers, beside Targets."""

    active: float
    predicted: float
    fresh: float
    window: float


@dataclass(frozen=True)
class ActiveSets:
    """Predicted sets of (token, layer) in turn: ids[offsets[k] : offsets[k + 1]], ascending.

    Attributes:
        ids, offsets: what Decoder.script takes.
        measured: the statistics of these very sets.
        largest: (layers,) most neurons that a token predicts in each layer.
    """

    ids: NDArray[np.int32]
    offsets: NDArray[np.int64]
    measured: Measured
    largest: NDArray[np.int64]


def layer_shares(layers: int, average: float) -> NDArray[np.float64]:
    """Truly active share of each layer: the published profile, scaled to the published average."""
    depth, share = zip(*PUBLISHED_LAYERS, strict=True)
    curve = np.interp(np.linspace(0.0, 1.0, layers), depth, share)
    scaled: NDArray[np.float64] = curve * (average / curve.mean())
    return scaled


def scores(
    neurons: int, tokens: int, persistence: Persistence, random: np.random.Generator
) -> NDArray[np.float32]:
    """(tokens, neurons) standard normal scores."""
    p = persistence
    noise = 1.0 - p.popularity - p.topic
    popularity = random.standard_normal(neurons, np.float32) * np.float32(np.sqrt(p.popularity))
    topic = random.standard_normal(neurons, np.float32)
    out = np.empty((tokens, neurons), np.float32)
    for t in range(tokens):
        if t:
            step = random.standard_normal(neurons, np.float32)
            topic = np.float32(p.keep) * topic + np.float32(np.sqrt(1 - p.keep**2)) * step
        token = random.standard_normal(neurons, np.float32) * np.float32(np.sqrt(noise))
        out[t] = popularity + np.float32(np.sqrt(p.topic)) * topic + token
    return out


def generate(
    layers: int,
    neurons: int,
    tokens: int,
    *,
    targets: Targets | None = None,
    persistence: Persistence = FITTED,
    seed: int = 0,
) -> ActiveSets:
    """A script of `tokens` tokens for every layer."""
    targets = targets or Targets()
    random = np.random.default_rng(seed)
    shares = layer_shares(layers, targets.active)
    widen = targets.predicted / targets.active
    sets: list[list[NDArray[np.int32]]] = []
    found = []
    for share in shares:
        z = scores(neurons, tokens, persistence, random)
        predicted = z > _cut(share * widen)
        found.append(measure(predicted, z > _cut(share)))
        sets.append([np.flatnonzero(row).astype(np.int32) for row in predicted])
    in_turn = [sets[layer][t] for t in range(tokens) for layer in range(layers)]
    lengths = [len(ids) for ids in in_turn]
    mean = [sum(getattr(m, name) for m in found) / layers for name in Measured.__annotations__]
    return ActiveSets(
        ids=np.concatenate(in_turn),
        offsets=np.array([0, *itertools.accumulate(lengths)], np.int64),
        measured=Measured(*mean),
        largest=np.array([max(len(ids) for ids in layer) for layer in sets]),
    )


def measure(predicted: NDArray[np.bool_], active: NDArray[np.bool_]) -> Measured:
    """Statistics of one layer: (tokens, neurons) of booleans, more tokens than WINDOW_TOKENS."""
    k = WINDOW_TOKENS
    unions = np.stack([predicted[t : t + k].any(axis=0) for t in range(len(predicted) - k)])
    fresh = predicted[k:] & ~unions  # the union of the k tokens before
    return Measured(
        float(active.mean()), float(predicted.mean()), float(fresh.mean()), float(unions.mean())
    )


def fit(targets: Targets, neurons: int = 8192, tokens: int = 40, layers: int = 8) -> Persistence:
    """Search the two variance shares whose script meets `targets.fresh` and `targets.window`."""
    best, step = FITTED, 0.08

    def error(p: Persistence) -> float:
        if p.popularity < 0 or p.topic < 0 or p.popularity + p.topic > 1:
            return float("inf")
        m = generate(layers, neurons, tokens, targets=targets, persistence=p, seed=1).measured
        return abs(m.fresh / targets.fresh - 1) + abs(m.window / targets.window - 1)

    least = error(best)
    while step >= 0.005:
        moves = [(step, 0.0), (-step, 0.0), (0.0, step), (0.0, -step), (step, -step), (-step, step)]
        tried = [Persistence(best.popularity + a, best.topic + b, best.keep) for a, b in moves]
        errors = [error(p) for p in tried]
        if min(errors) < least:
            least, best = min(errors), tried[errors.index(min(errors))]
        else:
            step /= 2
    return best


def _cut(share: float) -> float:
    return NormalDist().inv_cdf(1.0 - share)

"""Trains a layer's predictor: which neurons will be active, from the network's input alone.

    score = fc2 (fc1 x) + bias > 0          fc1 (rank, width), fc2 (neurons, rank), bias (neurons,)

1. Start: the best rank-r approximation of the pre-activations on the calibration text, in closed
   form (reduced-rank regression), with each neuron's score in units of its approximation error.
2. Refine: logistic loss where an active neuron weighs as much as what the output would lose with
   it, |hidden| * |down column|, and an inactive one weighs 1. Missing a faint neuron costs little,
   so the predictor spends its few dimensions on those that matter (LLM in a flash, section 3.1:
   "false negatives have pre-activations close to 0").
3. Calibrate: one bias a neuron, by a Lagrangian over its score histogram (neurons predicted against
   magnitude lost), then one shift for the layer so that tokens not trained on meet the target.

The rank is the cheapest by bytes: predictor in memory against predicted neurons in the window.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from penstock.errors import BackendMissingError
from penstock.export.bundle_writer import StoredPredictor
from penstock.quant.blocks import FORMATS, BlockFormat, decode_rows, encode_rows

if TYPE_CHECKING:
    import torch

Floats = NDArray[np.float32]

RANKS = (32, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
MAX_PREDICTED = 0.8  # a predictor that keeps more than this is not worth its memory
BATCH_TOKENS = 256
TRIAL_TOKENS = 3072  # that ranks are tried on
BINS = 192
POOLED = 0.1  # share of the layer's pooled histogram in each neuron's: steadies rare neurons


@dataclass(frozen=True)
class LayerSamples:
    """A layer on the calibration text, in the neuron order of the bundle.

    Attributes:
        inputs: (tokens, width), the network's input.
        hidden: (tokens, neurons), after the activation; zero where inactive.
        gate: (neurons, width), the rows that decide activity: gate rows if gated, else up rows.
        gate_bias: (neurons,) or None.
        down_norm: (neurons,), length of each down column.
        train: tokens before it are fitted on; tune: those from `train` to it set thresholds; the
            rest measure.
    """

    inputs: Floats
    hidden: Floats
    gate: Floats
    gate_bias: Floats | None
    down_norm: Floats
    train: int
    tune: int

    def magnitude(self, at: slice) -> Floats:
        """(tokens, neurons): what the output loses with a neuron, |hidden| * |down column|."""
        weight: Floats = np.abs(self.hidden[at])
        weight *= self.down_norm
        return weight

    def part(self, step: int) -> LayerSamples:
        """Every step-th token, to try things out on."""
        keep = np.arange(0, len(self.inputs), step)
        train, tune = (int(np.searchsorted(keep, at)) for at in (self.train, self.tune))
        return replace(
            self, inputs=self.inputs[keep], hidden=self.hidden[keep], train=train, tune=tune
        )


@dataclass(frozen=True)
class Predictor:
    """A trained predictor as it will be stored: weights already rounded to `form`."""

    fc1: Floats
    fc2: Floats
    bias: Floats
    form: BlockFormat

    @property
    def rank(self) -> int:
        return len(self.fc1)

    @property
    def nbytes(self) -> int:
        width, neurons = self.fc1.shape[1], len(self.fc2)
        return (
            self.rank * self.form.row_bytes(width)
            + neurons * self.form.row_bytes(self.rank)
            + 4 * neurons
        )

    def stored(self, order: NDArray[np.int64] | None) -> StoredPredictor:
        """As bytes, its neurons in the order of the bundle."""
        at = np.arange(len(self.bias)) if order is None else order
        fc1, fc2 = encode_rows(self.fc1, self.form), encode_rows(self.fc2[at], self.form)
        return StoredPredictor(self.fc1.shape[1], self.rank, self.form, fc1, fc2, self.bias[at])

    def scores(self, inputs: Floats) -> Floats:
        """(tokens, neurons); above 0 is predicted active."""
        scores = np.asarray(inputs @ self.fc1.T @ self.fc2.T, np.float32)
        scores += self.bias
        return scores

    def active(self, inputs: Floats) -> NDArray[np.bool_]:
        """(tokens, neurons) predicted active."""
        found = np.empty((len(inputs), len(self.bias)), np.bool_)
        for at in _slices(len(inputs)):
            np.greater(self.scores(inputs[at]), 0, out=found[at])
        return found


def train_predictor(
    samples: LayerSamples,
    bundle_bytes: int,
    recall_target: float = 0.99,
    epochs: int = 8,
    ranks: tuple[int, ...] = RANKS,
    tick: Callable[[int], None] = lambda _: None,
) -> Predictor | None:
    """The predictor of a layer, or None when none pays.

    Args:
        bundle_bytes: size of one neuron on storage, weighed against the predictor's.
        tick: called with 1 after every epoch.

    Raises:
        BackendMissingError: torch is not installed.
    """
    start_fc1, start_fc2 = _low_rank(samples, min(max(ranks), samples.gate.shape[1]))
    chosen = _cheapest(samples, start_fc1, start_fc2, bundle_bytes, recall_target, ranks)
    if chosen is None:
        return None
    rank, form = chosen
    start = _scaled(samples, start_fc1[:rank], start_fc2[:, :rank])
    tuned = samples.inputs[samples.train : samples.tune]
    found: list[tuple[float, Predictor]] = []
    # With few tokens for many weights, refining can overfit: tokens not trained on decide.
    for weights in (start, _refine(samples, *start, epochs, tick)):
        candidate = calibrated(samples, _rounded(weights, form), recall_target)
        found.append((float(candidate.active(tuned).mean()), candidate))
    share, best = min(found, key=lambda pair: pair[0])
    return best if share <= MAX_PREDICTED else None


def _rounded(weights: tuple[Floats, Floats, Floats], form: BlockFormat) -> Predictor:
    fc1, fc2 = (decode_rows(encode_rows(matrix, form), form) for matrix in weights[:2])
    return Predictor(fc1, fc2, weights[2], form)


def _forms(width: int) -> tuple[BlockFormat, ...]:
    """Number formats worth trying. Ranks are multiples of 32 already."""
    return (FORMATS["Q4_0"], FORMATS["Q8_0"]) if width % 32 == 0 else (FORMATS["F16"],)


def _low_rank(samples: LayerSamples, rank: int) -> tuple[Floats, Floats]:
    """fc1 (rank, width), fc2 (neurons, rank) with gate @ x ~ fc2 @ fc1 @ x, best first.

    The error is measured on the inputs seen: with C = E[x x^T], truncate the SVD of gate C^1/2.
    """
    x = samples.inputs[: samples.train]
    covariance = np.asarray(x.T @ x, np.float64) / len(x)
    values, vectors = np.linalg.eigh(covariance)
    root = np.sqrt(np.maximum(values, values.max() * 1e-7))
    half = (vectors * root) @ vectors.T  # C^1/2
    inverse = (vectors / root) @ vectors.T
    mapped = samples.gate.astype(np.float64) @ half
    _, right = np.linalg.eigh(mapped.T @ mapped)
    right = right[:, ::-1][:, :rank]  # (width, rank)
    return (right.T @ inverse).astype(np.float32), (mapped @ right).astype(np.float32)


def _scaled(samples: LayerSamples, fc1: Floats, fc2: Floats) -> tuple[Floats, Floats, Floats]:
    """The start in units of each neuron's error, so that a logistic of the score means
    something."""
    x = samples.inputs[: min(samples.train, 2048)]
    error = (x @ (samples.gate - fc2 @ fc1).T).std(0)
    spread = (x @ fc1.T @ fc2.T).std(0)  # an error under a twentieth of it is as good as none
    scale = 1.7 / np.maximum(error, 0.05 * spread + 1e-12)
    bias = np.zeros(len(fc2), np.float32) if samples.gate_bias is None else samples.gate_bias
    return fc1, (fc2 * scale[:, None]).astype(np.float32), (bias * scale).astype(np.float32)


def _cheapest(
    samples: LayerSamples,
    fc1: Floats,
    fc2: Floats,
    bundle_bytes: int,
    recall_target: float,
    ranks: tuple[int, ...],
) -> tuple[int, BlockFormat] | None:
    """Least of predictor bytes plus bytes of the neurons predicted, judged before refining.

    Four bits cost a few more false positives at the same recall, and half of the memory: nearly
    always they win, with a larger rank than eight bits would pay for.
    """
    best: tuple[float, int, BlockFormat] | None = None
    neurons, width = samples.gate.shape
    samples = samples.part(max(1, len(samples.inputs) // TRIAL_TOKENS))
    for form in _forms(width):
        before = float("inf")
        for rank in (r for r in ranks if r <= width // 2 or r == ranks[0]):
            start = _scaled(samples, fc1[:rank], fc2[:, :rank])
            guess = calibrated(samples, _rounded(start, form), recall_target)
            predicted = float(guess.active(samples.inputs[samples.tune :]).mean())
            cost = guess.nbytes + predicted * neurons * bundle_bytes
            if best is None or cost < best[0]:
                best = (cost, rank, form)
            if cost > 1.2 * before:
                break  # larger ones only cost more
            before = min(before, cost)
    return None if best is None else best[1:]


def _refine(
    samples: LayerSamples,
    fc1: Floats,
    fc2: Floats,
    bias: Floats,
    epochs: int,
    tick: Callable[[int], None],
) -> tuple[Floats, Floats, Floats]:
    """Gradient steps (Adam) on the weighted logistic loss; the gradient is written out."""
    torch = import_torch()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x = torch.from_numpy(samples.inputs[: samples.train]).to(device)
    hidden = torch.from_numpy(samples.hidden[: samples.train])
    price = torch.from_numpy(samples.down_norm).to(device)
    some = samples.magnitude(slice(0, min(samples.train, TRIAL_TOKENS)))
    price *= POSITIVE / (float(some.sum() / max(1, np.count_nonzero(some))) or 1.0)
    parameters = [torch.from_numpy(p).to(device).clone() for p in (fc1, fc2, bias)]
    groups = [{"params": [p], "lr": RATE * float(p.abs().mean()) + 1e-8} for p in parameters]
    optimizer = torch.optim.Adam(groups)
    steps = epochs * -(-len(x) // BATCH_TOKENS)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for batch in torch.randperm(len(x), generator=generator).split(BATCH_TOKENS):
            weight = hidden[batch].to(device).abs_().mul_(price)
            _gradients(parameters, x[batch.to(device)], weight)
            optimizer.step()
            schedule.step()
        tick(1)
    fc1, fc2, bias = (p.cpu().numpy() for p in parameters)
    return fc1, fc2, bias


RATE = 0.03  # Adam's step, in units of the mean parameter
POSITIVE = 20.0  # weight of a typical active neuron, to 1 of an inactive one


def _gradients(parameters: list[torch.Tensor], x: torch.Tensor, weight: torch.Tensor) -> None:
    """d/ds of  weight * softplus(-s) if active, else softplus(s);  x (batch, width)."""
    fc1, fc2, bias = parameters
    low = x @ fc1.T  # (batch, rank)
    s = (low @ fc2.T + bias).sigmoid_()  # (batch, neurons)
    grad = s.where(weight == 0, (s - 1) * weight) / len(x)
    bias.grad = grad.sum(0)
    fc2.grad = grad.T @ low
    fc1.grad = (grad @ fc2).T @ x


def calibrated(samples: LayerSamples, predictor: Predictor, recall_target: float) -> Predictor:
    """The predictor with the biases that meet the target at least cost.

    Every neuron picks the threshold with the least (tokens predicted + price * magnitude lost); the
    price is the same for all, which is what makes the whole optimal. It is bisected to the target.
    """
    count, mass, edges = _histograms(samples, predictor)
    # With the threshold at the lower edge of bin k, bins k and up are predicted.
    wanted = count[:, ::-1].cumsum(1)[:, ::-1]
    lost = mass.cumsum(1) - mass
    threshold = _priced(wanted, lost, recall_target, edges)
    shifted = replace(predictor, bias=predictor.bias - threshold)
    # One shift for the layer, on tokens that were not trained on.
    held = slice(samples.train, samples.tune)
    size = np.abs(samples.hidden[held])
    active = size > 0
    size, margin = size[active], shifted.scores(samples.inputs[held])[active]
    if not len(margin):
        return shifted
    order = np.argsort(-margin)
    reached = int(np.searchsorted(np.cumsum(size[order]), recall_target * size.sum()))
    shift = float(margin[order[min(reached, len(order) - 1)]])
    return replace(shifted, bias=shifted.bias - np.float32(min(shift, 0.0) - 1e-6))


def _histograms(
    samples: LayerSamples, predictor: Predictor
) -> tuple[NDArray[np.float64], NDArray[np.float64], Floats]:
    """Tokens and magnitude by score: two (neurons, BINS), and the edges between bins."""
    neurons = len(predictor.bias)
    low, high = np.percentile(predictor.scores(samples.inputs[:512]), (0.5, 99.9))
    size = neurons * BINS
    count, mass = np.zeros(size), np.zeros(size)
    first_bin = np.arange(neurons, dtype=np.int32) * BINS
    for at in _slices(samples.tune):
        place = (predictor.scores(samples.inputs[at]) - low) * ((BINS - 2) / (high - low))
        bins = np.clip(place.astype(np.int32) + 1, 0, BINS - 1) + first_bin
        count += np.bincount(bins.ravel(), minlength=size)
        mass += np.bincount(bins.ravel(), samples.magnitude(at).ravel(), size)
    # Part of the layer's mean histogram in each neuron's steadies those that are rarely active.
    tables = (t.reshape(neurons, BINS) for t in (count, mass))
    count, mass = (t * (1 - POOLED) + t.mean(0) * POOLED for t in tables)
    return count, mass, np.linspace(low, high, BINS - 1, dtype=np.float32)


def _slices(tokens: int) -> list[slice]:
    return [slice(at, min(at + 1024, tokens)) for at in range(0, tokens, 1024)]


def _priced(
    predicted: NDArray[np.float64], lost: NDArray[np.float64], target: float, edges: Floats
) -> Floats:
    total = float(lost[:, -1].sum()) + 1e-30
    rows = np.arange(len(lost))
    low, high = -12.0, 12.0  # log10 of the price of all of the magnitude
    for _ in range(40):
        price = (low + high) / 2
        choice = (predicted + 10.0**price * len(lost) / total * lost).argmin(1)
        if lost[rows, choice].sum() / total > 1 - target:
            low = price
        else:
            high = price
    choice = (predicted + 10.0**high * len(lost) / total * lost).argmin(1)
    below = edges[0] - 1e3 * (edges[-1] - edges[0])
    threshold: Floats = np.where(choice == 0, below, edges[np.maximum(choice, 1) - 1])
    return threshold.astype(np.float32)


def import_torch() -> Any:
    """Torch, or the error that names the extra."""
    try:
        import torch
    except ImportError:
        raise BackendMissingError(
            "training predictors needs torch; install it with: pip install 'penstock[export]', "
            "or export without calibration (--no-calibration)"
        ) from None
    return torch

"""Training on the server's public samples: any tensors that a model is assembled from.

Server training optimises a model's own parameters, FedConv its filters and aggregation weights. In
each case a model is assembled from what is trained, run by `torch.func.functional_call`, and judged
after every epoch on the public hold-out, the start too. Of a model's own training the latest state
is kept that is no more than one standard error worse than the best: on a hundred samples the lowest
loss alone is often luck, and the luckiest may be the untrained start. (The standard error is that
of Breiman et al., Classification and Regression Trees, 1984, section 3.4.3, who then take the
smallest such tree.) Filters and weights, which must beat what they replace, keep the best. Test
data is never seen.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from penstock.errors import UsageError
from penstock.federated.arrays import Arrays
from penstock.federated.models.registry import ModelOptions, build_module
from penstock.federated.training.data import TrainingData, check_fits

if TYPE_CHECKING:
    from torch import Tensor, nn

STATISTICS_BATCH = 256


@dataclass(frozen=True)
class PublicSet:
    """Labelled samples that the server has: it trains on one part and chooses by the other."""

    train: TrainingData = field(repr=False)
    hold_out: TrainingData = field(repr=False)

    def __post_init__(self) -> None:
        for name, part in (("training", self.train), ("hold-out", self.hold_out)):
            if len(part) < 2 or len(part.unlabelled):
                raise UsageError(
                    f"the public {name} set has {len(part)} samples, {len(part.unlabelled)} of "
                    "them without a label; expected 2 or more, all with one"
                )


@dataclass(frozen=True)
class Score:
    """On the hold-out."""

    loss: float
    accuracy: float

    def beats(self, other: Score) -> bool:
        """A lower loss; NaN beats nothing."""
        return self.loss < other.loss


@dataclass(frozen=True)
class Judged:
    """A score and each hold-out sample's loss, float64 [samples]."""

    score: Score
    losses: NDArray[np.float64] = field(repr=False)

    def is_near(self, best: Judged) -> bool:
        """At most one standard error of the difference, sample by sample, worse than the best.

        The error is that of differences between the 5th and the 95th percentile: one sample gone
        wild, whose difference is its own standard error however large, does not excuse itself.
        """
        if not np.isfinite(self.score.loss):
            return False
        worse = self.losses - best.losses
        usual = np.clip(worse, *np.quantile(worse, (0.05, 0.95)))
        return bool(worse.mean() <= usual.std(ddof=1) / np.sqrt(len(worse)))


@dataclass(frozen=True)
class Fit:
    """What a training did: scores before it and of what was kept, and sample passes made."""

    before: Score
    kept: Score
    passes: int
    stopped: bool


class PublicTrainer:
    """Warm modules of every width, and the public samples as tensors.

    Args:
        batch: samples in a step.
        clock: seconds; `deadline`s are on it.

    Raises:
        BackendMissingError: torch is not installed.
        RefusedUpdateError: the samples do not fit the model.
    """

    def __init__(
        self,
        options: ModelOptions,
        public: PublicSet,
        batch: int = 32,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.options, self.batch, self.clock = options, batch, clock
        for part in (public.train, public.hold_out):
            check_fits(part, options)
        self._modules: dict[float, nn.Module] = {1.0: build_module(options)}
        import torch

        self._train = tuple(map(torch.from_numpy, (public.train.inputs, public.train.labels)))
        self._held = tuple(map(torch.from_numpy, (public.hold_out.inputs, public.hold_out.labels)))
        self.passes = 0  # training samples seen forwards and backwards, by everything

    def fit(
        self,
        trained: Sequence[Tensor],
        assemble: Callable[[], Mapping[str, Tensor]],
        *,
        ratio: float,
        epochs: int,
        rate: float,
        rng: np.random.Generator,
        deadline: float = float("inf"),
        by_batch: bool = False,
        keep: Literal["latest", "best"] = "latest",
    ) -> Fit:
        """Train these tensors in place by Adam; at the end they hold the state that is kept.

        Args:
            trained: leaves that require gradients, and any buffers, which are only kept and
                restored with them.
            assemble: the model's state dict from them.
            deadline: on the clock; training stops at the next step.
            by_batch: score by the statistics of the hold-out itself, for a model whose running
                statistics do not belong to its weights yet.
            keep: "latest": the last state that is no more than a standard error worse than the
                best; "best": the one with the lowest loss, never worse than the start.
        """
        import torch
        from torch.nn.functional import cross_entropy

        module = self.module(ratio).train()
        leaves = [tensor for tensor in trained if tensor.requires_grad]
        optimizer = torch.optim.Adam(leaves, lr=rate, fused=True)

        def judged() -> Judged:
            with torch.no_grad():
                return self._judged(assemble(), ratio, by_batch=by_batch)

        before = kept = best = judged()
        state = [tensor.detach().clone() for tensor in trained]
        inputs, labels = self._train
        passes, stopped = 0, False
        for _ in range(epochs):
            for rows in _batches(len(labels), self.batch, rng):
                if self.clock() > deadline:
                    stopped = True
                    break
                optimizer.zero_grad(set_to_none=True)
                logits = torch.func.functional_call(module, dict(assemble()), (inputs[rows],))
                loss = cross_entropy(logits, labels[rows])
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                passes += len(rows)
            now = judged()  # also what a stopped epoch made
            if now.score.beats(best.score):
                best = now
            if now is best or (keep == "latest" and now.is_near(best)):
                kept, state = now, [tensor.detach().clone() for tensor in trained]
            if stopped:
                break
        with torch.no_grad():
            for tensor, value in zip(trained, state, strict=True):
                tensor.copy_(value)
        self.passes += passes
        return Fit(before.score, kept.score, passes, stopped)

    def tune(
        self,
        arrays: Mapping[str, NDArray[Any]],
        *,
        ratio: float = 1.0,
        epochs: int,
        rate: float,
        rng: np.random.Generator,
        deadline: float = float("inf"),
    ) -> tuple[Arrays, Fit]:
        """The model itself, trained on the public samples."""
        values = to_tensors(arrays)
        names = [name for name, _ in self.module(ratio).named_parameters()]
        for name in names:
            values[name].requires_grad_()
        fit = self.fit(
            list(values.values()),
            lambda: values,
            ratio=ratio,
            epochs=epochs,
            rate=rate,
            rng=rng,
            deadline=deadline,
        )
        return to_arrays(values), fit

    def score(self, values: Mapping[str, Tensor], ratio: float, *, by_batch: bool = False) -> Score:
        """Loss and accuracy on the hold-out; nothing is changed."""
        return self._judged(values, ratio, by_batch=by_batch).score

    def _judged(self, values: Mapping[str, Tensor], ratio: float, *, by_batch: bool) -> Judged:
        import torch
        from torch.nn.functional import cross_entropy

        module = self.module(ratio).train(by_batch)
        inputs, labels = self._held
        if by_batch:
            values = {n: v.clone() if not v.requires_grad else v for n, v in values.items()}
        with torch.no_grad():
            said = [
                torch.func.functional_call(module, dict(values), (part,))
                for part in inputs.tensor_split(-(-len(inputs) // STATISTICS_BATCH))
            ]
            logits = torch.cat(said)
            losses = cross_entropy(logits, labels, reduction="none").double().numpy()
            right = int((logits.argmax(dim=1) == labels).sum())
        module.train()
        loss = float(losses.mean())
        return Judged(
            Score(loss if np.isfinite(loss) else float("inf"), right / len(labels)), losses
        )

    def recompute_norm(self, arrays: Mapping[str, NDArray[Any]], ratio: float = 1.0) -> Arrays:
        """The same model with BatchNorm's statistics taken anew: their mean over batches of the
        public training samples. A model without BatchNorm comes back as it is.

        Averaged or filtered statistics do not belong to averaged or filtered weights.
        """
        import torch
        from torch.nn.modules.batchnorm import _BatchNorm

        module = self.module(ratio).train()
        norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
        values = to_tensors(arrays)
        if not norms:
            return to_arrays(values)
        counters = {name: v.clone() for name, v in values.items() if not v.is_floating_point()}
        momenta = [norm.momentum for norm in norms]
        for name in counters:
            values[name].zero_()
        for norm in norms:
            norm.momentum = None  # torch's cumulative mean over batches
        try:
            with torch.no_grad():
                # Equal parts: a cumulative mean gives a short last batch the weight of a full one.
                for part in self._train[0].tensor_split(
                    -(-len(self._train[0]) // STATISTICS_BATCH)
                ):
                    torch.func.functional_call(module, values, (part,))
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
        return to_arrays(values | counters)

    def module(self, ratio: float) -> nn.Module:
        """The module of this width; its own parameters are never used."""
        if ratio not in self._modules:
            self._modules[ratio] = build_module(self.options, ratio)
        return self._modules[ratio]


def to_tensors(arrays: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
    """Copies as torch tensors."""
    import torch

    return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}


def to_arrays(values: Mapping[str, Tensor]) -> Arrays:
    """Copies as NumPy arrays."""
    return {name: value.detach().numpy().copy() for name, value in values.items()}


def _batches(count: int, batch: int, rng: np.random.Generator) -> list[Tensor]:
    """Shuffled positions; a last batch of one, which BatchNorm cannot take, is left out."""
    import torch

    order = torch.from_numpy(rng.permutation(count))
    parts = torch.split(order, batch)
    return [rows for rows in parts if len(rows) > 1]

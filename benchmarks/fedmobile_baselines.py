"""Published methods beside ours, adapted to the same stream, rounds and steps.

FedMatch (Jeong et al., ICLR 2021) and SemiFL (Diao et al., NeurIPS 2022), each with the weights and
thresholds of its authors' code; optimizer, learning rate, batches and views are those of all rows.
Both are written for tens of thousands of images; what is missing here (FedMatch's sparse
communication, SemiFL's BatchNorm statistics) has no bearing on a multilayer perceptron.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.func import functional_call
from torch.nn import functional

from penstock.federated.models.registry import ModelOptions, build_module
from penstock.federated.training.adam import Adam
from penstock.federated.training.augmentations import strong_view, weak_view
from penstock.federated.training.batches import Batch, epochs_of_batches
from penstock.federated.training.data import TrainingData

Parameters = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Steps:
    """Local training, the same for every row.

    Attributes:
        epochs, batch, learning_rate: as in a `TrainTask`.
        unlabelled_per_labelled: of a step.
    """

    epochs: int
    batch: int
    learning_rate: float
    unlabelled_per_labelled: int

    def batches(self, data: TrainingData, rng: np.random.Generator) -> list[Batch]:
        """Of one device in one round."""
        return list(
            epochs_of_batches(
                data.labelled,
                data.unlabelled,
                epochs=self.epochs,
                batch=self.batch,
                unlabelled_batch=self.batch * self.unlabelled_per_labelled,
                rng=rng,
            )
        )


def mean_of(models: Sequence[Parameters], weights: Sequence[float]) -> Parameters:
    """The weighted mean of models."""
    total = sum(weights)
    return {
        name: torch.stack([m[name] * (w / total) for m, w in zip(models, weights, strict=True)])
        .sum(dim=0)
        .detach()
        for name in models[0]
    }


def make_step(adam: Adam, loss: torch.Tensor) -> None:
    """One step of an optimizer."""
    adam.clear_gradients()
    loss.backward()  # type: ignore[no-untyped-call]
    adam.step()


# ---------------------------------------------------------------- FedMatch


TAU_MATCH, HELPERS, PSI_FACTOR = 0.75, 2, 0.2
LAMBDA_S, LAMBDA_I, LAMBDA_A, L2, L1 = 10.0, 1e-2, 1e-2, 10.0, 1e-4
HELPERS_EVERY = 10  # rounds


@dataclass
class FedMatch:
    """theta = sigma + psi: labels train sigma; psi learns what helpers and the device agree on."""

    options: ModelOptions
    start: Parameters
    steps: Steps
    module: nn.Module = field(init=False)
    sigma: Parameters = field(init=False)
    psi: Parameters = field(init=False)
    local: dict[int, Parameters] = field(init=False)
    helpers: dict[int, list[int]] = field(init=False)

    def __post_init__(self) -> None:
        self.module = build_module(self.options)
        self.psi = {n: PSI_FACTOR * v for n, v in self.start.items()}
        self.sigma = {n: v - self.psi[n] for n, v in self.start.items()}
        self.local, self.helpers = {}, {}

    def model(self) -> Parameters:
        """The global model."""
        return {n: self.sigma[n] + self.psi[n] for n in self.sigma}

    def begin_chunk(self, devices: Sequence[TrainingData], rng: np.random.Generator) -> None:
        """Other wearers: yesterday's helpers are gone."""
        del devices, rng
        self.local, self.helpers = {}, {}

    def round(self, devices: Sequence[TrainingData], number: int, rng: np.random.Generator) -> None:
        """All devices train; sigma and psi are averaged apart."""
        if self.local and number % HELPERS_EVERY == 1:
            self.helpers = self._nearest()
        trained = [self._device(i, data, rng) for i, data in enumerate(devices)]
        weights = [float(len(data)) for data in devices]
        self.sigma = mean_of([sigma for sigma, _ in trained], weights)
        self.psi = mean_of([psi for _, psi in trained], weights)

    def _device(
        self, device: int, data: TrainingData, rng: np.random.Generator
    ) -> tuple[Parameters, Parameters]:
        sigma = {n: v.clone().requires_grad_() for n, v in self.sigma.items()}
        psi = {n: v.clone().requires_grad_() for n, v in self.psi.items()}
        rate = self.steps.learning_rate
        of_sigma, of_psi = Adam(sigma.values(), rate), Adam(psi.values(), rate)
        helpers = [self.local[i] for i in self.helpers.get(device, [])]
        for batch in self.steps.batches(data, rng):
            if len(batch.labelled):
                labels = torch.from_numpy(data.labels[batch.labelled])
                theta = {n: sigma[n] + psi[n].detach() for n in sigma}
                seen = torch.from_numpy(weak_view(data.inputs[batch.labelled], rng))
                loss = LAMBDA_S * functional.cross_entropy(self._run(theta, seen), labels)
                make_step(of_sigma, loss)
            if len(batch.unlabelled):
                theta = {n: sigma[n].detach() + psi[n] for n in sigma}
                loss = self._agreement(theta, helpers, data.inputs[batch.unlabelled], rng)
                for name, value in psi.items():
                    loss = loss + L1 * value.abs().sum()
                    loss = loss + L2 * (sigma[name].detach() - value).square().mean()
                make_step(of_psi, loss)
        self.local[device] = {n: (sigma[n] + psi[n]).detach() for n in sigma}
        return sigma, psi

    def _agreement(
        self,
        theta: Parameters,
        helpers: list[Parameters],
        windows: NDArray[np.float32],
        rng: np.random.Generator,
    ) -> torch.Tensor:
        """Close to the helpers; and the hard view learns what most of them say."""
        weak = torch.from_numpy(weak_view(windows, rng))
        hard = torch.from_numpy(strong_view(windows, rng))
        own = self._run(theta, weak)
        sure = own.detach().softmax(1).amax(1) >= TAU_MATCH
        if not sure.any():
            return own.sum() * 0
        with torch.no_grad():
            others = [self._run(helper, weak).softmax(1) for helper in helpers]
            votes = functional.one_hot(own.argmax(1), own.shape[1])
            for other in others:
                votes = votes + functional.one_hot(other.argmax(1), own.shape[1])
            label = votes.argmax(1)
        loss = LAMBDA_A * functional.cross_entropy(self._run(theta, hard)[sure], label[sure])
        for other in others:
            kl = functional.kl_div(own.log_softmax(1)[sure], other[sure], reduction="batchmean")
            loss = loss + LAMBDA_I * kl / len(others)
        return loss

    def _nearest(self) -> dict[int, list[int]]:
        """The devices whose models say the most alike about fixed noise."""
        noise = torch.from_numpy(
            np.random.default_rng(0).normal(size=(32, *self.options.input_shape)).astype(np.float32)
        )
        with torch.no_grad():
            said = {i: self._run(m, noise).softmax(1).flatten() for i, m in self.local.items()}
        return {
            i: sorted((j for j in said if j != i), key=lambda j: float((said[i] - said[j]).norm()))[
                :HELPERS
            ]
            for i in said
        }

    def _run(self, parameters: Parameters, windows: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = functional_call(self.module, parameters, (windows,))
        return found


# ---------------------------------------------------------------- SemiFL


TAU_SEMI, MOMENTUM, MIXUP_ALPHA, SERVER_EPOCHS = 0.95, 0.5, 0.75, 5


@dataclass
class SemiFL:
    """The server trains on the labels, the devices on labels that the server's model gave.

    Its setting is labels at the server: here the chunk's labelled windows leave their devices,
    which no other row allows.
    """

    options: ModelOptions
    start: Parameters
    steps: Steps
    module: nn.Module = field(init=False)
    theta: Parameters = field(init=False)
    velocity: Parameters = field(init=False)
    labelled: TrainingData | None = None

    def __post_init__(self) -> None:
        self.module = build_module(self.options)
        self.theta = {n: v.clone() for n, v in self.start.items()}
        self.velocity = {n: torch.zeros_like(v) for n, v in self.start.items()}

    def model(self) -> Parameters:
        """The global model."""
        return self.theta

    def begin_chunk(self, devices: Sequence[TrainingData], rng: np.random.Generator) -> None:
        """The labelled windows of this chunk go to the server; the last chunk's are deleted."""
        del rng
        some = [data.subset(data.labelled) for data in devices]
        self.labelled = TrainingData(
            np.concatenate([d.inputs for d in some]), np.concatenate([d.labels for d in some])
        )

    def round(self, devices: Sequence[TrainingData], number: int, rng: np.random.Generator) -> None:
        """Labels at the server, then pseudo-labels on the devices, averaged with momentum."""
        del number
        assert self.labelled is not None
        self.theta = self._supervised(self.labelled, rng)
        updates, weights = [], []
        for data in devices:
            found = self._device(data, rng)
            if found is not None:
                updates.append(found[0])
                weights.append(found[1])
        if not updates:
            return
        mean = mean_of(updates, weights)
        for name, value in self.theta.items():
            self.velocity[name] = MOMENTUM * self.velocity[name] + (mean[name] - value)
        self.theta = {n: v + self.velocity[n] for n, v in self.theta.items()}

    def _supervised(self, data: TrainingData, rng: np.random.Generator) -> Parameters:
        theta = {n: v.clone().requires_grad_() for n, v in self.theta.items()}
        adam = Adam(theta.values(), self.steps.learning_rate)
        for _ in range(SERVER_EPOCHS):
            for where in np.array_split(rng.permutation(len(data)), -(-len(data) // 32)):
                seen = torch.from_numpy(weak_view(data.inputs[where], rng))
                labels = torch.from_numpy(data.labels[where])
                loss = functional.cross_entropy(self._run(theta, seen), labels)
                make_step(adam, loss)
        return {n: v.detach() for n, v in theta.items()}

    def _device(
        self, data: TrainingData, rng: np.random.Generator
    ) -> tuple[Parameters, float] | None:
        """FixMatch on the windows that the received model is sure of, and MixUp of these with
        windows of any confidence; a device without a sure window sits out."""
        with torch.no_grad():
            p = self._run(self.theta, torch.from_numpy(weak_view(data.inputs, rng))).softmax(1)
        best, label = p.max(1)
        sure = np.flatnonzero((best >= TAU_SEMI).numpy())
        if not len(sure):
            return None
        theta = {n: v.clone().requires_grad_() for n, v in self.theta.items()}
        adam = Adam(theta.values(), self.steps.learning_rate)
        size = self.steps.batch * self.steps.unlabelled_per_labelled
        for _ in range(self.steps.epochs):
            for where in np.array_split(rng.permutation(sure), -(-len(sure) // size)):
                mixed = rng.integers(0, len(data), len(where))
                strong = torch.from_numpy(strong_view(data.inputs[where], rng))
                fix = functional.cross_entropy(self._run(theta, strong), label[where])
                share = float(rng.beta(MIXUP_ALPHA, MIXUP_ALPHA))
                both = share * data.inputs[where] + (1 - share) * data.inputs[mixed]
                said = self._run(theta, torch.from_numpy(both.astype(np.float32)))
                mix = share * functional.cross_entropy(said, label[where])
                mix = mix + (1 - share) * functional.cross_entropy(said, label[mixed])
                make_step(adam, fix + mix)
        return {n: v.detach() for n, v in theta.items()}, float(len(sure))

    def _run(self, parameters: Parameters, windows: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = functional_call(self.module, parameters, (windows,))
        return found

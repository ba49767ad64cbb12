"""One cell of the FedConv benchmark: a method on a split, round by round."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fedconv_data import Split, read_mnist, split
from penstock.federated.aggregation import Update
from penstock.federated.algorithm import Algorithm, FedAvg, FedRolex, HeteroFL
from penstock.federated.arrays import nbytes
from penstock.federated.fedconv import DEFAULT, PAPER, FedConv, Profile
from penstock.federated.models import ModelOptions, build_module, model_spec
from penstock.federated.protocol import TrainTask
from penstock.federated.public_training import PublicTrainer
from penstock.federated.public_tuning import PublicTuning, ServerOnly
from penstock.federated.training.trainer import Trainer

MODEL = ModelOptions("image-cnn", (1, 28, 28), 10)
RATIOS = (1.0, 1.0, 0.75, 0.75, 0.75, 0.75, 0.5625, 0.5625, 0.5625, 0.5625)
METHODS = (
    "server only", "FedAvg", "FedAvg + tuning", "HeteroFL", "HeteroFL + tuning", "FedRolex",
    "FedConv", "FedConv, paper's",
)  # fmt: skip
USES_PUBLIC = ("server only", "FedAvg + tuning", "HeteroFL + tuning", "FedConv", "FedConv, paper's")


@dataclass(frozen=True)
class Setting:
    """How long everything trains; the same for all methods.

    Attributes:
        rounds; local_epochs: of a client in a round, at `rate` in batches of 32.
        public_epochs: passes over the public training samples that the server makes in a round, in
            all; FedConv spends them on the global model, filters, uploads, dilation and weights.
        public_rate: of training models on them; 3e-4 was as good as 1e-3 for HeteroFL + tuning on
            seeds 10 to 12, and better for FedConv.
    """

    rounds: int = 4
    local_epochs: int = 1
    public_epochs: int = 28
    rate: float = 1e-3
    public_rate: float = 3e-4


@dataclass(frozen=True)
class Cell:
    """What one method did on one split.

    Attributes:
        accuracies: of the global model on test data, after each round.
        sub_accuracies: of the model that a device of a ratio would be sent next.
        bytes_per_client: down and up in a round, mean over clients.
        operations: of training on one sample, forwards and backwards, mean over clients.
        server_seconds, client_seconds: of a round, all clients one after the other.
        public_passes: epochs over the public training samples in a round, as the server counted.
    """

    method: str
    alpha: float
    seed: int
    accuracies: list[float]
    sub_accuracies: dict[str, float]
    bytes_per_client: float
    operations: float
    server_seconds: float
    client_seconds: float
    public_passes: float
    figures: dict[str, float]


def run_cell(method: str, alpha: float, seed: int, setting: Setting, data: Path) -> Cell:
    """All rounds of one method on one split, on one thread."""
    import torch

    torch.set_num_threads(1)
    parts = split(*read_mnist(data / "mnist"), alpha, len(RATIOS), seed)
    algorithm = make(method, parts, seed, setting)
    trainers = {ratio: Trainer(MODEL, ratio) for ratio in {1.0, *RATIOS}}
    accuracies, server, client, passes, bytes_moved = [], 0.0, 0.0, 0.0, 0
    for number in range(1, setting.rounds + 1):
        began = time.perf_counter()
        algorithm.begin_round(number)
        devices = {} if method == "server only" else dict(zip(parts.clients, RATIOS, strict=True))
        sent = {device: algorithm.send(device, ratio) for device, ratio in devices.items()}
        server += time.perf_counter() - began
        began = time.perf_counter()
        updates = []
        for device, given in sent.items():
            task = _task(setting, number, given.ratio, seed * 1000 + int(device[-2:]))
            trained = trainers[given.ratio].train(given.arrays, parts.clients[device], task)
            updates.append(Update(device, trained.arrays, given.channels, trained.examples))
            bytes_moved += nbytes(given.arrays) + nbytes(trained.arrays)
        client += time.perf_counter() - began
        began = time.perf_counter()
        algorithm.end_round(updates)
        server += time.perf_counter() - began
        passes += algorithm.figures.get("public_passes", 0.0)
        accuracies.append(trainers[1.0].evaluate(algorithm.arrays, parts.test).accuracy)
    figures = dict(algorithm.figures)
    algorithm.begin_round(setting.rounds + 1)
    subs = {
        f"{ratio:g}": trainers[ratio].evaluate(
            algorithm.send(device, ratio).arrays, parts.test
        ).accuracy
        for device, ratio in zip(parts.clients, RATIOS, strict=True)
        if algorithm.send(device, ratio).ratio == ratio
    }  # fmt: skip
    used = [given.ratio for given in sent.values()]
    return Cell(
        method=method,
        alpha=alpha,
        seed=seed,
        accuracies=accuracies,
        sub_accuracies=subs,
        bytes_per_client=bytes_moved / setting.rounds / len(RATIOS),
        operations=float(np.mean([operations(ratio) for ratio in used])) if used else 0.0,
        server_seconds=server / setting.rounds,
        client_seconds=client / setting.rounds,
        public_passes=passes / setting.rounds / len(parts.public.train),
        figures=figures,
    )


def make(method: str, parts: Split, seed: int, setting: Setting) -> Algorithm:
    """The method, from the same initial model for each seed."""
    import torch

    torch.manual_seed(seed)
    start = {name: t.numpy().copy() for name, t in build_module(MODEL).state_dict().items()}
    spec = model_spec(MODEL)
    slices: dict[str, Callable[[], Algorithm]] = {
        "FedAvg": lambda: FedAvg(spec, start),
        "HeteroFL": lambda: HeteroFL(spec, start),
        "FedRolex": lambda: FedRolex(spec, start),
    }
    if method in slices:
        return slices[method]()
    profiles = {"FedConv": DEFAULT, "FedConv, paper's": PAPER}
    if method in profiles:
        return FedConv(MODEL, start, parts.public, budgeted(profiles[method], setting), seed)
    trainer = PublicTrainer(MODEL, parts.public)
    options: dict[str, Any] = {
        "epochs": setting.public_epochs, "rate": setting.public_rate, "seed": seed,
    }  # fmt: skip
    if method == "server only":
        return ServerOnly(FedAvg(spec, start), trainer, **options)
    return PublicTuning(slices[method.removesuffix(" + tuning")](), trainer, **options)


def budgeted(profile: Profile, setting: Setting) -> Profile:
    """The profile with the benchmark's number of public epochs and learning rate.

    The default's are 28 as they are, mean over four rounds: 16 of the global model, once more
    before the first round, 2 x 3 of compression, 2 of the weights. The paper's 370 become 28: 4 of
    the global model, 2 x 2 of compression, 10 of the models that come back, 8 of dilation, 2 of the
    weights.
    """
    if profile.name == "paper":
        profile = replace(
            profile, server_epochs=4, filter_epochs=2, upload_epochs=1, dilation_epochs=1,
            weight_epochs=2,
        )  # fmt: skip
    scale = setting.public_epochs / Setting.public_epochs

    def scaled(epochs: int) -> int:
        return max(1, round(epochs * scale)) if epochs else 0

    return replace(
        profile,
        server_epochs=scaled(profile.server_epochs),
        filter_epochs=scaled(profile.filter_epochs),
        upload_epochs=scaled(profile.upload_epochs),
        dilation_epochs=scaled(profile.dilation_epochs),
        weight_epochs=scaled(profile.weight_epochs),
        server_rate=setting.public_rate,
        upload_rate=setting.public_rate,
    )


def operations(ratio: float) -> float:
    """Floating-point operations of training on one sample, as torch counts them."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    module = build_module(MODEL, ratio)
    samples = torch.zeros(2, *MODEL.input_shape)
    with FlopCounterMode(display=False) as counter:
        module(samples).sum().backward()
    return float(counter.get_total_flops()) / len(samples)


def _task(setting: Setting, number: int, ratio: float, seed: int) -> TrainTask:
    return TrainTask(
        run="bench", round_number=number, chunk=0, algorithm="fedavg", model=MODEL.to_json(),
        ratio=ratio, settings="{}", epochs=setting.local_epochs, batch=32,
        learning_rate=setting.rate, seed=seed * 100 + number, seconds=0.0,
    )  # fmt: skip

"""From settings to a run: the initial model, the algorithm, the score on the test data."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.errors import RefusedUpdateError, StorageError, UsageError
from penstock.federated.algorithm import Algorithm, FedAvg, FedRolex, HeteroFL
from penstock.federated.arrays import Arrays
from penstock.federated.models.registry import ModelOptions, build_module, model_spec
from penstock.federated.public_training import PublicSet, PublicTrainer
from penstock.federated.public_tuning import PublicTuning, tuned_name
from penstock.federated.report.records import CHUNK_F1
from penstock.federated.server.check_settings import check_type
from penstock.federated.server.fleet import Fleet
from penstock.federated.server.privacy import Ledger
from penstock.federated.server.public_set import read_public_set, split_public_set
from penstock.federated.server.run import FederatedRun, GlobalScore, RunPlan, ScoreGlobal
from penstock.federated.server.settings import ServerSettings
from penstock.federated.training.data import TrainingData

TUNE_RATE = 1e-3  # of Adam, where a baseline is tuned on public samples


def build_run(
    settings: ServerSettings, fleet: Fleet, note: Callable[[str], None] = print
) -> FederatedRun:
    """The run that a settings file describes; it has neither begun nor been resumed.

    Raises:
        PenstockError: something the settings name is not there or does not fit.
    """
    train, hold_out, test = public_parts(settings)
    algorithm, task_settings = build_algorithm(settings, train, hold_out)
    return FederatedRun(
        algorithm,
        fleet,
        RunPlan(
            model=settings.model,
            rounds=settings.run.rounds,
            rounds_per_chunk=settings.run.rounds_per_chunk,
            seed=settings.run.seed,
            algorithm=settings.algorithm,
            settings=task_settings,
            keep=settings.run.keep_checkpoints,
            training=settings.training,
            devices=settings.devices,
        ),
        Path(settings.run.folder),
        score=score_on(test, settings.model) if test is not None and len(test) else None,
        ledger=Ledger(settings.privacy) if settings.privacy.noise_multiplier else None,
        note=note,
    )


def public_parts(
    settings: ServerSettings,
) -> tuple[TrainingData | None, TrainingData | None, TrainingData | None]:
    """The public samples that are trained on, chosen by and measured on; None: there are none.

    Raises:
        UsageError: the file cannot be read, or its samples do not fit the model or the shares.
        FormatError: it is no npz of samples.
    """
    shares, seed = settings.public, settings.run.seed
    if not shares.file:
        return None, None, None
    try:
        public = read_public_set(Path(shares.file), settings.model)
    except (StorageError, RefusedUpdateError) as error:  # of the settings: it would come again
        raise UsageError(f"public.file: {error}") from error
    if settings.chooses:  # then the hold-out is fitted to, and measures nothing
        return split_public_set(public, shares.hold_out, seed, shares.test)
    train, hold_out, _ = split_public_set(public, shares.hold_out, seed)
    return train, hold_out, hold_out


def algorithm_settings(settings: ServerSettings) -> Any:
    """FedConv's `Profile`, `FedMobileSettings`, or None for an algorithm without settings.

    Raises:
        FormatError, UsageError: one is unknown, of another type or out of its range.
    """
    name, given = settings.algorithm, dict(settings.algorithm_settings)
    if name == "fedconv":
        return _fedconv_profile(given)
    if name == "fedmobile":
        from penstock.federated.fedmobile.settings import FedMobileSettings

        return FedMobileSettings.from_json(json.dumps(given), "[algorithm]")
    if given:
        raise UsageError(f"algorithm.{next(iter(given))}: {name} has no settings")
    return None


def algorithm_name(settings: ServerSettings) -> str:
    """What `build_algorithm` calls its algorithm, and so every checkpoint, without building it."""
    name = settings.algorithm
    return tuned_name(name) if settings.public.tune_epochs else name


def build_algorithm(
    settings: ServerSettings, train: TrainingData | None, hold_out: TrainingData | None
) -> tuple[Algorithm, str]:
    """The algorithm with its initial model, and the settings that its tasks carry, as JSON.

    Raises:
        FormatError, UsageError: a setting is unknown or out of its range.
    """
    name, own = settings.algorithm, algorithm_settings(settings)
    spec, arrays = model_spec(settings.model), initial_model(settings.model, settings.run.seed)
    if name == "fedconv":
        from penstock.federated.fedconv.fedconv import FedConv

        if train is None or hold_out is None:
            raise UsageError("fedconv needs public samples: set public.file")
        public = PublicSet(train, hold_out)
        return FedConv(settings.model, arrays, public, own, settings.run.seed), "{}"
    if name == "fedmobile":
        from penstock.federated.fedmobile.fedmobile import FedMobile

        return _tuned(FedMobile(spec, arrays, own), settings, train, hold_out), own.to_json()
    kinds: dict[str, type[Algorithm]] = {
        "fedavg": FedAvg,
        "heterofl": HeteroFL,
        "fedrolex": FedRolex,
    }
    return _tuned(kinds[name](spec, arrays), settings, train, hold_out), "{}"


def initial_model(model: ModelOptions, seed: int) -> Arrays:
    """Freshly initialised parameters; the same for the same seed. torch's own state stays."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = build_module(model)
    return {name: value.detach().numpy().copy() for name, value in module.state_dict().items()}


def score_on(
    test: TrainingData, model: ModelOptions, chunks: NDArray[np.int64] | None = None
) -> ScoreGlobal:
    """Evaluates the global model on these samples, in this process, with a warm module.

    Args:
        chunks: [n]: of time, that the samples belong to. With several of them the score has the
            macro-F1 on the samples of each chunk up to now, from which forgetting is computed.
    """
    from penstock.federated.training.trainer import Trainer

    trainer = Trainer(model, 1.0)
    by_chunk: dict[int, TrainingData] = {}
    if chunks is not None and chunks.any():
        for one in np.unique(chunks):
            by_chunk[int(one)] = test.subset(np.flatnonzero(chunks == one))

    def score(arrays: Arrays, chunk: int) -> GlobalScore:
        found = trainer.evaluate(arrays, test)
        figures = {"test_loss": found.loss}
        for one, samples in by_chunk.items():
            if one <= chunk:
                figures[f"{CHUNK_F1}{one}"] = trainer.evaluate(arrays, samples).macro_f1
        return GlobalScore(found.accuracy, found.macro_f1, figures)

    return score


def _tuned(
    inner: Algorithm,
    settings: ServerSettings,
    train: TrainingData | None,
    hold_out: TrainingData | None,
) -> Algorithm:
    if not settings.public.tune_epochs or train is None or hold_out is None:
        return inner
    return PublicTuning(
        inner,
        PublicTrainer(settings.model, PublicSet(train, hold_out)),
        epochs=settings.public.tune_epochs,
        rate=TUNE_RATE,
        seed=settings.run.seed,
    )


def _fedconv_profile(given: dict[str, Any]) -> Any:
    """`profile = "default"`, and any of its values by name."""
    from penstock.federated.fedconv.profiles import Profile, profile_by_name

    base = profile_by_name(check_type("algorithm.profile", given.pop("profile", "default"), "str"))
    kinds = {entry.name: str(entry.type) for entry in fields(Profile)}
    values: dict[str, Any] = {}
    for name, value in given.items():
        if name not in kinds or name == "name":
            raise UsageError(f"algorithm.{name}: fedconv has no such setting")
        kind = "str" if kinds[name].startswith("Literal") else kinds[name]
        values[name] = check_type(f"algorithm.{name}", value, kind)
        if kinds[name].startswith("Literal") and repr(value).strip("'") not in kinds[name]:
            raise UsageError(f"algorithm.{name} is {value!r}, expected {kinds[name]}")
    return replace(base, **values)

"""The server's own training: the hold-out says what is kept, and statistics fit the weights."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from penstock.errors import RefusedUpdateError, UsageError
from penstock.federated import public_training
from penstock.federated.aggregation import Update
from penstock.federated.algorithm import FedAvg, FedRolex, HeteroFL
from penstock.federated.arrays import digest
from penstock.federated.models import build_module, model_spec
from penstock.federated.public_training import Judged, PublicSet, PublicTrainer, Score
from penstock.federated.public_tuning import PublicTuning, ServerOnly
from penstock.federated.training.data import TrainingData
from tests.federated.bars import BARS, bars, initial_arrays, public_bars
from tests.federated.sample_models import FEATURES, random_arrays

torch = pytest.importorskip("torch")
SPEC = model_spec(BARS)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def judged(losses: list[float]) -> Judged:
    mean = float(np.mean(losses))
    return Judged(Score(mean if np.isfinite(mean) else float("inf"), 0.5), np.array(losses))


def test_tuning_learns_and_keeps_what_is_good_on_the_hold_out() -> None:
    trainer = PublicTrainer(BARS, public_bars())
    start = initial_arrays()
    tuned, fit = trainer.tune(start, epochs=8, rate=3e-3, rng=rng())
    assert fit.kept.accuracy > 0.9 > fit.before.accuracy
    values = {name: torch.from_numpy(array) for name, array in tuned.items()}
    assert trainer.score(values, 1.0) == fit.kept
    assert digest(start) == digest(initial_arrays()), "what was given is never changed"
    assert fit.passes == trainer.passes == 8 * 96
    again, _ = trainer.tune(start, epochs=8, rate=3e-3, rng=rng())
    assert digest(again) == digest(tuned)


def test_a_training_that_only_harms_keeps_the_start() -> None:
    trainer = PublicTrainer(BARS, public_bars())
    good, _ = trainer.tune(initial_arrays(), epochs=8, rate=3e-3, rng=rng())
    wild, fit = trainer.tune(good, epochs=2, rate=0.9, rng=rng())
    assert digest(wild) == digest(good) and fit.kept == fit.before


def test_a_later_state_is_kept_unless_it_is_worse_by_more_than_a_standard_error() -> None:
    best = judged([1.0, 1.2, 0.8, 1.0])
    assert best.is_near(best)
    assert judged([0.9, 1.4, 0.8, 1.0]).is_near(best), "0.03 more, standard error 0.06"
    assert not judged([1.1, 1.3, 0.9, 1.1]).is_near(best), "0.1 more each time is no luck"
    assert not judged([1.1, 1.2, 0.9, float("nan")]).is_near(best)
    wild = judged([0.99] * 47 + [40.0])
    assert not wild.is_near(judged([1.0] * 48)), "one sample gone wild is no luck"
    assert not judged([float("inf")] * 4).is_near(judged([float("inf")] * 4))


def test_an_untrained_start_that_is_best_by_luck_is_not_kept() -> None:
    trainer = PublicTrainer(BARS, public_bars())
    good, first = trainer.tune(initial_arrays(), epochs=8, rate=3e-3, rng=rng())
    later, fit = trainer.tune(good, epochs=1, rate=1e-6, rng=rng())
    assert fit.before == first.kept and digest(later) != digest(good)
    assert fit.kept.loss == pytest.approx(fit.before.loss, rel=0.05)


def test_filters_and_weights_keep_the_best() -> None:
    trainer = PublicTrainer(BARS, public_bars())
    good, _ = trainer.tune(initial_arrays(), epochs=8, rate=3e-3, rng=rng())
    values = {name: torch.from_numpy(array) for name, array in good.items()}
    name = "classifier.bias"
    bias = torch.zeros_like(values[name]).requires_grad_()
    for rate in (1e-6, 0.5):
        fit = trainer.fit(
            [bias], lambda: values | {name: values[name] + bias}, ratio=1.0, epochs=3, rate=rate,
            rng=rng(), keep="best",
        )  # fmt: skip
        assert fit.kept.loss <= fit.before.loss


def test_a_large_hold_out_goes_through_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    public = public_bars()
    whole = PublicTrainer(BARS, public)
    values = {name: torch.from_numpy(array) for name, array in initial_arrays().items()}
    expected = whole.score(values, 1.0)
    monkeypatch.setattr(public_training, "STATISTICS_BATCH", 7)
    module = whole.module(1.0)
    seen: list[int] = []
    module.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    found = whole.score(values, 1.0)
    assert found.accuracy == expected.accuracy
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    assert max(seen) <= 7 and sum(seen) == len(public.hold_out)


def test_a_deadline_ends_it() -> None:
    ticks = iter(range(1000))
    trainer = PublicTrainer(BARS, public_bars(), clock=lambda: float(next(ticks)))
    _, fit = trainer.tune(initial_arrays(), epochs=9, rate=1e-3, rng=rng(), deadline=1.5)
    assert fit.stopped and fit.passes == 2 * 32


@pytest.mark.parametrize("ratio", [1.0, 0.5])
def test_recomputed_statistics_are_those_of_the_public_samples(ratio: float) -> None:
    public = public_bars()
    trainer = PublicTrainer(BARS, public)
    arrays = random_arrays(SPEC.at(ratio))
    made = trainer.recompute_norm(arrays, ratio)
    module = build_module(BARS, ratio)
    module.load_state_dict({name: torch.from_numpy(array) for name, array in made.items()})
    first = module.conv1(torch.from_numpy(public.train.inputs)).detach().numpy()  # type: ignore[operator]
    np.testing.assert_allclose(made["norm1.running_mean"], first.mean((0, 2, 3)), rtol=1e-4)
    np.testing.assert_allclose(made["norm1.running_var"], first.var((0, 2, 3)), rtol=1e-3)
    for name in arrays:
        assert "running" in name or np.array_equal(made[name], arrays[name])


def test_a_model_without_batchnorm_has_nothing_to_recompute() -> None:
    data = TrainingData(np.zeros((4, 11), np.float32), np.zeros(4, np.int64))
    arrays = random_arrays(model_spec(FEATURES))
    trainer = PublicTrainer(FEATURES, PublicSet(data, data))
    assert digest(trainer.recompute_norm(arrays)) == digest(arrays)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda a: FedAvg(SPEC, a), "fedavg + public fine-tuning"),
        (lambda a: HeteroFL(SPEC, a), "heterofl + public fine-tuning"),
        (lambda a: FedRolex(SPEC, a), "fedrolex + public fine-tuning"),
    ],
)
def test_any_algorithm_can_be_tuned_after_each_round(
    make: Callable[..., FedAvg | HeteroFL | FedRolex], name: str
) -> None:
    def fresh(seed: int = 0) -> PublicTuning:
        trainer = PublicTrainer(BARS, public_bars())
        return PublicTuning(make(initial_arrays(seed)), trainer, epochs=2, rate=3e-3)

    def play(algorithm: PublicTuning, number: int) -> None:
        algorithm.begin_round(number)
        sent = {device: algorithm.send(device, ratio) for device, ratio in (("a", 1.0), ("b", 0.5))}
        algorithm.end_round([Update(d, s.arrays, s.channels, 3) for d, s in sent.items()])

    through, resumed = fresh(), fresh(seed=7)
    assert through.name == name
    play(through, 1)
    assert through.figures["public_passes"] == 2 * 96
    resumed.restore(through.state())
    for algorithm in (through, resumed):
        play(algorithm, 2)
    assert digest(resumed.state()) == digest(through.state()) and resumed.round_number == 2
    assert digest(through.send("a", 1.0).arrays) == digest(through.arrays)


def test_the_server_alone_takes_nothing_from_devices() -> None:
    results = set()
    for noise in (0.0, 1.0):
        alone = ServerOnly(
            FedAvg(SPEC, initial_arrays()), PublicTrainer(BARS, public_bars()), epochs=2
        )
        alone.begin_round(1)
        sent = alone.send("a", 1.0)
        sent.arrays["conv1.bias"] += np.float32(noise)
        alone.end_round([Update("a", sent.arrays, sent.channels, 5)])
        results.add(digest(alone.arrays))
    assert len(results) == 1 and results != {digest(initial_arrays())}


def test_public_samples_that_do_not_fit_are_refused() -> None:
    good = bars(8, 1)
    unlabelled = TrainingData(good.inputs, np.full(8, -1, np.int64))
    for train, held in ((unlabelled, good), (good, unlabelled), (good, good.subset(np.arange(1)))):
        with pytest.raises(UsageError, match="public"):
            PublicSet(train, held)
    with pytest.raises(RefusedUpdateError, match="shape"):
        PublicTrainer(FEATURES, public_bars())

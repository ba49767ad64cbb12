"""Differential privacy: clipping, noise and counts against a plain reference, and the ledger."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from penstock.errors import UsageError
from penstock.federated.aggregation import Update
from penstock.federated.algorithm import HeteroFL
from penstock.federated.arrays import digest
from penstock.federated.models import model_spec
from penstock.federated.server.fleet import Answer, Kind, Node, Request
from penstock.federated.server.privacy import Ledger, private_mean
from penstock.federated.server.settings import PrivacySettings
from tests.federated.sample_models import IMAGES, random_arrays
from tests.federated.server.fake_fleet import FakeFleet, algorithm_of, fleet_of, plan_of, run_of

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Flower's, of click
SETTINGS = PrivacySettings(noise_multiplier=1.0, clipping_norm=0.5, population=10)


def test_each_change_is_clipped_and_divided_by_the_number_asked() -> None:
    spec = model_spec(IMAGES)
    algorithm = HeteroFL(spec, random_arrays(spec, 1))
    sent = {f"d{i}": algorithm.send(f"d{i}", ratio) for i, ratio in enumerate((1.0, 0.5, 0.5))}
    answers = []
    for name in ("d0", "d1"):  # d2 did not answer
        arrays = {n: a + np.asarray(0.25, a.dtype) for n, a in sent[name].arrays.items()}
        arrays = {n: a for n, a in arrays.items()}
        answers.append((Update(name, arrays, sent[name].channels, 1.0), sent[name]))
    still = replace(SETTINGS, noise_multiplier=0.0)
    mean = private_mean(
        algorithm.arrays, spec, list(sent.values()), answers, still, np.random.default_rng(0)
    )
    expected = {n: a.astype(np.float64) for n, a in algorithm.arrays.items()}
    for update, was in answers:
        norm = 0.25 * math.sqrt(
            sum(a.size for t in spec if t.averaged for a in [update.arrays[t.name]])
        )
        assert norm > 0.5
        for tensor in spec:
            if tensor.averaged:
                where = np.ix_(*spec.index(tensor, was.channels))
                count = np.zeros(tensor.shape)
                for other in sent.values():
                    count[np.ix_(*spec.index(tensor, other.channels))] += 1
                expected[tensor.name][where] += (0.25 * 0.5 / norm) / count[where]
    for tensor in spec:
        np.testing.assert_allclose(mean[tensor.name], expected[tensor.name], rtol=2e-6, atol=1e-7)


def test_an_update_that_changes_nothing_adds_nothing() -> None:
    algorithm = algorithm_of()
    sent = algorithm.send("d0", 1.0)
    update = Update("d0", sent.arrays, sent.channels, 1.0)
    still = replace(SETTINGS, noise_multiplier=0.0)
    mean = private_mean(
        algorithm.arrays, algorithm.spec, [sent], [(update, sent)], still, np.random.default_rng(0)
    )
    assert digest(mean) == digest(algorithm.arrays)


def test_the_noise_has_the_deviation_that_epsilon_is_told_for() -> None:
    algorithm = algorithm_of()
    sent = algorithm.send("d0", 1.0)
    changes = []
    for seed in range(40):
        mean = private_mean(
            algorithm.arrays,
            algorithm.spec,
            [sent] * 4,
            [],
            replace(SETTINGS, noise_multiplier=2.0),
            np.random.default_rng(seed),
        )
        changes += [(mean[n] - algorithm.arrays[n]).ravel() for n in mean]
    assert np.std(np.concatenate(changes)) == pytest.approx(2.0 * 0.5 / 4, rel=0.03)


def test_epsilon_grows_by_round_and_survives_a_resume(tmp_path: Path) -> None:
    pytest.importorskip("dp_accounting")
    run = run_of(tmp_path, fleet_of(4), plan_of(rounds=2), kind=HeteroFL)
    run.ledger = Ledger(SETTINGS)
    run.begin()
    first, second = [record.epsilon for record in run.run()]
    assert 0 < first < second
    again = run_of(tmp_path, fleet_of(4), plan_of(rounds=3), kind=HeteroFL)
    again.ledger = Ledger(SETTINGS)
    again.resume()
    assert again.run()[-1].epsilon > second
    whole = Ledger(SETTINGS)
    for _ in range(3):
        whole.spend(4)
    assert again.ledger.epsilon == pytest.approx(whole.epsilon)


class KilledError(BaseException):
    """As SIGKILL: nothing after it runs."""


@dataclass
class Interrupted(FakeFleet):
    """Ends the process in the evaluation of a round, when the devices have the new model."""

    released: list[str] = field(default_factory=list)

    def exchange(
        self, requests: Mapping[Node, Request], deadline_s: float, kind: Kind = "train"
    ) -> Mapping[Node, Answer]:
        if kind == "evaluate":
            self.released += {digest(arrays) for _, arrays in requests.values()}
            raise KilledError
        return super().exchange(requests, deadline_s, kind)


def spent(releases: int) -> float:
    """Epsilon of so many rounds of four devices."""
    ledger = Ledger(SETTINGS)
    for _ in range(releases):
        ledger.spend(4)
    return ledger.epsilon


def test_a_model_that_was_released_for_evaluation_is_not_made_again_with_other_noise(
    tmp_path: Path,
) -> None:
    pytest.importorskip("dp_accounting")
    plan = plan_of(rounds=2, evaluate_every=1, ratios=((1.0, 1.0),))
    fleet = Interrupted(fleet_of(4).devices)
    for number in (1, 2):
        run = run_of(tmp_path, fleet, plan, kind=HeteroFL)
        run.ledger = Ledger(SETTINGS)
        if number == 1:
            run.begin()
        else:
            run.resume()
        with pytest.raises(KilledError):
            run.run()
        again = run_of(tmp_path, fleet, plan, kind=HeteroFL)
        again.ledger = Ledger(SETTINGS)
        again.resume()
        assert again.algorithm.round_number == number
        assert [digest(again.algorithm.arrays)] == fleet.released[number - 1 :]
        assert again.ledger.epsilon == pytest.approx(spent(number))


def test_a_release_whose_checkpoint_is_damaged_stays_spent(tmp_path: Path) -> None:
    pytest.importorskip("dp_accounting")
    plan = plan_of(rounds=2)
    for damages in range(3):  # the same round is released again after each
        run = run_of(tmp_path, fleet_of(4), plan, kind=HeteroFL)
        run.ledger = Ledger(SETTINGS)
        if damages == 0:
            run.begin()
        else:
            (tmp_path / "round-000002.safetensors").write_bytes(b"")
            run.resume()
            assert run.algorithm.round_number == 1
            assert run.ledger.epsilon == pytest.approx(spent(1 + damages))
        assert run.run()[-1].epsilon == pytest.approx(spent(2 + damages))


def test_what_a_journal_tells_is_spent_once() -> None:
    pytest.importorskip("dp_accounting")
    ledger = Ledger(SETTINGS)
    ledger.spend(4)
    for told in (-1.0, math.nan, math.inf, spent(1)):
        assert ledger.spend_until(told, 4) == 0
    assert ledger.spend_until(spent(3), 4) == 2
    assert ledger.epsilon == pytest.approx(spent(3))


def test_one_gaussian_release_costs_what_the_theorem_says() -> None:
    pytest.importorskip("dp_accounting")
    ledger = Ledger(replace(SETTINGS, noise_multiplier=5.0, delta=1e-5))
    ledger.spend(10)
    # Renyi: min over a > 1 of a / (2 z^2) + log(1/delta) / (a - 1); the accountant is a bit tighter
    bound = min(a / 50 + math.log(1e5) / (a - 1) for a in np.linspace(1.1, 200, 4000))
    assert 0.6 * bound < ledger.epsilon <= bound


def test_the_budget_ends_the_run_before_it_is_exceeded(tmp_path: Path) -> None:
    pytest.importorskip("dp_accounting")
    two = Ledger(SETTINGS)
    two.spend(4)
    two.spend(4)
    run = run_of(tmp_path, fleet_of(4), plan_of(rounds=9), kind=HeteroFL)
    run.ledger = Ledger(replace(SETTINGS, most_epsilon=two.epsilon * 1.01))
    run.begin()
    with pytest.raises(UsageError, match="another round would go beyond"):
        run.run()
    assert run.algorithm.round_number == 2
    assert run.records[-1].epsilon <= two.epsilon * 1.01


def test_privacy_cannot_change_on_the_way(tmp_path: Path) -> None:
    pytest.importorskip("dp_accounting")
    run = run_of(tmp_path, kind=HeteroFL)
    run.begin()
    again = run_of(tmp_path, kind=HeteroFL)
    again.ledger = Ledger(SETTINGS)
    with pytest.raises(UsageError, match="differential privacy without, the settings say with"):
        again.resume()


def test_more_devices_than_the_population_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("dp_accounting")
    run = run_of(tmp_path, fleet_of(4), kind=HeteroFL)
    run.ledger = Ledger(replace(SETTINGS, population=3))
    run.begin()
    with pytest.raises(UsageError, match="population is 3, but 4"):
        run.run()

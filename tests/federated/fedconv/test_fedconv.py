"""FedConv's round: any order, any who are missing, the gate, the time limit, the checkpoint."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from penstock.errors import FormatError, RefusedUpdateError, UsageError
from penstock.federated.aggregation import Update, aggregate
from penstock.federated.arrays import check_arrays, digest
from penstock.federated.fedconv import DEFAULT, PAPER, FedConv, Profile, profile_by_name
from penstock.federated.models import model_spec
from penstock.federated.public_training import to_tensors
from penstock.federated.slicing import extract, static_channels
from tests.federated.bars import BARS as MODEL
from tests.federated.bars import initial_arrays, public_bars
from tests.federated.sample_models import play_round, random_arrays

torch = pytest.importorskip("torch")

SPEC = model_spec(MODEL)
FLEET = {"a0": 1.0, "b1": 0.75, "c2": 0.5625, "d3": 0.5625, "e4": 0.25}
QUICK = replace(  # every step, the ones that are off by default too
    DEFAULT,
    server_epochs=2,
    filter_epochs=1,
    upload_epochs=1,
    dilation_epochs=1,
    weight_epochs=1,
    server_rate=1e-3,
)
QUICK_PAPER = replace(
    PAPER, server_epochs=1, filter_epochs=1, upload_epochs=1, dilation_epochs=1, weight_epochs=1
)


PUBLIC = public_bars()
play = partial(play_round, fleet=FLEET, noise=0.05)


def fresh(profile: Profile = QUICK, **options: object) -> FedConv:
    return FedConv(MODEL, initial_arrays(), PUBLIC, profile, seed=3, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("profile", [QUICK, QUICK_PAPER], ids=lambda p: p.name)
def test_a_round_gives_every_device_its_width_and_ends_in_a_full_model(profile: Profile) -> None:
    algorithm = fresh(profile)
    algorithm.begin_round(1)
    for device, ratio in FLEET.items():
        sent = algorithm.send(device, ratio)
        assert sent.ratio == ratio
        check_arrays(sent.arrays, SPEC.at(ratio).by_name(), "the server")
        again = algorithm.send(device, ratio)
        assert digest(again.arrays) == digest(sent.arrays)
        sent.arrays["conv1.weight"][...] = 9  # a copy
        assert digest(algorithm.send(device, ratio).arrays) == digest(again.arrays)
    play(algorithm, 1, list(FLEET))
    check_arrays(algorithm.arrays, SPEC.by_name(), "the aggregate")


@pytest.mark.parametrize("profile", [QUICK, QUICK_PAPER], ids=lambda p: p.name)
def test_the_order_of_arrival_changes_nothing(profile: Profile) -> None:
    results = set()
    for seed in range(2):
        algorithm = fresh(profile)
        for number in (1, 2):
            devices = list(FLEET)
            random.Random(seed + number).shuffle(devices)
            play(algorithm, number, devices)
        results.add((digest(algorithm.arrays), digest(algorithm.state())))
    assert len(results) == 1


def test_missing_devices_and_odd_counts_are_no_different_from_a_smaller_fleet() -> None:
    """A device that was asked and never answered leaves no trace."""
    with_absent, without = fresh(), fresh()
    devices = ["a0", "c2", "e4"]
    for algorithm in (with_absent, without):
        algorithm.begin_round(1)
        if algorithm is with_absent:
            for device, ratio in FLEET.items():
                algorithm.send(device, ratio)
        updates = [_trained(algorithm, device) for device in devices]
        algorithm.end_round(updates)
    assert digest(with_absent.arrays) == digest(without.arrays)
    for number, present in ((2, ["b1"]), (3, []), (4, list(FLEET))):
        play(with_absent, number, present)
        check_arrays(with_absent.arrays, SPEC.by_name(), "the aggregate")


def _trained(algorithm: FedConv, device: str) -> Update:
    sent = algorithm.send(device, FLEET[device])
    return Update(device, sent.arrays, sent.channels, 5)


@pytest.mark.parametrize("profile", [QUICK, QUICK_PAPER], ids=lambda p: p.name)
def test_a_restored_run_goes_on_bit_by_bit(profile: Profile) -> None:
    through = fresh(profile)
    play(through, 1, ["a0", "b1", "d3"])
    state = through.state()
    resumed = FedConv(MODEL, random_arrays(SPEC), PUBLIC, profile, seed=3)
    resumed.restore(state)
    for algorithm in (through, resumed):
        play(algorithm, 2, ["b1", "c2", "e4"])
    assert digest(resumed.state()) == digest(through.state())


def test_a_broken_checkpoint_is_refused_and_changes_nothing() -> None:
    algorithm = fresh()
    play(algorithm, 1, list(FLEET))
    state = algorithm.state()
    kernel = next(name for name in state if name.endswith("conv2.weight:kernel"))
    weight = next(name for name in state if name.startswith("weights/"))
    cut = {name: array for name, array in state.items() if name != kernel}
    for broken in (
        cut,
        state | {kernel: state[kernel][:, :, :1]},
        state | {weight: np.full_like(state[weight], np.nan)},
        state | {"compression/7/conv1.weight:kernel": state[kernel]},
        state | {"dilation/nothing": state[kernel]},
        state | {"seen/a0": np.ones(2)},
        {name: array for name, array in state.items() if "global/conv1" not in name},
    ):
        with pytest.raises(FormatError, match="checkpoint"):
            algorithm.restore(broken)
    assert digest(algorithm.state()) == digest(state)


def test_without_any_server_training_it_is_heterofl() -> None:
    idle = replace(
        DEFAULT, server_epochs=0, filter_epochs=0, upload_epochs=0, dilation_epochs=0,
        weight_epochs=0, recompute_norm=False, gate=False,
    )  # fmt: skip
    algorithm = fresh(idle)
    algorithm.begin_round(1)
    before = algorithm.arrays
    updates = [_trained(algorithm, device) for device in FLEET]
    for number, update in enumerate(updates):
        update.arrays["conv2.weight"][...] += number
    algorithm.end_round(updates)
    for name, array in aggregate(before, SPEC, updates).items():
        np.testing.assert_allclose(algorithm.arrays[name], array, rtol=1e-5, atol=1e-6)


def test_a_filter_that_fails_is_replaced_by_the_slice_and_that_is_recorded() -> None:
    """Random filters, untrained, under the gate: the plain slice of a trained model is better."""
    failing = replace(
        QUICK, server_epochs=10, start="random", nonlinearity=2, filter_epochs=0, restarts=2
    )
    algorithm = fresh(failing)
    algorithm.begin_round(1)
    sent = algorithm.send("b1", 0.75)
    assert algorithm.figures["slices_taken"] == 1 and algorithm.figures["restarts"] == 2
    cut = algorithm.arrays["conv2.weight"][:5, :3]
    assert np.array_equal(sent.arrays["conv2.weight"], cut)
    ungated = fresh(replace(failing, gate=False))
    ungated.begin_round(1)
    assert not np.array_equal(ungated.send("b1", 0.75).arrays["conv2.weight"], cut)


def test_training_helps_the_sub_model_over_the_plain_slice() -> None:
    algorithm = fresh(replace(QUICK, server_epochs=12, filter_epochs=12, recompute_norm=True))
    algorithm.begin_round(1)
    plain = fresh(replace(QUICK, server_epochs=12, filter_epochs=0))
    plain.begin_round(1)
    assert digest(plain.arrays) == digest(algorithm.arrays)
    losses = [
        algorithm.trainer.score(to_tensors(a.send("e4", 0.25).arrays), 0.25).loss
        for a in (algorithm, plain)
    ]
    assert losses[0] < losses[1] - 0.01


def test_when_the_time_is_over_slices_and_means_are_taken() -> None:
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 1.0
        return now

    algorithm = fresh(replace(QUICK, round_seconds=2.5), clock=clock)
    play(algorithm, 1, list(FLEET))
    assert algorithm.figures["stopped"] == 1 and algorithm.figures["slices_taken"] == 3
    assert algorithm.figures["public_passes"] < 96, "two steps, then nothing"
    check_arrays(algorithm.arrays, SPEC.by_name(), "the aggregate")


def test_the_time_that_devices_take_is_not_the_server_s() -> None:
    now = 0.0
    algorithm = fresh(replace(QUICK, round_seconds=5.0), clock=lambda: now)
    algorithm.begin_round(1)
    update = _trained(algorithm, "b1")
    now += 1000.0
    algorithm.end_round([update])
    assert algorithm.figures["stopped"] == 0 and "server_accuracy" in algorithm.figures


def test_after_its_end_a_round_sends_the_new_model() -> None:
    algorithm = fresh()
    play(algorithm, 1, ["a0", "b1"])
    assert digest(algorithm.send("a0", 1.0).arrays) == digest(algorithm.arrays)
    narrow = algorithm.send("b1", 0.75).arrays
    kept = digest(algorithm.state())
    score = algorithm.trainer.score(to_tensors(narrow), 0.75)
    cut = extract(algorithm.arrays, SPEC, static_channels(SPEC, 0.75))
    plain = algorithm.trainer.score(to_tensors(algorithm.trainer.recompute_norm(cut, 0.75)), 0.75)
    assert not plain.beats(score), "made of the new model, and no worse than its slice"
    assert digest(algorithm.state()) == kept, "evaluating trains nothing"


def test_only_the_devices_seen_last_are_kept() -> None:
    algorithm = fresh(replace(QUICK, keep_devices=2))
    play(algorithm, 1, ["a0", "b1", "c2"])
    play(algorithm, 2, ["d3"])
    assert set(algorithm.memory.last_round) == {"d3", "a0"} == set(algorithm.memory.weights)
    assert {device for device, _ in algorithm.memory.dilation} == {"d3"}


def test_updates_that_do_not_fit_are_refused_and_change_nothing() -> None:
    algorithm = fresh()
    algorithm.begin_round(1)
    good = _trained(algorithm, "b1")
    before = digest(algorithm.state())
    bad = {**good.arrays, "conv1.bias": good.arrays["conv1.bias"] * np.nan}
    for update, says in (
        (replace(good, device="zz"), "zz was not asked"),
        (replace(good, arrays=bad), "conv1.bias"),
        (_trained(fresh_round(), "e4"), "e4 was not asked"),
    ):
        with pytest.raises(RefusedUpdateError, match=says):
            algorithm.end_round([update])
    with pytest.raises(RefusedUpdateError, match="two updates"):
        algorithm.end_round([good, good])
    assert digest(algorithm.state()) == before


def fresh_round() -> FedConv:
    other = fresh()
    other.begin_round(1)
    return other


def test_profiles_are_found_by_name_and_checked() -> None:
    assert profile_by_name("paper") is PAPER and profile_by_name("default") is DEFAULT
    with pytest.raises(UsageError, match="'fast'"):
        profile_by_name("fast")
    for change in (
        {"server_epochs": -1}, {"filter_rate": 0.0}, {"batch": 1}, {"nonlinearity": 3},
        {"round_seconds": float("nan")}, {"keep_devices": 0},
    ):  # fmt: skip
        with pytest.raises(UsageError, match="fedconv"):
            replace(DEFAULT, **change)
    assert PAPER.rate(1e-3, 25) == 1e-3 and PAPER.rate(1e-3, 26) == 5e-4
    assert PAPER.rate(1e-3, 900) == 1e-4

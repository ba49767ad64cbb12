"""A device's change: nothing trained is nothing changed, whatever the filters had corrected."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from penstock.federated.aggregation import Update
from penstock.federated.fedconv import DEFAULT, FedConv
from penstock.federated.fedconv.changes import dilate_onto, without_correction
from penstock.federated.fedconv.filters import FILTERED
from penstock.federated.models import model_spec
from penstock.federated.slicing import extract, static_channels
from tests.federated.bars import BARS, initial_arrays, public_bars
from tests.federated.sample_models import IMAGES, random_arrays

torch = pytest.importorskip("torch")
from penstock.federated.public_training import to_arrays, to_tensors  # noqa: E402

SPEC = model_spec(IMAGES)


@pytest.mark.parametrize("ratio", [0.75, 0.5625, 0.5, 0.25, 0.01])
def test_the_correction_is_taken_out_and_the_change_is_kept(ratio: float) -> None:
    base, sent = random_arrays(SPEC, 1), random_arrays(SPEC.at(ratio), 2)
    cut = extract(base, SPEC, static_channels(SPEC, ratio))
    change = random_arrays(SPEC.at(ratio), 3)
    trained = {name: np.asarray(sent[name] + change[name], sent[name].dtype) for name in sent}
    returned = without_correction(trained, sent, base, SPEC, ratio)
    for tensor in SPEC:
        name = tensor.name
        if tensor.kind in FILTERED:
            expected = cut[name] + change[name]
            np.testing.assert_allclose(returned[name], expected, rtol=1e-4, atol=1e-5)
        else:
            assert np.array_equal(returned[name], trained[name])
    same = without_correction(sent, sent, base, SPEC, ratio)
    assert all(np.array_equal(same[t.name], cut[t.name]) for t in SPEC if t.kind in FILTERED)


@pytest.mark.parametrize("ratio", [0.75, 0.5, 0.25])
def test_a_change_is_padded_onto_the_global_model(ratio: float) -> None:
    base, returned = random_arrays(SPEC, 1), random_arrays(SPEC.at(ratio), 2)
    channels = static_channels(SPEC, ratio)
    cut = to_tensors(extract(base, SPEC, channels))
    onto = dilate_onto(to_tensors(base), cut)
    made = to_arrays(onto(to_tensors(returned), {}, SPEC, ratio, DEFAULT))
    for tensor in SPEC:
        if tensor.kind not in FILTERED:
            continue
        expected = np.array(base[tensor.name])
        expected[np.ix_(*SPEC.index(tensor, channels))] = returned[tensor.name]
        np.testing.assert_allclose(made[tensor.name], expected, rtol=1e-4, atol=1e-5)


def test_devices_that_train_nothing_leave_the_global_model() -> None:
    profile = replace(DEFAULT, server_epochs=0, upload_epochs=0, dilation_epochs=0, weight_epochs=0)
    algorithm = FedConv(BARS, initial_arrays(), public_bars(), replace(profile, filter_epochs=8))
    algorithm.begin_round(1)
    fleet = {"a": 1.0, "b": 0.75, "c": 0.25}
    sent = {device: algorithm.send(device, ratio) for device, ratio in fleet.items()}
    spec = model_spec(BARS)
    cut = extract(algorithm.arrays, spec, sent["c"].channels)
    assert not np.allclose(sent["c"].arrays["conv2.weight"], cut["conv2.weight"]), "was corrected"
    algorithm.end_round([Update(d, s.arrays, s.channels, 2) for d, s in sent.items()])
    for tensor in spec:
        if tensor.kind in FILTERED:
            before = initial_arrays()[tensor.name]
            np.testing.assert_allclose(algorithm.arrays[tensor.name], before, rtol=1e-5, atol=1e-6)

"""Batches: every window of the longer pool once an epoch; parts are the batch again."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import UsageError
from penstock.federated.training.batches import Batch, epochs_of_batches


@settings(max_examples=50, deadline=None)
@given(
    labelled=st.integers(0, 20),
    unlabelled=st.integers(0, 50),
    batch=st.integers(1, 8),
    ratio=st.integers(0, 4),
    seed=st.integers(0, 99),
)
def test_an_epoch_visits_every_window(
    labelled: int, unlabelled: int, batch: int, ratio: int, seed: int
) -> None:
    first = np.arange(labelled)
    second = np.arange(labelled, labelled + unlabelled)
    used = second if ratio else second[:0]

    def batches() -> list[Batch]:
        return list(
            epochs_of_batches(
                first,
                second,
                epochs=2,
                batch=batch,
                unlabelled_batch=batch * ratio,
                rng=np.random.default_rng(seed),
            )
        )

    if not labelled and not len(used):
        with pytest.raises(UsageError, match="no window"):
            batches()
        return
    made = batches()
    of_first = np.concatenate([b.labelled for b in made])
    of_second = np.concatenate([b.unlabelled for b in made])
    assert set(of_first) == set(first.tolist())
    assert set(of_second) == set(used.tolist())
    assert all(len(b.labelled) <= batch and len(b.unlabelled) <= batch * ratio for b in made)
    steps = max(-(-labelled // batch), -(-len(used) // (batch * ratio)) if ratio else 0)
    assert len(made) == 2 * steps
    if ratio == 0:  # one pool: each window exactly twice in two epochs
        assert (np.bincount(of_first, minlength=labelled) == 2).all()


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 9), st.integers(0, 9), st.integers(1, 20))
def test_parts_are_the_batch(labelled: int, unlabelled: int, most: int) -> None:
    whole = Batch(np.arange(labelled), 100 + np.arange(unlabelled))
    parts = list(whole.parts(most)) if len(whole) else []
    assert all(0 < len(part) <= most for part in parts)
    assert [i for p in parts for i in p.labelled] == whole.labelled.tolist()
    assert [i for p in parts for i in p.unlabelled] == whole.unlabelled.tolist()
    assert len(parts) == -(-len(whole) // most)


def test_numbers_out_of_range() -> None:
    one = np.arange(1)
    rng = np.random.default_rng(0)
    with pytest.raises(UsageError, match="epochs is 0"):
        next(epochs_of_batches(one, one, epochs=0, batch=1, unlabelled_batch=1, rng=rng))

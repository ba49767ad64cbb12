"""What a search for precisions may be asked for."""

from __future__ import annotations

import math

import pytest

from penstock.errors import UsageError
from penstock.export.precision_search import PrecisionSearch


@pytest.mark.parametrize("drop", [-0.01, 1.0, 5.0, math.nan, math.inf])
def test_drops_that_are_no_shares(drop: float) -> None:
    with pytest.raises(UsageError, match="greatest drop .* is .*less than 1; 0.01 is a point"):
        PrecisionSearch(max_drop=drop)


def test_what_is_wanted() -> None:
    assert not PrecisionSearch().wanted
    ranking = PrecisionSearch(sensitivity=True)
    assert ranking.wanted and not ranking.mixes
    assert PrecisionSearch(max_drop=0.0).mixes and PrecisionSearch(target_bytes=1).mixes

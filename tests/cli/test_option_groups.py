"""The groups of options and what they are handed to."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import pytest

import penstock
from penstock.cli.option_groups import Loading, Sampling
from penstock.runtime.sampling import SamplingParams


def fields(group: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(group)}


@pytest.mark.parametrize("function", [penstock.load, penstock.plan])
def test_loading_has_every_argument(function: Any) -> None:
    assert fields(Loading) == set(inspect.signature(function).parameters) - {"path"}


def test_sampling_has_every_field() -> None:
    elsewhere = {"max_tokens", "repetition_window"}  # its own option; Python only
    assert fields(Sampling) == fields(SamplingParams) - elsewhere
    params = Sampling(stop=["a", "b"], seed=3).params(7)
    assert (params.max_tokens, params.stop, params.seed) == (7, ("a", "b"), 3)

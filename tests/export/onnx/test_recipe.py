"""Recipes in words."""

from __future__ import annotations

import pytest

from penstock.errors import UsageError
from penstock.export.onnx.recipe import OnnxRecipe, parse_recipe


@pytest.mark.parametrize(
    ("text", "recipe"),
    [
        ("dynamic-int8", OnnxRecipe("dynamic-int8")),
        (
            "static-int8 percentile per-channel",
            OnnxRecipe("static-int8", method="percentile", per_channel=True),
        ),
        (
            "static-int8,percentile=99.9,reduce-range",
            OnnxRecipe("static-int8", "percentile", 99.9, reduce_range=True),
        ),
        (
            "static-int8 minmax uint8-weights",
            OnnxRecipe("static-int8", uint8_weights=True),
        ),
        (
            "block-int4 k-quant block=64 symmetric",
            OnnxRecipe("block-int4", algorithm="k-quant", block=64, symmetric=True),
        ),
    ],
)
def test_words(text: str, recipe: OnnxRecipe) -> None:
    assert parse_recipe(text) == recipe
    assert parse_recipe(str(recipe)) == recipe


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "unknown recipe ''; recipes of ONNX are dynamic-int8"),
        ("int3", "unknown recipe 'int3'"),
        ("dynamic-int8 entropy", "does not take 'entropy'; it takes per-channel, reduce-range"),
        ("static-int8 percentile=40", "above 50 and at most 100"),
        ("static-int8 percentile=nan", "above 50 and at most 100"),
        ("static-int8 uint8-weights per-channel", "one scale, not one per-channel"),
        ("dynamic-int8 uint8-weights", "does not take 'uint8-weights'"),
        ("static-int8 block=32", "does not take 'block=32'"),
        ("block-int8 gptq", "does not take 'gptq'"),
        ("block-int8 hqq", "does not take 'hqq'"),
        ("block-int4 block=33", "16, 32, 64"),
        ("block-int4 hqq qdq", "only rtn can be written as qdq"),
        ("weight-int4 symmetric", "it takes no words"),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_recipe(text)

"""Values of a captioner's manifest: checked, whatever JSON they are."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import FormatError
from penstock.export.captioner_bundle import write_captioner
from penstock.loaders.captioner_file import CaptionerFile
from penstock.runtime.caption.encoder_decoder import decoder_shape
from penstock.runtime.caption.manifest import Section, generation_options, image_input

GOOD: dict[str, dict[str, Any]] = {
    "image": {
        "size": 224, "resize": "stretch", "resample": "bicubic",
        "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 1],
    },
    "generation": {
        "beams": 3, "max_tokens": 20, "most_tokens": 40, "end": 7, "length_penalty": 1,
        "no_repeat": 0, "early_stopping": True,
    },
    "decoder": {
        "layers": 2, "heads": 4, "head_width": 8, "vocabulary": 99, "crop": 224, "positions": 64,
        "prompt": [1, 2], "ends": [7], "min_tokens": 1, "no_repeat": 0, "suppress": [3],
        "suppress_first": [], "bad_words": [[4], [5, 6]],
    },
}  # fmt: skip
ABSURD: list[Any] = [
    None, True, -1, 0.5, 1 << 40, int("9" * 400), 1e308, math.nan, math.inf, -math.inf, "", "7",
    "stretch", [], [1], [[]], [True] * 3, [math.nan] * 3, [int("9" * 400)] * 3, [1, 2, "x"],
    [10**6] * 3, [-1, 0, 1], {}, {"a": 1}, [[1] * 3] * 3,
]  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> CaptionerFile:
    """A file whose manifest is changed in place, as if it had been written so."""
    path = tmp_path_factory.mktemp("manifest") / "x.captioner"
    write_captioner(path, {"architecture": "encoder-decoder", **GOOD}, {})
    with CaptionerFile(path) as file:
        return file


def read(file: CaptionerFile, changes: dict[str, Any]) -> None:
    """Everything that is read of a manifest with these sections, after a way through JSON."""
    sections = json.loads(json.dumps({**GOOD, **changes}))
    file.manifest = {**file.manifest, **sections}
    image_input(file)
    generation_options(file)
    decoder_shape(file)


def test_what_is_right_is_read(captioner: CaptionerFile) -> None:
    read(captioner, {})
    image, options = image_input(captioner), generation_options(captioner)
    assert (image.size, image.resize, image.resample) == (224, "stretch", "bicubic")
    assert (image.mean, image.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 1.0))
    assert (options.beams, options.max_tokens, options.end) == (3, 20, 7)
    assert options.early_stopping and options.length_penalty == 1.0
    shape = decoder_shape(captioner)
    assert (shape.layers, shape.heads, shape.head_width, shape.crop) == (2, 4, 8, 224)
    assert shape.rules.prompt == (1, 2) and shape.rules.bad_words == ((4,), (5, 6))


@pytest.mark.parametrize("section", GOOD)
@pytest.mark.parametrize("value", [None, [], "x", 3])
def test_sections_that_are_none(captioner: CaptionerFile, section: str, value: Any) -> None:
    with pytest.raises(FormatError, match=rf"x.captioner: captioner.json: {section} is missing"):
        read(captioner, {section: value})


@pytest.mark.parametrize(("section", "key"), [(s, k) for s, keys in GOOD.items() for k in keys])
def test_absurd_values_are_refused_by_name(
    captioner: CaptionerFile, section: str, key: str
) -> None:
    refused = 0
    for value in ABSURD:
        try:
            read(captioner, {section: {**GOOD[section], key: value}})
        except FormatError as error:
            refused += 1
            assert "x.captioner: captioner.json: " in str(error)
            assert len(str(error)) < 400
    assert refused >= len(ABSURD) - 5


@settings(max_examples=120, deadline=None)
@given(
    section=st.sampled_from(sorted(GOOD)),
    values=st.dictionaries(
        st.sampled_from(sorted({key for keys in GOOD.values() for key in keys})), JSON, max_size=3
    ),
)
def test_any_json_is_read_or_refused(
    captioner: CaptionerFile, section: str, values: dict[str, Any]
) -> None:
    try:
        read(captioner, {section: {**GOOD[section], **values}})
    except FormatError as error:
        assert "captioner.json: " in str(error)


@pytest.mark.parametrize(
    ("section", "values", "said"),
    [
        ("generation", {"max_tokens": 41}, "generation.max_tokens is 41, expected 1 to 40"),
        ("generation", {"beams": 11}, "generation.beams is 11, expected 1 to 10"),
        ("image", {"std": [1, 0, 1]}, "image.std has 0, expected 1e-06 to 1000"),
        ("image", {"resize": "crop"}, "image.resize is 'crop', expected one of stretch"),
        ("decoder", {"positions": 40}, "positions is 40, too few"),
        ("decoder", {"ends": [8, 7]}, "ends starts with 8, expected 7"),
        ("decoder", {"vocabulary": 7}, "ends has 7, expected token ids from 0 to 6"),
        ("decoder", {"bad_words": [[]]}, "bad_words is no list of 1 to"),
        ("decoder", {"crop": 225}, "crop is 225, expected 8 to 224"),
    ],
)
def test_what_does_not_fit_together(
    captioner: CaptionerFile, section: str, values: dict[str, Any], said: str
) -> None:
    with pytest.raises(FormatError, match=said):
        read(captioner, {section: {**GOOD[section], **values}})


def test_defaults(captioner: CaptionerFile) -> None:
    captioner.manifest = {**captioner.manifest, "x": {"whole": 3, "part": 1}}
    section = Section(captioner, "x")
    assert section.integer("none", 0, 9, 4) == 4 and section.number("none", 0, 9, 2) == 2.0
    assert section.number("whole", 0, 9) == 3.0 and not section.flag("none")
    for key in ("none", "other"):
        with pytest.raises(FormatError, match=rf"x.{key} is None, expected 0 to 9"):
            section.integer(key, 0, 9)

"""Models: the torch module of every width has exactly the tensors of its spec, and it runs."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import FormatError, PenstockError, UnsupportedModelError, UsageError
from penstock.federated.models import ModelOptions, build_module, model_names, model_spec
from tests.federated.sample_models import IMAGES, MODELS, RATIOS_OF_TESTS, WINDOWS

torch = pytest.importorskip("torch")


def test_every_model_is_tried_here() -> None:
    assert set(model_names()) == {options.name for options in MODELS}


@pytest.mark.parametrize("options", MODELS, ids=lambda o: o.name)
@pytest.mark.parametrize("ratio", RATIOS_OF_TESTS)
def test_the_module_matches_the_spec(options: ModelOptions, ratio: float) -> None:
    module = build_module(options, ratio)
    found = {
        name: (tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        for name, tensor in module.state_dict().items()
    }
    spec = model_spec(options).at(ratio)
    assert list(found.items()) == [(t.name, (t.shape, t.dtype.name)) for t in spec]
    logits = module(torch.zeros(2, *options.input_shape))
    assert logits.shape == (2, options.classes)


def test_the_cnn_of_the_paper_has_its_sizes() -> None:
    shapes = {t.name: t.shape for t in model_spec(ModelOptions("image-cnn", (1, 28, 28), 10))}
    assert shapes["conv1.weight"] == (16, 1, 3, 3) and shapes["conv2.weight"] == (32, 16, 3, 3)
    assert shapes["classifier.weight"] == (10, 1568)


@pytest.mark.parametrize("options", MODELS, ids=lambda o: o.name)
def test_options_travel_as_json(options: ModelOptions) -> None:
    assert ModelOptions.from_json(options.to_json()) == options


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", FormatError),
        ("[" * 60_000, FormatError),
        ("null", FormatError),
        ('{"name": "image-cnn"}', FormatError),
        ('{"name": "image-cnn", "input_shape": [1, 28.0, 28], "classes": 10}', FormatError),
        ('{"name": "image-cnn", "input_shape": "128", "classes": 10}', FormatError),
        ('{"name": ["image-cnn"], "input_shape": [1], "classes": 10}', FormatError),
        ('{"name": "image-cnn", "input_shape": [1], "classes": true}', FormatError),
        ('{"name": "image-cnn", "input_shape": [1], "classes": 10, "code": "x"}', FormatError),
        ('{"name": "../x", "input_shape": [1], "classes": 10}', UnsupportedModelError),
        ('{"name": "sensing-mlp", "input_shape": [], "classes": 10}', UsageError),
        ('{"name": "sensing-mlp", "input_shape": [0], "classes": 10}', UsageError),
        ('{"name": "sensing-mlp", "input_shape": [9999999999], "classes": 10}', UsageError),
        ('{"name": "sensing-mlp", "input_shape": [4096, 8192], "classes": 10}', UsageError),
        ('{"name": "sensing-mlp", "input_shape": [4], "classes": 1}', UsageError),
        ('{"name": "sensing-mlp", "input_shape": [4], "classes": 2, "widths": [9000]}', UsageError),
    ],
)
def test_other_options_are_refused(text: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        ModelOptions.from_json(text, "the server's task")


@settings(max_examples=60, deadline=None)
@given(
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4)),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
        max_leaves=6,
    ),
    st.sampled_from(["name", "input_shape", "classes", "widths"]),
)
def test_fuzzed_options_never_end_in_another_error(value: object, field: str) -> None:
    import json

    fields = json.loads(WINDOWS.to_json()) | {field: value}
    try:
        options = ModelOptions.from_json(json.dumps(fields))
    except PenstockError:
        return
    assert options.classes >= 2 and min(options.input_shape) >= 1


@pytest.mark.parametrize(
    "options",
    [
        ModelOptions("image-cnn", (28, 28), 10),
        ModelOptions("image-cnn", (1, 3, 28), 10),
        ModelOptions("image-cnn", (1, 28, 28), 10, (16,)),
        ModelOptions("sensing-cnn", (6, 7), 4),
        ModelOptions("sensing-cnn", (6, 16), 4, (8, 8, 8)),
        ModelOptions("sensing-mlp", (6, 16), 4),
    ],
)
def test_inputs_and_widths_that_do_not_suit_are_refused(options: ModelOptions) -> None:
    with pytest.raises(UsageError, match=options.name):
        model_spec(options)


def test_a_ratio_out_of_range_is_refused() -> None:
    with pytest.raises(UsageError, match="ratio"):
        build_module(IMAGES, 0.0)

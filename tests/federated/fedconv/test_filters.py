"""Filters: shapes of every width, against a plain slow convolution, and back by exactly as much."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.federated.arrays import check_arrays
from penstock.federated.fedconv.filters import (
    FFT_FROM,
    FILTERED,
    filter_shapes,
    from_images,
    new_filters,
    part_name,
    to_images,
)
from penstock.federated.fedconv.profiles import DEFAULT, PAPER, Profile
from penstock.federated.models import ModelOptions, model_spec
from penstock.federated.submodels import width
from tests.federated.sample_models import IMAGES, MODELS, RATIOS_OF_TESTS, random_arrays

torch = pytest.importorskip("torch")
from penstock.federated.fedconv.compression import compress  # noqa: E402
from penstock.federated.fedconv.dilation import dilate, pad  # noqa: E402
from penstock.federated.fedconv.filters import correlate, filtered, spread  # noqa: E402
from penstock.federated.public_training import to_arrays, to_tensors  # noqa: E402

UNFLAT = replace(PAPER, name="paper, by channel", flatten_linear=False)
PROFILES = (DEFAULT, PAPER, UNFLAT)
SHRUNK = [ratio for ratio in RATIOS_OF_TESTS if ratio != 1]


def trained(spec, ratio: float, profile: Profile, seed: int = 0):  # type: ignore[no-untyped-def]
    """Filters that have left their start."""
    rng = np.random.default_rng(seed)
    filters = to_tensors(new_filters(spec, ratio, profile, rng))
    for value in filters.values():
        value += torch.from_numpy(rng.normal(size=tuple(value.shape)).astype(np.float32)) / 4
        value.requires_grad_()
    return filters


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(MODELS),
    st.one_of(st.sampled_from(SHRUNK), st.floats(0.05, 0.99)),
    st.sampled_from(PROFILES),
)
def test_any_ratio_gives_the_sub_models_shapes_and_dilation_restores_the_full_ones(
    options: ModelOptions, ratio: float, profile: Profile
) -> None:
    spec = model_spec(options)
    source = to_tensors(random_arrays(spec))
    filters = trained(spec, ratio, profile)
    small = compress(source, filters, spec, ratio, profile)
    check_arrays(to_arrays(small), spec.at(ratio).by_name(), "compression")
    back = dilate(small, filters, spec, ratio, profile)
    check_arrays(to_arrays(back), spec.by_name(), "dilation")


@pytest.mark.parametrize("options", MODELS, ids=lambda o: o.name)
@pytest.mark.parametrize("profile", PROFILES, ids=lambda p: p.name)
def test_ratio_one_is_the_identity(options: ModelOptions, profile: Profile) -> None:
    spec = model_spec(options)
    source = to_tensors(random_arrays(spec))
    assert new_filters(spec, 1.0, profile, np.random.default_rng(0)) == {}
    for transform in (compress, dilate):
        same = transform(source, {}, spec, 1.0, profile)
        assert all(torch.equal(same[name], source[name]) for name in source)


@pytest.mark.parametrize("ratio", SHRUNK)
def test_filters_that_start_at_the_slice_give_the_slice(ratio: float) -> None:
    spec = model_spec(IMAGES)
    source = to_tensors(random_arrays(spec))
    filters = to_tensors(new_filters(spec, ratio, DEFAULT, np.random.default_rng(0)))
    small = compress(source, filters, spec, ratio, DEFAULT)
    padded = dilate(small, filters, spec, ratio, DEFAULT)
    for full, sub in zip(spec, spec.at(ratio), strict=True):
        cut = source[full.name][tuple(slice(n) for n in sub.shape)]
        assert torch.equal(small[full.name], cut)
        assert torch.equal(padded[full.name], pad(cut, full))


@pytest.mark.parametrize("profile", PROFILES, ids=lambda p: p.name)
@pytest.mark.parametrize("transform", [compress, dilate])
def test_gradients_reach_every_filter_and_nothing_else(profile: Profile, transform) -> None:  # type: ignore[no-untyped-def]
    spec, ratio = model_spec(IMAGES), 0.6
    source = to_tensors(random_arrays(spec if transform is compress else spec.at(ratio)))
    filters = trained(spec, ratio, profile)
    made = transform(source, filters, spec, ratio, profile)
    sum((v.square().sum() for v in made.values() if v.requires_grad), torch.zeros(())).backward()
    assert not any(value.requires_grad for value in source.values())
    for name, value in filters.items():
        assert value.grad is not None, name
        one_by_one = name.endswith(":kernel") and value[0].numel() == 1  # normalised: a sign
        assert value.grad.any() or one_by_one, name
    for tensor in spec:
        assert made[tensor.name].requires_grad == (tensor.kind in FILTERED)


def test_the_papers_kernels_have_the_releases_sizes() -> None:
    """Notes, section 1.2: widths 12 and 24 of 16 and 32 at 0.75; 9 and 18 at 0.5625."""
    spec = model_spec(ModelOptions("image-cnn", (1, 28, 28), 10))
    for ratio, first, second, flat in ((0.75, 5, 9, 393), (0.5625, 8, 15, 687)):
        shapes = filter_shapes(spec, ratio, flatten=True)
        assert shapes["conv1.weight:kernel"] == (9, first, 1), "input channels do not shrink"
        assert shapes["conv2.weight:kernel"] == (9, second, first)
        assert shapes["classifier.weight:kernel"] == (1, 1, flat), "classes do not shrink"
        assert shapes["conv1.bias:kernel"] == (1, 1, first)
        assert shapes["classifier.bias:kernel"] == (1, 1, 1)
        by_channel = filter_shapes(spec, ratio, flatten=False)
        assert by_channel["classifier.weight:kernel"] == (49, 1, second)
        assert not any("running" in name or "num_batches" in name for name in shapes)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 4), st.integers(1, 7), st.integers(1, 7), st.integers(0, 6), st.integers(0, 6),
    st.booleans(),
)  # fmt: skip
def test_the_grouped_call_is_the_plain_sum(
    positions: int, rows: int, columns: int, more_rows: int, more_columns: int, wide: bool
) -> None:
    """Each position by itself, value by value; also where spectra are multiplied instead."""
    if wide:
        rows, more_rows, more_columns = rows, 0, FFT_FROM - 1 + more_columns
    rng = np.random.default_rng(rows * 50 + columns)
    images = rng.normal(size=(positions, rows + more_rows, columns + more_columns))
    kernels = rng.normal(size=(positions, more_rows + 1, more_columns + 1))
    expected = np.zeros((positions, rows, columns))
    grown = np.zeros_like(images)
    small = rng.normal(size=(positions, rows, columns))
    for p, r, c in np.ndindex(positions, rows, columns):
        window = (p, slice(r, r + more_rows + 1), slice(c, c + more_columns + 1))
        expected[p, r, c] = (images[window] * kernels[p]).sum()
        grown[window] += small[p, r, c] * kernels[p]
    single = [torch.from_numpy(a.astype(np.float32)) for a in (images, kernels, small)]
    np.testing.assert_allclose(correlate(single[0], single[1]), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(spread(single[2], single[1]), grown, rtol=1e-4, atol=1e-4)


def test_a_filter_is_what_the_release_computes() -> None:
    """Projection, residual for convolutions only, normalised kernel, leaky ReLU: by hand."""
    spec = model_spec(IMAGES)
    tensor = spec.by_name()["conv2.weight"]
    value = torch.from_numpy(random_arrays(spec)["conv2.weight"])
    profile = replace(PAPER, nonlinearity=1)
    filters = trained(spec, 0.5, profile)
    kernel, gain, scale, shift = (
        filters[part_name(tensor, part)].detach() for part in ("kernel", "gain", "scale", "shift")
    )
    made = filtered(to_images(value, tensor, False), tensor, filters, profile, grow=False)
    y, x = 1, 2  # one position of the 3 x 3 kernel: number 5
    z = value[:, :, y, x]
    z = z + scale[5] * z + shift[5]
    k = kernel[5] * gain[5] / kernel[5].norm()
    for out in range(3):
        for into in range(2):
            total = (z[out : out + 5, into : into + 4] * k).sum()
            expected = 0.85 * total if total > 0 else 0.001 * total
            assert made[5, out, into].item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("flatten", [False, True])
@pytest.mark.parametrize("options", MODELS, ids=lambda o: o.name)
def test_images_are_the_tensor_in_another_order(options: ModelOptions, flatten: bool) -> None:
    spec = model_spec(options)
    for name, array in random_arrays(spec).items():
        tensor = spec.by_name()[name]
        if tensor.kind in FILTERED:
            value = torch.from_numpy(array)
            assert torch.equal(
                from_images(to_images(value, tensor, flatten), tensor, flatten), value
            )


def test_an_image_of_a_linear_layer_holds_one_position_of_every_channel() -> None:
    spec = model_spec(IMAGES)
    tensor = spec.by_name()["classifier.weight"]
    value = torch.arange(3 * 7 * 6, dtype=torch.float32).reshape(3, 42)
    images = to_images(value, tensor, flatten=False)
    assert images.shape == (6, 3, 7)
    assert torch.equal(images[4], value[:, 4::6])


def test_a_padded_sub_model_computes_what_the_sub_model_does() -> None:
    from penstock.federated.models import build_module

    spec, ratio = model_spec(IMAGES), 0.5
    small = to_tensors(random_arrays(spec.at(ratio)))
    full = dilate(small, {}, spec, ratio, DEFAULT)
    images = torch.randn(4, *IMAGES.input_shape)
    outputs = []
    for values, at in ((small, ratio), (full, 1.0)):
        module = build_module(IMAGES, at).eval()
        outputs.append(torch.func.functional_call(module, values, (images,)).detach())
    torch.testing.assert_close(*outputs)
    assert width(7, ratio) == 3

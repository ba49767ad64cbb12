"""Logits of every step and the tokens that `generate` finds, beside transformers' own."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from penstock.loaders.captioner_file import CaptionerFile
from penstock.runtime.caption.beam_search import BeamOptions, beam_search
from penstock.runtime.caption.encoder_decoder import EncoderDecoderNetwork
from penstock.runtime.caption.manifest import generation_options
from tests.export.captioner.conftest import Images, Made

TOLERANCE = 1e-4
TOKENS = 16
Common = Callable[[Made], list[int]]


@cache
def loaded(path: Path) -> tuple[EncoderDecoderNetwork, BeamOptions]:
    with CaptionerFile(path) as file:
        return EncoderDecoderNetwork(file, 1), generation_options(file)


def load(path: Path) -> tuple[EncoderDecoderNetwork, BeamOptions]:
    """Its graphs are read once; a test may change the shape of its own network."""
    network, options = loaded(path)
    return copy.copy(network), options


def reference_logits(made: Made, pixels: NDArray[np.float32], ids: list[int]) -> NDArray[Any]:
    """transformers on all tokens at once: [len(ids), vocabulary]."""
    import torch

    tokens = torch.tensor([ids])
    with torch.no_grad():
        seen = torch.from_numpy(pixels)
        if hasattr(made.model, "text_decoder"):
            out = made.model(pixel_values=seen, input_ids=tokens)
        else:
            out = made.model(pixel_values=seen, decoder_input_ids=tokens)
    logits: NDArray[Any] = out.logits[0].numpy()
    return logits


def test_every_step_has_the_logits_of_transformers(made: Made, images: Images) -> None:
    network, _ = load(made.plain)
    prompt = list(network.shape.rules.prompt)
    random = np.random.default_rng(5)
    for image in images[:2]:
        pixels = network.pixels(image)
        run = network.look(pixels)
        ids = [*prompt, *random.integers(4, network.shape.vocabulary - 4, TOKENS).tolist()]
        wanted = reference_logits(made, pixels, ids)[len(prompt) - 1 :]
        seen = [run.prompt_logits()]
        for token in ids[len(prompt) :]:
            seen.append(run.step_logits(np.array([token]), np.zeros(1, np.int64))[0])
        np.testing.assert_allclose(np.stack(seen), wanted, atol=TOLERANCE, rtol=0)


def test_beams_continue_the_rows_that_they_name(made: Made, images: Images) -> None:
    network, _ = load(made.plain)
    prompt = list(network.shape.rules.prompt)
    pixels = network.pixels(images[0])
    run = network.look(pixels)
    run.begin()
    run.step(np.array([5, 6, 7]), np.zeros(3, np.int64))
    run.step(np.array([8, 9, 10]), np.array([2, 0, 2]))
    seen = run.step_logits(np.array([11, 12]), np.array([1, 2]))
    for row, ids in zip(seen, ([5, 9, 11], [7, 10, 12]), strict=True):
        wanted = reference_logits(made, pixels, [*prompt, *ids])[-1]
        np.testing.assert_allclose(row, wanted, atol=TOLERANCE, rtol=0)


def generate(made: Made, network: EncoderDecoderNetwork, image: Any, **how: Any) -> list[int]:
    """The new tokens of transformers' generate, without end and padding."""
    import torch

    pixels = torch.from_numpy(network.pixels(image))
    prompt, end = network.shape.rules.prompt, network.shape.rules.ends[0]
    if hasattr(made.model, "text_decoder"):
        made.model.config.text_config.sep_token_id = end
        # Its `generate` drops the last of the ids, which a tokenizer put there as an end.
        how = {**how, "input_ids": torch.tensor([[*prompt, 3]])}
    else:
        how = {**how, "eos_token_id": end}
    out = made.model.generate(pixel_values=pixels, max_new_tokens=TOKENS, do_sample=False, **how)
    new: list[int] = out[0].tolist()[len(prompt) :]
    return new[: new.index(end)] if end in new else new


@pytest.fixture(scope="module")
def common_tokens(images: Images) -> Common:
    """Tokens that captions have in their middle, the most frequent first.

    Random weights seldom end a caption by themselves.
    """

    @cache
    def common(path: Path) -> list[int]:
        network, _ = load(path)
        seen: Counter[int] = Counter()
        for image in images:
            options = BeamOptions(beams=1, max_tokens=TOKENS, end=network.shape.rules.ends[0])
            seen.update(beam_search(network.see(image)[0], options)[0].tokens[2:])
        return [token for token, _ in seen.most_common()]

    return lambda made: common(made.plain)


def ending_with(network: EncoderDecoderNetwork, token: int, **rules: Any) -> None:
    changed = replace(network.shape.rules, ends=(token,), **rules)
    network.shape = replace(network.shape, rules=changed)


SEARCHES: dict[str, dict[str, Any]] = {
    "greedy": {"num_beams": 1},
    "three beams": {"num_beams": 3},
    "no length penalty": {"num_beams": 3, "length_penalty": 0.0},
    "long ones": {"num_beams": 4, "length_penalty": 2.0},
    "stopped early": {"num_beams": 3, "early_stopping": True},
}


@pytest.mark.parametrize("search", SEARCHES)
def test_captions_are_those_of_generate(
    made: Made, images: Images, common_tokens: Common, search: str
) -> None:
    how = SEARCHES[search]
    network, _ = load(made.plain)
    lengths = set()
    for end in common_tokens(made)[:3]:
        ending_with(network, end)
        options = BeamOptions(
            beams=how["num_beams"],
            max_tokens=TOKENS,
            end=end,
            length_penalty=how.get("length_penalty", 1.0),
            early_stopping=how.get("early_stopping", False),
        )
        for image in images[:3]:
            found = beam_search(network.see(image)[0], options)[0]
            assert list(found.tokens) == generate(made, network, image, **how)
            lengths.add(len(found.tokens))
    assert len(lengths) > 2, "captions that all have the same length show little"


FORBIDDING: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # what transformers is told, and the rules that say the same
    "short ones": ({"min_new_tokens": 9}, {"min_tokens": 9}),
    "repeats": ({"no_repeat_ngram_size": 2}, {"no_repeat": 2}),
    "tokens": ({"suppress_tokens": [7, 8]}, {"suppress": (7, 8)}),
    "first tokens": ({"begin_suppress_tokens": [6, 9]}, {"suppress_first": (6, 9)}),
    "words": ({"bad_words_ids": [[12], [9, 10]]}, {"bad_words": ((12,), (9, 10))}),
}


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("what", FORBIDDING)
def test_what_generate_forbids_is_forbidden(
    made: Made, images: Images, common_tokens: Common, what: str, beams: int
) -> None:
    how, rules = FORBIDDING[what]
    network, _ = load(made.plain)
    end = common_tokens(made)[0]
    ending_with(network, end, **rules)
    options = BeamOptions(beams=beams, max_tokens=TOKENS, end=end)
    for image in images[:2]:
        found = beam_search(network.see(image)[0], options)[0]
        assert list(found.tokens) == generate(made, network, image, num_beams=beams, **how)


def test_int8_is_close_and_smaller(made: Made, images: Images) -> None:
    report = made.report
    assert report.passed and report.ratio > 2
    assert report.metric("cosine").after > 0.97
    assert report.metric("sqnr_db").after > 12
    kinds = set(report.precisions.values())
    assert kinds == {"int8 per column", "int8 per row", "float32"}
    floats = [name for name, kind in report.precisions.items() if kind == "float32"]
    assert len(floats) == 1 and "patch_embedding" in floats[0]


def test_an_embedding_that_is_the_output_matrix_too_is_stored_once(made: Made) -> None:
    import onnx

    for path, kind in ((made.plain, onnx.TensorProto.FLOAT), (made.int8, onnx.TensorProto.INT8)):
        with CaptionerFile(path) as file:
            decoder = onnx.load_from_string(file.read("decoder.onnx"))
            vocabulary = file.manifest["decoder"]["vocabulary"]
        tables = [
            tensor
            for tensor in decoder.graph.initializer
            if len(tensor.dims) == 2 and vocabulary in tensor.dims
        ]
        assert [tensor.data_type for tensor in tables] == [kind]


def test_a_caption_is_text_without_prompt_and_special_tokens(made: Made, images: Images) -> None:
    from penstock.runtime.caption.captioner import load_captioner

    with load_captioner(made.int8, threads=1) as captioner:
        for image in images:
            caption = captioner.caption(image)
            assert caption.text == caption.text.strip()
            assert not caption.text.startswith("a picture of")
            for special in ("[SEP]", "[PAD]", "<|endoftext|>"):
                assert special not in caption.text
            assert caption.times.encoder_ms > 0 and caption.times.decoding_ms > 0

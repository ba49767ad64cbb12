"""What is read from a folder beside the weights, held against transformers; what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from penstock.errors import FormatError, PenstockError, UnsupportedModelError, UsageError
from penstock.export.captioner.preprocessor import Preparation, read_preparation
from penstock.export.captioner.source import open_captioner_source
from penstock.export.captioner.tokenizer_files import tokenizer_json
from penstock.runtime.caption.manifest import ImageInput
from penstock.runtime.caption.preprocess import prepare
from penstock.runtime.tokenizer import Tokenizer
from tests.export.captioner.conftest import Images
from tests.export.captioner.tiny_captioners import (
    BERT,
    SIDE,
    bert_files,
    gpt2_files,
    processor,
    tiny_blip,
    tiny_vit_gpt2,
)

SENTENCES = (
    "a picture of the Dog running, with two balls!",
    "  the   RED beach\tat\nwater ",
    "cats and dogs: unknownword street-car",
    "",
)


def prepared(image: NDArray[np.uint8], read: Preparation) -> NDArray[np.float32]:
    values = read.image
    mean, std = tuple(values["mean"]), tuple(values["std"])
    wanted = ImageInput(values["size"], values["resize"], values["resample"], mean, std)
    whole = prepare(image, wanted)
    begin = (read.image["size"] - read.crop) // 2
    return whole[0, :, begin : begin + read.crop, begin : begin + read.crop]


@pytest.mark.parametrize("encoder", ["vit", "deit"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"resample": 3},
        {"do_normalize": False},
        {"rescale_factor": 1 / 127.5},
        {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.2, 0.3, 0.4]},
    ],
)
def test_pixels_are_those_of_transformers(
    tmp_path: Path, images: Images, encoder: str, changes: dict[str, Any]
) -> None:
    from PIL import Image

    theirs = type(processor(encoder))(**{**processor(encoder).to_dict(), **changes})
    theirs.save_pretrained(tmp_path)
    read = read_preparation(tmp_path, (SIDE, SIDE))
    for image in images:
        wanted = theirs(Image.fromarray(image), return_tensors="np")["pixel_values"][0]
        np.testing.assert_allclose(prepared(image, read), wanted, atol=2e-5)


@pytest.mark.parametrize(
    ("changes", "kind", "said"),
    [
        ({"resample": 1}, UnsupportedModelError, "resample is 1"),
        ({"resample": "x"}, FormatError, "'resample'"),
        ({"do_resize": False}, UnsupportedModelError, "do_resize"),
        ({"size": {"height": 32, "width": 48}}, UnsupportedModelError, "squares"),
        ({"size": {"shortest_edge": 32}}, UnsupportedModelError, "shortest_edge"),
        ({"size": 64}, FormatError, "encoder takes 32 x 32"),
        ({"image_mean": [1, 2]}, FormatError, "three numbers"),
        ({"image_std": [0, 1, 1]}, FormatError, "positive"),
        ({"rescale_factor": -1}, FormatError, "rescale_factor"),
        ({"image_processor_type": "Swin2SRImageProcessor"}, UnsupportedModelError, "Swin2SR"),
    ],
)
def test_preparations_that_are_refused(
    tmp_path: Path, changes: dict[str, Any], kind: type[PenstockError], said: str
) -> None:
    values = {**processor("vit").to_dict(), **changes}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
    with pytest.raises(kind, match=said):
        read_preparation(tmp_path, (SIDE, SIDE))


def test_the_image_part_of_a_newer_folder(tmp_path: Path) -> None:
    nested = {"image_processor": processor("deit").to_dict(), "processor_class": "X"}
    (tmp_path / "processor_config.json").write_text(json.dumps(nested, default=str))
    assert read_preparation(tmp_path, (SIDE, SIDE)).crop == SIDE
    (tmp_path / "processor_config.json").unlink()
    with pytest.raises(FormatError, match="preprocessor_config.json"):
        read_preparation(tmp_path, (SIDE, SIDE))


def test_a_wordpiece_vocabulary_is_read_as_transformers_reads_it(tmp_path: Path) -> None:
    from transformers import BertTokenizer

    bert_files(tmp_path)
    ours = Tokenizer({"tokenizer.huggingface.json": tokenizer_json(tmp_path, len(BERT) + 2)})
    theirs = BertTokenizer(str(tmp_path / "vocab.txt"))
    for sentence in SENTENCES:
        ids = ours.encode(sentence)
        assert ids == theirs(sentence, add_special_tokens=False)["input_ids"]
        assert ours.decode([2, *ids, 3, 0]) == theirs.decode(ids, skip_special_tokens=True)
    assert ours.encode("[DEC]") == [len(BERT)]


def test_a_byte_level_vocabulary_is_read_as_transformers_reads_it(tmp_path: Path) -> None:
    from transformers import GPT2Tokenizer

    count = gpt2_files(tmp_path)
    ours = Tokenizer({"tokenizer.huggingface.json": tokenizer_json(tmp_path, count)})
    theirs = GPT2Tokenizer.from_pretrained(tmp_path)
    for sentence in (*SENTENCES, "naïve ☃ 雪"):
        ids = ours.encode(sentence)
        assert ids == theirs(sentence, add_special_tokens=False)["input_ids"]
        assert ours.decode([*ids, count - 1]) == sentence


def test_tokenizers_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="has no tokenizer"):
        tokenizer_json(tmp_path, 10)
    bert_files(tmp_path)
    with pytest.raises(FormatError, match="do not belong together"):
        tokenizer_json(tmp_path, len(BERT) - 5)
    (tmp_path / "vocab.txt").write_text("\n".join(BERT[:-1]) + "\n")
    with pytest.raises(FormatError, match="added token"):
        tokenizer_json(tmp_path, len(BERT) + 2)
    (tmp_path / "tokenizer.json").write_text("{broken")
    with pytest.raises(FormatError):
        tokenizer_json(tmp_path, 10)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_blip(folder)
    return folder


def test_generation_settings_come_from_the_folder_or_the_caller(
    checkpoint: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(checkpoint, folder)
    settings = {
        "num_beams": 4, "max_length": 30, "min_length": 9, "length_penalty": 1.5,
        "no_repeat_ngram_size": 3, "early_stopping": True, "repetition_penalty": 1.3,
    }  # fmt: skip
    (folder / "generation_config.json").write_text(json.dumps(settings))
    read = open_captioner_source(folder)
    prompt = [len(BERT), *(BERT.index(word) for word in "a picture of".split())]
    assert read.manifest["decoder"]["prompt"] == prompt
    assert read.manifest["decoder"]["min_tokens"] == 9 - len(prompt)
    assert read.manifest["decoder"]["no_repeat"] == 3
    search = read.manifest["generation"]
    assert (search["beams"], search["max_tokens"], search["end"]) == (4, 30 - len(prompt), 3)
    assert (search["length_penalty"], search["early_stopping"]) == (1.5, True)
    assert any("repetition_penalty=1.3" in note for note in read.notes)

    asked = open_captioner_source(folder, beams=2, max_tokens=7, prompt="")
    assert asked.manifest["decoder"]["prompt"] == [len(BERT)]
    assert (asked.manifest["generation"]["beams"], asked.manifest["generation"]["max_tokens"]) == (
        2,
        7,
    )
    with pytest.raises(UsageError, match="beams is 11"):
        open_captioner_source(folder, beams=11)
    with pytest.raises(UsageError, match="max_tokens is 99"):
        open_captioner_source(folder, max_tokens=99)
    with pytest.raises(UnsupportedModelError, match="shorter prompt"):
        open_captioner_source(folder, prompt="dog " * 60)


def test_a_deit_encoder_whose_width_is_not_the_decoders(tmp_path: Path, images: Images) -> None:
    """Its states are projected; keys and values are those that transformers computes from them."""
    import torch

    model = tiny_vit_gpt2(tmp_path, encoder="deit", width=40)
    read = open_captioner_source(tmp_path)
    pixels = torch.randn(1, 3, SIDE, SIDE)
    tokens = torch.tensor([[5, 6, 7]])
    nothing = torch.zeros(1, read.network.heads, 0, read.network.head_width)
    with torch.no_grad():
        cross = read.network.encode(pixels)
        past = [(nothing, nothing)] * read.network.layers
        seen, _ = read.network.decode(tokens, past, cross)
        wanted = model(pixel_values=pixels, decoder_input_ids=tokens).logits[:, -1]
    torch.testing.assert_close(seen, wanted, atol=1e-4, rtol=0)


def _edit(name: str, **values: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return edit


def _drop_a_weight(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    weights = load_file(path)
    weights.pop("vision_model.post_layernorm.bias")
    save_file(weights, path, metadata={"format": "pt"})


def _cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize(
    ("damage", "kind", "said"),
    [
        (lambda f: (f / "config.json").unlink(), FormatError, "config.json.*Blip"),
        (lambda f: (f / "model.safetensors").unlink(), FormatError, "no weights"),
        (lambda f: (f / "vocab.txt").unlink(), FormatError, "no tokenizer"),
        (lambda f: (f / "preprocessor_config.json").unlink(), FormatError, "preprocessor_config"),
        (lambda f: (f / "config.json").write_text("{"), FormatError, "not valid JSON"),
        (
            _edit("config.json", architectures=["GitForCausalLM"]),
            UnsupportedModelError,
            "Git.*gpt2",
        ),
        (
            _edit(
                "config.json",
                architectures=["VisionEncoderDecoderModel"],
                encoder={"model_type": "swin"},
                decoder={"model_type": "gpt2"},
            ),
            UnsupportedModelError,
            "swin with gpt2",
        ),
        (_drop_a_weight, FormatError, "post_layernorm"),
        (_cut, FormatError, "cannot load"),
    ],
)
def test_folders_that_are_refused(
    checkpoint: Path,
    tmp_path: Path,
    damage: Callable[[Path], object],
    kind: type[PenstockError],
    said: str,
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(checkpoint, folder)
    damage(folder)
    with pytest.raises(kind, match=said):
        open_captioner_source(folder)


def test_a_path_that_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="BlipForConditionalGeneration"):
        open_captioner_source(tmp_path / "nothing")

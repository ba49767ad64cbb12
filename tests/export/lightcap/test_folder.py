"""Folders of captioners: written, read, and refused where a file is not what config.json says."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from penstock.errors import FormatError, StorageError
from penstock.export.lightcap.config import LightCapConfig
from penstock.export.lightcap.folder import (
    CAPTIONER,
    CARD,
    CONCEPTS,
    CONFIG,
    ENCODER,
    VOCABULARY,
    LightCapFolder,
    read_folder,
    write_folder,
)
from tests.export.lightcap import tiny_lightcap
from tests.export.lightcap.tiny_lightcap import tiny_folder, tiny_model

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def folder() -> LightCapFolder:
    return tiny_folder()


@pytest.fixture(scope="module")
def written(folder: LightCapFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("folder") / "tiny"
    write_folder(folder, path)
    return path


@pytest.fixture
def path(written: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(copytree(written, tmp_path / "tiny"))


def tensors(module: nn.Module) -> State:
    return dict(module.state_dict())


def test_what_is_written_is_read(folder: LightCapFolder, path: Path) -> None:
    read = read_folder(path)
    assert read.config == folder.config and read.card == {"name": "tiny"}
    assert (read.vocabulary, read.concepts) == (folder.vocabulary, folder.concepts)
    assert not read.model.training and not read.encoder.training
    for ours, theirs in ((read.model, folder.model), (read.encoder, folder.encoder)):
        assert tensors(ours).keys() == tensors(theirs).keys()
        for name, tensor in tensors(theirs).items():
            assert torch.equal(tensors(ours)[name], tensor)


def test_weights_are_rounded_to_half_precision(folder: LightCapFolder, tmp_path: Path) -> None:
    model = tiny_model(seed=8)
    exact = LightCapFolder(folder.config, folder.encoder, model, folder.vocabulary, folder.concepts)
    write_folder(exact, tmp_path / "x")
    read = tensors(read_folder(tmp_path / "x").model)
    changed = 0
    for name, tensor in tensors(model).items():
        wanted = tensor.half().float() if tensor.is_floating_point() else tensor
        assert read[name].dtype == tensor.dtype and torch.equal(read[name], wanted)
        changed += not torch.equal(read[name], tensor)
    assert changed > 20
    parameters = sum(p.numel() for m in (model, folder.encoder) for p in m.parameters())
    size = sum((tmp_path / "x" / name).stat().st_size for name in (ENCODER, CAPTIONER))
    assert exact.float_bytes == 4 * parameters
    assert size < 1.1 * exact.float_bytes / 2 + 50_000


def test_encoders_take_their_own_pixels(folder: LightCapFolder) -> None:
    assert folder.pixels() == ((0.5,) * 3, (0.5,) * 3)
    clip = LightCapFolder(LightCapConfig(), folder.encoder, folder.model, [], [])
    assert clip.pixels()[0] == (0.48145466, 0.4578275, 0.40821073)


def test_a_folder_without_a_card(path: Path) -> None:
    (path / CARD).unlink()
    assert read_folder(path).card == {}


def changed(path: Path, name: str, change: Callable[[State], None]) -> None:
    state = load_file(path / name)
    change(state)
    save_file(state, path / name)


def _without(name: str) -> Callable[[State], None]:
    def change(state: State) -> None:
        del state[name]

    return change


def _with(name: str, value: Tensor) -> Callable[[State], None]:
    return lambda state: state.update({name: value})


def _nan(state: State) -> None:
    state["grid_in.bias"][3] = math.nan


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        (CAPTIONER, _without("layers.1.key.bias"), "missing or not known: layers.1.key.bias"),
        (CAPTIONER, _with("new", torch.ones(2)), "missing or not known: new"),
        (ENCODER, _without("bn1.running_mean"), "missing or not known: bn1.running_mean"),
        (ENCODER, _with("conv1.weight", torch.ones(3)), r"'conv1.weight' is \[3\], config.json"),
        (CAPTIONER, _with("words.weight", torch.ones(20, 24)), r"is \[20, 24\].*\[21, 24\]"),
        (CAPTIONER, _nan, "'grid_in.bias' has values that are not finite"),
        (
            CAPTIONER,
            _with("concept_pieces", torch.full((7, 4), 21)),
            "'concept_pieces' has ids outside 0 to 20",
        ),
        (
            CAPTIONER,
            _with("concept_pieces", torch.full((7, 4), -1)),
            "'concept_pieces' has ids outside 0 to 20",
        ),
    ],
)
def test_tensors_that_are_refused(
    path: Path, file: str, change: Callable[[State], None], said: str
) -> None:
    changed(path, file, change)
    with pytest.raises(FormatError, match=f"{file}: .*{said}"):
        read_folder(path)


@pytest.mark.parametrize("file", [ENCODER, CAPTIONER, CONFIG, VOCABULARY, CONCEPTS])
def test_missing_cut_and_foreign_files_are_refused(path: Path, file: str) -> None:
    whole = (path / file).read_bytes()
    for data in (whole[: len(whole) // 2], b"", b"\x80\xff" * 40):
        (path / file).write_bytes(data)
        with pytest.raises(FormatError, match=file):
            read_folder(path)
    (path / file).unlink()
    with pytest.raises(FormatError, match=file):
        read_folder(path)


def test_too_few_words(path: Path) -> None:
    (path / VOCABULARY).write_text("\n".join(tiny_lightcap.PIECES[:-2]) + "\n")
    with pytest.raises(FormatError, match=r"vocab.txt: 19 lines, config.json says 21"):
        read_folder(path)


def test_too_many_concepts(path: Path) -> None:
    (path / CONCEPTS).write_text("\n".join([*tiny_lightcap.CONCEPTS, "tree"]) + "\n")
    with pytest.raises(FormatError, match=r"concepts.txt: 8 lines, config.json says 7"):
        read_folder(path)


@pytest.mark.parametrize(("card", "said"), [("{", "not JSON"), ("[]", "expected an object")])
def test_cards_that_are_none(path: Path, card: str, said: str) -> None:
    (path / CARD).write_text(card)
    with pytest.raises(FormatError, match=f"card.json: {said}"):
        read_folder(path)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"depth": 3}, "depth is 3; expected of a LightCap configuration: encoder"),
        ({"hidden": "24"}, "hidden is '24'"),
        ({"hidden": True}, "hidden is True"),
        ({"hidden": 24.0}, "hidden is 24.0"),
        ({"hidden": 26}, "hidden is 26, no multiple of 4 heads"),
        ({"hidden": 1 << 40}, "hidden is 1099511627776, expected 1 to"),
        ({"layers": 0}, "layers is 0, expected 1 to 256"),
        ({"layers": 10**6}, "layers is 1000000, expected 1 to 256"),
        ({"image_size": 16}, "image_size is 16, expected 32 to"),
        ({"encoder": "vgg"}, "encoder is 'vgg', expected one of clip-resnet50"),
        ({"end": 21}, "end is 21, expected a token below 21"),
        ({"mask": -1}, "mask is -1, expected 0 to"),
        ({"top_concepts": 8}, "top_concepts is 8, there are 7 concepts"),
        ({"grid": 3}, "grid 3 of 768 channels; at 64 pixels small-resnet gives 4 cells of 768"),
        ({"channels": 1280}, "grid 2 of 1280 channels"),
        ({"image_size": 96}, "gives 9 cells"),
        ({"vocabulary": 1 << 20}, r"is \[21.*config.json asks for \[1048576"),
        ({"hidden": 1 << 20, "ffn": 1 << 20}, "config.json asks for"),
    ],
)
def test_configurations_that_are_refused(path: Path, values: dict[str, Any], said: str) -> None:
    """Those that would take terabytes are refused by the shapes in the file, before memory is."""
    config = json.loads((path / CONFIG).read_text())
    (path / CONFIG).write_text(json.dumps({**config, **values}))
    with pytest.raises(FormatError, match=said):
        read_folder(path)


@pytest.mark.parametrize("text", ["[]", "3", '"x"', "null"])
def test_configurations_that_are_no_object(path: Path, text: str) -> None:
    (path / CONFIG).write_text(text)
    with pytest.raises(FormatError, match=r"config.json: expected a JSON object"):
        read_folder(path)


def test_configurations_go_through_files(tmp_path: Path) -> None:
    config = LightCapConfig(hidden=36, heads=6, encoder="mobilenet-v2")
    config.save(tmp_path / CONFIG)
    assert LightCapConfig.load(tmp_path / CONFIG) == config
    assert (config.cells, config.head_width) == (49, 6)


def test_where_nothing_can_be_written(folder: LightCapFolder, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        write_folder(folder, tmp_path / "file" / "x")

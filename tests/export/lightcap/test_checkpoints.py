"""Checkpoints of CLIP RN50 and TinyBERT in every layout that users bring, and wrong ones."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from penstock.errors import FormatError, StorageError, UnsupportedModelError
from penstock.export.lightcap.checkpoints import (
    bert_shapes,
    clip_shapes,
    load_clip_rn50,
    load_tinybert,
    read_wordpieces,
)
from penstock.export.lightcap.clip_resnet import AttentionPool2d, ClipResNet
from penstock.export.lightcap.clip_text import ClipText
from tests.export.lightcap.random_checkpoints import (
    Multimodal,
    cheap,
    sparse_safetensors,
)

Shapes = dict[str, tuple[int, ...]]


def count(shapes: Mapping[str, tuple[int, ...]]) -> int:
    return sum(torch.Size(shape).numel() for shape in shapes.values())


def test_parameters_are_those_published() -> None:
    learnt = {n: s for n, s in clip_shapes().items() if ".running_" not in n}
    assert count(learnt) + 1 == 102_007_137  # with the scale of the logits
    assert count(bert_shapes()) == 14_252_592


# ---------------------------------------------------------------- CLIP


def test_openai_archive(openai_clip: Multimodal, openai_archive: Path) -> None:
    """The whole RN50 with random weights, as OpenAI packs it."""
    stored = {name: t.half().float() for name, t in openai_clip.state_dict().items()}
    weights = load_clip_rn50(openai_archive)
    parts = {"visual.": weights.backbone, "visual.attnpool.": weights.attention_pool}
    found = {prefix + n: t for prefix, part in parts.items() for n, t in part.items()}
    found |= weights.text
    assert found.keys() == clip_shapes().keys()
    for name, tensor in found.items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, stored[name]), name
    with torch.device("meta"):
        backbone, pool, text = ClipResNet(), AttentionPool2d(), ClipText()
    missing, unexpected = backbone.load_state_dict(weights.backbone, strict=False, assign=True)
    assert not unexpected and all(name.endswith("num_batches_tracked") for name in missing)
    pool.load_state_dict(weights.attention_pool, assign=True)
    text.load_state_dict(weights.text, assign=True)


def as_plain(shapes: Shapes, path: Path) -> Path:
    torch.save(cheap(shapes), path)
    return path


def as_legacy(shapes: Shapes, path: Path) -> Path:
    torch.save(cheap(shapes), path, _use_new_zipfile_serialization=False)
    return path


def as_open_clip(shapes: Shapes, path: Path) -> Path:
    weights = {f"module.{name}": tensor for name, tensor in cheap(shapes).items()}
    torch.save({"epoch": 3, "state_dict": weights}, path)
    return path


LAYOUTS: list[Callable[[Shapes, Path], Path]] = [as_plain, as_legacy, as_open_clip]


@pytest.mark.parametrize("save", LAYOUTS)
def test_clip_state_dicts(tmp_path: Path, save: Callable[[Shapes, Path], Path]) -> None:
    shapes: Shapes = {**clip_shapes(), "logit_scale": (), "visual.bn1.num_batches_tracked": ()}
    weights = load_clip_rn50(save(shapes, tmp_path / "rn50.bin"))
    assert weights.backbone["layer4.2.conv3.weight"].shape == (2048, 512, 1, 1)
    assert float(weights.text["text_projection"][5, 7]) == 0.5


def test_clip_safetensors(tmp_path: Path) -> None:
    weights = load_clip_rn50(sparse_safetensors(tmp_path / "rn50.safetensors", clip_shapes()))
    assert count({n: tuple(t.shape) for n, t in weights.backbone.items()}) > 23_527_264
    assert weights.text["positional_embedding"].dtype == torch.float32


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        ({"visual.conv1.weight": None}, r"no tensor 'visual.conv1.weight' \(32, 3, 3, 3\)"),
        (
            {"text_projection": (512, 512)},
            r"'text_projection' has shape \(512, 512\), in CLIP RN50 it has \(512, 1024\)",
        ),
        (  # RN101 has more blocks of the same shapes
            {f"visual.layer3.{n}.conv1.weight": (256, 1024, 1, 1) for n in range(6, 23)},
            "'visual.layer3.10.conv1.weight', .* and 14 more, which CLIP RN50 does not have",
        ),
    ],
)
def test_another_clip(tmp_path: Path, edit: dict[str, Any], said: str) -> None:
    shapes = {n: s for n, s in {**clip_shapes(), **edit}.items() if s is not None}
    for path in (
        as_plain(shapes, tmp_path / "other.pt"),
        sparse_safetensors(tmp_path / "other.safetensors", shapes),
    ):
        with pytest.raises(FormatError, match=rf"{path.name}: .*{said}"):
            load_clip_rn50(path)


def test_bad_values(tmp_path: Path) -> None:
    weights = cheap(clip_shapes())
    weights["visual.bn1.bias"] = torch.full((32,), float("nan"))
    torch.save(weights, tmp_path / "nan.pt")
    with pytest.raises(FormatError, match="'visual.bn1.bias' has values that are not finite"):
        load_clip_rn50(tmp_path / "nan.pt")
    weights["visual.bn1.bias"] = torch.ones(32, dtype=torch.int64)
    torch.save(weights, tmp_path / "int.pt")
    with pytest.raises(FormatError, match="'visual.bn1.bias' is int64, expected floating"):
        load_clip_rn50(tmp_path / "int.pt")
    weights["visual.bn1.bias"] = torch.ones(32).to_sparse()
    torch.save(weights, tmp_path / "sparse.pt")
    with pytest.raises(UnsupportedModelError, match="'visual.bn1.bias' is sparse"):
        load_clip_rn50(tmp_path / "sparse.pt")


class Hostile:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return open, (str(self.marker), "w")


@pytest.mark.parametrize("zipped", [True, False])
def test_no_code_is_run(tmp_path: Path, zipped: bool) -> None:
    marker, path = tmp_path / "was here", tmp_path / "hostile.bin"
    torch.save(
        {"a": torch.ones(1), "b": Hostile(marker)}, path, _use_new_zipfile_serialization=zipped
    )
    for load in (load_clip_rn50, load_tinybert):
        with pytest.raises(FormatError, match="hostile.bin: .*never runs its code"):
            load(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    "data",
    [b"", b"version https://git-lfs.github.com/spec/v1\n", b"\x80\x02}q\x00.", b"PK\x03\x04" * 30],
)
def test_what_is_no_checkpoint(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(data)
    with pytest.raises(FormatError, match="x.pt: "):
        load_clip_rn50(path)


def test_cut_short(tmp_path: Path) -> None:
    for save in LAYOUTS:
        path = save(bert_shapes(), tmp_path / "cut.bin")
        path.write_bytes(path.read_bytes()[:-200])
        with pytest.raises(FormatError, match="cut.bin: "):
            load_tinybert(path)
    with pytest.raises(StorageError, match="none.pt: cannot be read"):
        load_clip_rn50(tmp_path / "none.pt")


def test_a_state_dict_without_tensors(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": 1}}, tmp_path / "n.pt")
    with pytest.raises(FormatError, match="has no tensors"):
        load_clip_rn50(tmp_path / "n.pt")
    torch.save([torch.ones(1)], tmp_path / "l.pt")
    with pytest.raises(FormatError, match="holds a list, expected tensors by name"):
        load_clip_rn50(tmp_path / "l.pt")


def test_a_compressed_checkpoint_is_refused(tmp_path: Path) -> None:
    import zipfile

    path, bomb = as_plain(bert_shapes(), tmp_path / "t.bin"), tmp_path / "bomb.bin"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name) + bytes(100_000))
    with pytest.raises(FormatError, match="would become"):
        load_tinybert(bomb)


# ---------------------------------------------------------------- TinyBERT


def old_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """As in the files of 2019, converted from TensorFlow."""
    swap = (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta"))
    for new, old in swap:
        weights = {name.replace(new, old): tensor for name, tensor in weights.items()}
    return weights | {"fit_dense.weight": torch.ones(768, 312), "fit_dense.bias": torch.ones(768)}


@pytest.mark.parametrize("layout", ["huawei", "safetensors", "bare"])
def test_tinybert_layouts(tmp_path: Path, tinybert: Any, layout: str) -> None:
    weights = {name: t.clone() for name, t in tinybert.state_dict().items()}
    if layout == "huawei":
        path = tmp_path / "pytorch_model.bin"
        torch.save(old_names(weights), path, _use_new_zipfile_serialization=False)
        config = {"hidden_size": 312, "num_hidden_layers": 4, "cell": {}, "emb_size": 312}
        (tmp_path / "config.json").write_text(json.dumps(config))
    elif layout == "safetensors":
        tinybert.save_pretrained(tmp_path)
    else:
        path = tmp_path / "encoder.safetensors"
        save_file({n: t.half() for n, t in tinybert.bert.state_dict().items()}, path)
    found = load_tinybert(path if layout == "bare" else tmp_path)
    assert found.keys() == bert_shapes().keys()
    for name, tensor in found.items():
        stored = tinybert.bert.state_dict()[name]
        expected = stored.half().float() if layout == "bare" else stored
        assert tensor.dtype == torch.float32 and torch.equal(tensor, expected), name


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        ({"bert.encoder.layer.2.output.dense.bias": None}, r"no tensor 'encoder.layer.2.output"),
        (
            {"bert.embeddings.word_embeddings.weight": (21_128, 312)},
            r"'bert.embeddings.word_embeddings.weight' has shape \(21128, 312\).*\(30522, 312\)",
        ),
        ({"bert.encoder.layer.4.output.dense.bias": (312,)}, "'bert.encoder.layer.4.output.dense"),
        ({"bert.embeddings.LayerNorm.beta": (312,)}, "under an old and a new name"),
    ],
)
def test_another_bert(tmp_path: Path, edit: dict[str, Any], said: str) -> None:
    own: dict[str, Any] = {f"bert.{name}": shape for name, shape in bert_shapes().items()}
    shapes = {name: shape for name, shape in {**own, **edit}.items() if shape is not None}
    with pytest.raises(FormatError, match=f"b.bin: .*{said}"):
        load_tinybert(as_plain(shapes, tmp_path / "b.bin"))


def test_another_configuration(tmp_path: Path) -> None:
    as_plain(bert_shapes(), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps({"num_attention_heads": 6}))
    with pytest.raises(UnsupportedModelError, match="num_attention_heads is 6, in TinyBERT.*12"):
        load_tinybert(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"hidden_act": "relu"}))
    with pytest.raises(UnsupportedModelError, match="hidden_act is 'relu'"):
        load_tinybert(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(FormatError, match="not valid JSON"):
        load_tinybert(tmp_path)


def test_a_folder_without_weights(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="has neither model.safetensors nor pytorch_model.bin"):
        load_tinybert(tmp_path)


def test_word_pieces(tmp_path: Path, shared_dir: Path) -> None:
    stored = (shared_dir / "data" / "vocab" / "bert-base-uncased-vocab.txt").read_bytes()
    (tmp_path / "vocab.txt").write_bytes(stored)
    pieces = read_wordpieces(tmp_path)
    assert (pieces[0], pieces[101:104]) == ("[PAD]", ("[CLS]", "[SEP]", "[MASK]"))
    assert pieces == read_wordpieces(tmp_path / "vocab.txt") and len(pieces) == 30_522
    for damage, said in (
        (stored[:-40], "word pieces, .* of them different"),
        (stored.replace(b"\ncat\n", b"\ndog\n"), "30522 word pieces, 30521 of them different"),
        (stored.replace(b"[MASK]", b"[mask]"), r"has no \[MASK\]"),
        (b"\xff\n", "not UTF-8"),
    ):
        (tmp_path / "vocab.txt").write_bytes(damage)
        with pytest.raises(FormatError, match=said):
            read_wordpieces(tmp_path)

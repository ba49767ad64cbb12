"""CLIP and TinyBERT in a full-size LightCap: the parts compute what their makers' models do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from penstock.errors import UsageError
from penstock.export.lightcap.checkpoints import (
    ClipWeights,
    bert_shapes,
    load_clip_rn50,
    load_tinybert,
    read_wordpieces,
)
from penstock.export.lightcap.clip_text import ClipText, encode_concepts
from penstock.export.lightcap.clip_tokenizer import clip_tokenizer
from penstock.export.lightcap.concept_pieces import concept_pieces
from penstock.export.lightcap.concept_vocabulary import read_concepts
from penstock.export.lightcap.config import LightCapConfig
from penstock.export.lightcap.initial_weights import (
    initialise_from_checkpoints,
    initialise_fusion,
)
from penstock.export.lightcap.model import FusionLayer, LightCap
from tests.export.lightcap.random_checkpoints import cheap

CONCEPTS = ("cat", "fire hydrant", "stop sign")


@pytest.fixture(scope="module")
def vocab(shared_dir: Path) -> Path:
    return shared_dir / "data" / "vocab"


def test_fusion_computes_what_bert_does(tmp_path: Path, tinybert: Any) -> None:
    tinybert.save_pretrained(tmp_path)
    model = LightCap(LightCapConfig()).eval()
    initialise_fusion(model, load_tinybert(tmp_path))
    ids = torch.randint(0, 30_522, (2, 31), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        x = model.caption_tokens(ids, torch.arange(31))
        for layer in model.layers:
            assert isinstance(layer, FusionLayer)
            x, _ = layer(x, [layer.keys_values(x)], None)
        expected = tinybert.bert(input_ids=ids).last_hidden_state
    assert float((x - expected).abs().max()) < 2e-5


def test_whole(tmp_path: Path, vocab: Path, openai_archive: Path) -> None:
    clip = load_clip_rn50(openai_archive)
    torch.save(cheap(bert_shapes()), tmp_path / "pytorch_model.bin")
    (tmp_path / "vocab.txt").write_bytes((vocab / "bert-base-uncased-vocab.txt").read_bytes())
    merges = vocab / "clip_bpe_simple_vocab_16e6.txt.gz"
    model = LightCap(LightCapConfig(concepts=3, top_concepts=3)).eval()
    encoder = initialise_from_checkpoints(
        model,
        clip,
        load_tinybert(tmp_path),
        CONCEPTS,
        merges=merges,
        wordpieces=read_wordpieces(tmp_path),
    )
    assert not encoder.training and not any(p.requires_grad for p in encoder.parameters())
    assert all(p.requires_grad for p in model.parameters())
    assert bool((model.state_dict()["layers.3.ffn_in.weight"] == 0.5).all())
    text = ClipText().eval()
    text.load_state_dict(clip.text)
    expected = encode_concepts(CONCEPTS, text, clip_tokenizer(merges))
    assert torch.equal(model.extractor.text_embeddings, torch.from_numpy(expected))
    pieces = read_wordpieces(tmp_path)
    spelt = [pieces[at] for at in model.concept_pieces[1].tolist()]
    assert "".join(spelt).replace("##", "") == "firehydrant[PAD]" and spelt[0] == "fire"
    with torch.inference_mode():
        grid = encoder(torch.rand(1, 3, 224, 224))
        concepts, scores = model.extractor.top(grid)
        prefix = model.prefix_tokens(concepts, scores, grid)
    assert grid.shape == (1, 49, 2048) and prefix.shape == (1, 3 + 49, 312)


def test_pieces_are_those_of_transformers(vocab: Path) -> None:
    from transformers import BertTokenizer

    wordpieces = read_wordpieces(vocab / "bert-base-uncased-vocab.txt")
    names = read_concepts(
        *(vocab / f"visual_genome_{k}_vocab.txt" for k in ("objects", "attributes"))
    )
    names = (*names, "Café-au-lait", "\u732b", "\u200b")
    oracle: Any = BertTokenizer(vocab={piece: at for at, piece in enumerate(wordpieces)})
    for name, ids in zip(names, concept_pieces(names, wordpieces), strict=True):
        assert ids == (oracle(name, add_special_tokens=False).input_ids or [100]), name


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (LightCapConfig(), "concepts is 1600; .* and 3 concepts it must be 3"),
        (LightCapConfig(concepts=3, hidden=256, heads=8), "hidden is 256; .* must be 312"),
        (LightCapConfig(concepts=3, encoder="mobilenet-v2"), "encoder is 'mobilenet-v2'"),
    ],
)
def test_another_width(config: LightCapConfig, said: str) -> None:
    with torch.device("meta"):
        model = LightCap.__new__(LightCap)
    torch.nn.Module.__init__(model)
    model.config = config
    with pytest.raises(UsageError, match=said):
        initialise_from_checkpoints(
            model, ClipWeights({}, {}, {}), {}, CONCEPTS, merges=Path("none"), wordpieces=(),
        )  # fmt: skip

"""The full-size start as a folder: it is beside the checkpoints' tests, whose archives it takes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from examples.train_captioner.start_full_size import start_full_size
from penstock.errors import FormatError, UsageError
from penstock.export.lightcap.checkpoints import bert_shapes, load_clip_rn50
from penstock.export.lightcap.config import LightCapConfig
from penstock.export.lightcap.folder import read_folder
from tests.export.lightcap.random_checkpoints import cheap


def test_a_folder_that_training_goes_on_from(
    tmp_path: Path, shared_dir: Path, openai_archive: Path
) -> None:
    vocab = shared_dir / "data" / "vocab"
    tinybert, names = tmp_path / "tinybert", tmp_path / "concepts.txt"
    tinybert.mkdir()
    weights = cheap(bert_shapes())
    torch.save(weights, tinybert / "pytorch_model.bin")
    (tinybert / "vocab.txt").write_bytes((vocab / "bert-base-uncased-vocab.txt").read_bytes())
    objects = [f"concept {index}" for index in range(19)]
    names.write_text("\n".join([*objects, "fire hydrant,hydrant"]) + "\n")
    merges, out = vocab / "clip_bpe_simple_vocab_16e6.txt.gz", tmp_path / "start"

    start_full_size(openai_archive, tinybert, [names], merges, out)
    folder = read_folder(out)
    assert folder.config == LightCapConfig(concepts=20)
    assert folder.concepts == [*objects, "fire hydrant"]
    assert len(folder.vocabulary) == 30_522 and folder.vocabulary[103] == "[MASK]"
    assert "untrained" in folder.card["name"]
    pieces = [folder.vocabulary[i] for i in folder.model.concept_pieces[19].tolist()[:2]]
    assert pieces[0] == "fire" and "".join(pieces).startswith("firehy")
    kept = folder.encoder.state_dict()["conv1.weight"]
    assert torch.equal(kept, load_clip_rn50(openai_archive).backbone["conv1.weight"])
    words = next(t for n, t in weights.items() if n.endswith("word_embeddings.weight"))
    assert torch.equal(folder.model.words.weight.detach(), words.half().float())

    with pytest.raises(UsageError, match="is there already"):
        start_full_size(openai_archive, tinybert, [names], merges, out)
    with pytest.raises(FormatError):
        start_full_size(names, tinybert, [names], merges, tmp_path / "other")
    assert not (tmp_path / "other").exists()

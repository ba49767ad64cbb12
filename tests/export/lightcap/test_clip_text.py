"""The text encoder against transformers', and the embeddings of names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from penstock.errors import UsageError
from penstock.export.lightcap.clip_text import ClipText, encode_concepts
from penstock.export.lightcap.clip_tokenizer import END, START, clip_tokenizer


def from_transformers(weights: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """Their names and layouts to OpenAI's."""
    named = {n.removeprefix("text_model."): t for n, t in weights.items()}
    out = {
        "token_embedding.weight": named["embeddings.token_embedding.weight"],
        "positional_embedding": named["embeddings.position_embedding.weight"],
        "ln_final.weight": named["final_layer_norm.weight"],
        "ln_final.bias": named["final_layer_norm.bias"],
        "text_projection": named["text_projection.weight"].T,
    }
    for at in range(layers):
        theirs, ours = f"encoder.layers.{at}.", f"transformer.resblocks.{at}."
        for kind in ("weight", "bias"):
            parts = [named[f"{theirs}self_attn.{p}_proj.{kind}"] for p in "qkv"]
            out[f"{ours}attn.in_proj_{kind}"] = torch.cat(parts)
            out[f"{ours}attn.out_proj.{kind}"] = named[f"{theirs}self_attn.out_proj.{kind}"]
            out[f"{ours}ln_1.{kind}"] = named[f"{theirs}layer_norm1.{kind}"]
            out[f"{ours}ln_2.{kind}"] = named[f"{theirs}layer_norm2.{kind}"]
            out[f"{ours}mlp.c_fc.{kind}"] = named[f"{theirs}mlp.fc1.{kind}"]
            out[f"{ours}mlp.c_proj.{kind}"] = named[f"{theirs}mlp.fc2.{kind}"]
    return out


def test_embeddings_equal_transformers() -> None:
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=49_408,
        hidden_size=512,
        intermediate_size=2048,
        projection_dim=1024,
        num_hidden_layers=12,
        num_attention_heads=8,
        max_position_embeddings=77,
        hidden_act="quick_gelu",
        bos_token_id=49_406,
        eos_token_id=49_407,
    )
    torch.manual_seed(11)
    oracle: Any = CLIPTextModelWithProjection(config).eval()
    with torch.no_grad():
        for name, parameter in oracle.named_parameters():
            if parameter.dim() == 1:  # norms and biases begin at 1 and 0, where a mix-up hides
                parameter.add_(0.2 * torch.randn_like(parameter))
            elif "layers" in name:
                parameter.mul_(2)
    model = ClipText().eval()
    model.load_state_dict(from_transformers(oracle.state_dict(), 12))
    ids = torch.randint(0, 49_406, (5, 77))
    ids[:, 0] = 49_406
    for row, end in zip(ids, (1, 2, 9, 40, 76), strict=True):
        row[end] = 49_407
        row[end + 1 :] = 0
    with torch.inference_mode():
        expected = oracle(input_ids=ids).text_embeds
        assert expected.shape == (5, 1024)
        assert float((model(ids) - expected).abs().max()) < 1e-5 * float(expected.abs().max())
        short = model(ids[:3, :10])  # what follows the end changes nothing
        assert float((short - expected[:3]).abs().max()) < 1e-5 * float(expected.abs().max())


@pytest.fixture(scope="module")
def tokenizer(shared_dir: Path) -> Any:
    return clip_tokenizer(shared_dir / "data" / "vocab" / "clip_bpe_simple_vocab_16e6.txt.gz")


@pytest.fixture(scope="module")
def text() -> ClipText:
    torch.manual_seed(13)
    return ClipText(width=32, heads=2, layers=2, context=16, embedding=24).eval()


def test_concepts_are_means_of_normalised_templates(text: ClipText, tokenizer: Any) -> None:
    names = ["cat", "fire hydrant", "stop sign"] * 30  # more than a batch
    templates = ("a photo of a {}.", "the {} on the left")
    made = encode_concepts(names, text, tokenizer, templates=templates)
    assert made.shape == (90, 24) and made.dtype == np.float32
    assert np.allclose(np.linalg.norm(made, axis=1), 1, atol=1e-6)
    for at in (0, 1, 2, 88):
        each = []
        for template in templates:
            ids = torch.tensor([tokenizer.encode(template.replace("{}", names[at])).ids])
            with torch.inference_mode():
                embedding = text(ids)[0].numpy()
            each.append(embedding / np.linalg.norm(embedding))
        mean = np.mean(each, axis=0)
        assert np.allclose(made[at], mean / np.linalg.norm(mean), atol=1e-5)


def test_progress_reaches_the_end(text: ClipText, tokenizer: Any) -> None:
    seen: list[tuple[int, int]] = []
    names = ["cat"] * 70
    encode_concepts(names, text, tokenizer, progress=lambda p: seen.append((p.done, p.total)))
    assert seen == [(64, 70), (70, 70)]


def test_what_cannot_be_encoded(text: ClipText, tokenizer: Any) -> None:
    with pytest.raises(UsageError, match="at least one name"):
        encode_concepts([], text, tokenizer)
    with pytest.raises(UsageError, match=r"'a photo' has no \{\}"):
        encode_concepts(["cat"], text, tokenizer, templates=["{}", "a photo"])
    with pytest.raises(UsageError, match="a dog dog.*more than the 16"):
        encode_concepts(["cat", "dog " * 12], text, tokenizer)


def test_special_tokens_are_around(tokenizer: Any) -> None:
    ids = tokenizer.encode("cat").ids
    assert ids[0] == tokenizer.token_to_id(START) == 49_406
    assert ids[-1] == tokenizer.token_to_id(END) == 49_407

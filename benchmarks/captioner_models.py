"""Captioners of published shapes with random weights, saved as Hugging Face folders.

Random weights: their captions say nothing, their times and sizes are those of the real ones.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SEED = 7
# Salesforce/blip-image-captioning-base: ViT-B/16 at 384 pixels, BERT-base with cross-attention.
BLIP_BASE_VISION = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "image_size": 384, "patch_size": 16,
}  # fmt: skip
BLIP_BASE_TEXT = {
    "vocab_size": 30524, "hidden_size": 768, "encoder_hidden_size": 768, "intermediate_size": 3072,
    "num_hidden_layers": 12, "num_attention_heads": 12, "max_position_embeddings": 512,
    "bos_token_id": 30522, "sep_token_id": 102, "pad_token_id": 0, "eos_token_id": 2,
}  # fmt: skip
BERT_SPECIAL = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]"}
PROMPT_WORDS = {1037: "a", 3861: "picture", 1997: "of"}  # with the ids of bert-base-uncased


def blip_base(folder: Path) -> int:
    """A folder of BLIP-base's shape, float32, about 0.9 GiB; returns its number of parameters.

    Args:
        folder: made if it is not there.
    """
    import torch
    from transformers import BlipConfig, BlipForConditionalGeneration

    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    config = BlipConfig(vision_config=BLIP_BASE_VISION, text_config=BLIP_BASE_TEXT)
    model = BlipForConditionalGeneration(config).eval()
    model.save_pretrained(folder)
    _write_tokenizer(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "BlipImageProcessor"})
    )
    return sum(parameter.numel() for parameter in model.parameters())


def _write_tokenizer(folder: Path) -> None:
    """A WordPiece vocabulary of the size of BERT, with its special tokens; words are made up."""
    words = [f"word{index}" for index in range(30522)]
    for index, word in (BERT_SPECIAL | PROMPT_WORDS).items():
        words[index] = word
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    added = {str(30522 + i): {"content": text} for i, text in enumerate(("[DEC]", "[ENC]"))}
    settings = {"do_lower_case": True, "added_tokens_decoder": added}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def full_size_lightcap(folder: Path) -> int:
    """A LightCap folder of the paper's shape: CLIP ResNet-50 without its pooler, TinyBERT-4, 1,600
    concepts; returns the number of parameters."""
    import torch

    from penstock.export.lightcap.clip_resnet import ClipResNet
    from penstock.export.lightcap.config import LightCapConfig
    from penstock.export.lightcap.folder import LightCapFolder, write_folder
    from penstock.export.lightcap.model import LightCap

    torch.manual_seed(SEED)
    config = LightCapConfig()
    encoder, model = ClipResNet().eval(), LightCap(config).eval()
    _settle(encoder)
    words = [f"word{index}" for index in range(config.vocabulary)]
    for index, word in BERT_SPECIAL.items():
        words[index] = word
    names = [f"concept {index}" for index in range(config.concepts)]
    made = LightCapFolder(config, encoder, model, words, names, {"name": "LightCap, random"})
    write_folder(made, folder)
    return sum(p.numel() for part in (encoder, model) for p in part.parameters())


def _settle(encoder: Any) -> None:
    """Batch norms that normalise: random weights else give features near zero."""
    import torch

    for module in encoder.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the mean over the batches seen
    encoder.train()
    with torch.no_grad():
        encoder(torch.rand(4, 3, 224, 224) * 4 - 2)
    encoder.eval()

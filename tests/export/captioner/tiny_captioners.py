"""Tiny Hugging Face captioners with random weights, saved as their folders are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

WORDS = (
    "a picture of the dog cat man woman runs sits on in under red blue big small tree grass beach "
    "ball with and two three people at water snow street car bike ##s ##ing ##ed wear jump hat"
).split()
BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
SIDE = 32


def tiny_blip(folder: Path, *, seed: int = 3) -> Any:
    """BLIP of one and two layers; returns the model."""
    import torch
    from transformers import BlipConfig, BlipForConditionalGeneration
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    torch.manual_seed(seed)
    special = {"bos_token_id": len(BERT), "sep_token_id": 3, "pad_token_id": 0, "eos_token_id": 2}
    config = BlipConfig(
        vision_config={
            "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 1,
            "num_attention_heads": 4, "image_size": SIDE, "patch_size": 8,
        },
        text_config={
            "vocab_size": len(BERT) + 2, "hidden_size": 64, "encoder_hidden_size": 48,
            "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
            "max_position_embeddings": 48, **special,
        },
    )  # fmt: skip
    model = BlipForConditionalGeneration(config).eval()
    _randomize(model)
    with torch.no_grad():
        model.text_decoder.cls.predictions.bias[3] -= 5  # captions end where a test wants it
    model.save_pretrained(folder)
    bert_files(folder)
    BlipImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return model


def tiny_vit_gpt2(folder: Path, *, encoder: str = "vit", seed: int = 4, width: int = 48) -> Any:
    """A ViT or DeiT and a GPT-2 of one layer each; returns the model."""
    import torch
    import transformers
    from transformers import GPT2Config, VisionEncoderDecoderConfig, VisionEncoderDecoderModel

    torch.manual_seed(seed)
    vocabulary = gpt2_files(folder)
    vision = {
        "hidden_size": width, "intermediate_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 4, "image_size": SIDE, "patch_size": 8,
    }  # fmt: skip
    seen = getattr(transformers, {"vit": "ViTConfig", "deit": "DeiTConfig"}[encoder])(**vision)
    said = GPT2Config(
        vocab_size=vocabulary, n_positions=40, n_embd=48, n_layer=1, n_head=4,
        add_cross_attention=True, is_decoder=True,
        bos_token_id=vocabulary - 1, eos_token_id=vocabulary - 1,
    )  # fmt: skip
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(seen, said)
    config.decoder_start_token_id = config.pad_token_id = vocabulary - 1
    config.eos_token_id = vocabulary - 1
    model = VisionEncoderDecoderModel(config=config).eval()
    _randomize(model)
    with torch.no_grad():
        # Places say more than words here, or a tied embedding says the same word for ever.
        model.decoder.transformer.wpe.weight *= 4
    model.generation_config.update(
        decoder_start_token_id=vocabulary - 1, eos_token_id=vocabulary - 1,
        pad_token_id=vocabulary - 1, bos_token_id=vocabulary - 1,
    )  # fmt: skip
    model.save_pretrained(folder)
    processor(encoder).save_pretrained(folder)
    return model


def processor(encoder: str) -> Any:
    """transformers' image processor of a ViT or DeiT for these sizes."""
    from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    if encoder == "vit":
        return ViTImageProcessorPil(size={"height": SIDE, "width": SIDE})
    return DeiTImageProcessorPil(
        size={"height": SIDE + 4, "width": SIDE + 4},
        crop_size={"height": SIDE, "width": SIDE},
    )


def bert_files(folder: Path) -> None:
    """The files of a BERT tokenizer from before tokenizer.json."""
    added = {
        str(len(BERT) + i): {"content": text, "special": True}
        for i, text in enumerate(("[DEC]", "[ENC]"))
    }
    (folder / "vocab.txt").write_text("\n".join(BERT) + "\n")
    settings = {
        "tokenizer_class": "BertTokenizer", "do_lower_case": True, "added_tokens_decoder": added,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def gpt2_files(folder: Path) -> int:
    """vocab.json and merges.txt of a byte-level BPE tokenizer; returns how many tokens it has."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    words = [word for word in WORDS if not word.startswith("#")]
    tokenizer.train_from_iterator([" ".join(words)] * 8, trainer)
    tokenizer.model.save(str(folder))
    path = folder / "vocab.json"
    vocabulary = json.loads(path.read_text())
    vocabulary["<|endoftext|>"] = len(vocabulary)
    path.write_text(json.dumps(vocabulary))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    return len(vocabulary)


def _randomize(model: Any) -> None:
    """Every weight random, biases and norms too, so that a forgotten one shows."""
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            norm = "norm" in name.lower() or ".ln_" in name
            base = 1.0 if norm and name.endswith("weight") else 0.0
            scale = 0.3 if parameter.dim() == 1 else 1.0 / parameter.shape[-1] ** 0.5
            parameter.copy_(base + scale * torch.randn_like(parameter))

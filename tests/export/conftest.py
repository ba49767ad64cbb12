"""Tiny Hugging Face checkpoints with random weights, made on the spot."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VOCAB = 320
ModelMaker = Callable[..., Path]

# architecture -> (configuration class, model class, values)
_BASE = {"vocab_size": VOCAB, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
_ROTARY = {
    **_BASE,
    "intermediate_size": 96,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
_CONFIGS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "opt": (
        "OPTConfig",
        "OPTForCausalLM",
        {**_BASE, "ffn_dim": 96, "max_position_embeddings": 128, "word_embed_proj_dim": 64},
    ),
    "arcee": ("ArceeConfig", "ArceeForCausalLM", {**_ROTARY, "tie_word_embeddings": True}),
    "nemotron": (
        "NemotronConfig",
        "NemotronForCausalLM",
        {**_ROTARY, "partial_rotary_factor": 0.5},
    ),
    "llama": ("LlamaConfig", "LlamaForCausalLM", {**_ROTARY, "hidden_act": "relu"}),
}


def tiny_tokenizer() -> Tokenizer:
    """Byte-level BPE of at most VOCAB entries."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        ["once upon a time there was a king and the queen said"] * 8, trainer
    )
    return tokenizer


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> ModelMaker:
    """`make_model(arch, dtype=..., shard=..., edit=..., **config)` saves a checkpoint folder.

    Every weight is random, biases and norms included, so that a forgotten one shows.
    """

    def make(
        arch: str,
        *,
        dtype: str = "float32",
        shard: str = "5GB",
        edit: dict[str, Any] | None = None,
        **config: Any,
    ) -> Path:
        import torch
        import transformers

        torch.manual_seed(7)
        config_class, model_class, values = _CONFIGS[arch]
        made = getattr(transformers, config_class)(**{**values, **config})
        model = getattr(transformers, model_class)(made)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                scale = 0.5 if parameter.dim() == 1 else 1.0 / parameter.shape[-1] ** 0.5
                base = (
                    1.0
                    if "norm" in name and name.endswith("weight") and arch != "nemotron"
                    else 0.0
                )
                value = base + scale * torch.randn_like(parameter)
                # Held exactly by F16: what differs later is not the conversion's rounding.
                parameter.copy_(value.half() if dtype != "bfloat16" else value.bfloat16())
        path = tmp_path_factory.mktemp(arch)
        model.to(getattr(torch, dtype)).save_pretrained(path, max_shard_size=shard)
        if edit is not None:
            settings = json.loads((path / "config.json").read_text())
            (path / "config.json").write_text(json.dumps({**settings, **edit}))
        tiny_tokenizer().save(str(path / "tokenizer.json"))
        return path

    return make


@pytest.fixture(scope="session")
def weights() -> Callable[[Path], dict[str, Any]]:
    """Every tensor of a checkpoint as float32, read by the safetensors package."""

    def read(path: Path) -> dict[str, Any]:
        from safetensors.torch import load_file

        found: dict[str, Any] = {}
        for file in sorted(path.glob("*.safetensors")):
            found |= {name: t.float().numpy() for name, t in load_file(file).items()}
        return found

    return read

"""Turn a bundle file back into the Hugging Face folder it was exported from, to train on.

Run, in the repository's root: ``python -m examples.train_storyteller.from_bundle BUNDLE FOLDER``

The repository keeps the shipped model once, as ``runtime/data/storyteller.gguf``. An F16 bundle
loses nothing, so ``train --init FOLDER`` goes on where the shipped model's training ended. Neurons
stay in the order of the bundle: an FFN does not depend on it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from examples.train_storyteller.data import save_tokenizer
from examples.train_storyteller.model import Config, Storyteller, save_model

NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
}


def rotary_halves(rows: Tensor, heads: int) -> Tensor:
    """(heads * E, D) rows from interleaved rotary pairs (GGUF) to first and second half (HF)."""
    width = rows.shape[0] // heads
    return rows.view(heads, width // 2, 2, -1).transpose(1, 2).reshape(rows.shape)


def read_bundle(path: Path) -> tuple[Storyteller, Tokenizer]:
    """The model and tokenizer of an F16 bundle of architecture arcee with tied embeddings."""
    reader = gguf.GGUFReader(path)

    def field(name: str) -> Any:
        found = reader.get_field(name)
        if found is None:
            raise ValueError(f"{path}: no metadata {name!r}; give a bundle of `penstock export`")
        return found.contents()

    if field("general.architecture") != "arcee" or field("penstock.bundle.type") != "F16":
        raise ValueError(f"{path}: need an F16 bundle of architecture arcee")
    tensors = {t.name: np.array(t.data) for t in reader.tensors}  # copies: the file may be replaced
    config = Config(
        vocab_size=field("arcee.vocab_size"),
        hidden_size=field("arcee.embedding_length"),
        intermediate_size=field("arcee.feed_forward_length"),
        num_hidden_layers=field("arcee.block_count"),
        num_attention_heads=field("arcee.attention.head_count"),
        num_key_value_heads=field("arcee.attention.head_count_kv"),
        head_dim=field("arcee.attention.key_length"),
        max_position_embeddings=field("arcee.context_length"),
        rope_theta=field("arcee.rope.freq_base"),
    )

    def weight(name: str) -> Tensor:
        return torch.from_numpy(tensors[f"{name}.weight"]).float()

    state = {"embed_tokens.weight": weight("token_embd"), "norm.weight": weight("output_norm")}
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for n in range(config.num_hidden_layers):
        for theirs, ours in NAMES.items():
            rows = weight(f"blk.{n}.{ours}")
            rows = rotary_halves(rows, heads[ours]) if ours in heads else rows
            state[f"layers.{n}.{theirs}.weight"] = rows
        # A bundle is a neuron's up row and its down column, back to back.
        raw = tensors[f"blk.{n}.ffn_bundle.weight"].view(np.float16).astype(np.float32)
        up, down = np.hsplit(raw, 2)  # (F, D) each
        state[f"layers.{n}.mlp.up_proj.weight"] = torch.from_numpy(up.copy())
        state[f"layers.{n}.mlp.down_proj.weight"] = torch.from_numpy(down.T.copy())
    model = Storyteller(config)
    model.load_state_dict(state)
    return model, Tokenizer.from_str(field("tokenizer.huggingface.json"))


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path, help="for instance runtime/data/storyteller.gguf")
    parser.add_argument("folder", type=Path, help="Hugging Face folder to write")
    args = parser.parse_args()
    model, tokenizer = read_bundle(args.bundle)
    save_model(model, args.folder)
    save_tokenizer(tokenizer, args.folder, model.config.max_position_embeddings)


if __name__ == "__main__":
    main()

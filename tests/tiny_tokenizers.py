"""Tokenizers trained in a moment, of every supported kind, and the keys a GGUF keeps of them."""

from __future__ import annotations

import functools
import json
from typing import Any

import numpy as np
from tokenizers import Tokenizer as Pipeline
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

CORPUS = [
    "Once upon a time there was a queen who had 12 sons, and she'd 345 sheep.",
    "  Two  spaces,\ttabs\nand lines\r\n\r\nof naïve café text… It's HE'LL we've!",
    "Жили-были старик да старуха; 很久以前有一个王后。むかしむかし",
    "😀👩‍👩‍👧‍👦 e\u0301 vs é, x=y+1 [a|b] ^~ 2²",
] * 3


def ggml_metadata(pipeline: Pipeline, **extra: object) -> dict[str, object]:
    """What convert_hf_to_gguf writes for a byte-level BPE."""
    vocab = pipeline.get_vocab()
    tokens = sorted(vocab, key=vocab.__getitem__)
    added = pipeline.get_added_tokens_decoder()
    types = [(3 if added[i].special else 4) if i in added else 1 for i in range(len(tokens))]
    merges = json.loads(pipeline.to_str())["model"]["merges"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array(types, np.int32),
        "tokenizer.ggml.merges": [" ".join(pair) for pair in merges],
        **extra,
    }


def byte_level(pre: list[Any], **model: Any) -> Pipeline:
    pipeline = Pipeline(models.BPE(**model))
    pipeline.pre_tokenizer = pre_tokenizers.Sequence(pre)
    pipeline.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=450,
        special_tokens=["<|start|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    pipeline.train_from_iterator(CORPUS, trainer)
    return pipeline


def sentencepiece(space_prefix: bool = True, vocab_size: int = 420) -> Pipeline:
    """A SentencePiece-style BPE with byte fallback, laid out as Llama 2's."""
    pipeline = Pipeline(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    prefix = [normalizers.Prepend("▁")] if space_prefix else []
    pipeline.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", "▁")])
    strip = [decoders.Strip(" ", left=1)] if space_prefix else []
    pipeline.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    atoms = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=atoms,
        limit_alphabet=40,
        show_progress=False,
        max_token_length=8,
    )
    pipeline.train_from_iterator([text.replace(" ", "▁") for text in CORPUS], trainer)
    # Byte tokens are no added tokens in a real file.
    plain = json.loads(pipeline.to_str())
    plain["added_tokens"] = [token for token in plain["added_tokens"] if token["id"] < 3]
    return Pipeline.from_str(json.dumps(plain))


def sentencepiece_metadata(pipeline: Pipeline, **extra: object) -> dict[str, object]:
    vocab = pipeline.get_vocab()
    tokens = sorted(vocab, key=vocab.__getitem__)
    # A trained piece has the score -rank, as SentencePiece writes it.
    scores = [0.0 if i < 259 else float(259 - i) for i in range(len(tokens))]
    types = [2, 3, 3] + [6] * 256 + [1] * (len(tokens) - 259)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": np.array(scores, np.float32),
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": np.uint32(1),
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        **extra,
    }


# The pre-tokenizers as the models' own tokenizer.json spell them, not as tokenizer.py does.
_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BYTES = {"add_prefix_space": False, "use_regex": False}


def _split(pattern: str) -> list[Any]:
    from tokenizers import Regex

    return [pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(**_BYTES)]


def trained(pre: str) -> Pipeline:
    """A byte-level BPE with the pre-tokenizer that llama.cpp calls `pre`."""
    return Pipeline.from_str(_trained_json(pre))  # tests may change their own copy


@functools.cache
def _trained_json(pre: str) -> str:
    return _train(pre).to_str()


def _train(pre: str) -> Pipeline:
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if pre == "gpt-2":
        return byte_level([gpt2])
    if pre == "smollm":
        return byte_level([pre_tokenizers.Digits(individual_digits=True), gpt2])
    if pre == "qwen2":
        pipeline = byte_level(_split(_LLAMA3_SPLIT.replace("{1,3}", "")))
        pipeline.normalizer = normalizers.NFC()
        return pipeline
    return byte_level(_split(_LLAMA3_SPLIT), ignore_merges=pre != "dbrx")

"""A Hugging Face tokenizer as GGUF metadata.

`tokenizer.json` goes into the bundle whole, as `tokenizer.huggingface.json`: that is what Penstock
uses. Beside it stand the `tokenizer.ggml.*` keys, for other tools, where ggml has the same kind of
tokenizer: byte-level BPE (`gpt2`) and SentencePiece-style BPE with byte fallback (`llama`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from penstock.errors import FormatError
from penstock.export.hf_config import HFConfig, read_json
from penstock.export.model_spec import MetadataValue

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6  # gguf.TokenType


def tokenizer_metadata(folder: Path, config: HFConfig, vocab: int) -> dict[str, MetadataValue]:
    """The `tokenizer.*` keys of a bundle.

    Args:
        vocab: rows of the embedding; ids without a token become unused ones.

    Raises:
        FormatError: there is no tokenizer, it is damaged, or it has ids without a row in
            the embedding.
    """
    text = _tokenizer_json(folder)
    try:
        tokenizer, data = Tokenizer.from_str(text), json.loads(text)
    except Exception as error:  # the Rust library raises plain Exception
        raise FormatError(
            f"{folder}: its tokenizer.json is damaged ({error}); fetch it again"
        ) from None
    highest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if not 0 <= highest < vocab:
        raise FormatError(
            f"{folder}: its tokenizer has ids up to {highest}, the model has {vocab} embeddings; "
            "tokenizer and weights do not belong together"
        )
    keys: dict[str, MetadataValue] = {"tokenizer.huggingface.json": text}
    keys |= _ggml_vocabulary(tokenizer, data, vocab)
    keys |= _special_ids(folder, config, tokenizer, vocab)
    template = _chat_template(folder)
    if template is not None:
        keys["tokenizer.chat_template"] = template
    return keys


def _tokenizer_json(folder: Path) -> str:
    path = folder / "tokenizer.json"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    older = [n for n in ("vocab.json", "tokenizer.model", "spiece.model") if (folder / n).is_file()]
    if not older:
        raise FormatError(f"{folder}: has no tokenizer.json; fetch the model's tokenizer files")
    try:
        from transformers import AutoTokenizer

        made = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        return str(made.backend_tokenizer.to_str())
    except Exception as error:
        raise FormatError(
            f"{folder}: has {older[0]} but no tokenizer.json, and transformers could not make one "
            f"({error}). "
            "Install penstock[export], or save the tokenizer once with AutoTokenizer's "
            "save_pretrained."
        ) from None


def _ggml_vocabulary(
    tokenizer: Tokenizer, data: dict[str, Any], vocab: int
) -> dict[str, MetadataValue]:
    model = data.get("model") or {}
    if model.get("type") != "BPE":
        return {}
    tokens = [f"[PAD{i}]" for i in range(vocab)]
    kinds = np.full(vocab, _UNUSED, np.int32)
    for token, at in tokenizer.get_vocab(with_added_tokens=True).items():
        tokens[at], kinds[at] = token, _NORMAL
    for at, added in tokenizer.get_added_tokens_decoder().items():
        kinds[at] = _CONTROL if added.special else _USER_DEFINED
    merges = [m if isinstance(m, str) else " ".join(m) for m in model.get("merges", [])]
    keys: dict[str, MetadataValue] = {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
    }
    if model.get("byte_fallback"):
        keys["tokenizer.ggml.model"] = "llama"
        keys["tokenizer.ggml.scores"] = _scores(tokens, kinds, merges, model.get("unk_token"))
    elif _steps(data, "pre_tokenizer", "pretokenizers", "ByteLevel"):
        keys["tokenizer.ggml.model"] = "gpt2"
        if merges:
            keys["tokenizer.ggml.merges"] = merges
        pre = _pre_tokenizer(data)
        if pre is not None:
            keys["tokenizer.ggml.pre"] = pre
    else:
        return {}
    return keys


def _scores(
    tokens: list[str], kinds: np.ndarray[Any, Any], merges: list[str], unknown: object
) -> MetadataValue:
    """SentencePiece scores with the order of the merges; sets the kinds of bytes and of the
    unknown."""
    rank = {merge.replace(" ", "", 1): -float(i) for i, merge in reversed(list(enumerate(merges)))}
    for i, token in enumerate(tokens):
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            kinds[i] = _BYTE
        elif token == unknown:
            kinds[i] = _UNKNOWN
    return np.array([rank.get(token, -1e6) for token in tokens], np.float32)


def _steps(data: dict[str, Any], part: str, children: str, kind: str) -> list[dict[str, Any]]:
    """The steps of this type in a pre-tokenizer or decoder, which may be a sequence."""
    step = data.get(part) or {}
    found = step.get(children, [step]) if step.get("type") == "Sequence" else [step]
    return [s for s in found if s.get("type") == kind]


def _pre_tokenizer(data: dict[str, Any]) -> str | None:
    """llama.cpp's name of how the text is split before merging, where it is one of the usual
    ones."""
    splits = [
        s.get("pattern", {}).get("Regex", "")
        for s in _steps(data, "pre_tokenizer", "pretokenizers", "Split")
    ]
    byte_level = _steps(data, "pre_tokenizer", "pretokenizers", "ByteLevel")[0]
    if not splits and byte_level.get("use_regex", True):
        digits = _steps(data, "pre_tokenizer", "pretokenizers", "Digits")
        return "smollm" if digits else "gpt-2"
    if len(splits) == 1 and "(?i:'s|'t|'re" in splits[0]:
        return "llama-bpe" if r"\p{N}{1,3}" in splits[0] else "qwen2"
    return None


def _special_ids(
    folder: Path, config: HFConfig, tokenizer: Tokenizer, vocab: int
) -> dict[str, MetadataValue]:
    settings = read_json(p) if (p := folder / "tokenizer_config.json").is_file() else {}
    generation = read_json(p) if (p := folder / "generation_config.json").is_file() else {}
    keys: dict[str, MetadataValue] = {}
    for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("unknown", "unk"), ("padding", "pad")):
        named = settings.get(f"{theirs}_token")
        named = named.get("content") if isinstance(named, dict) else named
        at: Any = tokenizer.token_to_id(named) if isinstance(named, str) else None
        if at is None:
            listed = config.values.get(f"{theirs}_token_id")
            at = listed[0] if isinstance(listed, list) and listed else listed
        if isinstance(at, int) and not isinstance(at, bool) and 0 <= at < vocab:
            keys[f"tokenizer.ggml.{ours}_token_id"] = at
    ends = generation.get("eos_token_id", config.values.get("eos_token_id"))
    ends = (
        [e for e in ends if isinstance(e, int) and 0 <= e < vocab] if isinstance(ends, list) else []
    )
    if len(ends) > 1:
        keys["tokenizer.ggml.eog_token_ids"] = np.array(ends, np.int32)
    bos = keys.get("tokenizer.ggml.bos_token_id")
    plain = tokenizer.encode("a", add_special_tokens=False).ids
    full = tokenizer.encode("a", add_special_tokens=True).ids
    keys["tokenizer.ggml.add_bos_token"] = bool(full[:1] == [bos] and plain[:1] != [bos])
    return keys


def _chat_template(folder: Path) -> str | None:
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    path = folder / "tokenizer_config.json"
    template = read_json(path).get("chat_template") if path.is_file() else None
    if isinstance(template, list):
        named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None

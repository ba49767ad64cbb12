"""The tokenizer of a Hugging Face folder as the text of a `tokenizer.json`.

Older folders have only the vocabulary: `vocab.txt` of a WordPiece tokenizer (BERT, which BLIP
uses), or `vocab.json` and `merges.txt` of a byte-level BPE one (GPT-2). The same pipeline is built
from those, with the special tokens that `tokenizer_config.json` adds.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from penstock.errors import FormatError, PenstockError
from penstock.export.hf_config import HFConfig, read_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BERT_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
GPT2_SPECIAL = ("<|endoftext|>",)


def tokenizer_json(folder: Path, vocabulary: int) -> str:
    """The tokenizer, checked.

    Args:
        vocabulary: rows of the decoder's embedding.

    Raises:
        FormatError: there is no tokenizer, it is damaged, or it has ids without an embedding.
    """
    from penstock.runtime.tokenizer import Tokenizer

    path = folder / "tokenizer.json"
    try:
        text = path.read_text(encoding="utf-8") if path.is_file() else _build(folder).to_str()
        tokenizer = Tokenizer({"tokenizer.huggingface.json": text})
    except PenstockError:
        raise
    except Exception as error:  # the Rust library raises plain Exception
        raise FormatError(
            f"{folder}: its tokenizer files are damaged ({error}); fetch them again"
        ) from None
    if tokenizer.vocab_size > vocabulary:
        raise FormatError(
            f"{folder}: its tokenizer has ids up to {tokenizer.vocab_size - 1}, the decoder has "
            f"{vocabulary} embeddings; tokenizer and weights do not belong together"
        )
    return text


def _build(folder: Path) -> Tokenizer:
    config = folder / "tokenizer_config.json"
    settings = HFConfig(config, read_json(config) if config.is_file() else {})
    if (folder / "vocab.txt").is_file():
        tokenizer = _wordpiece(folder / "vocab.txt", settings)
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        tokenizer = _byte_level(folder / "vocab.json", folder / "merges.txt", settings)
    else:
        raise FormatError(
            f"{folder}: has no tokenizer; expected tokenizer.json, or vocab.txt, or vocab.json "
            "with merges.txt"
        )
    _add_tokens(tokenizer, folder, settings)
    return tokenizer


def _wordpiece(path: Path, settings: HFConfig) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    vocabulary = {line: index for index, line in enumerate(lines)}  # tokens may be odd spaces
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(
        lowercase=settings.flag("do_lower_case", True),
        handle_chinese_chars=settings.flag("tokenize_chinese_chars", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens([token for token in BERT_SPECIAL if token in vocabulary])
    return tokenizer


def _byte_level(vocab: Path, merges: Path, settings: HFConfig) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE.from_file(str(vocab), str(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=settings.flag("add_prefix_space")
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([token for token in GPT2_SPECIAL if tokenizer.token_to_id(token)])
    return tokenizer


def _add_tokens(tokenizer: Tokenizer, folder: Path, settings: HFConfig) -> None:
    """Tokens beside the vocabulary, in the order of their ids, which must come out as written."""
    from tokenizers import AddedToken

    added: dict[int, Any] = {}
    path = folder / "added_tokens.json"
    if path.is_file():
        added = {index: {"content": text} for text, index in read_json(path).items()}
    listed = settings.values.get("added_tokens_decoder") or {}
    if not isinstance(listed, dict):
        raise settings.wrong("added_tokens_decoder", "an object", listed)
    added |= {int(index): entry for index, entry in listed.items()}
    for index, entry in sorted(added.items()):
        content = entry.get("content") if isinstance(entry, dict) else None
        if not isinstance(content, str):
            raise settings.wrong("added_tokens_decoder", "tokens with a content", entry)
        tokenizer.add_special_tokens([AddedToken(content, special=True)])
        if tokenizer.token_to_id(content) != index:
            raise FormatError(
                f"{folder}: the added token {content!r} has id {index} in its files and would be "
                f"{tokenizer.token_to_id(content)}; the vocabulary does not belong to them"
            )

"""Names of concepts as BERT's word pieces: `fire hydrant` -> fire, h, ##yd, ##rant."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

UNKNOWN = "[UNK]"


def concept_pieces(names: Sequence[str], wordpieces: Sequence[str]) -> list[list[int]]:
    """Ids of each name's pieces, in lower case and without accents, as of bert-base-uncased.

    Args:
        wordpieces: in the order of their ids, `[UNK]` among them.
    """
    ids = {piece: at for at, piece in enumerate(wordpieces)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token=UNKNOWN, max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    found = tokenizer.encode_batch(list(names), add_special_tokens=False)
    return [encoding.ids or [ids[UNKNOWN]] for encoding in found]

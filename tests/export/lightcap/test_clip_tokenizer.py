"""CLIP's tokenizer against transformers' and against plain merging of the most frequent pair."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from penstock.errors import FormatError, StorageError
from penstock.export.lightcap.clip_tokenizer import VOCABULARY, byte_letters, clip_tokenizer

TEXTS = [
    "a photo of a cat.", "", " ", "A Photo  of\ta\nDOG!!", "it's, they're; don't", "''s 'S '' s",
    "éclair Ünïcödé ß ﬁ ①", "日本語 한국어", "🙂🙃 ok", "1234 3.14 ½", "e\u0301 \u00e9", "x" * 300,
    "<|endoftext|> inside", "co-operate/up_side\\down", "\u00a0nbsp\u2003em", "İstanbul ǅ",
    "#@$%^&*()",
]  # fmt: skip


@pytest.fixture(scope="module")
def merges_file(shared_dir: Path) -> Path:
    return shared_dir / "data" / "vocab" / "clip_bpe_simple_vocab_16e6.txt.gz"


@pytest.fixture(scope="module")
def texts(shared_dir: Path) -> list[str]:
    """Those above, Visual Genome's names, and captions that people wrote."""
    found = list(TEXTS)
    for kind in ("objects", "attributes"):
        lines = (shared_dir / "data" / "vocab" / f"visual_genome_{kind}_vocab.txt").read_text()
        found += [name for line in lines.splitlines() for name in line.split(",")]
    captions = shared_dir / "data" / "photos" / "coco" / "captions_val2017_full.json"
    found += [a["caption"] for a in json.loads(captions.read_text())["annotations"][:1500]]
    return found


def plain_vocabulary(path: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    lines = gzip.open(path).read().decode().split("\n")[1:48_895]
    merges = [(left, right) for left, right in (line.split() for line in lines)]
    letters = list(byte_letters().values())
    tokens = letters + [x + "</w>" for x in letters] + ["".join(m) for m in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return {token: at for at, token in enumerate(tokens)}, merges


def test_ids_equal_transformers(merges_file: Path, texts: list[str]) -> None:
    from transformers import CLIPTokenizer

    vocabulary, merges = plain_vocabulary(merges_file)
    oracle: Any = CLIPTokenizer(vocab=vocabulary, merges=merges)
    ours = clip_tokenizer(merges_file)
    assert ours.get_vocab_size() == VOCABULARY == len(vocabulary)
    assert len(texts) > 3000
    for text, encoding in zip(texts, ours.encode_batch(texts), strict=True):
        assert encoding.ids == oracle(text).input_ids, text


def test_ids_are_those_published(merges_file: Path) -> None:
    """Of this sentence they stand in many a tutorial on CLIP."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    ids = clip_tokenizer(merges_file).encode("a photo of a cat").ids
    assert ids == [49_406, 320, 1125, 539, 320, 2368, 49_407]
    assert list(byte_letters().items()) == list(bytes_to_unicode().items())


def plain_words(text: str) -> Iterator[str]:
    regex: Any = pytest.importorskip("regex")  # comes with transformers

    pattern = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
    letters = byte_letters()
    for word in regex.findall(pattern, text.lower()):
        yield "".join(letters[b] for b in word.encode())


def test_ids_equal_plain_merging(merges_file: Path, texts: list[str]) -> None:
    """The rule itself, with neither library's code: merge the pair that stands first, anywhere."""
    vocabulary, merges = plain_vocabulary(merges_file)
    rank = {pair: at for at, pair in enumerate(merges)}
    ours = clip_tokenizer(merges_file)
    for text in [*TEXTS[:5], *texts[len(TEXTS) :][::5]]:
        expected = []
        for word in plain_words(text):
            parts = [*word[:-1], word[-1] + "</w>"]
            while pairs := set(zip(parts[:-1], parts[1:], strict=True)) & rank.keys():
                left, right = min(pairs, key=rank.__getitem__)
                at = 0
                while at < len(parts) - 1:
                    if (parts[at], parts[at + 1]) == (left, right):
                        parts[at : at + 2] = [left + right]
                    at += 1
            expected += [vocabulary[part] for part in parts]
        assert ours.encode(text, add_special_tokens=False).ids == expected, text


def test_uncompressed_is_read_too(merges_file: Path, tmp_path: Path) -> None:
    plain = tmp_path / "merges.txt"
    plain.write_bytes(gzip.open(merges_file).read())
    assert clip_tokenizer(plain).to_str() == clip_tokenizer(merges_file).to_str()


def lines(count: int = 48_894) -> list[str]:
    return ["#version: 0.2", *(f"q{i} a" for i in range(count))]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"[PAD]\n[UNK]\n", "begins with '.PAD.'.*bpe_simple_vocab_16e6"),
        ("\n".join(lines(20)).encode(), "has 20 merges, expected at least 48894"),
        ("\n".join([*lines()[:7], "a b c", *lines()]).encode(), "line 8 is 'a b c'"),
        ("\n".join([*lines()[:7], "a", *lines()]).encode(), "line 8 is 'a'"),
        ("\n".join(lines()).encode(), "do not build on each other"),
        ("\n".join([*lines()[:9], "a b", "a b", *lines()[10:]]).encode(), "make tokens twice"),
        (b"#version\xff\xfe\n", "not UTF-8 at byte 8"),
        (gzip.compress(b"#version" * 999, mtime=0)[:40], "compression is damaged"),
        (b"\x1f\x8b\x08\x00rubbish rubbish", "compression is damaged"),
    ],
)
def test_what_is_no_file_of_merges(tmp_path: Path, data: bytes, said: str) -> None:
    path = tmp_path / "merges.txt"
    path.write_bytes(data)
    with pytest.raises(FormatError, match=said):
        clip_tokenizer(path)


def test_a_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.export.lightcap.clip_tokenizer.MAX_TEXT_BYTES", 1 << 20)
    path = tmp_path / "merges.gz"
    path.write_bytes(gzip.compress(b"#version\n" + b"a b\n" * (1 << 20)))
    with pytest.raises(FormatError, match="far more than CLIP's merges"):
        clip_tokenizer(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"none.gz: cannot be read: No such file"):
        clip_tokenizer(tmp_path / "none.gz")

"""CLIP's byte-level BPE, made from the file of merges that OpenAI publishes beside its code.

`bpe_simple_vocab_16e6.txt.gz`: a line with the version, then one merge a line, the most frequent
first. Only the first 48,894 of its 262,144 are used. Ids: the 256 bytes, the 256 bytes at the end
of a word (`</w>`), one for each merge, start, end: 49,408.
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from penstock.errors import FormatError, StorageError

VOCABULARY = 49_408
START, END = "<|startoftext|>", "<|endoftext|>"
END_OF_WORD = "</w>"
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
MAX_TEXT_BYTES = 64 << 20  # twenty times what OpenAI's file has


def clip_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer; it puts start and end around each text.

    Texts are normalised to NFC and lower case, their white space to single blanks. OpenAI's code
    also mends wrongly decoded text and HTML entities, which names of concepts have none of.

    Args:
        path: the merges, compressed or not.

    Raises:
        FormatError: the file is damaged, or is not CLIP's.
        StorageError: it cannot be read.
    """
    merges = _read_merges(path, VOCABULARY - 2 * 256 - 2)
    letters = list(byte_letters().values())
    tokens = [*letters, *(letter + END_OF_WORD for letter in letters)]
    tokens += ["".join(merge) for merge in merges]
    tokens += [START, END]
    ids = {token: at for at, token in enumerate(tokens)}
    if len(ids) != VOCABULARY:
        raise FormatError(f"{path}: its merges make tokens twice; fetch CLIP's own file again")
    try:
        model = models.BPE(
            ids, merges, unk_token=END, continuing_subword_prefix="", end_of_word_suffix=END_OF_WORD
        )
    except Exception as error:  # the Rust library raises plain Exception
        raise FormatError(
            f"{path}: its merges do not build on each other ({error}); fetch CLIP's own file again"
        ) from None
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, ids[START]), (END, ids[END])]
    )
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in (START, END)])
    return tokenizer


def byte_letters() -> dict[int, str]:
    """The letter that stands for each byte, in the order of CLIP's ids (GPT-2's alphabet).

    Printable Latin-1 stands for itself; the other 68 are U+0100 and following.
    """
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {b: chr(b) for b in plain} | {b: chr(256 + at) for at, b in enumerate(others)}


def _read_merges(path: Path, count: int) -> list[tuple[str, str]]:
    lines = _read_text(path).split("\n")
    if "#version" not in lines[0]:
        raise FormatError(
            f"{path}: begins with {lines[0][:40]!r}, where CLIP's merges have '#version'; give "
            "bpe_simple_vocab_16e6.txt.gz of github.com/openai/CLIP"
        )
    if len(lines) <= count:
        raise FormatError(f"{path}: has {len(lines) - 1} merges, expected at least {count}")
    merges = []
    for number, line in enumerate(lines[1 : count + 1], start=2):
        left, blank, right = line.partition(" ")
        if not left or not right or " " in right:
            raise FormatError(f"{path}: line {number} is {line[:40]!r}, expected two parts")
        merges.append((left, right))
    return merges


def _read_text(path: Path) -> str:
    try:
        with open(path, "rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            data = (gzip.GzipFile(fileobj=raw) if packed else raw).read(MAX_TEXT_BYTES + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise FormatError(f"{path}: its compression is damaged ({error}); fetch it again") from None
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror or error}") from None
    if len(data) > MAX_TEXT_BYTES:
        raise FormatError(f"{path}: is over {MAX_TEXT_BYTES} bytes, far more than CLIP's merges")
    try:
        return data.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: not UTF-8 at byte {error.start}; fetch it again") from None

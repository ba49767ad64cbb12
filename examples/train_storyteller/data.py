"""Books to tokens: the byte-level BPE tokenizer and the windows that training draws from."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

END = "<|endoftext|>"  # id 0: it opens every book, and is BOS, EOS and padding at once
VALIDATION_BOOK = "The-Lilac-Fairy-Book_3454.txt"
Tokens = npt.NDArray[np.int64]


def training_books(folder: Path) -> list[Path]:
    """All ``*.txt`` of the folder in the order of their names, but for the validation book."""
    books = sorted(path for path in folder.glob("*.txt") if path.name != VALIDATION_BOOK)
    if not books:
        raise FileNotFoundError(f"{folder}: no training books (*.txt); give --books DIR")
    return books


def train_tokenizer(books: list[Path], vocab_size: int) -> Tokenizer:
    """A byte-level BPE over the training books; every text can be encoded, none is unknown."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train([str(path) for path in books], trainer)
    return tokenizer


def load_tokenizer(folder: Path) -> Tokenizer:
    """Read ``tokenizer.json`` of a Hugging Face folder."""
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def save_tokenizer(tokenizer: Tokenizer, folder: Path, context: int) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json``; context is in tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END,
        "eos_token": END,
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def encode_book(tokenizer: Tokenizer, path: Path) -> Tokens:
    """One book as a 1-D array of token ids, opened by ``<|endoftext|>``."""
    ids = tokenizer.encode(path.read_text(encoding="utf-8")).ids
    return np.array([0, *ids], dtype=np.int64)


def one_pass(books: list[Tokens], length: int, seed: int) -> Iterator[Tokens]:
    """Every window of one pass over the books, in an order drawn from the seed.

    A window holds ``length + 1`` tokens of a single book, so no prediction looks across a border
    between documents. The first window starts at a random offset, drawn anew for every pass, so
    later passes cut the text elsewhere; what is too short to fill a window is left out.
    """
    rng = np.random.default_rng(seed)
    starts = [
        (number, start)
        for number, book in enumerate(books)
        for start in range(int(rng.integers(0, length)), len(book) - length, length)
    ]
    for index in rng.permutation(len(starts)):
        number, start = starts[index]
        yield books[number][start : start + length + 1]


class Sampler:
    """An endless stream of batches that resumes exactly from ``state`` (pass, windows drawn)."""

    def __init__(self, books: list[Tokens], length: int, seed: int, state: tuple[int, int]) -> None:
        self.books, self.length, self.seed = books, length, seed
        self.pass_number, self.drawn = state
        self.windows = self._open_pass()
        for _ in range(self.drawn):
            next(self.windows)

    def _open_pass(self) -> Iterator[Tokens]:
        return one_pass(self.books, self.length, self.seed * 1000 + self.pass_number)

    def state(self) -> tuple[int, int]:
        """Where the stream is: the pass, and the windows drawn from it."""
        return self.pass_number, self.drawn

    def batch(self, size: int) -> Tokens:
        """The next ``size`` windows, (size, length + 1); a new pass begins when one ends."""
        rows: list[Tokens] = []
        while len(rows) < size:
            window = next(self.windows, None)
            if window is None:
                self.pass_number, self.drawn = self.pass_number + 1, 0
                self.windows = self._open_pass()
                continue
            self.drawn += 1
            rows.append(window)
        return np.stack(rows)


def load_books(tokenizer: Tokenizer, books: list[Path], twice: str) -> list[Tokens]:
    """Encode the books; those whose name matches the pattern ``twice`` come twice in a pass."""
    encoded = []
    for path in books:
        tokens = encode_book(tokenizer, path)
        encoded += [tokens] * (2 if twice and re.search(twice, path.name) else 1)
    return encoded

"""Photos with captions, the split, the words and the concepts.

`photos` is a folder as in `../shared/data/photos`: `flickr8k/` and `coco/`. Held-out photos, and
those that training is stopped by, are drawn by a hash of their names, so that they are the same
wherever the script runs.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from penstock.export.lightcap.concept_vocabulary import read_concepts

HELD_OUT, VALIDATION = 75, 40  # of each of Flickr8k and COCO val2017
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PAD, UNKNOWN, BEGIN, END, MASK = range(5)
IRREGULAR = {"men": "man", "women": "woman", "children": "child", "people": "people",
             "skis": "ski", "leaves": "leaf", "knives": "knife", "feet": "foot"}  # fmt: skip


@dataclass
class Photo:
    """A photo and what five people said about it."""

    path: Path
    captions: list[str]
    source: str
    key: str = field(init=False)

    def __post_init__(self) -> None:
        self.key = hashlib.sha256(self.path.name.encode()).hexdigest()


@dataclass
class Corpus:
    """Photos by use, and captions without photos."""

    train: list[Photo]
    validation: list[Photo]
    held_out: list[Photo]
    texts: list[list[str]]


def read_corpus(photos: Path) -> Corpus:
    """Everything, split."""
    flickr = _flickr(photos / "flickr8k")
    coco = photos / "coco"
    val = _coco(coco / "captions_val2017_subset.json", coco / "val2017")
    extra = _coco(coco / "captions_train2017_subset.json", coco / "train2017")
    train, validation, held_out = list(extra), [], []
    for group in (flickr, val):
        ordered = sorted(group, key=lambda photo: photo.key)
        held_out += ordered[:HELD_OUT]
        validation += ordered[HELD_OUT : HELD_OUT + VALIDATION]
        train += ordered[HELD_OUT + VALIDATION :]
    kept_back = {photo.path.name for photo in validation + held_out}
    texts = _texts(coco / "captions_val2017_full.json", kept_back)
    return Corpus(train, validation, held_out, [*texts, *(photo.captions for photo in train)])


def clean(caption: str) -> str:
    """Lower case, words and apostrophes alone."""
    text = re.sub(r"[^a-z0-9' ]+", " ", caption.lower().replace("’", "'"))
    return " ".join(text.replace(" ' ", " ").split())


def _flickr(folder: Path) -> list[Photo]:
    captions: dict[str, list[str]] = {}
    with open(folder / "captions.txt", newline="") as lines:
        for row in csv.DictReader(lines):
            captions.setdefault(row["image"], []).append(clean(row["caption"]))
    found = {path.name: path for path in folder.rglob("*.jpg")}
    return [Photo(found[n], texts, "flickr8k") for n, texts in captions.items() if n in found]


def _coco(annotations: Path, folder: Path) -> list[Photo]:
    data = json.loads(annotations.read_text())
    captions = _by_image(data)
    return [
        Photo(folder / image["file_name"], captions[image["id"]], "coco")
        for image in data["images"]
        if (folder / image["file_name"]).is_file()
    ]


def _texts(annotations: Path, without: set[str]) -> list[list[str]]:
    data = json.loads(annotations.read_text())
    captions = _by_image(data)
    return [captions[i["id"]] for i in data["images"] if i["file_name"] not in without]


def _by_image(data: dict[str, list[dict[str, object]]]) -> dict[object, list[str]]:
    captions: dict[object, list[str]] = {}
    for entry in data["annotations"]:
        captions.setdefault(entry["image_id"], []).append(clean(str(entry["caption"])))
    return captions


def read_pixels(photos: list[Photo], size: int) -> NDArray[np.uint8]:
    """[photos, 3, size, size], stretched to the square as the captioner stretches."""
    from PIL import Image

    pixels = np.empty((len(photos), 3, size, size), np.uint8)
    for row, photo in enumerate(photos):
        with Image.open(photo.path) as image:
            square = image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
            pixels[row] = np.asarray(square).transpose(2, 0, 1)
    return pixels


class Words:
    """WordPiece over the part of BERT's vocabulary that captions use."""

    def __init__(self, pieces: list[str]) -> None:
        from tokenizers import Tokenizer
        from tokenizers.models import WordPiece
        from tokenizers.pre_tokenizers import BertPreTokenizer

        self.pieces = pieces
        ids = {piece: index for index, piece in enumerate(pieces)}
        self._tokenizer = Tokenizer(WordPiece(ids, unk_token="[UNK]"))
        self._tokenizer.pre_tokenizer = BertPreTokenizer()

    @classmethod
    def of(cls, bert_vocabulary: Path, texts: list[list[str]], least: int) -> Words:
        """Pieces that occur `least` times when the whole vocabulary splits the texts."""
        whole = cls(bert_vocabulary.read_text().split("\n")[:-1])
        counts: Counter[str] = Counter()
        for captions in texts:
            for encoding in whole._tokenizer.encode_batch(captions):
                counts.update(encoding.tokens)
        kept = [piece for piece, count in counts.items() if count >= least]
        return cls([*SPECIAL, *sorted(set(kept) - set(SPECIAL))])

    def encode(self, text: str) -> list[int]:
        """Ids of a caption, without begin and end."""
        ids: list[int] = self._tokenizer.encode(text).ids
        return ids

    def decode(self, ids: list[int]) -> str:
        """The words up to the end."""
        kept = ids[: ids.index(END)] if END in ids else ids
        text = " ".join(self.pieces[i] for i in kept if i >= len(SPECIAL))
        return text.replace(" ##", "").replace(" ' ", "'")


class Concepts:
    """Names of Visual Genome that captions mention."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self._ids = {tuple(name.split()): index for index, name in enumerate(names)}
        self._longest = max(len(name.split()) for name in names)

    @classmethod
    def of(cls, vocabularies: list[Path], photos: list[Photo], least: int) -> Concepts:
        """Names that captions of `least` photos mention; of comma-separated names the first."""
        names = read_concepts(*vocabularies)
        everything = cls(list(names))
        seen = np.zeros(len(names), int)
        for photo in photos:
            seen += everything.shares(photo.captions) > 0
        return cls([name for name, count in zip(names, seen, strict=True) if count >= least])

    def shares(self, captions: list[str]) -> NDArray[np.float32]:
        """[names], the share of the captions that mention each."""
        found = np.zeros(len(self.names), np.float32)
        for caption in captions:
            found[sorted(self.mentioned(caption))] += 1 / len(captions)
        return found

    def mentioned(self, caption: str) -> set[int]:
        """Ids of the names in a caption, in singular or plural."""
        words = caption.split()
        ids = set()
        for start in range(len(words)):
            for length in range(1, self._longest + 1):
                part = words[start : start + length]
                for last in _singulars(part[-1]) if len(part) == length else ():
                    found = self._ids.get((*part[:-1], last))
                    if found is not None:
                        ids.add(found)
        return ids


def _singulars(word: str) -> list[str]:
    forms = [word, IRREGULAR.get(word, word)]
    if word.endswith("s"):
        forms += [word[:-1], word[:-2] if word.endswith("es") else word]
    if word.endswith("ies"):
        forms.append(word[:-3] + "y")
    return forms

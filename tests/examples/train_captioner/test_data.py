"""The split of the photos, words and concepts of captions."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from examples.train_captioner.data import (
    BEGIN,
    END,
    SPECIAL,
    UNKNOWN,
    Concepts,
    Corpus,
    Photo,
    Words,
    clean,
    read_corpus,
    read_pixels,
)
from examples.train_captioner.shrink import SIDE, shrink


def photo(path: Path, size: tuple[int, int] = (40, 30)) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size[1], size[0], 3), 90, np.uint8)).save(path)


def made_up_photos(root: Path) -> Path:
    """120 photos of each source; the caption says which photo it is of."""
    flickr, coco = root / "flickr8k", root / "coco"
    with open(_parent(flickr / "captions.txt"), "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "caption"])
        for index in range(120):
            photo(flickr / "Images" / f"f{index}.jpg")
            for say in range(5):
                table.writerow([f"f{index}.jpg", f"Flickr {index}, said {say} ."])
        table.writerow(["gone.jpg", "a photo that is not there"])
    for name, count in (("val2017", 120), ("train2017", 7)):
        entries = list(range(count))
        for index in entries:
            photo(coco / name / f"{name}{index}.jpg")
        _coco(coco / f"captions_{name}_subset.json", name, entries)
    _coco(coco / "captions_val2017_full.json", "val2017", list(range(200)))
    return root


def _parent(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _coco(path: Path, name: str, entries: list[int]) -> None:
    content = {
        "images": [{"id": i, "file_name": f"{name}{i}.jpg"} for i in entries],
        "annotations": [
            {"image_id": i, "caption": f"{name} {i} said {say}."}
            for i in entries
            for say in range(5)
        ],
    }
    _parent(path).write_text(json.dumps(content))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return read_corpus(made_up_photos(tmp_path_factory.mktemp("photos")))


def check_split(corpus: Corpus) -> None:
    parts = (corpus.train, corpus.validation, corpus.held_out)
    names = [{p.path.name for p in part} for part in parts]
    assert all(len(n) == len(part) for n, part in zip(names, parts, strict=True))
    assert not names[0] & names[1] and not names[0] & names[2] and not names[1] & names[2]
    assert (len(corpus.validation), len(corpus.held_out)) == (80, 150)
    # what is said of a photo that is kept back is nowhere among the texts, but for chance
    texts = {tuple(captions) for captions in corpus.texts}
    for kept in (*corpus.validation, *corpus.held_out):
        assert tuple(kept.captions) not in texts
    for seen in corpus.train:
        assert tuple(seen.captions) in texts


def test_the_split_is_disjoint_and_texts_of_kept_back_photos_are_left_out(corpus: Corpus) -> None:
    check_split(corpus)
    assert len(corpus.train) == 7 + 5 + 5
    single = {text for captions in corpus.texts for text in captions}
    for kept in (*corpus.validation, *corpus.held_out):
        assert not single & set(kept.captions)
    assert len(corpus.texts) == 200 - 115 + len(corpus.train)
    assert all(p.path.name != "gone.jpg" for p in corpus.train)


def test_the_split_of_the_shared_photos(shared_dir: Path) -> None:
    corpus = read_corpus(shared_dir / "data" / "photos")
    check_split(corpus)
    assert len(corpus.train) == 936
    again = read_corpus(shared_dir / "data" / "photos")
    assert [p.path for p in again.held_out] == [p.path for p in corpus.held_out]


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ("A Dog's bowl , red .", "a dog's bowl red"),
        ("two-tone  (old) car!", "two tone old car"),
        ("the boys ' shoes", "the boys shoes"),
        ("it’s 3 o'clock", "it's 3 o'clock"),
    ],
)
def test_captions_are_cleaned(said: str, wanted: str) -> None:
    assert clean(said) == wanted


@pytest.fixture(scope="module")
def concepts() -> Concepts:
    return Concepts(["dog", "man", "fire hydrant", "berry", "bus", "glasses", "leaf", "red"])


@pytest.mark.parametrize(
    ("caption", "wanted"),
    [
        ("a dog and two dogs", {"dog"}),
        ("men in red", {"man", "red"}),
        ("fire hydrants by the fire", {"fire hydrant"}),
        ("berries and buses", {"berry", "bus"}),
        ("a man with glasses", {"man", "glasses"}),
        ("fallen leaves", {"leaf"}),
        ("a dogged redhead", set()),
        ("", set()),
    ],
)
def test_concepts_are_found_in_singular_and_plural(
    concepts: Concepts, caption: str, wanted: set[str]
) -> None:
    assert {concepts.names[i] for i in concepts.mentioned(caption)} == wanted


def test_shares_of_captions(concepts: Concepts) -> None:
    shares = concepts.shares(["a dog", "dogs run", "a man", "red dog", "nothing"])
    named = dict(zip(concepts.names, shares.tolist(), strict=True))
    assert named["dog"] == pytest.approx(0.6) and named["red"] == pytest.approx(0.2)
    assert named["bus"] == 0


def test_concepts_that_photos_mention(tmp_path: Path) -> None:
    (tmp_path / "o.txt").write_text("dog,puppy\ncat\nfire hydrant\n\n")
    (tmp_path / "a.txt").write_text("red\ncat\n")
    photos = [Photo(Path(f"{i}.jpg"), ["a red dog", "dogs"], "x") for i in range(3)]
    photos.append(Photo(Path("9.jpg"), ["a cat by fire hydrants"], "x"))
    found = Concepts.of([tmp_path / "o.txt", tmp_path / "a.txt"], photos, least=2)
    assert found.names == ["dog", "red"]


def test_words_of_the_captions(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text(
        "\n".join([*SPECIAL, "dog", "##s", "run", "##ning", "cat", "'", "s"]) + "\n"
    )
    words = Words.of(tmp_path / "vocab.txt", [["dogs run", "dog's run"], ["running dogs"]], 1)
    assert tuple(words.pieces[:5]) == SPECIAL and "cat" not in words.pieces
    for text in ("dogs running", "dog's run"):
        assert words.decode([*words.encode(text), END]) == text
    assert words.encode("cat dog")[0] == UNKNOWN
    assert words.decode([BEGIN, *words.encode("dog"), END, *words.encode("run")]) == "dog"
    few = Words.of(tmp_path / "vocab.txt", [["dogs run", "dogs"], ["dog"]], 2)
    assert few.pieces == [*SPECIAL, "##s", "dog"]


def test_pixels_are_stretched_to_the_square(tmp_path: Path) -> None:
    photo(tmp_path / "a.jpg", (64, 20))
    pixels = read_pixels([Photo(tmp_path / "a.jpg", [], "x")], 16)
    assert pixels.shape == (1, 3, 16, 16) and abs(int(pixels[0, 0, 3, 3]) - 90) <= 2


def test_shrink_copies_a_folder_with_small_photos(tmp_path: Path) -> None:
    from PIL import Image

    photo(tmp_path / "in" / "a" / "wide.JPG", (900, 300))
    photo(tmp_path / "in" / "small.jpg", (90, 30))
    (tmp_path / "in" / "captions.txt").write_text("image,caption\n")
    shrink(tmp_path / "in", tmp_path / "out")
    with Image.open(tmp_path / "out" / "a" / "wide.JPG") as image:
        assert image.size[0] == SIDE and image.size[0] / image.size[1] == pytest.approx(3, 0.02)
    with Image.open(tmp_path / "out" / "small.jpg") as image:
        assert image.size == (90, 30)
    assert (tmp_path / "out" / "captions.txt").read_text() == "image,caption\n"

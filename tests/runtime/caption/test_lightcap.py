"""LightCap files in the runtime: what it gives, and files that are not what they say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.errors import FormatError, PenstockError
from penstock.export.captioner_bundle import write_captioner
from penstock.loaders.captioner_file import CaptionerFile
from penstock.runtime.caption.captioner import load_captioner
from tests.export.lightcap.exported_files import MAX_TOKENS, exported_files, network
from tests.export.lightcap.tiny_lightcap import CONCEPTS, CONFIG, PIECES, pictures

Change = Callable[[dict[str, Any], dict[str, bytes]], None]


@pytest.fixture(scope="module")
def plain() -> Path:
    return exported_files().plain


def test_a_caption_and_where_its_time_went(plain: Path) -> None:
    with load_captioner(plain, threads=1) as captioner:
        caption = captioner.caption(pictures()["0.png"], beams=1)
    pieces = [p for p in PIECES if not p.startswith("[")]
    assert 1 <= caption.tokens <= MAX_TOKENS and caption.score < 0
    assert all(any(p.removeprefix("##") in word for p in pieces) for word in caption.text.split())
    assert len(caption.concepts) == CONFIG.top_concepts
    scores = [concept.score for concept in caption.concepts]
    assert scores == sorted(scores, reverse=True) and 0 <= min(scores) <= max(scores) <= 1
    assert {concept.name for concept in caption.concepts} <= set(CONCEPTS)
    times = caption.times
    parts = (times.preprocess_ms, times.encoder_ms, times.concepts_ms, times.decoding_ms)
    assert min(parts) > 0 and times.total_ms == pytest.approx(sum(parts))


def test_the_same_photo_has_the_same_caption(plain: Path) -> None:
    photo = pictures()["1.png"]
    with load_captioner(plain, threads=1) as one, load_captioner(plain, threads=2) as two:
        first = one.caption(photo)
        one.caption(pictures()["2.png"])  # leaves nothing behind
        assert one.caption(photo).text == first.text == two.caption(photo).text


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("a", "cat", "##s"), "a cats"),
        (("dog", "##s", "##ing", "on"), "dogsing on"),
        (("the", "dog", "'", "s", "mat"), "the dog's mat"),
        ((), ""),
    ],
)
def test_pieces_become_words(plain: Path, words: tuple[str, ...], text: str) -> None:
    ids = tuple(PIECES.index(word) for word in words)
    assert network(plain).text(ids) == text


def test_photo_and_concepts_go_in_once(plain: Path) -> None:
    """The decoder's first step has the prefix; later ones have two tokens and the cache."""
    run, _, _ = network(plain).see(pictures()["0.png"])
    run.begin()
    front = CONFIG.top_concepts + CONFIG.cells
    for step in range(3):
        keys = run._past["past_keys"].numpy()
        assert keys.shape == (
            CONFIG.layers, 1 if step == 0 else 2, CONFIG.heads, front + 1 + step,
            CONFIG.head_width,
        )  # fmt: skip
        run.step(np.array([5, 6]), np.array([0, 0] if step == 0 else [1, 0]))


def changed(plain: Path, out: Path, change: Change) -> Path:
    with CaptionerFile(plain) as file:
        manifest = {**file.manifest}
        members = {name: file.read(name) for name in manifest.pop("members")}
    change(manifest, members)
    write_captioner(out, manifest, members)
    return out


def _set(section: str, **values: Any) -> Change:
    def change(manifest: dict[str, Any], members: dict[str, bytes]) -> None:
        manifest[section] = {**manifest[section], **values}

    return change


def _member(name: str, data: bytes | None) -> Change:
    def change(manifest: dict[str, Any], members: dict[str, bytes]) -> None:
        if data is None:
            del members[name]
        else:
            members[name] = data

    return change


def _swap(manifest: dict[str, Any], members: dict[str, bytes]) -> None:
    members["prefix.onnx"], members["concepts.onnx"] = (
        members["concepts.onnx"],
        members["prefix.onnx"],
    )


def _without_fusion(manifest: dict[str, Any], members: dict[str, bytes]) -> None:
    del manifest["fusion"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_without_fusion, "fusion is missing"),
        (_set("fusion", layers=0), "fusion.layers is 0, expected 1 to 256"),
        (_set("fusion", heads="4"), "fusion.heads is '4'"),
        (_set("fusion", begin=21), "fusion.begin is 21, expected 0 to 20"),
        (_set("fusion", positions=31), "positions is 31, too few for captions of 31 tokens"),
        (_set("fusion", vocabulary=22), "'vocab.txt' has 21 lines, captioner.json says 22"),
        (_set("fusion", concepts=8), "'concepts.txt' has 7 lines, captioner.json says 8"),
        (_set("generation", end=21), "generation.end is not below 21"),
        (_set("generation", end=-1), "generation.end is -1"),
        (_set("image", size=0), "image.size is 0"),
        (_swap, "missing or not known"),
        (_member("decoder.onnx", None), "names no member 'decoder.onnx'"),
        (_member("encoder.onnx", b"not ONNX at all"), "encoder.onnx: not an ONNX model"),
        (_member("vocab.txt", b"\xff\xfe\n" * 21), "'vocab.txt' is not UTF-8"),
        (_member("concepts.txt", b"cat\n"), "'concepts.txt' has 1 lines"),
    ],
)
def test_files_that_are_refused(plain: Path, tmp_path: Path, change: Change, said: str) -> None:
    with pytest.raises(FormatError, match=said):
        load_captioner(changed(plain, tmp_path / "x", change), threads=1)


def _fewer(manifest: dict[str, Any], members: dict[str, bytes]) -> None:
    manifest["fusion"] = {**manifest["fusion"], "concepts": 2}
    members["concepts.txt"] = b"cat\ndog\n"


def _fewer_words(manifest: dict[str, Any], members: dict[str, bytes]) -> None:
    manifest["fusion"] = {**manifest["fusion"], "vocabulary": 20}
    members["vocab.txt"] = members["vocab.txt"].rsplit(b"\n", 2)[0] + b"\n"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_set("image", size=32), "onnxruntime failed"),
        (_set("fusion", heads=5), "onnxruntime failed"),
        (_set("fusion", layers=3), "onnxruntime failed"),
        (_fewer, "gave concepts"),
        (_fewer_words, r"gave log-probabilities .*\[1, 21\], expected .*\[1, 20\]"),
    ],
)
def test_a_manifest_that_lies_is_an_error_not_a_crash(
    plain: Path, tmp_path: Path, change: Change, said: str
) -> None:
    path = changed(plain, tmp_path / "x", change)
    with load_captioner(path, threads=1) as captioner:
        with pytest.raises(PenstockError, match=said):
            captioner.caption(pictures()["0.png"])


def test_damaged_bytes_are_refused(plain: Path, tmp_path: Path) -> None:
    data = bytearray(plain.read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(FormatError, match="damaged"):
        load_captioner(tmp_path / "x", threads=1)
    (tmp_path / "y").write_bytes(plain.read_bytes()[:-4000])
    with pytest.raises(FormatError):
        load_captioner(tmp_path / "y", threads=1)

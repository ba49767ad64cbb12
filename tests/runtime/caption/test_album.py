"""Many photos: order, failures, reading ahead, and the page."""

from __future__ import annotations

import base64
import io
import os
import threading
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from penstock.errors import BackendMissingError, StorageError, UsageError
from penstock.runtime.caption import album
from penstock.runtime.caption import photo as photo_file
from penstock.runtime.caption.album import READ_SIDE, caption_album, caption_photos
from penstock.runtime.caption.album_report import PhotoCaption, PhotoFailure
from tests.runtime.caption.colour_captioner import (
    TIMES,
    UNWELCOME,
    ColourCaptioner,
    load_colours,
)

Image = pytest.importorskip("PIL.Image", reason="Pillow is an extra")


@pytest.fixture(autouse=True)
def colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.runtime.caption.album.load_captioner", load_colours)


def photo(path: Path, colour: str, size: tuple[int, int] = (40, 30), **options: Any) -> Path:
    Image.new("RGB", size, colour).save(path, **options)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four good photos and three of which something is wrong, in the order of their names."""
    here = tmp_path / "photos"
    here.mkdir()
    photo(here / "a.png", "red")
    (here / "b.jpg").write_bytes(photo(here / "x.jpg", "blue").read_bytes()[:300])
    photo(here / "c.jpg", "blue", (2000, 1500))
    (here / "d.png").touch()
    photo(here / "e.png", "white", (20, UNWELCOME))
    frames = [Image.new("RGB", (9, 9), colour) for colour in ("black", "red")]
    frames[0].save(here / "f.gif", save_all=True, append_images=frames[1:])
    return here


def test_each_photo_has_its_own_caption_in_order(folder: Path) -> None:
    paths = sorted(folder.iterdir())
    results = list(caption_photos(ColourCaptioner(), paths))
    assert [result.path for result in results] == paths
    names = {"a.png": "red", "c.jpg": "blue", "f.gif": "black", "x.jpg": "blue"}
    for result in results:
        if isinstance(result, PhotoFailure):
            continue
        assert result.caption.text.split()[1] == names[result.path.name]
    failures = {r.path.name: str(r.error) for r in results if isinstance(r, PhotoFailure)}
    assert set(failures) == {"b.jpg", "d.png", "e.png"}
    assert "damaged" in failures["b.jpg"] and "empty" in failures["d.png"]
    assert "bad luck" in failures["e.png"]


def test_facts_of_a_photo(folder: Path) -> None:
    large, animated = caption_photos(ColourCaptioner(), [folder / "c.jpg", folder / "f.gif"])
    assert isinstance(large, PhotoCaption) and isinstance(animated, PhotoCaption)
    assert (large.width, large.height, large.note, large.thumbnail) == (2000, 1500, None, None)
    assert animated.note is not None and "first" in animated.note
    assert large.read_ms > 0 and large.caption.times == TIMES
    facts = large.to_dict()
    assert facts["concepts"][0] == {"name": "blue", "score": 0.875}
    assert set(facts["times"]) == {
        "read_ms", "waited_ms", "preprocess_ms", "encoder_ms", "concepts_ms", "decoding_ms",
    }  # fmt: skip


def test_the_next_photo_is_read_meanwhile_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [photo(tmp_path / f"{i}.png", "red") for i in range(6)]
    reads, captions, most = [0], [0], [0]
    second = threading.Event()
    open_photo = photo_file.open_photo

    def reading(path: Path, *, shortest_side: int | None = None) -> Any:
        assert threading.current_thread() is not threading.main_thread()
        assert shortest_side == READ_SIDE
        reads[0] += 1
        most[0] = max(most[0], reads[0] - captions[0])
        if reads[0] == 2:
            second.set()
        return open_photo(path, shortest_side=shortest_side)

    class Waiting(ColourCaptioner):
        def caption(self, *args: Any, **options: Any) -> Any:
            assert second.wait(10)
            captions[0] += 1
            return super().caption(*args, **options)

    monkeypatch.setattr(album, "open_photo", reading)
    assert len(list(caption_photos(Waiting(), paths))) == 6
    assert most[0] == 2


def test_a_caller_who_leaves_ends_the_reading(tmp_path: Path) -> None:
    paths = [photo(tmp_path / f"{i}.png", "red") for i in range(9)]
    threads = threading.active_count()
    results = caption_photos(ColourCaptioner(), paths)
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert threading.active_count() == threads


def test_wrong_options_are_not_blamed_on_photos(folder: Path) -> None:
    with pytest.raises(UsageError, match="beams is 9"):
        list(caption_photos(ColourCaptioner(), [folder / "a.png"], beams=9))


# ---------------------------------------------------------------- whole albums


def test_an_album(folder: Path) -> None:
    seen: list[str] = []
    counts: list[int] = []
    report = caption_album(
        [folder], on_start=counts.append, on_photo=lambda result: seen.append(result.path.name)
    )
    assert counts == [7] and seen == sorted(path.name for path in folder.iterdir())
    assert [one.path.name for one in report.captions] == ["a.png", "c.jpg", "f.gif", "x.jpg"]
    assert [one.path.name for one in report.failures] == ["b.jpg", "d.png", "e.png"]
    shares = report.shares()
    assert list(shares) == ["reading", "preprocess", "encoder", "concepts", "decoding"]
    assert shares["decoding"] == pytest.approx(4 * 0.004 / report.seconds)
    document = report.to_dict()
    assert document["failures"][1]["error"]["code"] == "FormatError"
    assert len(document["photos"]) == 4


def test_nothing_to_caption(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no photos"):
        caption_album([tmp_path])


def test_without_pillow(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said once, not for each photo."""
    import sys

    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(BackendMissingError, match="caption"):
        list(caption_photos(ColourCaptioner(), [folder / "a.png"]))


# ---------------------------------------------------------------- the page


class Page(HTMLParser):
    """What a browser would make of it: elements, attributes, text; all must be closed."""

    VOID = {"meta", "img"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and data.strip():
            self.text.setdefault(self._open[-1], []).append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def test_the_page(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    report = caption_album([folder], html=out)
    page = Page(out.read_text("utf-8"))
    assert {name for name, _ in page.elements} == {
        "html", "head", "meta", "title", "style", "body", "h1", "main", "figure", "img",
        "figcaption", "p", "footer",
    }  # fmt: skip
    assert len(page.all("figure")) == 7
    images = page.all("img")
    assert [image["alt"] for image in images] == [one.caption.text for one in report.captions]
    for image, caption in zip(images, report.captions, strict=True):
        assert (image["width"], image["height"]) == (str(caption.width), str(caption.height))
        kind, data = (image["src"] or "").split(",")
        assert kind == "data:image/jpeg;base64"
        picture = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
        assert picture.format == "JPEG" and max(picture.size) <= 512
    red = Image.open(io.BytesIO(base64.b64decode((images[0]["src"] or "").split(",")[1])))
    assert red.getpixel((5, 5)) == pytest.approx((255, 0, 0), abs=4)
    words = page.text["p"]
    assert report.captions[0].caption.text in words
    assert str(folder / "d.png") in words and str(report.failures[0].error) in words
    assert all(one.thumbnail is None for one in report.captions)  # memory does not grow with it
    source = out.read_text("utf-8")
    assert "http" not in source.replace("http-equiv", "") and "url(" not in source
    assert "prefers-color-scheme: dark" in source and 'name="viewport"' in source
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


@pytest.mark.parametrize(
    "name",
    ['<img src=x onerror=alert(1)>&".jpg', "line\nbreak\x1b[31m.jpg", "caf\udce9 \u202e.jpg"],
)
def test_names_cannot_change_the_page(tmp_path: Path, name: str) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path / name)))
    path.write_bytes(photo(tmp_path / "a.png", "red").read_bytes())
    broken = tmp_path / f"2{name}"
    broken.touch()
    out = tmp_path / "page.html"
    caption_album([path, broken], html=out)
    page = Page(out.read_text("utf-8"))
    assert len(page.all("img")) == 1 and len(page.all("figure")) == 2
    assert "onerror" not in page.all("img")[0]
    assert all(line.isprintable() for line in page.text["p"])


def test_a_page_that_cannot_be_written_is_refused_first(folder: Path, tmp_path: Path) -> None:
    victim = photo(tmp_path / "mine.jpg", "red")
    before = victim.read_bytes()
    with pytest.raises(UsageError, match=r"mine\.jpg: the page's name must end in \.html"):
        caption_album([folder], html=victim)
    assert victim.read_bytes() == before
    with pytest.raises(StorageError, match="cannot be written"):
        caption_album([folder], html=tmp_path / "no" / "folder.html")


def test_an_album_that_is_stopped_leaves_no_page(folder: Path, tmp_path: Path) -> None:
    def stop(result: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "page.html"
    out.write_text("older")
    with pytest.raises(KeyboardInterrupt):
        caption_album([folder], html=out, on_photo=stop)
    assert out.read_text() == "older"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page.html", "photos"]

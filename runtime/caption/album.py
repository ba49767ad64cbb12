"""Many photos: each read while the model is busy with the one before, none stopping the others."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from penstock.errors import PenstockError, UsageError
from penstock.loaders.partial_file import check_writable, partial_file
from penstock.runtime.caption.album_report import AlbumReport, PhotoCaption, PhotoFailure
from penstock.runtime.caption.captioner import Caption, load_captioner
from penstock.runtime.caption.contact_sheet import ContactSheet, thumbnail
from penstock.runtime.caption.photo import Photo, open_photo
from penstock.runtime.caption.photo_files import find_photos
from penstock.runtime.caption.pillow import need_pillow

READ_SIDE = 512  # of the shorter side; captioners look at 224 to 384
AHEAD = 1  # photos that wait for the model, each of a few MiB
FIRST_OF_MANY = "the first of several frames or pages"
PAGE_SUFFIXES = (".html", ".htm")


def caption_album(
    paths: Iterable[str | os.PathLike[str]],
    *,
    model: str | os.PathLike[str] | None = None,
    beams: int | None = None,
    max_tokens: int | None = None,
    threads: int | None = None,
    html: str | os.PathLike[str] | None = None,
    on_start: Callable[[int], None] | None = None,
    on_photo: Callable[[PhotoCaption | PhotoFailure], None] | None = None,
) -> AlbumReport:
    """Caption photos and folders of photos, and write a page of them if wanted.

    Args:
        paths: as `find_photos` takes them.
        model: a captioner file; None: the one that comes with Penstock.
        beams, max_tokens: None: what the model was made for.
        threads: of compute; None: all cores.
        html: a page with the photos and captions, to be written whole or not at all.
        on_start: is told how many photos there are.
        on_photo: is given each result as it comes.

    Raises:
        UsageError: no photos, or a value out of its range.
        StorageError: the page cannot be written.
        FormatError, BackendMissingError: the captioner cannot be loaded.
    """
    page = None if html is None else _page(Path(html))
    photos = find_photos(paths)
    if not photos:
        raise UsageError("no photos are in what was given; name files, or folders with photos")
    captions: list[PhotoCaption] = []
    failures: list[PhotoFailure] = []
    with ExitStack() as stack:
        captioner = stack.enter_context(load_captioner(model, threads=threads))
        sheet = None
        if page is not None:
            handle, _ = stack.enter_context(partial_file(page))
            sheet = stack.enter_context(ContactSheet(handle, captioner.path.name))
        if on_start is not None:
            on_start(len(photos))
        begin = perf_counter()
        for result in caption_photos(
            captioner, photos, beams=beams, max_tokens=max_tokens, thumbnails=sheet is not None
        ):
            if sheet is not None:
                sheet.add(result)
            if on_photo is not None:
                on_photo(result)
            if isinstance(result, PhotoFailure):
                failures.append(result)
            else:
                captions.append(replace(result, thumbnail=None))  # it is on the page
        seconds = perf_counter() - begin
        return AlbumReport(captioner.path, tuple(captions), tuple(failures), seconds)


class CaptionsPhotos(Protocol):
    """A `Captioner`, or whatever else has a sentence for a photo."""

    def caption(
        self, image: NDArray[np.uint8], *, beams: int | None = None, max_tokens: int | None = None
    ) -> Caption:
        """Of uint8 [height, width, 3]. A PenstockError is this photo's, a UsageError everyone's."""
        ...


def caption_photos(
    captioner: CaptionsPhotos,
    photos: Iterable[str | os.PathLike[str]],
    *,
    beams: int | None = None,
    max_tokens: int | None = None,
    thumbnails: bool = False,
) -> Iterator[PhotoCaption | PhotoFailure]:
    """Caption photos in their order; one that cannot be read is a failure, and the rest go on.

    Photos are read in a thread of their own, shrunk to READ_SIDE, two at most at a time in memory.

    Raises:
        UsageError: beams or max_tokens is out of its range.
        BackendMissingError: Pillow is not installed.
    """
    need_pillow()
    with ThreadPoolExecutor(1, "read photos") as reader:
        waiting: list[tuple[Path, Future[_Read]]] = []
        try:
            for path in map(Path, photos):
                waiting.append((path, reader.submit(_read, path, thumbnails)))
                if len(waiting) > AHEAD:
                    yield _caption(captioner, *waiting.pop(0), beams, max_tokens)
            while waiting:
                yield _caption(captioner, *waiting.pop(0), beams, max_tokens)
        finally:
            reader.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class _Read:
    photo: Photo
    thumbnail: bytes | None
    milliseconds: float


def _read(path: Path, with_thumbnail: bool) -> _Read:
    begin = perf_counter()
    photo = open_photo(path, shortest_side=READ_SIDE)
    small = thumbnail(photo.pixels) if with_thumbnail else None
    return _Read(photo, small, (perf_counter() - begin) * 1000)


def _caption(
    captioner: CaptionsPhotos,
    path: Path,
    reading: Future[_Read],
    beams: int | None,
    max_tokens: int | None,
) -> PhotoCaption | PhotoFailure:
    begin = perf_counter()
    try:
        read = reading.result()
        waited = (perf_counter() - begin) * 1000
        photo = read.photo
        caption = captioner.caption(photo.pixels, beams=beams, max_tokens=max_tokens)
    except UsageError:
        raise  # of the options, not of this photo
    except PenstockError as error:
        return PhotoFailure(path, error)
    return PhotoCaption(
        path=path,
        caption=caption,
        width=photo.width,
        height=photo.height,
        read_ms=read.milliseconds,
        waited_ms=waited,
        note=FIRST_OF_MANY if photo.more_frames else None,
        thumbnail=read.thumbnail,
    )


def _page(html: Path) -> Path:
    """Where the page goes. Refused is what a photo could be, named after --html by mistake."""
    if html.suffix.lower() not in PAGE_SUFFIXES:
        raise UsageError(f"{html}: the page's name must end in .html")
    check_writable(html)
    return html

"""One self-contained page of photos and captions: no script, nothing from elsewhere."""

from __future__ import annotations

import base64
import io
from html import escape
from typing import IO

import numpy as np
from numpy.typing import NDArray

from penstock.runtime.caption.album_report import PhotoCaption, PhotoFailure
from penstock.runtime.caption.printable import printable

LONGEST_SIDE = 512  # of a photo on the page: sharp on a phone, some 40 kB
QUALITY = 75
HEAD = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; \
style-src 'unsafe-inline'">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --paper: #f6f6f4; --card: #fff; --ink: #1b1b1b;
  --faint: #5f5f5f; --line: #ddd; --wrong: #a3271a }}
@media (prefers-color-scheme: dark) {{ :root {{ --paper: #161616; --card: #222; --ink: #eee;
  --faint: #a8a8a8; --line: #3a3a3a; --wrong: #ff9a8c }} }}
* {{ box-sizing: border-box }}
body {{ margin: 0 auto; padding: 1rem; max-width: 75rem; background: var(--paper);
  color: var(--ink); font: 1rem/1.45 system-ui, sans-serif; overflow-wrap: anywhere }}
h1 {{ font-size: 1.35rem; margin: .25rem 0 1rem }}
main {{ display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 18rem), 1fr)) }}
figure {{ margin: 0; background: var(--card); border: 1px solid var(--line);
  border-radius: .5rem; overflow: hidden }}
img {{ display: block; width: 100%; height: auto; max-height: 80vh; object-fit: contain }}
figcaption {{ padding: .75rem }}
p {{ margin: 0 }}
.caption {{ font-size: 1.1rem }}
.about {{ margin-top: .35rem; color: var(--faint); font-size: .85rem }}
.failed figcaption {{ color: var(--wrong) }}
@media print {{ figure {{ break-inside: avoid }} }}
</style>
</head>
<body>
<h1>{title}</h1>
<main>
"""
FOOT = '</main>\n<footer><p class="about">{summary}</p></footer>\n</body>\n</html>\n'


class ContactSheet:
    """A page that is written as captions come, so that memory does not grow with the album.

    Args:
        handle: open for writing in binary.
        model: the captioner's name, for people.
    """

    def __init__(self, handle: IO[bytes], model: str) -> None:
        self._handle = handle
        self._captions = self._failures = 0
        self._write(HEAD.format(title=f"Captions by {_text(model)}"))

    def add(self, result: PhotoCaption | PhotoFailure) -> None:
        """The next photo, with its thumbnail, or what is wrong with it."""
        name = _text(str(result.path))
        if isinstance(result, PhotoFailure):
            self._failures += 1
            reason = _text(str(result.error))
            self._write(
                f'<figure class="failed"><figcaption><p>{reason}</p>'
                f'<p class="about">{name}</p></figcaption></figure>\n'
            )
            return
        self._captions += 1
        caption, about = _text(result.caption.text), [name, f"{result.width} × {result.height}"]
        if result.caption.concepts:
            about.append(", ".join(_text(concept.name) for concept in result.caption.concepts))
        if result.note is not None:
            about.append(_text(result.note))
        lines = "".join(f'<p class="about">{line}</p>' for line in about)
        self._write(
            f"<figure>{_image(result.thumbnail, caption, result.width, result.height)}"
            f'<figcaption><p class="caption">{caption}</p>{lines}</figcaption></figure>\n'
        )

    def __enter__(self) -> ContactSheet:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            failed = f"; {self._failures} could not be captioned" if self._failures else ""
            photos = "photo" if self._captions == 1 else "photos"
            self._write(
                FOOT.format(summary=f"{self._captions} {photos}{failed}. Made by Penstock.")
            )

    def _write(self, text: str) -> None:
        self._handle.write(text.encode())


def thumbnail(pixels: NDArray[np.uint8]) -> bytes:
    """A small JPEG of a photo [height, width, 3]."""
    from PIL import Image

    picture = Image.fromarray(pixels)
    scale = min(1.0, LONGEST_SIDE / max(picture.size))
    width, height = (max(1, round(side * scale)) for side in picture.size)
    small = picture.resize((width, height), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return buffer.getvalue()


def _image(jpeg: bytes | None, caption: str, width: int, height: int) -> str:
    if jpeg is None:
        return ""
    data = base64.b64encode(jpeg).decode()
    # Width and height are the shape: the page does not jump while photos are decoded.
    return (
        f'<img alt="{caption}" width="{width}" height="{height}" loading="lazy" decoding="async" '
        f'src="data:image/jpeg;base64,{data}">'
    )


def _text(text: str) -> str:
    """Escaped, for elements and quoted attributes alike."""
    return escape(printable(text))

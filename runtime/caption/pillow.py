"""Pillow, which reads the photos: which of its formats are used, and its limit on pixels."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from penstock.errors import BackendMissingError

# EPS starts Ghostscript on what may be anyone's program; the others hold no pixels for Pillow.
REFUSED = {"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG", "PDF"}

_lock = threading.Lock()
_limits: list[tuple[object, int | None]] = []  # of the threads that read just now
_before = ExitStack()  # puts back what was set before the first of them


def need_pillow() -> Any:
    """The module PIL.Image, with every plugin loaded.

    Raises:
        BackendMissingError: it is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise BackendMissingError(
            f"photos are read by Pillow, which is not installed ({error}); install it with: "
            "pip install 'penstock[caption]'"
        ) from None
    Image.init()
    return Image


@contextmanager
def quiet_pillow(most_pixels: int | None) -> Iterator[None]:
    """While this runs Pillow takes so many pixels (None: any), and does not warn.

    It warns of damaged EXIF and of large pictures, neither of which keeps a photo from being read.
    Both settings are of the process. Where several threads read, the widest of their limits holds.
    """
    from PIL import Image

    mine = (object(), most_pixels)
    with _lock:
        if not _limits:
            _before.callback(setattr, Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
            _before.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", module=r"PIL\.")
        _limits.append(mine)
        Image.MAX_IMAGE_PIXELS = _widest()
    try:
        yield
    finally:
        with _lock:
            _limits.remove(mine)
            if _limits:
                Image.MAX_IMAGE_PIXELS = _widest()
            else:
                _before.close()


def _widest() -> int | None:
    limits = [pixels for _, pixels in _limits if pixels is not None]
    return max(limits) if len(limits) == len(_limits) else None

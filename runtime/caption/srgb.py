"""Any of Pillow's modes as 8-bit sRGB: profiles, transparency over white, deep greys scaled."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

BAND_PIXELS = 4_000_000  # converted at a time, so that no second copy of a huge picture is made
WHITE = 255


class SrgbConversion:
    """How one decoded picture becomes sRGB; made once, applied band by band.

    Attributes:
        image: as Pillow decoded it, in any mode.
    """

    def __init__(self, image: Any) -> None:
        self.image = image
        self._transparent = bool(image.has_transparency_data)
        self._range = _grey_range(image)
        self._transform = _transform(image, self._flat_mode())

    def convert(self, factor: int = 1) -> Any:
        """The picture in mode RGB, its sides divided by a whole number (rounded up)."""
        from PIL import Image

        width, height = self.image.size
        out = Image.new("RGB", (-(-width // factor), -(-height // factor)))
        rows = max(1, BAND_PIXELS // width // factor) * factor
        for top in range(0, height, rows):
            band = self._to_rgb(self.image.crop((0, top, width, min(height, top + rows))))
            out.paste(band.reduce(factor) if factor > 1 else band, (0, top // factor))
        return out

    def _to_rgb(self, band: Any) -> Any:
        flat = self._flatten(band)
        if self._transform is not None:
            from PIL import ImageCms

            return ImageCms.applyTransform(flat, self._transform)
        return flat if flat.mode == "RGB" else flat.convert("RGB")

    def _flat_mode(self) -> str:
        mode = self.image.mode
        if self._range is not None or mode in ("1", "L", "LA", "La"):
            return "L"
        return mode if mode in ("CMYK", "LAB") else "RGB"

    def _flatten(self, band: Any) -> Any:
        """Without transparency, in mode L, RGB, CMYK or LAB."""
        if self._range is not None:
            return _scale(band, *self._range)
        wanted = self._flat_mode()
        if not self._transparent:
            return band if band.mode == wanted else band.convert(wanted)
        from PIL import Image

        layers = band.convert(f"{wanted}A")
        white = Image.new(wanted, band.size, (WHITE,) * len(wanted) if wanted != "L" else WHITE)
        white.paste(layers.convert(wanted), mask=layers.getchannel("A"))
        return white


def _grey_range(image: Any) -> tuple[float, float, int | None] | None:
    """What is black and white in a grey of more than 8 bits, and its transparent value.

    32-bit integers and floats have no agreed range: there the darkest and the brightest are taken,
    unless floats lie between 0 and 1.
    """
    mode, transparent = image.mode, image.info.get("transparency")
    clear = transparent if isinstance(transparent, int) else None
    if mode.startswith("I;16") or (mode == "I" and image.format in ("PNG", "PPM")):
        bits = getattr(image, "tag_v2", {}).get(258, (16,))[0]  # of TIFF: some say 12
        return 0, (1 << bits) - 1 if 8 <= bits <= 16 else 65535, clear
    if mode not in ("I", "F"):
        return None
    values = np.asarray(image)
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    if mode == "F" and 0 <= low and high <= 1:
        low, high = 0.0, 1.0
    return low, high, clear


def _scale(band: Any, low: float, high: float, clear: int | None) -> Any:
    from PIL import Image

    values = np.asarray(band)
    grey = (values.astype(np.float64) - low) * (WHITE / (high - low) if high > low else 1.0)
    grey = np.nan_to_num(np.clip(np.rint(grey), 0, WHITE)).astype(np.uint8)
    if clear is not None:
        grey[values == clear] = WHITE
    return Image.fromarray(grey)


def _transform(image: Any, mode: str) -> Any:
    """From the embedded profile to sRGB; None: there is none, or it is sRGB or of no use."""
    profile = image.info.get("icc_profile")
    if not profile and mode != "LAB":
        return None
    try:
        from PIL import ImageCms
    except ImportError:  # Pillow without LittleCMS
        return None
    try:
        if mode == "LAB":  # is defined without a profile
            source = ImageCms.createProfile("LAB")
        else:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if "sRGB" in ImageCms.getProfileDescription(source):
                return None
        return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
        return None  # damaged, or of another colour space: the picture is fine without it

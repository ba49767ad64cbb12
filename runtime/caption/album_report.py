"""What became of an album: captions, failures, and where the time went."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from penstock.errors import PenstockError
from penstock.runtime.caption.captioner import Caption, CaptionTimes


@dataclass(frozen=True)
class PhotoCaption:
    """A photo and what the captioner says of it.

    Attributes:
        width, height: of the upright picture in the file.
        read_ms: decoding; the model works on another photo meanwhile.
        waited_ms: of it, what the model had to wait.
        note: what the person should know, if anything.
        thumbnail: a small JPEG of it, where asked for.
    """

    path: Path
    caption: Caption
    width: int
    height: int
    read_ms: float
    waited_ms: float
    note: str | None = None
    thumbnail: bytes | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON: flat, all times together."""
        said = self.caption
        return {
            "path": self.path,
            "caption": said.text,
            "score": said.score,
            "tokens": said.tokens,
            "concepts": [asdict(concept) for concept in said.concepts],
            "width": self.width,
            "height": self.height,
            "note": self.note,
            "times": {"read_ms": self.read_ms, "waited_ms": self.waited_ms, **asdict(said.times)},
        }


@dataclass(frozen=True)
class PhotoFailure:
    """A photo that could not be read or captioned, and why."""

    path: Path
    error: PenstockError

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "path": self.path,
            "error": {"code": type(self.error).__name__, "message": str(self.error)},
        }


@dataclass(frozen=True)
class AlbumReport:
    """What became of an album.

    Attributes:
        model: the captioner's file.
        captions, failures: in the order of the photos.
        seconds: from the first photo to the last.
    """

    model: Path
    captions: tuple[PhotoCaption, ...]
    failures: tuple[PhotoFailure, ...]
    seconds: float

    @property
    def photos_per_second(self) -> float:
        """Captions made per second."""
        return len(self.captions) / self.seconds if self.seconds else 0.0

    def shares(self) -> dict[str, float]:
        """Where the time went, as shares of `seconds`: waiting for photos, then the model's."""
        if not self.captions or not self.seconds:
            return {}
        times = [one.caption.times for one in self.captions]
        spent = {"reading": sum(one.waited_ms for one in self.captions)}
        for name in (field.name for field in fields(CaptionTimes)):
            spent[name.removesuffix("_ms")] = sum(getattr(one, name) for one in times)
        return {name: ms / 1000 / self.seconds for name, ms in spent.items()}

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "model": self.model,
            "photos": [one.to_dict() for one in self.captions],
            "failures": [one.to_dict() for one in self.failures],
            "seconds": self.seconds,
            "photos_per_second": self.photos_per_second,
            "shares": self.shares(),
        }

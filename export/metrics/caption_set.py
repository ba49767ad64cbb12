"""Captions beside their references, tokenized and checked: what every metric takes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from penstock.errors import UsageError
from penstock.export.metrics.ptb_tokenizer import tokenize_ptb

ImageId = TypeVar("ImageId", bound=Hashable)
MAX_NAMED_IDS = 5  # in an error message


@dataclass(frozen=True)
class CaptionPair:
    """The tokens of a caption and of what people wrote about the same image."""

    candidate: Sequence[str]
    references: Sequence[Sequence[str]]


@dataclass(frozen=True)
class MetricScore(Generic[ImageId]):
    """What a metric says of a set of captions.

    Attributes:
        corpus: of the whole set.
        images: of each image alone.
    """

    corpus: float
    images: Mapping[ImageId, float]


@dataclass(frozen=True)
class CaptionSet(Generic[ImageId]):
    """At least one image, each with a caption and at least one reference.

    Raises:
        UsageError: there is no image, or one without references.
    """

    pairs: Mapping[ImageId, CaptionPair]

    def __post_init__(self) -> None:
        if not self.pairs:
            raise UsageError(
                "there are no captions to score; expected at least one image with a caption "
                "and references"
            )
        bare = [image for image, pair in self.pairs.items() if not pair.references]
        if bare:
            raise UsageError(
                f"{len(bare)} of {len(self.pairs)} images have an empty list of references: "
                f"{_name(bare)}; expected at least one reference each"
            )

    @classmethod
    def from_texts(
        cls,
        candidates: Mapping[ImageId, str],
        references: Mapping[ImageId, Sequence[str]],
        tokenize: Callable[[str], Sequence[str]] = tokenize_ptb,
    ) -> CaptionSet[ImageId]:
        """Tokenizes captions and references of the same images.

        Args:
            candidates: the caption to score, by image.
            references: what people wrote, by image.
            tokenize: from a text to its tokens.

        Raises:
            UsageError: the two have different images, or one has none or no references.
        """
        if candidates.keys() != references.keys():
            unreferenced = [image for image in candidates if image not in references]
            uncaptioned = [image for image in references if image not in candidates]
            parts = []
            if unreferenced:
                parts.append(
                    f"{len(unreferenced)} of {len(candidates)} captions have no references: "
                    f"{_name(unreferenced)}"
                )
            if uncaptioned:
                parts.append(
                    f"{len(uncaptioned)} of {len(references)} images have references but no "
                    f"caption: {_name(uncaptioned)}"
                )
            raise UsageError(
                f"{'; '.join(parts)}. Captions and references must be of the same images, with "
                "ids of the same type: leave out the others"
            )
        for image, texts in references.items():
            if isinstance(texts, str):
                raise UsageError(
                    f"the references of image {image!r} are one string; expected a list of strings"
                )
        return cls(
            {
                image: CaptionPair(
                    tokenize(text), tuple(tokenize(other) for other in references[image])
                )
                for image, text in candidates.items()
            }
        )


def _name(images: Collection[Hashable]) -> str:
    """The first few ids."""
    named = ", ".join(repr(image) for image in list(images)[:MAX_NAMED_IDS])
    return named + (", ..." if len(images) > MAX_NAMED_IDS else "")

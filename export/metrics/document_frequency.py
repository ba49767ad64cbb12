"""In how many images a run of words occurs: what makes a rare one weigh more in CIDEr-D.

Counted over the references that captions are scored with (`of_references`), or once over a larger
corpus, saved, and used for every later set. With the second, scores of sets of any size can be
compared, and a single image has a score: counted over itself, each of its words is in all images
and weighs nothing.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from penstock.errors import FormatError, StorageError, UsageError
from penstock.export.metrics.ngrams import Ngram, count_ngrams, split_words
from penstock.loaders.partial_file import partial_file

FORMAT = "penstock-document-frequencies"
VERSION = 1


@dataclass(frozen=True)
class DocumentFrequencies:
    """Counts of images.

    Attributes:
        images: of the corpus.
        counts: of them, those with a reference that has the n-gram.

    Raises:
        UsageError: no images, or a count below 1 or above theirs.
    """

    images: int
    counts: Mapping[Ngram, int]

    def __post_init__(self) -> None:
        if self.images < 1:
            raise UsageError(
                f"document frequencies of {self.images} images; expected at least one image with "
                "references"
            )
        for ngram, count in self.counts.items():
            if not 1 <= count <= self.images:
                raise UsageError(
                    f"{' '.join(ngram)!r} is counted in {count} images; expected 1 to "
                    f"{self.images}, the images of the corpus"
                )

    @classmethod
    def of_references(cls, images: Iterable[Sequence[Sequence[str]]]) -> DocumentFrequencies:
        """Counts over the references of images.

        Args:
            images: for each image its references, each a sequence of tokens.
        """
        counts: Counter[Ngram] = Counter()
        total = 0
        for references in images:
            total += 1
            counts.update({n for tokens in references for n in count_ngrams(split_words(tokens))})
        return cls(total, counts)

    def weigh(self, ngram: Ngram) -> float:
        """The inverse document frequency; that of an n-gram never seen is as of one seen once."""
        return math.log(self.images) - math.log(self.counts.get(ngram, 1))

    def save(self, path: Path) -> None:
        """Writes JSON.

        Raises:
            StorageError: it cannot be written; then nothing is.
        """
        content = {
            "format": FORMAT,
            "version": VERSION,
            "images": self.images,
            "counts": {" ".join(ngram): count for ngram, count in self.counts.items()},
        }
        with partial_file(path) as (handle, _):
            handle.write(json.dumps(content, ensure_ascii=False).encode())

    @classmethod
    def load(cls, path: Path) -> DocumentFrequencies:
        """Reads what `save` wrote.

        Raises:
            StorageError: the file cannot be read.
            FormatError: it is of another format or version, or damaged.
        """
        try:
            content = json.loads(path.read_bytes())
        except OSError as error:
            raise StorageError(f"{path} cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise FormatError(f"{path} is not JSON: {error}; save the counts again") from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise FormatError(f'{path} is JSON but has no "format": "{FORMAT}"')
        if content.get("version") != VERSION:
            raise FormatError(
                f"{path} has version {content.get('version')!r}; this Penstock reads {VERSION}"
            )
        images, counts = content.get("images"), content.get("counts")
        if not isinstance(images, int) or isinstance(images, bool) or not isinstance(counts, dict):
            raise FormatError(f'{path}: expected a number "images" and an object "counts"')
        wrong = next((key for key, count in counts.items() if type(count) is not int), None)
        if wrong is not None:
            raise FormatError(f"{path}: the count of {wrong!r} is {counts[wrong]!r}, not a number")
        try:
            return cls(images, {tuple(key.split(" ")): count for key, count in counts.items()})
        except UsageError as error:
            raise FormatError(f"{path}: {error}") from error

"""A captioner: a photo in, one sentence out, and where the time went."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from penstock.errors import StorageError, UsageError
from penstock.loaders.captioner_file import CaptionerFile
from penstock.loaders.closing import Closing
from penstock.loaders.cores import compute_threads
from penstock.runtime.caption.beam_search import BeamOptions, StepModel, beam_search
from penstock.runtime.caption.manifest import generation_options, most_tokens

MOST_BEAMS = 10


@dataclass(frozen=True)
class Concept:
    """Something that the captioner sees in the photo, and how sure it is (its own scale)."""

    name: str
    score: float


@dataclass(frozen=True)
class CaptionTimes:
    """Milliseconds of one caption.

    Attributes:
        preprocess_ms: the photo to the encoder's input.
        encoder_ms: visual features.
        concepts_ms: concept extraction; 0 where the architecture has none.
        decoding_ms: fusion and all steps of the search.
    """

    preprocess_ms: float
    encoder_ms: float
    concepts_ms: float
    decoding_ms: float

    @property
    def total_ms(self) -> float:
        """All of them."""
        return self.preprocess_ms + self.encoder_ms + self.concepts_ms + self.decoding_ms


@dataclass(frozen=True)
class Caption:
    """What a captioner says about a photo.

    Attributes:
        score: mean log-probability of a token.
        tokens: of the caption, as the tokenizer counts.
        concepts: most certain first; empty where the architecture has none.
    """

    text: str
    score: float
    tokens: int
    concepts: tuple[Concept, ...]
    times: CaptionTimes

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class CaptionNetwork(Protocol):
    """What an architecture gives: photo in, step model out."""

    def see(self, image: NDArray[np.uint8]) -> tuple[StepModel, tuple[Concept, ...], Times]:
        """Encode a photo [height, width, 3] up to where tokens begin."""
        ...

    def text(self, tokens: tuple[int, ...]) -> str:
        """The caption that the tokens spell."""
        ...

    def close(self) -> None:
        """Give the memory back."""
        ...


@dataclass
class Times:
    """Milliseconds so far, filled in by a network as it goes."""

    preprocess_ms: float = 0.0
    encoder_ms: float = 0.0
    concepts_ms: float = 0.0
    prefix_ms: float = 0.0


class Captioner(Closing):
    """A loaded captioner; for one thread at a time. Made by `load_captioner`.

    Attributes:
        path: its file.
        manifest: of the file: name, licence, how good it is.
        threads: of compute, at most.
    """

    def __init__(self, file: CaptionerFile, threads: int) -> None:
        self.path = file.path
        self.manifest = file.manifest
        self.threads = threads
        self.options, self._most_tokens = generation_options(file), most_tokens(file)
        self._network: CaptionNetwork | None = _network(file)(file, threads)

    def caption(
        self, image: NDArray[np.uint8], *, beams: int | None = None, max_tokens: int | None = None
    ) -> Caption:
        """Caption a photo.

        Args:
            image: uint8 [height, width, 3], sRGB, upright; `read_photo` gives it.
            beams: 1 to 10; None: what the model was made for.
            max_tokens: of the caption; None: likewise.

        Raises:
            UsageError: the array is no such photo, a number is out of range, or it is closed.
        """
        network = self._network
        if network is None:
            raise UsageError(f"{self.path}: the captioner is closed; load it again")
        check_image(image)
        options = self._search(beams, max_tokens)
        model, concepts, times = network.see(image)
        start = perf_counter()
        best = beam_search(model, options)[0]
        decoding = (perf_counter() - start) * 1000 + times.prefix_ms
        return Caption(
            text=network.text(best.tokens),
            score=best.log_probability / (len(best.tokens) + 1),
            tokens=len(best.tokens),
            concepts=concepts,
            times=CaptionTimes(times.preprocess_ms, times.encoder_ms, times.concepts_ms, decoding),
        )

    def close(self) -> None:
        """Give the memory back; twice is no error."""
        if self._network is not None:
            self._network.close()
        self._network = None

    def _search(self, beams: int | None, max_tokens: int | None) -> BeamOptions:
        if beams is not None and not 1 <= beams <= MOST_BEAMS:
            raise UsageError(f"beams is {beams}, expected 1 to {MOST_BEAMS}")
        if max_tokens is not None and not 1 <= max_tokens <= self._most_tokens:
            raise UsageError(
                f"max_tokens is {max_tokens}, this captioner takes 1 to {self._most_tokens}"
            )
        return replace(
            self.options,
            beams=beams or self.options.beams,
            max_tokens=max_tokens or self.options.max_tokens,
        )


def load_captioner(
    path: str | os.PathLike[str] | None = None, *, threads: int | None = None
) -> Captioner:
    """Load a captioner file; without a path the small one that comes with Penstock.

    Raises:
        FormatError: not a captioner, or damaged.
        BackendMissingError: onnxruntime or Pillow is not installed.
        StorageError, UsageError.
    """
    threads = compute_threads(threads)
    with CaptionerFile(embedded_captioner() if path is None else path) as file:
        return Captioner(file, threads)


def embedded_captioner() -> Path:
    """The captioner in the package.

    Raises:
        StorageError: this installation has none.
    """
    path = Path(str(files("penstock.runtime").joinpath("data", "snapshot.captioner")))
    if not path.is_file():
        raise StorageError(
            f"{path}: the embedded captioner is not in this installation; install Penstock again"
        )
    return path


def check_image(image: NDArray[np.uint8]) -> None:
    """Raises UsageError for what is no photo."""
    shape = getattr(image, "shape", None)
    if shape is None or image.dtype != np.uint8 or len(shape) != 3 or shape[2] != 3:
        kind = type(image).__name__ if shape is None else f"{image.dtype} {list(shape)}"
        raise UsageError(f"expected a photo as uint8 [height, width, 3], got {kind}")
    if not image.size:
        raise UsageError(f"a photo of {shape[1]} x {shape[0]} pixels has nothing to caption")


def _network(file: CaptionerFile) -> Callable[[CaptionerFile, int], CaptionNetwork]:
    if file.architecture == "lightcap":
        from penstock.runtime.caption.lightcap import LightCapNetwork

        return LightCapNetwork
    from penstock.runtime.caption.encoder_decoder import EncoderDecoderNetwork

    return EncoderDecoderNetwork

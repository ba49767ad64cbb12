"""A captioner whose captions can be foretold: it names the colour of a photo."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from penstock.errors import PenstockError, UsageError
from penstock.runtime.caption.captioner import Caption, CaptionTimes, Concept

COLOURS = {"black": (0, 0, 0), "white": (255, 255, 255), "red": (255, 0, 0), "blue": (0, 0, 255)}
TIMES = CaptionTimes(preprocess_ms=1.0, encoder_ms=2.0, concepts_ms=3.0, decoding_ms=4.0)
UNWELCOME = 13  # pixels of height that it refuses


class ColourCaptioner:
    """See `penstock.runtime.caption.captioner.Captioner`."""

    path = Path("colours.captioner")

    def caption(
        self, image: NDArray[np.uint8], *, beams: int | None = None, max_tokens: int | None = None
    ) -> Caption:
        """'a red <photo> & "so on"', so that pages have something to escape."""
        if beams == 9:
            raise UsageError("beams is 9, expected less")
        if image.shape[0] == UNWELCOME:
            raise PenstockError("thirteen rows bring bad luck")
        away = {n: np.abs(image.reshape(-1, 3) - np.array(c)).sum() for n, c in COLOURS.items()}
        name = min(away, key=lambda colour: away[colour])
        text = f'a {name} <photo> & "so on"'
        return Caption(text, -0.5, 7, (Concept(name, 0.875), Concept("<b>", 0.25)), TIMES)

    def __enter__(self) -> ColourCaptioner:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def load_colours(
    path: str | os.PathLike[str] | None = None, *, threads: int | None = None
) -> ColourCaptioner:
    """In place of load_captioner."""
    return ColourCaptioner()


if __name__ == "__main__":  # the command, with this captioner
    import penstock.runtime.caption.album as album
    from penstock.cli.main import main

    setattr(album, "load_captioner", load_colours)  # noqa: B010  mypy has another opinion
    sys.exit(main())

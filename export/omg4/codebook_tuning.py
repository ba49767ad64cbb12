"""Trains the numbers of codebooks against the views; indices stay (OMG4, section 3).

A code's gradient is the sum over the splats that have it. So the codes make good together what
each splat's rounding did to the picture, as far as splats of a code err the same way.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from penstock.export.omg4.adam import Adam
from penstock.export.omg4.drawing import ModelGradients
from penstock.export.omg4.rasteriser import Rasteriser
from penstock.export.omg4.refinement import batches, better_of, decay, gradients_of
from penstock.export.omg4.settings import CompressionSettings
from penstock.export.omg4.training_loops import TrainingLoops
from penstock.export.omg4.views import Truth
from penstock.export.report import Progress, ProgressCallback
from penstock.loaders.splats.codebook import Codebook, Map
from penstock.loaders.splats.decoding import MOST_LN_SCALE, decode_splats
from penstock.loaders.splats.encoded import OPPONENT, EncodedSplats, SubVector
from penstock.loaders.splats.model import Floats, SplatModel

RATES = {"opacity": 1e-3, "opponent": 1e-3, "rest": 2e-4, "scale": 1e-3}


def tune_codebooks(
    encoded: EncodedSplats,
    truth: Truth,
    rasteriser: Rasteriser,
    settings: CompressionSettings,
    *,
    progress: ProgressCallback | None = None,
) -> EncodedSplats:
    """The same indices with codebooks of less loss; what was given where there are none.

    Raises:
        FormatError, StorageError, UsageError: a view's image cannot be had.
    """
    steps = settings.tune_steps
    if steps == 0 or encoded.count == 0:
        return encoded
    books = Books(encoded)
    optimizers = [
        Adam(values, RATES[encoded.parts[part].attribute] * settings.rates, rasteriser.loops)
        for part, values in books.values.items()
    ]
    for step, chosen in enumerate(batches(len(truth), settings.batch, steps, settings.seed)):
        current = books.model()
        totals = [np.zeros_like(values) for values in books.values.values()]
        for found in gradients_of(current, chosen, truth, rasteriser, settings):
            by_books = books.gradients(current, found, rasteriser.loops)
            for total, gradient in zip(totals, by_books, strict=True):
                total += gradient
        for optimizer, total in zip(optimizers, totals, strict=True):
            rows = np.flatnonzero(total.any(axis=1))
            optimizer.step(rows, total, decay(step, steps))
        if progress is not None:
            progress(Progress("codebooks", step + 1, steps, "steps"))
    tuned = books.encoded()
    after = decode_splats(tuned)
    return tuned if better_of(books.start, after, truth, rasteriser, settings) is after else encoded


class Books:
    """Codebooks as float32, and the model that they make.

    Attributes:
        values: number of the sub-vector in `encoded.parts` -> [K, d].
        start: the model before anything was changed.
    """

    def __init__(self, encoded: EncodedSplats) -> None:
        self._encoded = encoded
        self.start = decode_splats(encoded)
        fixed = {part.attribute for part in encoded.parts if not _can_be_tuned(part)}
        self.values: dict[int, Floats] = {
            number: part.codebook.entries.copy()
            for number, part in enumerate(encoded.parts)
            if part.attribute in RATES and part.attribute not in fixed
        }

    def model(self) -> SplatModel:
        """As the codebooks are now."""
        model = self.start
        sh = model.sh.copy()
        opponent, rest = self._columns("opponent"), self._columns("rest")
        if opponent is not None:
            sh[:, 0] = opponent @ OPPONENT.astype(np.float32)
        if rest is not None:
            sh[:, 1:] = rest.reshape(len(sh), -1, 3)
        opacity, scale = self._columns("opacity"), self._columns("scale")
        return replace(
            model,
            sh=sh,
            opacities=model.opacities if opacity is None else np.clip(opacity[:, 0], 0, 1),
            scales=model.scales
            if scale is None
            else np.exp(np.clip(scale, -MOST_LN_SCALE, MOST_LN_SCALE)),
        )

    def gradients(
        self, model: SplatModel, found: ModelGradients, loops: TrainingLoops
    ) -> list[Floats]:
        """Of each codebook, in the order of `values`."""
        part = found.active
        by_scale, _ = loops.shape_gradients(model, part, found.covariances)
        by_attribute: dict[str, NDArray[np.floating]] = {
            "opacity": found.opacities[:, None],
            "opponent": found.sh[:, 0] @ OPPONENT.T,
            "rest": found.sh[:, 1:].reshape(len(part), 3 * (found.sh.shape[1] - 1)),
            "scale": by_scale,
        }
        begins = dict.fromkeys(by_attribute, 0)
        gradients = []
        for number, values in self.values.items():
            own = self._encoded.parts[number]
            begin = begins[own.attribute]
            begins[own.attribute] += values.shape[1]
            columns = by_attribute[own.attribute][:, begin : begin + values.shape[1]]
            gradients.append(_by_code(columns, own.indices[part], len(values)))
        return gradients

    def encoded(self) -> EncodedSplats:
        """With the codebooks as they are now, rounded as they are stored."""
        parts = list(self._encoded.parts)
        for number, values in self.values.items():
            old = parts[number].codebook
            book = (
                Codebook.half(np.clip(values, -6e4, 6e4))
                if old.map is Map.HALF
                else Codebook.grid(values, old.step)
            )
            parts[number] = replace(parts[number], codebook=book)
        return replace(self._encoded, parts=tuple(parts))

    def _columns(self, attribute: str) -> Floats | None:
        """[n, c] of the attribute; None where none of its codebooks is trained."""
        found = [
            values[self._encoded.parts[number].indices]
            for number, values in self.values.items()
            if self._encoded.parts[number].attribute == attribute
        ]
        return np.concatenate(found, axis=1) if found else None


def _can_be_tuned(part: SubVector) -> bool:
    """Whether the codebook's numbers may be any, half or on a grid, and are not added to others."""
    book = part.codebook
    return part.first is None and book.levels is not None and book.map is not Map.TABLE


def _by_code(columns: NDArray[np.floating], indices: NDArray[np.uint16], codes: int) -> Floats:
    """The sum [K, d] over the splats of each code."""
    result = np.empty((codes, columns.shape[1]), np.float32)
    for column in range(columns.shape[1]):
        result[:, column] = np.bincount(indices, columns[:, column], minlength=codes)
    return result

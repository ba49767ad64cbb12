"""Compresses a model of splats: every stage of OMG4, each where the settings have it.

    drawable       what no camera can see goes, but where coding is exact
    settling       what stands still for the whole scene is said to
    sampling       the best by SD score stay                       then refinement
    pruning        what is low in space and in time goes           then refinement
    merging        look-alikes become one, a few rounds            then refinement
    training       longer, once no more splats go
    quantization   positions to a lattice, the rest to codebooks; colours learn to live with what
                   places and shapes became; codebooks' numbers are tuned
    coding         the size of the .psplat file, entropy-coded

Views without photos show the model that was given: then it is the truth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from penstock.export.omg4.appearance import fit_appearance
from penstock.export.omg4.codebook_tuning import tune_codebooks
from penstock.export.omg4.merging import merge
from penstock.export.omg4.pruning import keep_drawable, keep_high
from penstock.export.omg4.psplat_writer import PsplatContent, PsplatSizes, psplat_content
from penstock.export.omg4.quantization import encode_colours, encode_model
from penstock.export.omg4.rasteriser import Rasteriser, rasteriser_for
from penstock.export.omg4.refinement import refine_against
from penstock.export.omg4.report import CompressionReport, Quality, StageReport, mean_psnr
from penstock.export.omg4.sampling import keep_best
from penstock.export.omg4.scores import Scores, importance, score, sd_scores
from penstock.export.omg4.settings import CompressionSettings
from penstock.export.omg4.settling import settle
from penstock.export.omg4.static_quantization import Precision, exact_splats, quantize_splats
from penstock.export.omg4.views import Truth, held_out, own_views, without_image
from penstock.export.report import Progress, ProgressCallback
from penstock.loaders.splats.decoding import decode_splats
from penstock.loaders.splats.encoded import EncodedSplats, Net
from penstock.loaders.splats.model import SplatModel, check_model, select

if TYPE_CHECKING:
    from penstock.runtime.splats.camera import View

UNQUANTIZED = 16.0  # times finer than scalars are by default
CHECKED = 24  # held-out views at most, evenly chosen, that each stage is measured by


@dataclass(frozen=True)
class Compressed:
    """What became of a model.

    Attributes:
        encoded: the splats as whole numbers.
        file: for `psplat_writer.write_content`.
        model: what a reader makes of that.
    """

    encoded: EncodedSplats
    file: PsplatContent
    model: SplatModel
    report: CompressionReport


def compress(
    model: SplatModel,
    views: Sequence[View] | None = None,
    settings: CompressionSettings | None = None,
    progress: ProgressCallback | None = None,
    *,
    test_views: Sequence[View] | None = None,
) -> Compressed:
    """Compress a model.

    Args:
        views: to train with and to score by; None or empty: the model's own pictures. Photos are
            joined by those where `settings.own_views` is on.
        settings: None: the defaults of a scene that moves, or of one that does not.
        test_views: that quality is measured by; None: every seventh of the views, which is then
            not trained with.

    Raises:
        FormatError: the model has numbers that nobody can draw, or an image is damaged.
        UsageError: a view's time, image or size does not fit.
        StorageError: an image cannot be read.
        BackendMissingError: images without Pillow, or "cuda" without torch or a GPU.
    """
    check_model(model, "the model to compress")
    if settings is None:
        settings = CompressionSettings() if model.dynamic else CompressionSettings.static()
    train: Sequence[View] = views or own_views(model)
    test: Sequence[View]
    train, test = held_out(train) if not test_views else (train, test_views)
    same = train == test
    if settings.own_views and any(view.image is not None for view in train):
        train = [*train, *own_views(model)]
    rasteriser = rasteriser_for(settings)
    run = _Run(model, train, test, rasteriser, settings, progress)
    if same:
        run.note("too few views to hold some out: quality is that of the views trained with")
    run.note_times(views or ())
    if model.count:
        run.choose()
    encoded = run.encode()
    return run.finish(encoded)


class _Run:
    def __init__(
        self,
        model: SplatModel,
        train: Sequence[View],
        test: Sequence[View],
        rasteriser: Rasteriser,
        settings: CompressionSettings,
        progress: ProgressCallback | None,
    ) -> None:
        self.source = model
        self.model = _limited(model, settings.degree)
        self.settings = settings
        self.progress = progress
        self.rasteriser = rasteriser
        self.truth = Truth(train, model, rasteriser)
        self.test = Truth(test, model, rasteriser)
        few = np.unique(np.linspace(0, len(test) - 1, CHECKED).astype(np.intp)).tolist()
        self._few = Truth([test[k] for k in few], model, rasteriser)
        self._scored: Scores | None = None  # of the splats that sampling left
        self._measured: tuple[SplatModel | None, float | None] = None, None
        self._stages: list[StageReport] = []
        self._notes: list[str] = []
        self._clock = perf_counter()
        self._done("source")
        if self.model.degree < model.degree:
            self.note(f"harmonics of degree {model.degree} were cut to {self.model.degree}")

    def note(self, text: str) -> None:
        """For the report."""
        self._notes.append(text)

    def note_times(self, views: Sequence[View]) -> None:
        """Say of which views the scene has nothing, at their times."""
        motion = self.source.motion
        if motion is None:
            return
        frame = 1 / motion.fps if motion.fps else 0.05 * (motion.end - motion.start)
        outside = [
            view.time
            for view in views
            if view.time is not None and not motion.start - frame <= view.time <= motion.end + frame
        ]
        if outside:
            self.note(
                f"{len(outside)} of {len(views)} views are outside of the scene's {motion.start:g} "
                f"to {motion.end:g} s, one at {outside[0]:g}: are their times in seconds?"
            )

    def choose(self) -> None:
        """The stages that leave fewer splats, and training after each."""
        settings = self.settings
        if settings.coding != "exact":  # which keeps what nobody sees, too
            self._keep(keep_drawable(self.model))
            self._done("drawable")
        if settings.settling and self.model.dynamic:
            self.model = settle(self.model)
            self._done("settling")
        seen = self.model
        stages: list[Callable[[], str | None]] = []
        if settings.sampling:
            stages.append(self._sample)
        if settings.pruning:
            stages.append(self._prune)
        if settings.merging:
            stages += [partial(self._merge, number) for number in range(settings.merge_rounds)]
        for number, stage in enumerate(stages):
            name = stage()
            if name is None:
                break
            if number + 1 < len(stages):
                self._refine(f"refinement after {name}", settings.refine_steps)
            self._done(name)
        if self.model is not seen and settings.final_steps:
            self._refine("training", settings.final_steps)
            self._done("training")

    def _sample(self) -> str:
        scores = self._scores()
        kept = keep_best(sd_scores(scores, self.settings.score), self.settings.keep)
        self._scored = scores.of(kept)
        self._keep(kept)
        return "sampling"

    def _prune(self) -> str:
        # The paper prunes by the gradients that it sampled by.
        scores = self._scores() if self._scored is None else self._scored
        self._keep(keep_high(scores, self.settings.pruning_quantile))
        return "pruning"

    def _merge(self, number: int) -> str | None:
        """A round of merging; None where nothing was left to merge."""
        merged = merge(
            self.model,
            self.truth,
            self.rasteriser,
            self.settings,
            number=number,
            progress=self.progress,
        )
        if merged is self.model:
            self.note(f"merging {number + 1} found no splats that look alike")
            return None
        self.model = settle(merged) if self.settings.settling else merged
        return f"merging {number + 1}"

    def encode(self) -> EncodedSplats:
        """Quantization, and the tuning of its codebooks. Nets need those: they learn from what is
        decoded, and their features are vectors."""
        settings, model = self.settings, self.model
        if not settings.quantization:
            return quantize_splats(model, Precision().finer(UNQUANTIZED))
        nets = settings.appearance == "nets"
        if settings.coding == "exact" and not nets:
            exact = exact_splats(model)
            if exact is not None:
                self.note("the model's numbers are on few levels: they are kept")
                return exact
        if settings.coding != "vectors" and not nets:
            return quantize_splats(model, Precision().finer(settings.finer))
        weights = importance(self._scores()) if model.count else None
        if nets:
            return self._with_nets(weights)
        encoded = encode_model(model, settings.books, weights=weights, seed=settings.seed)
        if settings.colour_steps and model.count:
            encoded = self._with_colours(encoded, weights)
        return tune_codebooks(
            encoded, self.truth, self.rasteriser, settings, progress=self.progress
        )

    def finish(self, encoded: EncodedSplats) -> Compressed:
        """Decodes it again, and measures."""
        decoded = decode_splats(encoded)
        self.model = decoded
        self._done("quantization", plain_bytes(encoded))
        file = psplat_content(encoded, entropy=self.settings.entropy)
        sizes = file.sizes
        self._done("coding", sizes.total)
        source = self.source
        return Compressed(
            encoded,
            file,
            decoded,
            CompressionReport(
                source_splats=source.count,
                source_bytes=source.nbytes,
                splats=decoded.count,
                nbytes=sizes.total,
                fixed_bits=encoded.fixed_bits,
                parts=_parts(sizes),
                stages=tuple(self._stages),
                quality=self._quality(),
                views=len(self.truth),
                held_out=len(self.test),
                moves=source.dynamic,
                own=self.test.own,
                settings=self.settings.to_dict(),
                notes=tuple(self._notes),
            ),
        )

    def _quality(self) -> Quality:
        shown = [without_image(view) for view in self.test.views]
        against_model = mean_psnr(
            self.rasteriser, self.model, Truth(shown, self.source, self.rasteriser)
        )
        if self.test.own:
            self.note("no photos were given: the truth is the given model's own pictures")
            return Quality(None, None, against_model)
        return Quality(
            mean_psnr(self.rasteriser, self.source, self.test),
            mean_psnr(self.rasteriser, self.model, self.test),
            against_model,
        )

    def _with_colours(
        self, encoded: EncodedSplats, weights: NDArray[np.float64] | None
    ) -> EncodedSplats:
        """Colours and opacities learn to live with the shapes and places that were kept."""
        model, settings = self.model, self.settings
        placed = replace(decode_splats(encoded), sh=model.sh, opacities=model.opacities)
        learned = refine_against(
            placed,
            self.truth,
            self.rasteriser,
            settings,
            steps=settings.colour_steps,
            only=("dc", "rest", "opacity"),
            stage="colours",
            progress=self.progress,
        )
        return encode_colours(encoded, learned, settings.books, weights=weights, seed=settings.seed)

    def _with_nets(self, weights: NDArray[np.float64] | None) -> EncodedSplats:
        """Nets that know where splats will be decoded to: they see fine detail of that."""
        model, settings = self.model, self.settings
        blank = np.zeros((model.count, 6), np.float32)
        placed = decode_splats(
            encode_model(model, settings.books, weights=weights, features=blank, seed=settings.seed)
        )
        motion = model.motion
        if motion is not None and placed.motion is not None:
            motion = replace(motion, t_centers=placed.motion.t_centers)
        appearance = fit_appearance(
            replace(model, means=placed.means, motion=motion),
            weights=weights,
            steps=settings.net_steps,
            seed=settings.seed,
            progress=self.progress,
        )
        encoded = encode_model(
            model,
            settings.books,
            weights=weights,
            features=appearance.features,
            seed=settings.seed,
        )
        nets = tuple(Net(name, values) for name, values in appearance.nets.arrays().items())
        return replace(encoded, nets=nets)

    def _scores(self) -> Scores:
        return score(self.model, self.truth, self.rasteriser, self.settings, self.progress)

    def _keep(self, indices: NDArray[np.intp]) -> None:
        if len(indices) < self.model.count:
            self.model = select(self.model, indices)

    def _refine(self, stage: str, steps: int) -> None:
        before = self.model
        self.model = refine_against(
            before,
            self.truth,
            self.rasteriser,
            self.settings,
            steps=steps,
            stage=stage,
            progress=self.progress,
        )
        if self.model is before and steps and before.count:
            self.note(f"{stage}: {steps} steps made nothing better and were dropped; give more")

    def _done(self, stage: str, nbytes: int | None = None) -> None:
        """Measures the model as it is now."""
        now = perf_counter()
        seconds, self._clock = now - self._clock, now
        size = self.model.nbytes if nbytes is None else nbytes
        measured, decibels = self._measured
        if measured is not self.model:
            decibels = mean_psnr(self.rasteriser, self.model, self._few)
            self._measured = self.model, decibels
        self._stages.append(StageReport(stage, self.model.count, size, decibels, seconds))
        self._clock = perf_counter()  # measuring is no part of the next stage
        if self.progress is not None:
            self.progress(Progress(stage, 1, 1, "step"))


def _limited(model: SplatModel, degree: int | None) -> SplatModel:
    """With harmonics of at most this degree."""
    if degree is None or degree >= model.degree:
        return model
    return replace(model, sh=np.ascontiguousarray(model.sh[:, : (degree + 1) ** 2]))


def plain_bytes(encoded: EncodedSplats) -> int:
    """Before entropy coding: indices and positions of fixed width, codebooks of 2 bytes a number
    or 4 where they are float32's, nets of 2."""
    books = {id(part.codebook): part.codebook for part in encoded.parts}.values()
    total = math.ceil(encoded.fixed_bits * encoded.count / 8)
    for book in books:
        total += 0 if book.levels is None else book.levels.nbytes
        total += 0 if book.numbers is None else book.numbers.nbytes
    return total + sum(2 * net.values.size for net in encoded.nets)


def _parts(sizes: PsplatSizes) -> dict[str, float]:
    """Bytes of a file by what they are for."""
    return {
        "head": float(sizes.head),
        "codebooks": float(sizes.codebooks),
        "nets": float(sizes.nets),
        "positions": sizes.positions,
        **sizes.parts,
        "padding": sizes.padding,
    }

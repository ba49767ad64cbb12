"""How far a LightCap file is from the torch model, or from its float file.

Metrics: SQNR of the grid, the share of concepts that are the same, the cosine of log-probabilities
along the reference's greedy caption, the share of captions that are equal, and with references
CIDEr-D of both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from penstock.export.artifact_report import Latency, Metric
from penstock.export.lightcap.folder import LightCapFolder
from penstock.loaders.captioner_file import CaptionerFile

if TYPE_CHECKING:
    from penstock.runtime.caption.beam_search import BeamOptions

Floats = NDArray[np.float32]
STEPS = 10  # of each caption that log-probabilities are compared over
RUNS, WARM_RUNS = 15, 3
LIKELY = 50  # tokens of a step that are compared: those the reference finds likeliest


@dataclass(frozen=True)
class Trace:
    """What a captioner makes of a photo, step by step."""

    grid: Floats
    concepts: tuple[str, ...]
    log_probabilities: Floats  # [steps, vocabulary]
    tokens: tuple[int, ...]


class LightCapFile:
    """A written file, loaded down to its network, as the runtime does."""

    def __init__(self, path: Path, threads: int) -> None:
        from penstock.runtime.caption.lightcap import LightCapNetwork
        from penstock.runtime.caption.manifest import generation_options

        with CaptionerFile(path) as file:
            self.network = LightCapNetwork(file, threads)
            self.options: BeamOptions = generation_options(file)
        self.threads = threads

    def caption(self, image: NDArray[np.uint8]) -> str:
        """The best caption."""
        from penstock.runtime.caption.beam_search import beam_search

        return self.network.text(beam_search(self.network.see(image)[0], self.options)[0].tokens)

    def trace(self, image: NDArray[np.uint8], forced: tuple[int, ...] | None = None) -> Trace:
        """Greedy, or along given tokens."""
        run, named, _ = self.network.see(image)
        grid: Any = self.network.grid(self.network.pixels(image))
        rows, tokens = [run.begin()], list[int]()
        for step in range(min(STEPS, self.network.shape.positions - 2)):  # the last is [MASK]'s
            tokens.append(int(rows[-1].argmax()) if forced is None else forced[step])
            rows.append(run.step(np.array([tokens[-1]]), np.zeros(1, np.int64))[0])
        concepts = tuple(concept.name for concept in named)
        return Trace(grid.numpy(), concepts, np.stack(rows), tuple(tokens))


def torch_difference(folder: LightCapFolder, file: LightCapFile, image: NDArray[np.uint8]) -> float:
    """The largest difference of log-probabilities of likely tokens to torch, over a caption."""
    import torch

    from penstock.export.lightcap.decoding import Prefix, Step

    trace = file.trace(image)
    config, model = folder.config, folder.model
    with torch.no_grad():
        grid = folder.encoder(torch.from_numpy(file.network.pixels(image)))
        concepts, scores = model.extractor.top(grid)
        prefix = Prefix(model)(concepts, scores, grid)
        keys = values = torch.zeros(config.layers, 1, config.heads, 0, config.head_width)
        worst, row, step = 0.0, torch.zeros(1, dtype=torch.long), Step(model)
        for index, token in enumerate((config.begin, *trace.tokens)):
            known, place = torch.tensor([token]), torch.tensor([index])
            log_probs, keys, values = step(known, row, place, prefix, keys, values)
            prefix = prefix[:, :0]
            theirs = log_probs[0].numpy()
            likely = np.argsort(-theirs)[:LIKELY]
            off = np.abs(theirs - trace.log_probabilities[index])[likely].max()
            worst = max(worst, float(off))
    return worst


def compare(
    before: LightCapFile,
    after: LightCapFile,
    images: Mapping[str, NDArray[np.uint8]],
    references: Mapping[str, Sequence[str]] | None,
) -> tuple[Metric, ...]:
    """Metrics of `after`.

    Args:
        images: photos by name.
        references: of each, what people say; None: no CIDEr-D.
    """
    noise = signal = dot = ours = theirs = 0.0
    shared = equal = 0
    captions: tuple[dict[str, str], dict[str, str]] = ({}, {})
    for name, image in images.items():
        wanted = before.trace(image)
        made = after.trace(image, wanted.tokens)
        noise += float(np.square(made.grid - wanted.grid, dtype=np.float64).sum())
        signal += float(np.square(wanted.grid, dtype=np.float64).sum())
        shared += len(set(made.concepts) & set(wanted.concepts))
        for a, b in zip(wanted.log_probabilities, made.log_probabilities, strict=True):
            likely = np.argsort(-a)[:LIKELY]
            x, y = a[likely] - a[likely].mean(), b[likely] - b[likely].mean()
            dot, ours, theirs = dot + float(x @ y), ours + float(x @ x), theirs + float(y @ y)
        captions[0][name], captions[1][name] = before.caption(image), after.caption(image)
        equal += captions[0][name] == captions[1][name]
    count, top = len(images), len(wanted.concepts)
    metrics = [
        Metric("grid_sqnr_db", None, 10 * math.log10(signal / max(noise, 1e-12 * signal)), count),
        Metric("concepts_equal", None, shared / (count * top), count),
        Metric("cosine", None, dot / math.sqrt(ours * theirs), count),
        Metric("captions_equal", None, equal / count, count),
    ]
    if references is not None:
        scores = [_cider(made, references) for made in captions]
        metrics.append(Metric("cider_d", scores[0], scores[1], count))
    return tuple(metrics)


def caption_latency(files: Sequence[LightCapFile], image: NDArray[np.uint8]) -> list[Latency]:
    """Milliseconds from the photo to the caption, the files taken in turns."""
    spent: list[list[float]] = [[] for _ in files]
    for turn in range(WARM_RUNS + RUNS):
        for place, file in enumerate(files):
            begin = perf_counter()
            file.caption(image)
            if turn >= WARM_RUNS:
                spent[place].append(1000 * (perf_counter() - begin))
    return [
        Latency(float(np.percentile(x, 50)), float(np.percentile(x, 95)), RUNS, file.threads)
        for x, file in zip(spent, files, strict=True)
    ]


def _cider(captions: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> float:
    from penstock.export.metrics.caption_scores import score_captions

    return score_captions(captions, references).cider_d.corpus

"""How far an exported captioner is from the model that it was made from.

Both get the same tokens, those that the reference finds most likely one after another, so that one
different choice does not make everything after it incomparable. Logits are compared less their
mean of each step, which no probability depends on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from penstock.export.artifact_report import Latency, Metric
from penstock.loaders.captioner_file import CaptionerFile

if TYPE_CHECKING:
    from penstock.export.captioner.graphs import EncoderDecoder
    from penstock.runtime.caption.beam_search import BeamOptions
    from penstock.runtime.caption.encoder_decoder import EncoderDecoderNetwork

Floats = NDArray[np.float32]
STEPS = 12  # of each caption that logits are compared over
SAMPLES = 4  # images that are made up where no photos are given
WARM_RUNS, RUNS = 1, 5


@dataclass(frozen=True)
class Steps:
    """One image: logits [steps, vocabulary] and the token that was taken after each."""

    logits: Floats
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Exported:
    """A captioner file, loaded by `open_exported`."""

    network: EncoderDecoderNetwork
    options: BeamOptions
    threads: int

    def caption(self, image: NDArray[np.uint8]) -> tuple[int, ...]:
        """The best caption's tokens."""
        from penstock.runtime.caption.beam_search import beam_search

        return beam_search(self.network.see(image)[0], self.options)[0].tokens


@contextmanager
def open_exported(path: Path, threads: int) -> Iterator[Exported]:
    """Load a captioner file down to its network, as the runtime does.

    Raises:
        FormatError: it is damaged, or onnxruntime refuses a graph.
    """
    from penstock.runtime.caption.encoder_decoder import EncoderDecoderNetwork
    from penstock.runtime.caption.manifest import generation_options

    with CaptionerFile(path) as file:
        loaded = Exported(EncoderDecoderNetwork(file, threads), generation_options(file), threads)
    try:
        yield loaded
    finally:
        loaded.network.close()


def greedy_steps(network: EncoderDecoderNetwork, image: NDArray[np.uint8], steps: int) -> Steps:
    """What the exported graphs give, each step going on from the likeliest token."""
    return _run(network, image, steps, None)


def forced_steps(
    network: EncoderDecoderNetwork, image: NDArray[np.uint8], tokens: Sequence[int]
) -> Steps:
    """What the exported graphs give after these tokens."""
    return _run(network, image, len(tokens), tokens)


def torch_difference(
    source: EncoderDecoder, network: EncoderDecoderNetwork, image: NDArray[np.uint8], steps: int
) -> float:
    """The largest difference of a logit between graphs and torch, over the largest logit.

    torch gets each time all tokens at once and no cache, so that the cache is compared as well.
    """
    import torch

    seen = greedy_steps(network, image, steps)
    ids = [*network.shape.rules.prompt]
    worst = 0.0
    with torch.no_grad():
        cross = source.encode(torch.from_numpy(network.pixels(image)))
        nothing = torch.zeros(1, source.heads, 0, source.head_width)
        past = [(nothing, nothing)] * source.layers
        for logits, token in zip(seen.logits, seen.tokens, strict=True):
            wanted = source.decode(torch.tensor([ids]), past, cross)[0][0].numpy()
            off = np.abs(_centred(wanted) - logits).max() / np.abs(_centred(wanted)).max()
            worst = max(worst, float(off))
            ids.append(token)
    return worst


def compare(
    before: Exported, after: Exported, images: Iterable[NDArray[np.uint8]], steps: int
) -> tuple[Metric, ...]:
    """Logits and captions of two captioners on images.

    Metrics: `cosine` and `sqnr_db` of logits, the mean over images, `token_agreement`, the share of
    steps with the same likeliest token, `captions_equal`, the share of images with the same caption
    when both search as they were made to.
    """
    cosines, ratios, same_tokens, same_captions = [], [], [], []
    for image in images:
        wanted = greedy_steps(before.network, image, steps)
        seen = forced_steps(after.network, image, wanted.tokens)
        cosines.append(_cosine(wanted.logits, seen.logits))
        ratios.append(_sqnr_db(wanted.logits, seen.logits))
        same_tokens.append(_agreement(wanted.logits, seen.logits))
        same_captions.append(before.caption(image) == after.caption(image))
    count = len(cosines)
    return (
        Metric("cosine", None, float(np.mean(cosines)), count),
        Metric("sqnr_db", None, float(np.mean(ratios)), count),
        Metric("token_agreement", None, float(np.mean(same_tokens)), count),
        Metric("captions_equal", None, float(np.mean(same_captions)), count),
    )


def caption_latency(captioner: Exported, image: NDArray[np.uint8]) -> Latency:
    """Wall-clock time of one caption, searched for as the file says."""
    times = []
    for run in range(WARM_RUNS + RUNS):
        begin = perf_counter()
        captioner.caption(image)
        if run >= WARM_RUNS:
            times.append((perf_counter() - begin) * 1000)
    p50, p95 = np.percentile(times, (50, 95))
    return Latency(float(p50), float(p95), RUNS, captioner.threads)


def sample_images(count: int = SAMPLES) -> list[NDArray[np.uint8]]:
    """Made-up pictures, the same each time: smooth colours with some edges and noise."""
    random = np.random.default_rng(20)
    images = []
    for _ in range(count):
        y, x = np.mgrid[0:240, 0:320] / 240
        picture = np.zeros((240, 320, 3))
        for _ in range(6):
            wave = np.sin(random.uniform(1, 12) * x + random.uniform(1, 12) * y)
            picture += wave[..., None] * random.normal(size=3)
        top, left = random.integers(0, 160, 2)
        picture[top : top + 80, left : left + 120] += random.normal(0, 3, 3)
        picture += random.normal(0, 0.2, picture.shape)
        images.append(np.clip(128 + 40 * picture, 0, 255).astype(np.uint8))
    return images


def _run(
    network: EncoderDecoderNetwork,
    image: NDArray[np.uint8],
    steps: int,
    tokens: Sequence[int] | None,
) -> Steps:
    decoder = network.look(network.pixels(image))
    logits, taken = [decoder.prompt_logits()], []
    for step in range(steps):
        token = int(logits[-1].argmax()) if tokens is None else tokens[step]
        taken.append(token)
        if step + 1 < steps:
            logits.append(decoder.step_logits(np.array([token]), np.zeros(1, np.int64))[0])
    return Steps(np.stack([_centred(row) for row in logits]), tuple(taken))


def _centred(logits: Floats) -> Floats:
    made: Floats = logits - logits.mean()
    return made


def _cosine(wanted: Floats, seen: Floats) -> float:
    products = (wanted * seen).sum(axis=1)
    norms = np.linalg.norm(wanted, axis=1) * np.linalg.norm(seen, axis=1)
    return float((products / np.maximum(norms, 1e-12)).mean())


def _sqnr_db(wanted: Floats, seen: Floats) -> float:
    noise = float(((wanted - seen) ** 2).sum())
    return float(10 * np.log10((wanted**2).sum() / max(noise, 1e-30)))


def _agreement(wanted: Floats, seen: Floats) -> float:
    return float((wanted.argmax(axis=1) == seen.argmax(axis=1)).mean())

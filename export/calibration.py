"""Runs a plain bundle densely over a text and keeps what predictors and statistics are made from.

Of every feed-forward layer: its input, and its hidden activations after the activation function,
kept sparse, since most are zero. They go to one file a layer in a temporary folder, so memory holds
one batch of all layers and later one layer of all tokens.

The text is cut into windows of CONTEXT tokens, each run from position 0. Three of four windows are
for fitting; the fourth is held out, and of those one half sets thresholds, the other half measures.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from penstock.errors import FormatError, UsageError
from penstock.loaders.bundle import Bundle

CONTEXT = 512
LEAST_TOKENS = 1024
MOST_TOKENS = 16384
LAYER_BYTES = 256 << 20  # of one layer's hidden activations, dense, in float32
CAPTURE_BYTES = 64 << 20  # of one batch, all layers
PERIOD = 8  # windows in which 6 are for fitting, 1 for thresholds, 1 for measuring


def default_tokens(neurons: int) -> int:
    """Calibration tokens for layers of this many neurons: bounded by memory."""
    return int(np.clip(LAYER_BYTES // (4 * neurons), LEAST_TOKENS, MOST_TOKENS))


def default_window(tokens: int, context: int) -> int:
    """Tokens of a window: shorter for short texts, so that each split gets some."""
    return max(16, min(CONTEXT, context, tokens // (2 * PERIOD)))


class CapturedText:
    """What was captured, a layer at a time. Valid inside `capture`."""

    def __init__(self, folder: Path, bundle: Bundle, window: int) -> None:
        self.folder = folder
        self.layers, self.width, self.neurons = bundle.layers, bundle.width, bundle.neurons
        self.window = window
        self.tokens = 0

    def layer(
        self, index: int, order: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Read a layer back: inputs (tokens, width), hidden (tokens, neurons), token i being
        order[i]."""
        inputs = np.fromfile(self._path(index, "inputs"), np.float32).reshape(-1, self.width)
        counts = np.fromfile(self._path(index, "counts"), np.int32)
        ids = np.fromfile(self._path(index, "ids"), np.int32)
        values = np.fromfile(self._path(index, "values"), np.float32)
        hidden = np.zeros((self.tokens, self.neurons), np.float32)
        hidden[np.repeat(np.argsort(order), counts), ids] = values
        return inputs[order], hidden

    def split(self) -> NDArray[np.int8]:
        """(tokens,) 0: to fit on, 1: to set thresholds, 2: to measure."""
        place = np.arange(self.tokens) // self.window % PERIOD
        split: NDArray[np.int8] = np.where(place == 3, 1, np.where(place == 7, 2, 0)).astype(
            np.int8
        )
        return split

    def append(self, inputs: NDArray[np.float32], hidden: NDArray[np.float32]) -> None:
        """Keep a batch: inputs (layers, n, width), hidden (layers, n, neurons)."""
        if not np.isfinite(hidden).all():
            raise FormatError(
                "the model gives NaN or infinity on the calibration text; check its weights"
            )
        for n in range(self.layers):
            tokens, ids = np.nonzero(hidden[n])
            counts = np.bincount(tokens, minlength=len(hidden[n]))
            self._write(n, "inputs", inputs[n])
            self._write(n, "counts", counts.astype(np.int32))
            self._write(n, "ids", ids.astype(np.int32))
            self._write(n, "values", hidden[n][tokens, ids])
        self.tokens += inputs.shape[1]

    def _path(self, index: int, what: str) -> Path:
        return self.folder / f"{index}.{what}"

    def _write(self, index: int, what: str, values: NDArray[Any]) -> None:
        handle: IO[bytes]
        with open(self._path(index, what), "ab") as handle:
            np.ascontiguousarray(values).tofile(handle)


@contextmanager
def capture(
    bundle: Bundle,
    text: str,
    tokens: int | None = None,
    threads: int | None = None,
    tick: Callable[[int], None] = lambda _: None,
    folder: Path | None = None,
) -> Iterator[CapturedText]:
    """Run `bundle` densely over a text.

    Args:
        tokens: at most so many; None chooses by the layers' size.
        tick: called with the tokens just run.
        folder: where the temporary folder goes; None takes the system's.

    Raises:
        UsageError: the text is too short.
    """
    ids, start = encode_text(bundle, text)
    wanted = tokens or default_tokens(bundle.neurons)
    window = default_window(
        min(len(ids), wanted), bundle.file.get_int(f"{bundle.arch}.context_length", low=1)
    )
    step = window - len(start)
    windows = [[*start, *ids[at : at + step]] for at in range(0, len(ids), step)]
    windows = windows[: max(PERIOD, wanted // window)]
    if len(windows) < PERIOD:
        raise UsageError(
            f"the calibration text has {len(ids)} tokens; expected at least {PERIOD * window}: "
            "give a longer text"
        )
    with tempfile.TemporaryDirectory(prefix="penstock-calibration-", dir=folder) as name:
        kept = CapturedText(Path(name), bundle, window)
        _run(bundle, windows, window, threads, kept, tick)
        yield kept


def encode_text(bundle: Bundle, text: str) -> tuple[list[int], list[int]]:
    """Token ids of a text, and those that each window starts with: BOS, where texts have one."""
    from penstock.runtime.tokenizer import Tokenizer

    tokenizer = Tokenizer(bundle.file.metadata)
    ids = tokenizer.encode(text, add_bos=False, parse_special=False)
    bos = tokenizer.bos_id
    return ids, [bos] if tokenizer.add_bos and bos is not None else []


def _run(
    bundle: Bundle,
    windows: list[list[int]],
    window: int,
    threads: int | None,
    kept: CapturedText,
    tick: Callable[[int], None],
) -> None:
    from penstock.runtime.flash_engine import FlashEngine

    token_bytes = 4 * bundle.layers * (bundle.width + bundle.neurons)
    batch = int(np.clip(CAPTURE_BYTES // token_bytes, 8, min(256, window)))
    engine = FlashEngine.open_dense(bundle, context=window, batch=batch, threads=threads)
    batch = engine.plan.batch  # less than asked for where memory is short
    inputs = np.zeros((bundle.layers, batch, bundle.width), np.float32)
    hidden = np.zeros((bundle.layers, batch, bundle.neurons), np.float32)
    engine.decoder.capture(inputs, hidden)
    try:
        for ids in windows:
            engine.reset()
            for at in range(0, len(ids), batch):
                chunk = np.array(ids[at : at + batch], np.int32)
                engine.prefill(chunk, at, batched=True)
                kept.append(inputs[:, : len(chunk)], hidden[:, : len(chunk)])
                tick(len(chunk))
    finally:
        engine.decoder.capture(None, None)

"""Two GGUF files in llama.cpp beside each other: perplexity, divergence, time of a token.

Both see the same windows of tokens; in each, every token but the first is predicted.
"""

from __future__ import annotations

import ctypes
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.errors import PenstockError, UnsupportedModelError
from penstock.export.artifact_report import Latency, Metric
from penstock.loaders.closing import Closing

WINDOW = 512
FIRST_TIMED = 4  # tokens before those that are timed


@dataclass(frozen=True)
class Comparison:
    """What was measured; `notes` say what could not be."""

    metrics: tuple[Metric, ...]
    before: Latency
    after: Latency
    notes: tuple[str, ...] = ()


class LlamaFile(Closing):
    """A GGUF file in llama.cpp, on the CPU, with logits of every token.

    Raises:
        BackendMissingError: llama-cpp-python is not installed.
        UnsupportedModelError: llama.cpp does not load the file.
    """

    def __init__(self, path: Path, threads: int) -> None:
        from penstock.runtime.gguf.library import last_error, llama

        self.path = path
        self.threads = threads
        self.lib = llama()
        self._context: Any = None
        params = self.lib.llama_model_default_params()
        params.n_gpu_layers = 0
        self._model = self.lib.llama_model_load_from_file(os.fsencode(path), params)
        if not self._model:
            raise UnsupportedModelError(f"{path}: llama.cpp does not load it: {last_error()}")
        try:
            self.vocab_handle = self.lib.llama_model_get_vocab(self._model)
            self.vocab = int(self.lib.llama_vocab_n_tokens(self.vocab_handle))
            self.window = min(WINDOW, int(self.lib.llama_model_n_ctx_train(self._model)))
            self._context = self._new_context()
        except BaseException:
            self.close()
            raise

    def _new_context(self) -> Any:
        from penstock.runtime.gguf.library import last_error

        params = self.lib.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = self.window
        params.n_threads = params.n_threads_batch = self.threads
        params.op_offload = params.offload_kqv = False
        context = self.lib.llama_init_from_model(self._model, params)
        if not context:
            raise UnsupportedModelError(f"{self.path}: llama.cpp makes no context: {last_error()}")
        return context

    def tokenize(self, text: str) -> list[int]:
        """Tokens of a text; none where the file has no tokenizer."""
        from penstock.loaders.gguf_file import read_gguf
        from penstock.loaders.vocabulary import measure_vocabulary
        from penstock.runtime.gguf.tokenizing import GgufTokenizer

        vocabulary = measure_vocabulary(read_gguf(self.path))
        if not vocabulary.tokens:
            return []
        tokenizer = GgufTokenizer(self.lib, vocabulary, len(text.encode()))
        return tokenizer.encode(self.vocab_handle, text, False, False)

    def start_token(self) -> list[int]:
        """What texts begin with, where the model wants it."""
        wants = bool(self.lib.llama_vocab_get_add_bos(self.vocab_handle))
        token = int(self.lib.llama_vocab_bos(self.vocab_handle))
        return [token] if wants and token >= 0 else []

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """(tokens, vocab), of a new text.

        Raises:
            PenstockError: it fails, or NaN or infinity is among them.
        """
        self.forget()
        batch = self.lib.llama_batch_init(len(tokens), 0, 1)
        try:
            batch.n_tokens = len(tokens)
            for place, token in enumerate(tokens):
                batch.token[place] = token
                batch.pos[place] = place
                batch.n_seq_id[place] = 1
                batch.seq_id[place][0] = 0
                batch.logits[place] = True
            self._check(self.lib.llama_decode(self._context, batch))
            rows = [
                np.ctypeslib.as_array(
                    self.lib.llama_get_logits_ith(self._context, place), (self.vocab,)
                )
                for place in range(len(tokens))
            ]
            logits = np.array(rows, np.float32)
            if not np.isfinite(logits).all():
                raise PenstockError(
                    f"{self.path}: llama.cpp computes logits with it that are not finite; one of "
                    "its tensors or numbers is damaged"
                )
            return logits
        finally:
            self.lib.llama_batch_free(batch)

    def forget(self) -> None:
        """Empty the KV cache."""
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self._context), True)

    def decode(self, token: int) -> None:
        """One token more."""
        ids = (ctypes.c_int32 * 1)(token)
        self._check(self.lib.llama_decode(self._context, self.lib.llama_batch_get_one(ids, 1)))

    def _check(self, result: int) -> None:
        if result != 0:
            raise PenstockError(f"{self.path}: llama_decode failed with {result}")

    def close(self) -> None:
        """Give the memory back; twice is no error."""
        if self._context:
            self.lib.llama_free(self._context)
        if self._model:
            self.lib.llama_model_free(self._model)
        self._context = self._model = None


def compare_files(
    before: LlamaFile,
    after: LlamaFile,
    text: str,
    tokens: int,
    runs: int = 32,
    on_tokens: Callable[[int], None] | None = None,
) -> Comparison:
    """Perplexity of both on a text, mean Kullback-Leibler divergence of the second, latency.

    Of a file without a tokenizer: the divergence, on random tokens.

    Args:
        tokens: at most so many of the text.
        runs: tokens that are timed, one at a time, in turns.
    """
    ids = before.tokenize(text)[:tokens]
    notes = []
    if len(ids) < 16:
        notes.append("no tokenizer, or hardly any text: divergence is over random tokens")
        ids = np.random.default_rng(0).integers(0, before.vocab, tokens).tolist()
    start = before.start_token()
    step = before.window - len(start)
    windows = [start + ids[i : i + step] for i in range(0, len(ids), step)]
    windows = [window for window in windows if len(window) >= 16] or [start + ids]
    sums, count = np.zeros(4), 0  # nats of both, divergence, same first choice
    for window in windows:
        wanted, made = log_softmax(before.logits(window)), log_softmax(after.logits(window))
        following = np.array(window[1:])
        places = np.arange(len(following))
        sums[0] -= wanted[places, following].sum()
        sums[1] -= made[places, following].sum()
        sums[2] += (np.exp(wanted[:-1]) * (wanted[:-1] - made[:-1])).sum()
        sums[3] += (wanted[:-1].argmax(1) == made[:-1].argmax(1)).sum()
        count += len(following)
        if on_tokens is not None:
            on_tokens(count)
    mean = sums / count
    metrics = [
        Metric("mean_kl", None, max(0.0, float(mean[2])), count, higher_is_better=False),
        Metric("same_top1", None, float(mean[3]), count),
    ]
    if not notes:
        own, its = (math.exp(min(float(mean[place]), 700.0)) for place in (0, 1))
        metrics.insert(0, Metric("perplexity", own, its, count, higher_is_better=False))
    slow, fast = _token_times((before, after), windows[0], runs)
    return Comparison(tuple(metrics), slow, fast, tuple(notes))


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Log-probabilities along the last axis."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result


def _token_times(files: Sequence[LlamaFile], tokens: Sequence[int], runs: int) -> list[Latency]:
    spent: list[list[float]] = [[] for _ in files]
    for file in files:
        file.forget()
    for place, token in enumerate(tokens[: FIRST_TIMED + runs]):
        for file, times in zip(files, spent, strict=True):
            begin = time.perf_counter()
            file.decode(token)
            if place >= FIRST_TIMED:
                times.append((time.perf_counter() - begin) * 1000)
    return [
        Latency(
            float(np.percentile(times, 50)), float(np.percentile(times, 95)), len(times),
            file.threads,
        )
        for file, times in zip(files, spent, strict=True)
    ]  # fmt: skip

"""The flash engine: a bundle's forward pass, run where the plan put its weights."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import platformdirs
from numpy.typing import NDArray

from penstock import _native
from penstock.errors import PenstockError, UsageError
from penstock.loaders.bundle import Bundle
from penstock.loaders.probe import load_profile
from penstock.runtime.models.registry import recorder
from penstock.runtime.plan import Plan
from penstock.runtime.planner import PlanOptions, make_plan, max_reads
from penstock.runtime.program import Program

VERIFY_ALWAYS_BYTES = 256 << 20  # smaller files are checked whole at every load
PREFILL_TOKENS = 8  # shorter prompts go token by token: a prefill streams every layer
SEED_TOKENS = 5  # the paper's k


class FlashEngine:
    """Logits from tokens. Not safe for use from two threads at once; it says so when that happens.

    Attributes:
        plan: where everything is.
        decoder: the native decoder.
        length: tokens in the KV cache.
    """

    def __init__(
        self,
        bundle: Bundle,
        plan: Plan,
        *,
        overlap: bool = True,
        bundled: bool = True,
        reuse: bool = True,
    ) -> None:
        """Load what the plan keeps in memory. overlap, bundled, reuse: switches for ablations.

        Raises:
            FormatError: a checksum does not match.
            StorageError: a read failed.
        """
        record = recorder(bundle.arch)
        self.bundle = bundle
        self.plan = plan
        self.length = 0
        self._lock = threading.Lock()
        self.decoder = _native.Decoder(
            bundle.path,
            context=plan.context,
            batch=plan.batch,
            threads=plan.threads,
            direct=plan.direct,
            backend=plan.backend,
            depth=plan.depth,
            max_reads=max_reads(bundle),
            staging_bytes=plan.staging,
            merge_gap=plan.merge_gap,
            read_max=plan.read_max,
            seed_tokens=SEED_TOKENS,
            overlap=overlap,
            bundled=bundled,
            reuse=reuse,
        )
        program = Program(bundle, plan, self.decoder)
        try:
            record(program)
        except (ValueError, KeyError) as error:
            if isinstance(error, PenstockError):
                raise
            # A shape that the decoder refuses came from the file's metadata.
            raise bundle.file.wrong(
                "general.architecture", f"a consistent {bundle.arch} model", str(error)
            ) from error
        self.vocab = program.config.vocab

    @staticmethod
    def open_dense(
        bundle: Bundle, context: int = 512, batch: int = 256, threads: int | None = None
    ) -> FlashEngine:
        """Dense evaluation, every neuron computed: for calibration, and as the reference."""
        options = PlanOptions(mode="dense", context=context, batch=batch, threads=threads)
        return FlashEngine(bundle, make_plan(bundle, load_profile(bundle.path), options))

    def prefill(
        self,
        tokens: NDArray[np.int32],
        position: int | None = None,
        *,
        all_logits: bool = False,
        batched: bool = False,
    ) -> NDArray[np.float32]:
        """Run a prompt; logits (tokens, vocab) if all are wanted, else (vocab,) of the last.

        Args:
            tokens: (n,) int32.
            position: of the first token; None continues.
            batched: stream whole layers even for a few tokens, as capturing needs.
        """
        tokens = np.ascontiguousarray(tokens, np.int32)
        start = self.length if position is None else position
        self._check(tokens, start)
        rows = tokens.size if all_logits else 1
        logits = np.empty((rows, self.vocab), np.float32)
        short = tokens.size < PREFILL_TOKENS and not all_logits and not batched
        streams = any(layer.residency != "resident" for layer in self.plan.layers)
        with self._exclusive():
            if short and streams:
                self.decoder.forward(tokens, start, logits, True, False)
            else:
                self._prefill_chunks(tokens, start, logits, all_logits)
        self.length = start + tokens.size
        last: NDArray[np.float32] = logits[0]
        return logits if all_logits else last

    def _prefill_chunks(
        self, tokens: NDArray[np.int32], start: int, logits: NDArray[np.float32], every: bool
    ) -> None:
        for at in range(0, tokens.size, self.plan.batch):
            chunk = tokens[at : at + self.plan.batch]
            out = logits[at : at + chunk.size] if every else logits
            last = at + chunk.size == tokens.size
            self.decoder.forward(chunk, start + at, out, False, last)

    def decode(self, token: int, position: int | None = None) -> NDArray[np.float32]:
        """Run one token; logits (vocab,)."""
        start = self.length if position is None else position
        logits = np.empty((1, self.vocab), np.float32)
        self.decode_into(np.array([token], np.int32), start, logits)
        last: NDArray[np.float32] = logits[0]
        return last

    def decode_into(
        self, token: NDArray[np.int32], position: int, logits: NDArray[np.float32]
    ) -> None:
        """The same without an allocation: token (1,), logits (1, vocab)."""
        self._check(token, position)
        with self._exclusive():
            self.decoder.forward(token, position, logits, True, False)
        self.length = position + 1

    def captured_prefill(
        self, tokens: NDArray[np.int32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """One batch from position 0, with what calibration needs.

        Returns:
            logits (n, vocab), FFN inputs (layers, n, width), hidden (layers, n, neurons).
        """
        n, b = tokens.size, self.bundle
        if n > self.plan.batch:
            raise UsageError(f"captured_prefill takes at most {self.plan.batch} tokens, not {n}")
        inputs = np.zeros((b.layers, self.plan.batch, b.width), np.float32)
        hidden = np.zeros((b.layers, self.plan.batch, b.neurons), np.float32)
        self.decoder.capture(inputs, hidden)
        try:
            logits = self.prefill(tokens, 0, all_logits=True)
        finally:
            self.decoder.capture(None, None)
        return logits, inputs[:, :n], hidden[:, :n]

    def reset(self) -> None:
        """Forget the context and empty the windows."""
        self.length = 0
        self.decoder.reset_windows()

    def _check(self, tokens: NDArray[np.int32], start: int) -> None:
        count = tokens.size
        if count < 1:
            raise UsageError("need at least one token")
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= self.vocab:
            raise UsageError(
                f"tokens must be 0 to {self.vocab - 1}, not {low if low < 0 else high}"
            )
        if start < 0 or start + count > self.plan.context:
            raise UsageError(
                f"{start + count} tokens do not fit the context of {self.plan.context}; "
                "load the model with a larger context, or shorten the prompt"
            )

    def _exclusive(self) -> _Exclusive:
        return _Exclusive(self._lock)


class _Exclusive:
    """A lock that refuses instead of waiting: two generations at once would mix their contexts."""

    def __init__(self, lock: threading.Lock) -> None:
        self.lock = lock

    def __enter__(self) -> None:
        if not self.lock.acquire(blocking=False):
            raise UsageError("the model is in use by another thread; load it once for each thread")

    def __exit__(self, *_: object) -> None:
        self.lock.release()


def verify_bundles(bundle: Bundle) -> None:
    """Check every layer's bundles before one is used; a large file once for each version of it.

    Raises:
        FormatError: a layer's checksum does not match.
    """
    stamp = _stamp(bundle)
    if stamp is not None and stamp.exists():
        return
    for layer in range(bundle.layers):
        bundle.verify_layer(layer)
    if stamp is not None:
        try:
            stamp.parent.mkdir(parents=True, exist_ok=True)
            stamp.touch()
        except OSError:
            pass  # a read-only home: check again next time


def _stamp(bundle: Bundle) -> Path | None:
    if bundle.file.size < VERIFY_ALWAYS_BYTES:
        return None
    info = os.stat(bundle.path)
    crc = bundle.file.get_int("penstock.checksum.header", high=2**32 - 1)
    name = f"{info.st_dev}-{info.st_ino}-{info.st_size}-{info.st_mtime_ns}-{crc:08x}"
    return Path(platformdirs.user_cache_dir("penstock")) / "verified" / name


def with_streamed(plan: Plan, names: frozenset[str]) -> Plan:
    """The same plan with these matrices streamed for every token: the ablations' naive row."""
    return replace(plan, streamed=names)

"""Text from a bundle: the flash engine with its tokenizer, sampler and chat template."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.errors import ContextError, UsageError
from penstock.runtime.chat_template import ChatTemplate
from penstock.runtime.detokenizer import Detokenizer
from penstock.runtime.flash_engine import PREFILL_TOKENS, FlashEngine
from penstock.runtime.language_model import Cancelled
from penstock.runtime.plan import Plan
from penstock.runtime.run_stats import RunStats, Snapshot, collect
from penstock.runtime.sampling import Sampler, SamplingParams
from penstock.runtime.stop_strings import StopMatcher
from penstock.runtime.tokenizer import Tokenizer


class FlashModel:
    """A loaded model, a `LanguageModel`. Made by `penstock.load`.

    Attributes:
        tokenizer: text to tokens and back.
        engine: tokens to logits.
        finish_reason: why the last generation ended: 'stop', 'length', 'context' or 'cancelled'.
        prompt_tokens, completion_tokens: of the last generation; the token that ends a text is
            not counted.
    """

    def __init__(self, engine: FlashEngine, tokenizer: Tokenizer) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self.finish_reason: str | None = None
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self._cached: list[int] = []  # tokens in the KV cache
        self._template: ChatTemplate | None = None
        self._turn = 0  # which generation owns the KV cache
        self._prompts = Snapshot()  # what of the native counters prompts took
        self._generated = 0  # tokens of answers; the last of each may not have been decoded

    @property
    def plan(self) -> Plan:
        return self.engine.plan

    @property
    def context_tokens(self) -> int:
        """Tokens that the prompt and the answer may have together."""
        return self.plan.context

    def generate(
        self,
        prompt: str,
        *,
        max_tokens: int = 128,
        sampling: SamplingParams | None = None,
        cancelled: Cancelled | None = None,
        **options: Any,
    ) -> Iterator[str]:
        """Continue a text, piece by piece.

        Args:
            prompt: the text to continue.
            max_tokens: tokens at most.
            sampling: how tokens are chosen; or its fields as keywords (temperature=0.7, seed=1).
            cancelled: asked before each token, and between the batches of a long prompt; true
                ends the generation with what there is of it.

        Raises:
            UsageError: an option is out of its range.
            ContextError: the prompt does not fit the context.
            StorageError: a read failed; the model can be used again.
        """
        params = _params(sampling, max_tokens, options)
        self._begin()
        ids = self.tokenizer.encode(prompt)
        if not ids:
            ids = self.tokenizer.encode(prompt, add_bos=True)
        if not ids and self.tokenizer.bos_id is not None:
            ids = [self.tokenizer.bos_id]
        if not ids:
            raise UsageError(
                "the prompt is empty and the model has no start token; give it some text"
            )
        return self._stream(ids, params, cancelled)

    def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        max_tokens: int = 256,
        sampling: SamplingParams | None = None,
        cancelled: Cancelled | None = None,
        **options: Any,
    ) -> Iterator[str]:
        """Answer a conversation: [{'role': 'user', 'content': '...'}, ...], piece by piece."""
        params = _params(sampling, max_tokens, options)
        self._begin()
        if self._template is None:
            self._template = _template(self.tokenizer)
        ids = self.tokenizer.encode(self._template.render(messages))
        return self._stream(ids, params, cancelled)

    def _begin(self) -> None:
        """Before anything can refuse a prompt: the counts are never those of another."""
        self.prompt_tokens, self.completion_tokens, self.finish_reason = 0, 0, None

    def _stream(
        self, ids: list[int], params: SamplingParams, cancelled: Cancelled | None
    ) -> Iterator[str]:
        limit = self.plan.context
        self.prompt_tokens, self.completion_tokens = len(ids), 0
        if len(ids) >= limit:
            raise ContextError(
                f"the prompt has {len(ids)} tokens, the context is {limit}; "
                "shorten it, or load the model with a larger context"
            )
        sampler, text = Sampler(params), Detokenizer(self.tokenizer, context=ids)
        stops = StopMatcher(params.stop)
        logits = np.empty((1, self.engine.vocab), np.float32)
        token = np.empty(1, np.int32)
        history = list(ids)
        self._turn += 1
        turn = self._turn
        self.finish_reason = None
        first = self._prompt(ids, cancelled)
        if first is None:
            self.finish_reason = "cancelled"
            return
        logits[0] = first
        self.finish_reason = "length"
        for count in range(params.max_tokens):
            if cancelled is not None and cancelled():
                self.finish_reason = "cancelled"
                return
            chosen = sampler.sample(logits[0], history)
            if chosen in self.tokenizer.eos_ids:
                self.finish_reason = "stop"
                break
            history.append(chosen)
            self._generated += 1
            self.completion_tokens += 1
            piece, stopped = stops.push(text.push(chosen))
            if piece:
                yield piece
                self._still_mine(turn)
            if stopped:
                self.finish_reason = "stop"
                return
            if count + 1 == params.max_tokens:
                break
            if len(history) > limit:
                self.finish_reason = "context"
                break
            token[0] = chosen
            self._decode(token, len(history) - 1, logits)
        piece, stopped = stops.push(text.flush())
        rest = piece if stopped else piece + stops.flush()
        if rest:
            yield rest

    def _still_mine(self, turn: int) -> None:
        if turn != self._turn:
            raise UsageError(
                "another generation has started on this model, which has one context; finish or "
                "drop this one first, or load the model twice"
            )

    def _prompt(
        self, ids: list[int], cancelled: Cancelled | None = None
    ) -> NDArray[np.float32] | None:
        """Run what of the prompt is not in the cache yet: a chat keeps its earlier turns.

        Returns:
            logits (vocab,) of the last token; None when it was cancelled.
        """
        kept = 0
        for have, want in zip(self._cached, ids[:-1], strict=False):
            if have != want:
                break
            kept += 1
        self._cached = self._cached[:kept]
        before = Snapshot.of(self.engine)
        batch = self.plan.batch
        try:
            # Batch by batch, as the engine would; what is left for the end is never a short prompt.
            while cancelled is not None and len(ids) - kept >= batch + PREFILL_TOKENS:
                if cancelled():
                    return None
                self.engine.prefill(np.array(ids[kept : kept + batch], np.int32), kept)
                kept += batch
                self._cached = ids[:kept]
            out = self.engine.prefill(np.array(ids[kept:], np.int32), kept)
        finally:
            self._prompts += Snapshot.of(self.engine) - before
        self._cached = list(ids)
        return out

    def _decode(self, token: NDArray[np.int32], position: int, logits: NDArray[np.float32]) -> None:
        self.engine.decode_into(token, position, logits)
        self._cached.append(int(token[0]))

    def stats(self) -> RunStats:
        """Bytes, hits, throughput and times since the last reset_stats()."""
        return collect(self.engine, self._prompts, self._generated)

    def reset_stats(self) -> None:
        """Start counting anew."""
        self._prompts, self._generated = Snapshot(), 0
        self.engine.decoder.reset_stats()

    def record_trace(self, path: str | os.PathLike[str]) -> AbstractContextManager[None]:
        """Not for bundles, which have no routers; see `GgufModel.record_trace`.

        Raises:
            UsageError: always.
        """
        raise UsageError(
            f"{path}: nothing can be recorded; this model is a Penstock bundle, which has no "
            "experts, so there is no router to record"
        )

    def reset(self) -> None:
        """Forget the conversation and empty the windows."""
        self._turn += 1
        self._cached = []
        self.engine.reset()


def _template(tokenizer: Tokenizer) -> ChatTemplate:
    bos, eos = tokenizer.bos_id, min(tokenizer.eos_ids, default=None)
    return ChatTemplate(
        tokenizer.chat_template,
        bos_token="" if bos is None else tokenizer.piece(bos) or "",
        eos_token="" if eos is None else tokenizer.piece(eos) or "",
    )


def _params(
    sampling: SamplingParams | None, max_tokens: int, options: dict[str, Any]
) -> SamplingParams:
    if sampling is not None:
        if options:
            raise UsageError(
                "give sampling=SamplingParams(...) or its fields as keywords, not both"
            )
        return sampling
    try:
        return SamplingParams(max_tokens=max_tokens, **options)
    except TypeError as error:
        raise UsageError(f"unknown generation option: {error}") from None

"""Text from an ordinary GGUF file: the engine with llama.cpp's tokenizer and samplers."""

from __future__ import annotations

import codecs
import ctypes
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

from penstock.errors import ContextError, UsageError
from penstock.runtime.budget import memory_in_use
from penstock.runtime.chat_template import ChatTemplate
from penstock.runtime.gguf.engine import GgufEngine
from penstock.runtime.gguf.plan import GgufPlan
from penstock.runtime.gguf.recording import record_trace
from penstock.runtime.gguf.stats import GgufStats
from penstock.runtime.gguf.tokenizing import GgufTokenizer
from penstock.runtime.language_model import Cancelled
from penstock.runtime.sampling import SamplingParams
from penstock.runtime.stop_strings import StopMatcher


@dataclass(frozen=True)
class _Counts:
    """Counters at one moment."""

    bytes: int = 0
    reads: int = 0
    busy_ns: int = 0
    wait_ns: int = 0
    decode_ns: int = 0
    used: int = 0
    misses: int = 0

    def minus(self, other: _Counts) -> _Counts:
        return _Counts(*(getattr(self, f) - getattr(other, f) for f in self.__dataclass_fields__))

    def plus(self, other: _Counts) -> _Counts:
        return _Counts(*(getattr(self, f) + getattr(other, f) for f in self.__dataclass_fields__))


class GgufModel:
    """A loaded model; a `LanguageModel`. Made by `penstock.load`."""

    def __init__(self, engine: GgufEngine) -> None:
        self.engine = engine
        self.finish_reason: str | None = None
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self._cached: list[int] = []
        self._tokenizer = GgufTokenizer(engine.lib, engine.weights.vocabulary, engine.plan.context)
        self._template: ChatTemplate | None = None
        self._turn = 0
        self._last: _Counts | None = None  # counters at the end, of a closed model
        self._start = self._counts()
        self._prompts = _Counts()
        self._tokens = self._generated = self._decoded = 0

    @property
    def plan(self) -> GgufPlan:
        return self.engine.plan

    @property
    def context_tokens(self) -> int:
        """Tokens that the prompt and the answer may have together."""
        return self.plan.context

    # ------------------------------------------------------------ text

    def generate(
        self,
        prompt: str,
        *,
        max_tokens: int = 128,
        sampling: SamplingParams | None = None,
        cancelled: Cancelled | None = None,
        **options: Any,
    ) -> Iterator[str]:
        """Continue a text, piece by piece; see `LanguageModel.generate`."""
        params = _params(sampling, max_tokens, options)
        self._begin()
        ids = self.tokenize(prompt, add_special=True)
        if not ids:
            bos = self.engine.lib.llama_vocab_bos(self.engine.vocab_handle)
            if bos < 0:
                raise UsageError(
                    "the prompt is empty and the model has no start token; give it some text"
                )
            ids = [bos]
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
        """Answer a conversation, piece by piece; see `LanguageModel.chat`."""
        params = _params(sampling, max_tokens, options)
        self._begin()
        lib, vocab = self.engine.lib, self.engine.vocab_handle
        bos, eos = (
            self._special(i) for i in (lib.llama_vocab_bos(vocab), lib.llama_vocab_eos(vocab))
        )
        if self._template is None:
            source = lib.llama_model_chat_template(self.engine.model, None)
            text = source.decode("utf-8", "replace") if source else None
            self._template = ChatTemplate(text, bos_token=bos, eos_token=eos)
        text = self._template.render(messages)
        # Many templates write the start token themselves.
        ids = self.tokenize(
            text, add_special=not (bos and text.startswith(bos)), parse_special=True
        )
        return self._stream(ids, params, cancelled)

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool = False) -> list[int]:
        """llama.cpp's tokens of a text.

        Raises:
            ContextError: so long a text cannot fit the context.
            UsageError: a line of it is too long for llama.cpp.
        """
        return self._tokenizer.encode(self.engine.vocab_handle, text, add_special, parse_special)

    def piece(self, token: int, special: bool = False) -> bytes:
        """The bytes of a token."""
        lib, size = self.engine.lib, 64
        while True:
            out = ctypes.create_string_buffer(size)
            count = lib.llama_token_to_piece(self.engine.vocab_handle, token, out, size, 0, special)
            if count >= 0:
                return out.raw[:count]
            size = -count

    def _special(self, token: int) -> str:
        return self.piece(token, special=True).decode("utf-8", "replace") if token >= 0 else ""

    def _begin(self) -> None:
        """Before anything can refuse a prompt: the counts are never those of another."""
        self.prompt_tokens, self.completion_tokens, self.finish_reason = 0, 0, None

    def _stream(
        self, ids: list[int], params: SamplingParams, cancelled: Cancelled | None
    ) -> Iterator[str]:
        engine, lib = self.engine, self.engine.lib
        self.prompt_tokens, self.completion_tokens, self.finish_reason = len(ids), 0, None
        if len(ids) >= self.plan.context:
            raise ContextError(
                f"the prompt has {len(ids)} tokens, the context is {self.plan.context}; "
                "shorten it, or load the model with a larger context"
            )
        self._turn += 1
        turn = self._turn
        text, stops = codecs.getincrementaldecoder("utf-8")("replace"), StopMatcher(params.stop)
        sampler = _Sampler(lib, engine.vocab, params, ids)
        try:
            if not self._prompt(ids, cancelled):
                self.finish_reason = "cancelled"
                return
            history = list(ids)
            reason = "length"
            while True:
                if cancelled is not None and cancelled():
                    reason = "cancelled"
                    break
                token = sampler.next(engine.context)
                if lib.llama_vocab_is_eog(engine.vocab_handle, token):
                    reason = "stop"
                    break
                history.append(token)
                self.completion_tokens += 1
                self._generated += 1
                piece, stopped = stops.push(text.decode(self.piece(token)))
                if piece:
                    yield piece
                    engine.check_open()
                    if turn != self._turn:
                        raise UsageError(
                            "another generation has started on this model, which has one context; "
                            "finish or drop this one first, or load the model twice"
                        )
                if stopped:
                    self.finish_reason = "stop"
                    return
                if self.completion_tokens == params.max_tokens:
                    break
                if len(history) > self.plan.context:
                    reason = "context"
                    break
                engine.decode([token])
                self._cached.append(token)
                self._tokens += 1
                self._decoded += 1
            self.finish_reason = reason
            piece, stopped = stops.push(text.decode(b"", final=True))
            rest = piece if stopped else piece + stops.flush()
            if rest:
                yield rest
        finally:
            sampler.close()

    def _prompt(self, ids: list[int], cancelled: Cancelled | None) -> bool:
        """Run what of the prompt is not in the cache yet; False when cancelled on the way."""
        kept = 0
        self._cached = self._cached[: self.engine.length]  # a pass that failed may have lost some
        for have, want in zip(self._cached, ids[:-1], strict=False):
            if have != want:
                break
            kept += 1
        self.engine.truncate(kept)
        self._cached = self._cached[: self.engine.length]
        before = self._counts()
        step = max(self.plan.batch, 1) if cancelled is not None else len(ids)
        try:
            while len(self._cached) < len(ids):
                if cancelled is not None and cancelled():
                    return False
                part = ids[len(self._cached) : len(self._cached) + step]
                self.engine.decode(part)
                self._cached += part
                self._tokens += len(part)
        finally:
            self._prompts = self._prompts.plus(self._counts().minus(before))
        return True

    # ------------------------------------------------------------ figures

    def _counts(self) -> _Counts:
        s = self.engine.streamer
        if self._last is not None:
            return self._last
        if s is None:
            return _Counts(decode_ns=self.engine.decode_ns)
        native, experts = s.stats(), s.expert_stats()
        return _Counts(
            native.bytes, native.reads, native.busy_ns, native.wait_ns, self.engine.decode_ns,
            experts.used, experts.misses,
        )  # fmt: skip

    def stats(self) -> GgufStats:
        """Since the last reset_stats()."""
        now = self._counts().minus(self._start)
        decoded = now.minus(self._prompts)
        total = now.decode_ns * 1e-9
        storage = now.wait_ns * 1e-9
        seconds = decoded.decode_ns * 1e-9
        found = GgufStats(
            tokens=self._tokens,
            generated=self._generated,
            decoded=self._decoded,
            read_bytes=now.bytes,
            per_token_bytes=decoded.bytes / self._decoded if self._decoded else 0.0,
            reads=now.reads,
            hit_rate=1.0 - now.misses / now.used if now.used else 1.0,
            effective_throughput=now.bytes / (now.busy_ns * 1e-9) if now.busy_ns else 0.0,
            raw_throughput=self.plan.profile.sequential_bytes_per_second,
            total=total,
            storage=storage,
            compute=max(0.0, total - storage),
            tokens_per_second=self._decoded / seconds if seconds else 0.0,
            planned_memory=self.plan.total,
            process_memory=memory_in_use(),
            experts=self.plan.experts,
        )
        if self.plan.mode != "mapped":
            return found
        return replace(
            found,
            read_bytes=None,
            per_token_bytes=None,
            reads=None,
            hit_rate=None,
            effective_throughput=None,
            storage=None,
            compute=None,
        )

    def record_trace(self, path: str | os.PathLike[str]) -> AbstractContextManager[None]:
        """Record which experts the routers choose while the `with` block runs, into a file.

        The file is written when the block ends, whole or not at all, and not when it ends by an
        error. Until then the choices are in memory, four bytes each.

        Raises:
            UsageError: the model has no experts, or they are not streamed; on entering.
            StorageError: the file cannot be written: on entering, as far as is known then.
        """
        return record_trace(self.engine, path)

    def reset_stats(self) -> None:
        """Start counting anew."""
        self._start = self._counts()
        self._prompts = _Counts()
        self._tokens = self._generated = self._decoded = 0

    def reset(self) -> None:
        """Forget the conversation. What is worth most of the weights stays in memory."""
        self._turn += 1
        self._cached = []
        self.engine.truncate(0)

    def close(self) -> None:
        """Give the memory back; the model cannot be used any more, its stats() remain."""
        self._turn += 1
        self._last = self._counts()
        self.engine.close()


class _Sampler:
    """llama.cpp's chain of samplers for one generation, in the order of `runtime.sampling`."""

    def __init__(self, lib: Any, vocab: int, params: SamplingParams, prompt: list[int]) -> None:
        self._lib = lib
        self._chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        if params.repetition_penalty != 1.0 and params.repetition_window:
            self._add(
                lib.llama_sampler_init_penalties(
                    vocab, params.repetition_window, params.repetition_penalty, 0.0, 0.0
                )
            )
        if params.temperature == 0:
            self._add(lib.llama_sampler_init_greedy())
        else:
            self._add(lib.llama_sampler_init_temp(params.temperature))
            if params.top_k:
                self._add(lib.llama_sampler_init_top_k(params.top_k))
            if params.top_p < 1:
                self._add(lib.llama_sampler_init_top_p(params.top_p, 1))
            if params.min_p > 0:
                self._add(lib.llama_sampler_init_min_p(params.min_p, 1))
            seed = secrets.randbits(32) if params.seed is None else params.seed % (1 << 32)
            # 2^32 - 1 means "any seed" to llama.cpp.
            self._add(lib.llama_sampler_init_dist(min(seed, (1 << 32) - 2)))
        for token in prompt[-params.repetition_window :] if params.repetition_window else []:
            lib.llama_sampler_accept(self._chain, token)

    def _add(self, sampler: Any) -> None:
        self._lib.llama_sampler_chain_add(self._chain, sampler)

    def next(self, context: Any) -> int:
        """The next token, from the logits of the last."""
        return int(self._lib.llama_sampler_sample(self._chain, context, -1))

    def close(self) -> None:
        if self._chain is not None:
            self._lib.llama_sampler_free(self._chain)
        self._chain = None


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

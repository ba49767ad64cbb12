"""Tokens to logits: stock llama.cpp, its weights kept in memory by the streamer."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.errors import FormatError, StorageError, UnsupportedModelError, UsageError
from penstock.loaders.expert_trace import TraceRecorder
from penstock.loaders.file_mapping import mapped_ranges, new_mapping
from penstock.loaders.weight_map import WeightMap
from penstock.runtime.gguf.library import LOAD_MMAP, last_error, library_folder, llama
from penstock.runtime.gguf.plan import KV_TYPES, GgufPlan
from penstock.runtime.gguf.streaming import give_heap_back, start_streamer, used_weights

FLASH_ATTENTION = 1  # a quantized KV cache needs it


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter in GGUF."""

    path: Path
    scale: float = 1.0


class GgufEngine:
    """One model with one context. Made by `penstock.load`.

    Attributes:
        plan: what is in memory.
        length: tokens in the KV cache.
        streamer: None where all weights are resident.
    """

    def __init__(
        self, weights: WeightMap, plan: GgufPlan, adapters: Sequence[Adapter] = ()
    ) -> None:
        self.plan = plan
        self.weights = weights
        self.length = 0
        self.lib = llama()
        self.streamer: Any = None
        self._model: Any = None
        self._context: Any = None
        self._adapters: list[Any] = []
        self._stamps = [_stamp(file.path) for file in weights.files]
        self._recorder: TraceRecorder | None = None
        self.decode_ns = 0
        try:
            self._load()
            self._make_context()
            self._adapt(adapters)
        except BaseException:
            self.close()
            raise
        self.vocab = int(self.lib.llama_vocab_n_tokens(self.vocab_handle))

    @property
    def model(self) -> Any:
        """llama.cpp's handle of the model."""
        self.check_open()
        return self._model

    @property
    def context(self) -> Any:
        """llama.cpp's handle of the context."""
        self.check_open()
        return self._context

    @property
    def vocab_handle(self) -> Any:
        """llama.cpp's handle of the vocabulary."""
        return self.lib.llama_model_get_vocab(self.model)

    def check_open(self) -> None:
        """Raises UsageError after `close`."""
        if self._context is None:
            raise UsageError(f"{self.plan.path}: the model is closed; load it again")

    def _load(self) -> None:
        params = self.lib.llama_model_default_params()
        # The CPU alone, also where the library was built for more: of an operation on a GPU, the
        # streamer would be shown copies of the weights and not the memory that it fills.
        params.n_gpu_layers = 0
        no_devices = (ctypes.c_void_p * 1)(None)
        params.load_mtp = False  # blocks that are skipped, see weight_map
        params.devices = ctypes.cast(no_devices, dict(params._fields_)["devices"])
        streamed = self.plan.mode in ("stream", "experts")
        if streamed or self.plan.mode == "mapped":
            params.load_mode = LOAD_MMAP
            params.use_extra_bufts = False  # repacked weights would be a second copy
        paths = [file.path for file in self.weights.files]
        before = [mapped_ranges(path) for path in paths] if streamed else []
        self._model = self.lib.llama_model_load_from_file(os.fsencode(paths[0]), params)
        if not self._model:
            arch = self.plan.arch
            raise UnsupportedModelError(
                f"{paths[0]}: llama.cpp does not load it (architecture '{arch}'): {last_error()}"
            )
        self._check_state()
        give_heap_back()
        if streamed:
            found = [
                new_mapping(old, mapped_ranges(path), path)
                for old, path in zip(before, paths, strict=True)
            ]
            self.weights = used_weights(self.weights, found)
            self.streamer = start_streamer(self.weights, self.plan, found, library_folder(self.lib))

    def _check_state(self) -> None:
        """Raises UnsupportedModelError where a budget does not cover what the model remembers."""
        recurrent = self.lib.llama_model_is_recurrent, self.lib.llama_model_is_hybrid
        if (
            self.plan.budget is None
            or self.plan.state
            or not any(f(self._model) for f in recurrent)
        ):
            return
        raise UnsupportedModelError(
            f"{self.plan.path}: the architecture '{self.plan.arch}' has recurrent layers whose "
            "state is not counted, so that no memory budget would hold; load it without one"
        )

    def _make_context(self) -> None:
        plan = self.plan
        params = self.lib.llama_context_default_params()
        params.n_ctx = plan.context
        params.n_batch = plan.context
        params.n_ubatch = plan.batch
        params.n_outputs_max = 1
        params.n_threads = params.n_threads_batch = plan.threads
        params.no_perf = True
        params.op_offload = params.offload_kqv = False
        if plan.kv_type != "f16":
            params.type_k = params.type_v = KV_TYPES[plan.kv_type]
            params.flash_attn_type = FLASH_ATTENTION
        if self.streamer is not None:
            kind = dict(params._fields_)["cb_eval"]
            params.cb_eval = ctypes.cast(self.streamer.callback, kind)
            params.cb_eval_user_data = self.streamer.user_data
            kind = dict(params._fields_)["abort_callback"]
            params.abort_callback = ctypes.cast(self.streamer.abort_callback, kind)
            params.abort_callback_data = self.streamer.user_data
        self._context = self.lib.llama_init_from_model(self._model, params)
        if not self._context:
            raise UnsupportedModelError(
                f"{plan.path}: llama.cpp makes no context of {plan.context} tokens: {last_error()}"
            )

    def _adapt(self, adapters: Sequence[Adapter]) -> None:
        for adapter in adapters:
            made = self.lib.llama_adapter_lora_init(self._model, os.fsencode(adapter.path))
            if not made:
                raise FormatError(
                    f"{adapter.path}: not a LoRA adapter of {self.plan.path}: {last_error()}"
                )
            self._adapters.append(made)
        if self._adapters:
            count = len(self._adapters)
            handles = (self.lib.llama_adapter_lora_p_ctypes * count)(*self._adapters)
            scales = (ctypes.c_float * count)(*(a.scale for a in adapters))
            self.lib.llama_set_adapters_lora(self._context, handles, count, scales)

    def decode(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Run tokens after those in the cache; logits (vocab,) after the last, until the next call.

        Raises:
            UsageError: the context is full, or the engine is closed.
            StorageError: a read failed or the file changed; the engine can be used again, with
                `length` tokens in its cache.
        """
        if not tokens or self.length + len(tokens) > self.plan.context:
            raise UsageError(
                f"{self.length} + {len(tokens)} tokens do not fit the context of "
                f"{self.plan.context}"
            )
        context = self.context
        self.check_unchanged()  # of a file that was cut short, a mapped page cannot be touched
        ids = (ctypes.c_int32 * len(tokens))(*tokens)
        began = perf_counter_ns()
        done = self.lib.llama_decode(context, self.lib.llama_batch_get_one(ids, len(tokens)))
        self.decode_ns += perf_counter_ns() - began
        failure = self.streamer.take_failure() if self.streamer is not None else ""
        chosen = self.streamer.take_trace() if self._recorder is not None else []
        if failure or done != 0:
            kept = self.length
            self.truncate(kept)
            raise StorageError(failure or f"{self.plan.path}: llama_decode failed with {done}")
        self.length += len(tokens)
        if self._recorder is not None:
            self._recorder.add(chosen, prompt=len(tokens) > 1)
        found = self.lib.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(found, (self.vocab,))

    def start_recording(self, recorder: TraceRecorder) -> None:
        """Give `recorder` what routers choose, of every pass that does not fail.

        Raises:
            UsageError: another recording is under way.
        """
        if self._recorder is not None:
            raise UsageError(f"{self.plan.path}: it is being recorded already; end that first")
        self._recorder = recorder
        self.streamer.take_trace()
        self.streamer.record(True)

    def stop_recording(self) -> None:
        """End it."""
        self._recorder = None
        if self.streamer is not None:  # None once closed
            self.streamer.record(False)
            self.streamer.take_trace()

    def check_unchanged(self) -> None:
        """Raises StorageError when a file was written to since it was loaded.

        One that was deleted or replaced by another goes on as it was: it is mapped.
        """
        for number, file in enumerate(self.weights.files):
            if self.streamer is not None:
                unchanged = self.streamer.unchanged(number)
            else:
                then, now = self._stamps[number], _stamp(file.path)
                unchanged = now == then or now[:2] != then[:2]
            if not unchanged:
                raise StorageError(
                    f"{file.path}: it was changed while in use; load the model again"
                )

    def truncate(self, length: int) -> None:
        """Keep the first `length` tokens of the cache; all or none where a model cannot cut.

        Raises:
            UsageError: there are not so many.
        """
        if length > self.length:
            raise UsageError(f"{self.plan.path}: of {self.length} tokens, {length} cannot be kept")
        memory = self.lib.llama_get_memory(self.context)
        if length > 0 and self.lib.llama_memory_seq_rm(memory, 0, length, -1):
            self.length = length
            return
        self.lib.llama_memory_clear(memory, True)
        self.length = 0

    def close(self) -> None:
        """Give everything back. llama.cpp unmaps its mapping, and with it the memory under it."""
        if self._context is not None:
            self.lib.llama_free(self._context)
        self.streamer = None  # before the mapping goes: no read may be under way
        if self._model is not None:
            self.lib.llama_model_free(self._model)
        self._context = self._model = None
        self._adapters = []  # llama.cpp frees them with the model

    def __del__(self) -> None:
        if getattr(self, "lib", None) is not None:
            self.close()


def _stamp(path: Path) -> tuple[int, int, int, int]:
    """What changes when a file is written to, after what changes when it is another file."""
    try:
        s = os.stat(path)
    except OSError:
        return (-1, -1, -1, -1)
    return s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns

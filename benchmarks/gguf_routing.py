"""What unmodified llama.cpp computes for a GGUF file: logits, and which experts each layer chose.

python -m benchmarks.gguf_routing /work/bench/olmoe.gguf
"""

from __future__ import annotations

import argparse
import ctypes
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import llama_cpp
import numpy as np
from llama_cpp._ctypes_extensions import load_shared_library
from numpy.typing import NDArray

Floats = NDArray[np.float32]
_BASE = load_shared_library("ggml-base", Path(llama_cpp.__file__).parent / "lib")
_BASE.ggml_get_name.restype = ctypes.c_char_p
_BASE.ggml_get_data.restype = ctypes.c_void_p
for _name in ("ggml_get_name", "ggml_get_data"):
    getattr(_BASE, _name).argtypes = [ctypes.c_void_p]

_ERROR = 4  # ggml's log level


def _print_errors(level: int, text: bytes, data: int | None) -> None:
    if level == _ERROR:
        print(text.decode(errors="replace"), end="", file=sys.stderr)


_LOG = llama_cpp.llama_log_callback(_print_errors)  # lives as long as llama.cpp may call it


class _Header(ctypes.Structure):
    """The start of ggml's struct ggml_tensor."""

    _fields_ = [
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
    ]


@dataclass
class Trace:
    """What was seen while tokens were decoded.

    Attributes:
        logits: (tokens, vocab).
        experts: layer -> (tokens, used): the experts chosen.
        sizes: layer -> deviation of its output, for each token.
    """

    logits: Floats
    experts: dict[int, NDArray[np.int32]] = field(default_factory=dict)
    sizes: dict[int, Floats] = field(default_factory=dict)

    def kept(self, distance: int = 1) -> dict[int, float]:
        """Layer -> mean share of a token's experts that the token `distance` before used too."""
        out = {}
        for layer, chosen in self.experts.items():
            same = chosen[distance:, :, None] == chosen[:-distance, None, :]
            out[layer] = float(same.any(axis=2).mean())
        return out

    def counts(self, layer: int, experts: int) -> NDArray[np.int64]:
        """How often each expert was chosen."""
        return np.bincount(self.experts[layer].reshape(-1), minlength=experts)


class Model:
    """A model in llama.cpp, through the low-level interface of llama-cpp-python."""

    def __init__(
        self, path: Path, context: int = 512, threads: int = 1, adapter: Path | None = None
    ) -> None:
        llama_cpp.llama_backend_init()
        llama_cpp.llama_log_set(_LOG, None)
        self.model = llama_cpp.llama_model_load_from_file(
            str(path).encode(), llama_cpp.llama_model_default_params()
        )
        if not self.model:
            raise ValueError(f"llama.cpp does not load {path}")
        self.seen: dict[str, list[NDArray[Any]]] = {}
        # Kept here: llama.cpp calls it for as long as the context lives.
        self._callback = llama_cpp.llama_cpp.ggml_backend_sched_eval_callback(self._on_tensor)
        options = llama_cpp.llama_context_default_params()
        options.n_ctx, options.n_threads, options.n_threads_batch = context, threads, threads
        options.cb_eval = self._callback
        self.context = llama_cpp.llama_init_from_model(self.model, options)
        self.vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        if adapter is not None:
            loaded = llama_cpp.llama_adapter_lora_init(self.model, str(adapter).encode())
            if not loaded:
                raise ValueError(f"llama.cpp does not load the adapter {adapter}")
            adapters = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(loaded)
            scales = (ctypes.c_float * 1)(1.0)
            llama_cpp.llama_set_adapters_lora(self.context, adapters, 1, scales)

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        llama_cpp.llama_free(self.context)
        llama_cpp.llama_model_free(self.model)

    def decode(self, tokens: list[int]) -> Trace:
        """One token after another, from the context's start."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        self.seen = {}
        logits = np.stack([self.step(token) for token in tokens])
        trace = Trace(logits)
        for name, parts in self.seen.items():
            layer = int(name.rsplit("-", 1)[1])
            if name.startswith("ffn_moe_topk-"):
                trace.experts[layer] = np.concatenate(parts)
            else:
                trace.sizes[layer] = np.concatenate(parts).std(axis=1)
        return trace

    def step(self, token: int) -> Floats:
        """The logits after one more token."""
        batch = llama_cpp.llama_batch_get_one((ctypes.c_int32 * 1)(token), 1)
        if llama_cpp.llama_decode(self.context, batch):
            raise ValueError(f"llama.cpp cannot decode token {token}")
        found = llama_cpp.llama_get_logits(self.context)
        return np.ctypeslib.as_array(found, (self.vocab,)).copy()

    def _on_tensor(self, tensor: int, ask: bool, data: int) -> bool:
        name = _BASE.ggml_get_name(tensor).decode()
        wanted: bool = name.startswith(("ffn_moe_topk-", "l_out-"))
        if ask or not wanted:
            return wanted
        head = _Header.from_address(tensor)
        kind: type[Any] = np.int32 if name.startswith("ffn_moe_topk-") else np.float32
        columns, rows, stride = head.ne[0], head.ne[1], head.nb[1]
        size = (rows - 1) * stride + 4 * columns
        raw = (ctypes.c_char * size).from_address(_BASE.ggml_get_data(tensor))
        view = np.ndarray((rows, columns), kind, raw, strides=(stride, 4))
        self.seen.setdefault(name, []).append(view.copy())
        return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    with Model(args.path, threads=args.threads) as model:
        tokens = np.random.default_rng(1).integers(4, model.vocab, args.tokens).tolist()
        trace = model.decode(tokens)
        print(
            f"logits: deviation {trace.logits.std():.2f}, finite {np.isfinite(trace.logits).all()}"
        )
        for layer, kept in trace.kept().items():
            used = len(np.unique(trace.experts[layer]))
            size = trace.sizes.get(layer, np.zeros(1)).mean()
            print(f"layer {layer:2}: kept {kept:.3f}, {used} experts used, output {size:.2f}")


if __name__ == "__main__":
    main()

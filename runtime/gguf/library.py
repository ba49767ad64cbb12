"""llama-cpp-python, checked for what the engine calls and sets before it is used."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

from penstock.errors import BackendMissingError, UnsupportedModelError

VERSION = "0.3.36"  # the one that this engine is tested with
# Arguments of each function that is called; of a callback's type, those that it is called with.
SIGNATURES = {
    "llama_backend_init": 0, "llama_log_set": 2, "llama_log_callback": 3,
    "llama_model_default_params": 0, "llama_model_load_from_file": 2, "llama_model_free": 1,
    "llama_model_get_vocab": 1, "llama_model_chat_template": 2,
    "llama_model_is_recurrent": 1, "llama_model_is_hybrid": 1, "llama_context_default_params": 0,
    "llama_init_from_model": 2, "llama_free": 1, "llama_decode": 2, "llama_batch_get_one": 2,
    "llama_get_memory": 1, "llama_memory_clear": 2, "llama_memory_seq_rm": 4,
    "llama_get_logits_ith": 2, "llama_vocab_n_tokens": 1, "llama_vocab_is_eog": 2,
    "llama_vocab_bos": 1, "llama_vocab_eos": 1, "llama_tokenize": 7, "llama_token_to_piece": 6,
    "llama_sampler_chain_default_params": 0, "llama_sampler_chain_init": 1,
    "llama_sampler_chain_add": 2, "llama_sampler_init_greedy": 0, "llama_sampler_init_dist": 1,
    "llama_sampler_init_temp": 1, "llama_sampler_init_top_k": 1, "llama_sampler_init_top_p": 2,
    "llama_sampler_init_min_p": 2, "llama_sampler_init_penalties": 5, "llama_sampler_sample": 3,
    "llama_sampler_accept": 2, "llama_sampler_free": 1, "llama_adapter_lora_init": 2,
    "llama_set_adapters_lora": 4,
}  # fmt: skip
MODEL_FIELDS = ("load_mode", "use_extra_bufts", "n_gpu_layers", "devices", "load_mtp")
CONTEXT_FIELDS = (
    "n_ctx", "n_batch", "n_ubatch", "n_threads", "n_threads_batch", "n_outputs_max", "type_k",
    "type_v", "flash_attn_type", "cb_eval", "cb_eval_user_data", "no_perf", "op_offload",
    "abort_callback", "abort_callback_data",
    "offload_kqv",
)  # fmt: skip
LOAD_MMAP = 1

_log: Any = None  # llama.cpp keeps the callback; it must live as long as the process


def llama() -> Any:
    """The module `llama_cpp`, its log silenced.

    Raises:
        BackendMissingError: it is not installed.
        UnsupportedModelError: a name that is needed is not there, or takes other arguments.
    """
    global _log
    _let_threads_sleep()
    try:
        import llama_cpp
    except ImportError:
        raise BackendMissingError(
            "ordinary GGUF files run on llama-cpp-python, which is not installed; install it with: "
            "pip install 'penstock[llama]'"
        ) from None
    missing = [name for name in SIGNATURES if not hasattr(llama_cpp, name)]
    if not missing:
        for name, wanted in SIGNATURES.items():
            found = _arguments(getattr(llama_cpp, name))
            if found not in (wanted, None):
                missing.append(f"{name} with {wanted} arguments (it has {found})")
        fields = _fields(llama_cpp.llama_model_default_params())
        missing += [f"llama_model_params.{name}" for name in MODEL_FIELDS if name not in fields]
        fields = _fields(llama_cpp.llama_context_default_params())
        missing += [f"llama_context_params.{name}" for name in CONTEXT_FIELDS if name not in fields]
    if missing:
        version = getattr(llama_cpp, "__version__", "unknown")
        raise UnsupportedModelError(
            f"llama-cpp-python {version} lacks {', '.join(missing)}; this engine needs version "
            f"{VERSION}: pip install llama-cpp-python=={VERSION}"
        )
    if _log is None:
        _log = llama_cpp.llama_log_callback(_Log.line)
        llama_cpp.llama_log_set(_log, None)
        llama_cpp.llama_backend_init()
    return llama_cpp


def _let_threads_sleep() -> None:
    """Have OpenMP's threads spin for half a millisecond at a barrier, not for up to 15.

    While the graph waits for storage, threads that spin take the processor from the reads; a token
    of streamed experts takes a tenth longer, one beside another busy program several times as long.
    What is all in memory runs at the same speed. It must be set before the library is loaded, and
    what the user has set stays.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = "20000"


class _Log:
    """The last lines of llama.cpp's log that tell of errors; they explain a failed load."""

    errors: list[str] = []

    @staticmethod
    def line(level: int, text: bytes, _: object) -> None:
        if level == 4:  # GGML_LOG_LEVEL_ERROR
            _Log.errors = [*_Log.errors[-4:], text.decode("utf-8", "replace").strip()]


def last_error() -> str:
    """What llama.cpp said of its last failure; forgotten after this."""
    errors, _Log.errors = _Log.errors, []
    return "; ".join(errors) or "it gave no reason"


def library_folder(llama_cpp: Any) -> Path:
    """Where the wheel keeps its shared libraries."""
    return Path(llama_cpp.__file__).parent / "lib"


def _arguments(function: Any) -> int | None:
    """How many it takes; None where that is not told."""
    types = getattr(function, "_argtypes_" if isinstance(function, type) else "argtypes", None)
    return None if types is None else len(types)


def _fields(params: ctypes.Structure) -> set[str]:
    return {field[0] for field in params._fields_}

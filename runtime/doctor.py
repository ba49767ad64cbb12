"""What works here: every engine runs a small model, every optional library is imported.

Libraries are tried in processes of their own. One that was built for another processor does not
raise an error, it kills its process.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs

from penstock import _native
from penstock.errors import PenstockError, StorageError
from penstock.loaders.cores import usable_cores
from penstock.runtime.budget import available_memory, format_size, memory_limit
from penstock.runtime.embedded import EXACT_SHARE, embedded_model
from penstock.runtime.gguf.library import VERSION as LLAMA_VERSION
from penstock.runtime.load import load_bundle

WORKS, FAILED, ABSENT, NOTE = "works", "failed", "not installed", "note"
TIMEOUT_S = 300
PROMPT, TOKENS = "Once upon a time", 12


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        group: 'system', 'storage', 'libraries' or 'engines'.
        state: 'works', 'failed', 'not installed', or 'note' for what is a fact and not a test.
        facts: the same for machines.
    """

    group: str
    name: str
    state: str
    detail: str
    facts: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """For --json."""
        return asdict(self)


@dataclass(frozen=True)
class Library:
    """An optional library: the name to install it by, the one to import, the extra with it."""

    name: str
    module: str
    extra: str
    tested: str | None = None


LIBRARIES = (
    Library("llama-cpp-python", "llama_cpp", "llama", LLAMA_VERSION),
    Library("onnxruntime", "onnxruntime", "onnx"),
    Library("ai-edge-litert", "ai_edge_litert", "litert"),
    Library("pillow", "PIL", "caption"),
    Library("flwr", "flwr", "federated"),
    Library("starlette", "starlette", "serve"),
    Library("uvicorn", "uvicorn", "serve"),
    Library("torch", "torch", "export"),
    Library("transformers", "transformers", "export"),
)
BACKENDS = {"onnx": "onnxruntime", "litert": "ai-edge-litert"}


def examine() -> Iterator[Check]:
    """Look at everything, one after the other; takes some ten seconds."""
    yield from system()
    yield from storage()
    states = {}
    for library in LIBRARIES:
        found = try_library(library)
        states[library.name] = found.state
        yield found
    yield flash_engine()
    for kind in ("dense", "experts"):
        yield gguf_engine(kind, states["llama-cpp-python"])
    for backend, needs in BACKENDS.items():
        yield tensor_backend(backend, states[needs])


def all_well(checks: Sequence[Check]) -> bool:
    """Nothing that is installed failed."""
    return all(check.state != FAILED for check in checks)


# ---------------------------------------------------------------- what the machine is


def system() -> Iterator[Check]:
    """Versions, cores, kernels, memory."""
    ours, python, numpy = _version("penstock"), platform.python_version(), np.__version__
    yield _note(
        "system",
        "versions",
        f"penstock {ours or 'not installed'}, python {python}, numpy {numpy}",
        penstock=ours,
        python=python,
        numpy=numpy,
    )
    cores = usable_cores()
    yield _note(
        "system",
        "machine",
        f"{platform.platform()}, {cores} cores",
        platform=platform.platform(),
        cores=cores,
    )
    used, known = _native.kernels_name(), _native.kernels_available()
    yield _note(
        "system", "kernels", f"{used}, of {', '.join(known)}", used=used, available=list(known)
    )
    free, limit = available_memory(), memory_limit()
    limited = "no limit on the process" if limit is None else f"limited to {format_size(limit)}"
    yield _note(
        "system",
        "memory",
        f"{format_size(free)} free, {limited} (cgroup)",
        available_bytes=free,
        cgroup_limit_bytes=limit,
    )
    supported = _native.address_space_supported()
    yield _note(
        "system",
        "streaming of GGUF files",
        "supported"
        if supported
        else "not on this system: files that do not fit run in llama.cpp's mapping of them",
        supported=supported,
    )


def storage() -> Iterator[Check]:
    """The cache folder, and how it can be read."""
    folder = Path(platformdirs.user_cache_dir("penstock"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".doctor-") as handle:
            handle.write(os.urandom(1 << 20))
            handle.flush()
            os.fsync(handle.fileno())
            alignment = _native.direct_alignment(handle.name)
            ring = _has_io_uring(handle.name)
    except (OSError, PenstockError) as error:
        yield _note(
            "storage",
            "cache folder",
            f"{folder}: cannot be used ({error}); devices are measured again each time",
            folder=str(folder),
            writable=False,
        )
        return
    yield _note("storage", "cache folder", str(folder), folder=str(folder), writable=True)
    direct = f"yes, aligned to {alignment}" if alignment else "refused there: reads are buffered"
    yield _note("storage", "direct reads", direct, alignment=alignment)
    reads = "io_uring and threads" if ring else "threads; io_uring is not available"
    yield _note("storage", "back ends", reads, io_uring=ring)


def _has_io_uring(path: str) -> bool:
    try:
        _native.measure_reads(path, 4096, 1, "io_uring", 0.001, False)
    except StorageError:
        return False
    return True


def _note(group: str, name: str, detail: str, **facts: Any) -> Check:
    return Check(group, name, NOTE, detail, facts)


# ---------------------------------------------------------------- what is installed


def try_library(library: Library) -> Check:
    """Whether an optional library is installed, and can be imported."""
    version = _version(library.name)
    facts: dict[str, Any] = {"version": version, "extra": library.extra}
    if version is None:
        advice = f"pip install 'penstock[{library.extra}]'"
        return Check("libraries", library.name, ABSENT, advice, facts)
    if library.tested is not None:
        facts["tested"] = library.tested
    code, out, err = _child("-c", f"import {library.module}")
    if code != 0:
        detail = f"{version}: {_cause(code, err or out)}"
        return Check("libraries", library.name, FAILED, detail, facts)
    other = library.tested is not None and version != library.tested
    detail = f"{version}, tested with {library.tested}" if other else version
    return Check("libraries", library.name, WORKS, detail, facts)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


# ---------------------------------------------------------------- engines


def flash_engine() -> Check:
    """The embedded model: exact mode, part of it on storage, must tell what dense mode tells."""
    try:
        path = embedded_model()
        exact = load_bundle(path, exact=True, ffn_resident=EXACT_SHARE)
        dense = load_bundle(path, dense=True, ffn_resident=1.0)
        told, wanted = ("".join(m.generate(PROMPT, max_tokens=TOKENS)) for m in (exact, dense))
    except PenstockError as error:
        return Check("engines", "flash", FAILED, f"{type(error).__name__}: {error}")
    if told != wanted:
        detail = f"exact mode tells {told!r}, dense mode {wanted!r}"
        return Check("engines", "flash", FAILED, detail)
    read = exact.stats().read_bytes
    detail = f"the embedded model, {TOKENS} tokens, {format_size(read)} read; exact as dense"
    return Check("engines", "flash", WORKS, detail, {"read_bytes": read})


def gguf_engine(kind: str, library: str) -> Check:
    """A small ordinary file, streamed: its logits must be those of the resident model.

    Args:
        kind: 'dense' or 'experts'.
        library: the state of llama-cpp-python.
    """
    name = f"gguf, {'layers' if kind == 'dense' else 'experts'}"
    if library == ABSENT:
        return Check("engines", name, ABSENT, "needs llama-cpp-python")
    code, out, err = _child("-m", "penstock.runtime.gguf.self_test", kind)
    try:
        facts = json.loads(out.strip().splitlines()[-1])
    except (ValueError, IndexError):
        facts = {"error": _cause(code, err or out)}
    if code != 0 or "error" in facts:
        detail = str(facts.get("error", _cause(code, err)))
        return Check("engines", name, FAILED, detail)
    if facts["mode"] == "mapped":
        detail = "runs in llama.cpp's mapping; this system has no streaming"
    else:
        detail = (
            f"{facts['tokens']} tokens in {format_size(facts['memory'])}, "
            f"{format_size(facts['read_bytes'])} read; logits as of the resident model"
        )
    if not facts["identical"]:
        detail = f"logits differ from the resident model's by up to {facts['difference']:.3g}"
        return Check("engines", name, FAILED, detail, facts)
    return Check("engines", name, WORKS, detail, facts)


def tensor_backend(name: str, library: str) -> Check:
    """A tiny model must add two vectors.

    Args:
        name: 'onnx' or 'litert'.
        library: the state of what it runs on.
    """
    if library == ABSENT:
        return Check("engines", name, ABSENT, f"needs {BACKENDS[name]}")
    code, out, err = _child("-m", "penstock.runtime.backends.self_test", name)
    try:
        facts = json.loads(out.strip().splitlines()[-1])
    except (ValueError, IndexError):
        facts = {"error": _cause(code, err or out)}
    if code == 0 and facts.get("ok"):
        return Check("engines", name, WORKS, "a tiny model adds two vectors", facts)
    detail = str(facts.get("error") or f"a sum is wrong: {facts.get('made')}")
    return Check("engines", name, FAILED, detail, facts)


def _child(*arguments: str) -> tuple[int, str, str]:
    """Run Python: (exit status, stdout, stderr). Not from this folder, whose names it may take."""
    try:
        done = subprocess.run(
            [sys.executable, *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT_S,
            cwd=tempfile.gettempdir(),
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return 1, "", f"it did not end within {TIMEOUT_S} s"
    except OSError as error:
        return 1, "", f"{sys.executable} does not start: {error.strerror}"
    return done.returncode, done.stdout, done.stderr


def _cause(code: int, text: str) -> str:
    """Why a process failed: its last line, or the signal that ended it."""
    lines = text.strip().splitlines()
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        hint = ": it was built for another processor" if name == "SIGILL" else ""
        return f"ended by {name}{hint}"
    return lines[-1] if lines else f"exit status {code}"

"""A read that fails or comes back short mid-generation is an error, not the end: both back ends."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from penstock.errors import FormatError, StorageError, UsageError
from penstock.loaders.bundle import open_bundle
from penstock.runtime.flash_engine import FlashEngine
from penstock.runtime.planner import PlanOptions, make_plan
from tests.bundle_builder import Shape, profile, write_tiny

SHAPE = Shape(neurons=256, layers=3, predicted=0.5)
PROMPT = np.arange(12, dtype=np.int32)
MODES = {"exact": 0.45, "predictor": 0.2, "dense": 0.2}

Floats = NDArray[np.float32]


@pytest.fixture(params=["threads", "io_uring"])
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "model.gguf", SHAPE)


def make_engine(path: Path, mode: str, backend: str, *, direct: bool = True) -> FlashEngine:
    bundle = open_bundle(path)
    options = PlanOptions(mode=mode, ffn_share=MODES[mode], context=64, threads=2)
    plan = make_plan(bundle, profile(direct=direct, backend=backend), options)
    assert any(layer.residency != "resident" for layer in plan.layers)
    try:
        return FlashEngine(bundle, plan)
    except StorageError as error:
        if "io_uring is not available" in str(error):
            pytest.skip(str(error))
        raise


def run(engine: FlashEngine) -> Floats:
    engine.reset()
    every = [engine.prefill(PROMPT)]
    every += [engine.decode(int(token)) for token in (3, 1, 4, 1, 5)]
    return np.stack(every)


class Cut:
    """Takes the file's end away and gives it back, in place: the same inode."""

    def __init__(self, path: Path, keep: int) -> None:
        self.path, self.keep, self.content = path, keep, path.read_bytes()

    def __enter__(self) -> None:
        os.truncate(self.path, self.keep)

    def __exit__(self, *_: object) -> None:
        with open(self.path, "r+b") as handle:
            handle.write(self.content)
            os.fsync(handle.fileno())


@pytest.fixture(params=[True, False], ids=["direct", "buffered"])
def direct(request: pytest.FixtureRequest) -> Iterator[bool]:
    yield request.param


@pytest.mark.parametrize("mode", MODES)
def test_a_file_cut_while_decoding(path: Path, mode: str, backend: str, direct: bool) -> None:
    engine = make_engine(path, mode, backend, direct=direct)
    expected = run(engine)
    engine.reset()
    engine.prefill(PROMPT)
    length = engine.length
    first_bundle = engine.bundle.bundles[0].offset
    with Cut(path, first_bundle + 1000):  # in the middle of a bundle
        engine.decoder.reset_windows()
        for _ in range(2):
            with pytest.raises(StorageError, match="model.gguf: .*offset") as error:
                for token in range(20):
                    engine.decode(token)
        assert "short read" in str(error.value) or "ends at" in str(error.value)
    assert engine.length >= length
    again = run(engine)
    if mode == "predictor":  # hits are added before misses: another window, another order of sums
        assert np.allclose(again, expected, atol=1e-4)
    else:
        assert np.array_equal(again, expected)


@pytest.mark.parametrize("mode", MODES)
def test_a_file_cut_during_a_prompt(path: Path, mode: str, backend: str) -> None:
    engine = make_engine(path, mode, backend)
    expected = run(engine)
    engine.reset()
    with Cut(path, engine.bundle.bundles[1].offset):
        with pytest.raises(StorageError, match="model.gguf: "):
            engine.prefill(PROMPT)
    assert engine.length == 0
    assert np.allclose(run(engine), expected, atol=1e-4)


def test_a_failed_generation_can_be_taken_up_again(path: Path, backend: str) -> None:
    """What was in the KV cache before the error is still good."""
    engine = make_engine(path, "exact", backend)
    whole = run(engine)
    engine.reset()
    half = [engine.prefill(PROMPT), engine.decode(3), engine.decode(1)]
    with Cut(path, engine.bundle.bundles[0].offset):
        engine.decoder.reset_windows()
        with pytest.raises(StorageError):
            engine.decode(4)
    assert engine.length == PROMPT.size + 2
    half += [engine.decode(4), engine.decode(1), engine.decode(5)]
    assert np.array_equal(np.stack(half), whole)


def test_a_file_cut_before_loading_is_refused(path: Path) -> None:
    bundle = open_bundle(path)
    plan = make_plan(bundle, profile(), PlanOptions(mode="dense", ffn_share=0.0, context=64))
    with Cut(path, bundle.bundles[0].offset):
        with pytest.raises(FormatError, match="model.gguf: .*past the end of the file"):
            FlashEngine(bundle, plan)


def test_a_vanished_file_is_a_storage_error(path: Path) -> None:
    bundle = open_bundle(path)
    plan = make_plan(bundle, profile(), PlanOptions(mode="dense", ffn_share=0.0, context=64))
    path.unlink()
    with pytest.raises(StorageError, match="model.gguf: cannot open: No such file"):
        FlashEngine(bundle, plan)


def test_two_threads_cannot_use_one_model_at_once(path: Path) -> None:
    engine = make_engine(path, "dense", "threads")
    expected = run(engine)
    stop, refused, foreign = threading.Event(), 0, []

    def other() -> None:
        nonlocal refused
        while not stop.is_set():
            try:
                engine.decode(2, position=40)
            except UsageError as error:
                assert "in use by another thread" in str(error)
                refused += 1
            except BaseException as error:
                foreign.append(error)
                return

    thread = threading.Thread(target=other)
    thread.start()
    mine = 0
    while refused + mine < 20 and thread.is_alive():
        try:
            engine.decode(1, position=41)
        except UsageError:
            mine += 1
    stop.set()
    thread.join()
    assert not foreign
    assert np.array_equal(run(engine), expected)


# ---------------------------------------------------------------- a disk that fails

SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/uio.h>
#include <unistd.h>

/* Reads fail with EIO while the file that FAIL_WHILE names is there. */
static int failing(void) {
    const char * path = getenv("FAIL_WHILE");
    return path != NULL && access(path, F_OK) == 0;
}

#define WRAP(result, name, params, args)                                      \
    result name params {                                                      \
        static result (*real) params;                                         \
        if (real == NULL) *(void **)&real = dlsym(RTLD_NEXT, #name);          \
        if (failing()) { errno = EIO; return -1; }                            \
        return real args;                                                     \
    }

WRAP(ssize_t, pread, (int f, void * b, size_t n, off_t o), (f, b, n, o))
WRAP(ssize_t, pread64, (int f, void * b, size_t n, off64_t o), (f, b, n, o))
WRAP(ssize_t, preadv, (int f, const struct iovec * v, int n, off_t o), (f, v, n, o))
WRAP(ssize_t, preadv64, (int f, const struct iovec * v, int n, off64_t o), (f, v, n, o))
"""

CHILD = """
import os, sys
from pathlib import Path
import numpy as np
sys.path.insert(0, {root!r})
from penstock.errors import StorageError
from tests.runtime.test_storage_errors import make_engine, run
path, switch = Path(sys.argv[1]), Path(os.environ["FAIL_WHILE"])
for mode in ("exact", "dense"):
    engine = make_engine(path, mode, "threads")
    expected = run(engine)
    switch.touch()
    engine.decoder.reset_windows()
    for attempt in (lambda: engine.decode(1), lambda: engine.prefill(np.arange(12))):
        try:
            attempt()
        except StorageError as error:
            assert "Input/output error" in str(error) and str(path) in str(error), error
        else:
            sys.exit(f"{{mode}}: no error")
    switch.unlink()
    assert np.array_equal(run(engine), expected), mode
    switch.touch()
    try:
        make_engine(path, mode, "threads")
    except StorageError as error:
        assert str(path) in str(error), error
    else:
        sys.exit(f"{{mode}}: loading gave no error")
    switch.unlink()
"""


def test_a_disk_that_answers_with_eio(path: Path, tmp_path: Path) -> None:
    source, shim = tmp_path / "shim.c", tmp_path / "shim.so"
    source.write_text(SHIM)
    try:
        subprocess.run(
            ["cc", "-shared", "-fPIC", "-o", shim, source, "-ldl"], check=True, capture_output=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"the shim cannot be compiled here: {error}")
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-c", CHILD.format(root=root), path],
        env={**os.environ, "LD_PRELOAD": str(shim), "FAIL_WHILE": str(tmp_path / "fail")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr

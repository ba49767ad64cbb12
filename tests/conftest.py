"""Where the shared data is, and how the suite is spread over the cores.

The whole suite, `python -m pytest`, runs in one process more than there are cores, since some tests
wait; a part of it, `python -m pytest tests/loaders`, in this process, where output and debuggers
are at hand. `-n 0` and `-n 2` say so.
"""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent
MOST_WORKERS = 4
WORKER_BYTES = 2 << 30  # torch and transformers in memory, and what a test takes

# Tests elsewhere that need what takes a folder's tests long to make or to import.
SHARED = {
    "tests/runtime/caption/test_lightcap.py": "tests/export/lightcap",
    "tests/federated/client/test_deploy.py::test_a_tflite_file_does_too": "tests/export/litert",
    "tests/federated/client/test_deploy.py": "tests/export/onnx",
    "tests/federated/daemon/test_publish_model.py": "tests/export/onnx",
}

# Children keep what they compile, as an installed Python does; there are some hundred of them.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Of tests that name no number. No example is late where workers share cores.
settings.register_profile("suite", max_examples=50, deadline=None)
settings.register_profile("thorough", max_examples=500, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))

# Threads that wait for others sleep: spinning, they take the cores that the others need.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
if "PYTEST_XDIST_WORKER" in os.environ:  # no library, here or in a child, takes all cores unasked
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

# A shell ignores Ctrl-C for what it runs in the background, and so would children of these tests.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The data folder beside the checkout; tests that need it skip where it is not there."""
    path = ROOT.parent / "shared"
    if not (path / "data" / "README.md").is_file():
        pytest.skip(f"the shared data folder {path} is not there")
    return path


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """For `-n auto`, which pyproject.toml asks for. 0: in this process."""
    from penstock.loaders.cores import usable_cores
    from penstock.runtime.budget import available_memory

    cores = usable_cores()
    if config.args_source is not pytest.Config.ArgsSource.TESTPATHS or cores == 1:
        return 0
    # Many tests wait, for leases, polls and the disk: one worker computes where another waits.
    return max(2, min(cores + 1, MOST_WORKERS, available_memory() // WORKER_BYTES))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Folders and files go to a worker as a whole, and what is in SHARED with its folder."""
    from xdist.scheduler import LoadScopeScheduling

    def group(nodeid: str) -> str:
        """tests/export/onnx, whose tests share what takes long to make; elsewhere the file."""
        for prefix, scope in SHARED.items():  # a single test before its file
            if nodeid.startswith(prefix):
                return scope
        return "/".join(nodeid.partition("::")[0].split("/")[:3])

    scheduler = LoadScopeScheduling(config, log)
    scheduler._split_scope = group
    config.option.loadscopereorder = False  # the order is that of the items
    return scheduler


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Nothing that collection makes is garbage, nor need it be looked at again in each test."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What takes long begins first, or one worker is left alone with it at the end."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: item.get_closest_marker("slow") is None)

"""Tiny GGUF files, made once a session, and engines on them. Without llama-cpp-python they skip."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.gguf_shapes import SHAPES, Shape
from benchmarks.synthetic_gguf import write_gguf
from penstock.loaders.probe import device_of, save_profile
from tests.bundle_builder import profile
from tests.runtime.gguf.plans import (
    DRAWN,
    Files,
    Open,
    Run,
    Stock,
    file_key,
    follow,
    narrow,
    weights_of,
)


@pytest.fixture(scope="session")
def llama_cpp() -> None:
    """The one place that says what these tests need."""
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """The file of a shape, or the first of its parts."""
    folder, made = tmp_path_factory.mktemp("gguf"), dict[str, Path]()

    def get(shape: Shape | str, parts: int = 1) -> Path:
        found = SHAPES[shape] if isinstance(shape, str) else shape
        key = file_key(found, parts)
        if key not in made:
            made[key] = write_gguf(found, folder / f"{key}.gguf", parts=parts)[0]
        return made[key]

    return get


@pytest.fixture(scope="session")
def stock(llama_cpp: None) -> Callable[..., Run]:
    """What stock llama.cpp makes of a file, run once a session, again only for more tokens."""
    runs = dict[tuple[Path, str, int], Run]()

    def get(path: Path, kv_type: str = "f16", count: int = DRAWN, threads: int = 1) -> Run:
        key = path, kv_type, threads  # llama.cpp's bits are those of a number of threads
        if key not in runs or len(runs[key].tokens) < count:
            plan = narrow(weights_of(path), 1.0, kv_type=kv_type, threads=threads)
            with Stock(path, plan) as model:
                runs[key] = follow(model.decode, model.vocab, count=count)
        return runs[key].first(count)

    return get


@pytest.fixture
def measured(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that has been measured: nothing is probed."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for path in (tmp_path, tmp_path_factory.getbasetemp()):
        save_profile(replace(profile(), device=device_of(path)))


@pytest.fixture
def open_engine(llama_cpp: None) -> Iterator[Open]:
    """Engines with a share of the weights in memory, closed at the end."""
    opened = Open()
    yield opened
    opened.close()

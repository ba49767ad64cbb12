"""llama-cpp-python is checked before it is used: what is missing is named, with what to install."""

from __future__ import annotations

import ctypes
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import penstock
from penstock.errors import BackendMissingError, UnsupportedModelError
from penstock.runtime.gguf import library
from penstock.runtime.gguf.layout import ACCESSORS, find_layout
from penstock.runtime.gguf.library import CONTEXT_FIELDS, MODEL_FIELDS, SIGNATURES, VERSION, llama
from tests.runtime.gguf.plans import Files


def stand_in(
    without: str = "",
    model: tuple[str, ...] = MODEL_FIELDS,
    context: tuple[str, ...] = CONTEXT_FIELDS,
) -> SimpleNamespace:
    """A module llama_cpp with the names that are needed, less some."""

    def params(names: tuple[str, ...]) -> Any:
        fields = [(name, ctypes.c_int) for name in names]
        kind: Any = type("Params", (ctypes.Structure,), {"_fields_": fields})
        return lambda: kind()

    names: dict[str, Any] = {n: lambda *a: None for n in SIGNATURES if n != without}
    if without != "llama_model_default_params":
        names["llama_model_default_params"] = params(model)
    if without != "llama_context_default_params":
        names["llama_context_default_params"] = params(context)
    return SimpleNamespace(__version__="0.2.90", **names)


@pytest.mark.usefixtures("measured")
def test_without_the_package_the_extra_is_named(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(BackendMissingError, match=r"pip install 'penstock\[llama\]'"):
        llama()
    with pytest.raises(BackendMissingError, match=r"pip install 'penstock\[llama\]'"):
        penstock.load(files("tiny-llama"))
    assert penstock.plan(files("tiny-llama")).to_dict()["arch"] == "llama", "a plan needs none"


@pytest.mark.parametrize(
    "name", ["llama_memory_seq_rm", "llama_model_default_params", list(SIGNATURES)[-1]]
)
def test_a_release_without_a_name_is_refused_with_both(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", stand_in(without=name))
    with pytest.raises(UnsupportedModelError, match=rf"python 0\.2\.90 lacks {name}; .*{VERSION}"):
        llama()


def test_a_release_without_a_field_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    lacking = stand_in(model=MODEL_FIELDS[1:], context=CONTEXT_FIELDS[:-1])
    monkeypatch.setitem(sys.modules, "llama_cpp", lacking)
    wanted = (
        f"lacks llama_model_params.{MODEL_FIELDS[0]}, llama_context_params.{CONTEXT_FIELDS[-1]};"
    )
    with pytest.raises(UnsupportedModelError, match=wanted):
        llama()


def test_a_release_whose_function_takes_other_arguments_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = stand_in()
    other.llama_memory_seq_rm.argtypes = [ctypes.c_int] * 3
    other.llama_decode.argtypes = [ctypes.c_int] * 2
    monkeypatch.setitem(sys.modules, "llama_cpp", other)
    wanted = r"lacks llama_memory_seq_rm with 4 arguments \(it has 3\); this engine needs"
    with pytest.raises(UnsupportedModelError, match=wanted):
        llama()


def test_the_arguments_that_the_release_tells_are_compared(llama_cpp: None) -> None:
    lib = llama()
    told = {name: library._arguments(getattr(lib, name)) for name in SIGNATURES}
    assert told == SIGNATURES


def test_the_release_that_is_named_has_all(llama_cpp: None) -> None:
    assert llama().__version__ == VERSION


def test_errors_of_the_log_are_told_once() -> None:
    library._Log.line(2, b"information\n", None)
    for n in range(7):
        library._Log.line(4, f"error {n}\n".encode(), None)
    assert library.last_error() == "error 2; error 3; error 4; error 5; error 6"
    assert library.last_error() == "it gave no reason"


# ---------------------------------------------------------------- where a tensor keeps its sources


def test_sources_are_found_in_the_tensors_of_the_library(llama_cpp: None) -> None:
    found = find_layout(library.library_folder(llama()))
    assert len(found.accessors) == len(ACCESSORS) + 1 and all(found.accessors)
    assert found.sources_offset % 8 == 0 and found.sources == 10


def test_libraries_that_are_not_there_are_named(llama_cpp: None, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="no library ggml-base in .*penstock.llama"):
        find_layout(tmp_path)
    folder = library.library_folder(llama())
    (base,) = folder.glob("*ggml-base.so")
    (tmp_path / "libggml-base.so").write_bytes(b"not a library")
    with pytest.raises(UnsupportedModelError, match="no library ggml-base"):
        find_layout(tmp_path)
    shutil.copy(base, tmp_path / "libggml-base.so")
    with pytest.raises(UnsupportedModelError, match="no library ggml-cpu"):
        find_layout(tmp_path)


def test_a_library_that_lacks_an_accessor_is_refused(llama_cpp: None, tmp_path: Path) -> None:
    folder = library.library_folder(llama())
    (base,) = folder.glob("*ggml-base.so")
    for name in ("libggml-base.so", "libggml-cpu.so"):  # the base has no ggml_get_i32_nd
        shutil.copy(base, tmp_path / name)
    with pytest.raises(UnsupportedModelError, match="libggml-cpu.so does not export ggml_get_i32_"):
        find_layout(tmp_path)

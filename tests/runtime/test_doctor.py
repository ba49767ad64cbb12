"""What the doctor says of libraries that are there, absent, broken or deadly, and of engines."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from penstock import _native
from penstock.errors import StorageError
from penstock.runtime import doctor
from penstock.runtime.budget import memory_limit
from penstock.runtime.doctor import (
    ABSENT,
    FAILED,
    NOTE,
    WORKS,
    Check,
    Library,
    all_well,
    flash_engine,
    gguf_engine,
    storage,
    system,
    try_library,
)


def test_a_library_that_works() -> None:
    check = try_library(Library("numpy", "numpy", "llama"))
    assert (check.state, check.group) == (WORKS, "libraries")
    assert check.detail == check.facts["version"]


def test_a_library_of_another_version_than_tested() -> None:
    check = try_library(Library("numpy", "numpy", "llama", tested="0.0.1"))
    assert check.state == WORKS and check.detail.endswith("tested with 0.0.1")


def test_a_library_that_is_absent() -> None:
    check = try_library(Library("penstock-no-such-library", "no_such", "llama"))
    assert (check.state, check.detail) == (ABSENT, "pip install 'penstock[llama]'")
    assert all_well([check])


def test_a_library_that_cannot_be_imported() -> None:
    check = try_library(Library("numpy", "penstock_no_such_module", "llama"))
    assert check.state == FAILED and "ModuleNotFoundError" in check.detail
    assert not all_well([check])


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_library_that_kills_its_process() -> None:
    check = try_library(Library("numpy", "os; os.kill(os.getpid(), 4)", "llama"))
    assert check.state == FAILED
    assert check.detail.endswith("ended by SIGILL: it was built for another processor")


def test_a_library_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "TIMEOUT_S", 0.2)
    check = try_library(Library("numpy", "time; time.sleep(60)", "llama"))
    assert check.state == FAILED and "did not end within 0.2 s" in check.detail


def test_the_machine() -> None:
    found = {check.name: check for check in system()}
    assert all(check.state == NOTE for check in found.values())
    assert found["versions"].facts["python"] == sys.version.split()[0]
    assert found["kernels"].facts["used"] in found["kernels"].facts["available"]
    assert found["memory"].facts["available_bytes"] > 0
    supported = _native.address_space_supported()
    assert found["streaming of GGUF files"].facts["supported"] == supported


@pytest.mark.parametrize(
    ("groups", "limit"),
    [
        ([], None),
        ([(1 << 30, 5)], 1 << 30),
        ([(1 << 30, 5), (1 << 29, 5)], 1 << 29),
        ([(9223372036854771712, 5)], None),  # what version 1 writes for "no limit"
    ],
)
def test_the_limit_is_the_least_of_the_cgroups(
    monkeypatch: pytest.MonkeyPatch, groups: list[tuple[int, int]], limit: int | None
) -> None:
    monkeypatch.setattr("penstock.runtime.budget._cgroups", lambda: groups)
    monkeypatch.setattr("penstock.runtime.budget.os.sysconf", lambda _: 1 << 20)
    assert memory_limit() == limit


def test_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = {check.name: check for check in storage()}
    assert found["cache folder"].facts == {"folder": str(tmp_path / "penstock"), "writable": True}
    assert found["direct reads"].facts["alignment"] >= 0
    assert isinstance(found["back ends"].facts["io_uring"], bool)
    assert list((tmp_path / "penstock").iterdir()) == []


def test_a_cache_folder_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "penstock").write_text("a file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (check,) = storage()
    assert check.facts["writable"] is False and check.state == NOTE


def test_the_flash_engine() -> None:
    check = flash_engine()
    assert check.state == WORKS, check.detail
    assert check.facts["read_bytes"] > 0


def test_an_installation_without_its_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Path:
        raise StorageError("the embedded model is not in this installation")

    monkeypatch.setattr(doctor, "embedded_model", missing)
    check = flash_engine()
    assert check.state == FAILED and "not in this installation" in check.detail


@pytest.mark.parametrize("kind", ["dense", "experts"])
def test_the_gguf_engine(kind: str) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    check = gguf_engine(kind, WORKS)
    assert check.state == WORKS, check.detail
    assert check.facts["identical"] and check.facts["mode"] != "resident"


def test_without_llama_cpp() -> None:
    check = gguf_engine("dense", ABSENT)
    assert check.state == ABSENT and all_well([check])


GOOD = {
    "mode": "stream", "identical": True, "difference": 0.0, "memory": 1, "read_bytes": 1,
    "tokens": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("code", "out", "state", "detail"),
    [
        (0, json.dumps(GOOD), WORKS, "logits as of the resident model"),
        (0, json.dumps({**GOOD, "mode": "mapped"}), WORKS, "this system has no streaming"),
        (0, json.dumps({**GOOD, "identical": False, "difference": 0.25}), FAILED, "up to 0.25"),
        (1, json.dumps({"error": "StorageError: no"}), FAILED, "StorageError: no"),
        (-11, "", FAILED, "ended by SIGSEGV"),
        (1, "Traceback\nValueError: what", FAILED, "ValueError: what"),
    ],
)
def test_what_the_self_test_may_say(
    monkeypatch: pytest.MonkeyPatch, code: int, out: str, state: str, detail: str
) -> None:
    monkeypatch.setattr(doctor, "_child", lambda *_: (code, out, ""))
    check = gguf_engine("dense", WORKS)
    assert check.state == state and detail in check.detail


def test_for_machines() -> None:
    check = Check("engines", "flash", WORKS, "well", {"read_bytes": 1})
    assert check.to_dict() == {
        "group": "engines", "name": "flash", "state": "works", "detail": "well",
        "facts": {"read_bytes": 1},
    }  # fmt: skip

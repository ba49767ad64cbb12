"""The doctor's test of a backend."""

from __future__ import annotations

import pytest

from penstock.runtime import doctor
from penstock.runtime.backends import self_test
from penstock.runtime.doctor import ABSENT, FAILED, WORKS, all_well, tensor_backend


@pytest.mark.usefixtures("onnxruntime", "litert")
@pytest.mark.parametrize("backend", ["onnx", "litert"])
def test_a_backend_that_works(backend: str) -> None:
    check = tensor_backend(backend, WORKS)
    assert check.state == WORKS, check.detail
    assert check.facts["made"] == [[11.0, 22.0, 33.0]]


def test_a_backend_whose_library_is_absent() -> None:
    check = tensor_backend("litert", ABSENT)
    assert (check.state, check.detail) == (ABSENT, "needs ai-edge-litert")
    assert all_well([check])


@pytest.mark.usefixtures("onnxruntime")
def test_a_sum_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_test, "ADDEND", (1.0, 2.0, 3.0))
    assert self_test.examine("onnx")["ok"] is False


@pytest.mark.parametrize(
    ("code", "out", "detail"),
    [
        (0, '{"ok": false, "made": [[1.0]]}', "a sum is wrong: [[1.0]]"),
        (0, '{"error": "FormatError: no"}', "FormatError: no"),
        (-4, "", "ended by SIGILL: it was built for another processor"),
    ],
)
def test_what_the_self_test_may_say(
    monkeypatch: pytest.MonkeyPatch, code: int, out: str, detail: str
) -> None:
    monkeypatch.setattr(doctor, "_child", lambda *_: (code, out, ""))
    check = tensor_backend("onnx", WORKS)
    assert (check.state, check.detail) == (FAILED, detail)

"""The committed stub must match the compiled module."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("nanobind", reason="the stub check needs nanobind")

STUB = Path(__file__).resolve().parent.parent / "native" / "_native.pyi"


def test_stub_is_current(tmp_path: Path) -> None:
    out = tmp_path / "_native.pyi"
    subprocess.run(
        [sys.executable, "-m", "nanobind.stubgen", "-q", "-m", "penstock._native", "-o", str(out)],
        check=True,
        cwd=tmp_path,
    )
    assert out.read_text() == STUB.read_text(), "regenerate the stub (see CONTRIBUTING.md)"

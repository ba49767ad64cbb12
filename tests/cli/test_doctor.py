"""`penstock doctor`: what it prints, and when it fails."""

from __future__ import annotations

import pytest

from penstock.runtime import doctor
from penstock.runtime.doctor import ABSENT, FAILED, NOTE, WORKS, Check
from tests.cli.conftest import Cli

CHECKS = [
    Check("system", "kernels", NOTE, "avx2", {"used": "avx2"}),
    Check("libraries", "torch", ABSENT, "pip install 'penstock[export]'"),
    Check("engines", "flash", WORKS, "well"),
]


def test_everything_here_works(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the GGUF engine's runs, which tests/runtime/test_doctor.py has."""

    def engine(kind: str, library: str) -> Check:
        return Check("engines", {"dense": "gguf, layers"}.get(kind, f"gguf, {kind}"), library, "")

    monkeypatch.setattr(doctor, "gguf_engine", engine)
    result = cli("doctor", "--json")
    assert (result.code, result.err) == (0, ""), result.out
    assert result.json["ok"] is True
    names = {check["name"]: check for check in result.json["checks"]}
    assert names["flash"]["state"] == WORKS
    assert names["gguf, layers"]["state"] == names["llama-cpp-python"]["state"]
    assert names["gguf, experts"]["state"] == names["llama-cpp-python"]["state"]
    groups = [check["group"] for check in result.json["checks"]]
    assert list(dict.fromkeys(groups)) == ["system", "storage", "libraries", "engines"]


def test_for_people(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "examine", lambda: iter(CHECKS))
    result = cli("doctor")
    assert (result.code, result.err) == (0, "What is installed works.\n")
    lines = result.out.splitlines()
    assert lines[0] == "system" and lines[1].split() == ["kernels", "avx2"]
    assert "not installed: pip install 'penstock[export]'" in lines[3]
    assert lines[5].endswith("works: well")


def test_what_is_installed_fails(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Check("engines", "gguf, layers", FAILED, "ended by SIGILL")
    monkeypatch.setattr(doctor, "examine", lambda: iter([*CHECKS, broken]))
    result = cli("doctor")
    assert result.code == 1 and "FAILED: ended by SIGILL" in result.out
    machine = cli("doctor", "--json")
    assert machine.code == 1 and machine.json["ok"] is False
    assert machine.json["checks"][-1]["state"] == "failed"

"""`penstock probe`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from penstock.loaders import probe as probe_module
from tests.cli.conftest import Cli


def test_quick_remembers_nothing(cli: Cli, tmp_path: Path, cache_home: Path) -> None:
    before = sorted(cache_home.rglob("probe-*"))
    result = cli("probe", tmp_path, "--quick", "--json")
    assert (result.code, result.err) == (0, "")
    assert result.json["saved"] is None
    assert result.json["profile"]["sequential_bytes_per_second"] > 0
    assert sorted(cache_home.rglob("probe-*")) == before
    assert list(tmp_path.iterdir()) == []


def test_a_whole_measurement_is_remembered(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    measure = probe_module.probe

    def short(path: Path, *, quick: bool) -> probe_module.DeviceProfile:
        assert not quick
        return dataclasses.replace(measure(path, quick=True), quick=False)

    monkeypatch.setattr(probe_module, "probe", short)
    result = cli("probe", tmp_path)
    assert result.code == 0
    assert "random reads" in result.out and "memory" in result.out
    assert "Remembered in" in result.err
    remembered = probe_module.cached_profile(tmp_path)
    assert remembered is not None and not remembered.quick


def test_where_nothing_can_be_written(cli: Cli) -> None:
    result = cli("probe", "/proc", "--quick", "--json")
    assert result.code == 1
    assert result.json["error"]["code"] == "StorageError"


def test_a_folder_that_is_not_there(cli: Cli, tmp_path: Path) -> None:
    result = cli("probe", tmp_path / "a" / "b", "--quick", "--json")
    assert result.code == 1
    assert result.json["error"]["code"] == "StorageError"

"""`penstock export llm`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Cli


@pytest.fixture
def source(shared_dir: Path) -> Path:
    return shared_dir / "models" / "storyteller-start"


def test_a_plain_bundle(cli: Cli, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "story.gguf"
    args = ("export", "llm", source, out, "--type", "Q8_0", "--no-calibration", "--no-eval")
    result = cli(*args)
    assert result.code == 0, result.err
    assert "Q8_0" in result.out and "before" in result.out
    assert f"Wrote {out}" in result.err
    assert cli("inspect", out, "--verify").code == 0
    assert cli("run", out, "Once upon a time", "--max-tokens", "4").code == 0


def test_json_and_overwriting(cli: Cli, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "story.gguf"
    args = ("export", "llm", source, out, "--no-calibration", "--no-eval", "--json")
    first = cli(*args)
    assert (first.code, first.err) == (0, "")
    assert first.json["bundle_bytes"] == out.stat().st_size
    assert first.json["layers"] == []
    refused = cli(*args)
    assert refused.code == 2
    assert refused.json["error"]["code"] == "UsageError"
    assert cli(*args, "--overwrite").code == 0


def test_a_bundle_has_the_name_it_is_given(cli: Cli, source: Path, tmp_path: Path) -> None:
    plain = ("--no-calibration", "--no-eval", "--json")
    for extra, name in ((), source.name), (("--name", "Teller of tales"), "Teller of tales"):
        out = tmp_path / f"{len(extra)}.gguf"
        result = cli("export", "llm", source, out, *plain, *extra)
        assert (result.code, result.json["name"]) == (0, name), result.err
        assert cli("inspect", out, "--json").json["metadata"]["general.name"] == name
    for bad in ("", "two\nlines", "\udcff"):
        result = cli("export", "llm", source, tmp_path / "bad.gguf", *plain, "--name", bad)
        assert result.code == 2 and "one line of text" in result.json["error"]["message"]


def test_options_reach_the_function(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, object] = {}

    def export_llm(source: Path, out: Path, **options: object) -> None:
        seen.update(options, source=source, out=out)
        raise KeyboardInterrupt

    monkeypatch.setattr("penstock.export.llm.export_llm", export_llm)
    line = "--type Q4_0 --block 4096 --calibration a.txt --eval b.txt --recall 0.95 --overwrite"
    assert cli("export", "llm", "in", "out", *line.split()).code == 130
    wanted = {
        "source": Path("in"), "out": Path("out"), "dtype": "Q4_0", "block": 4096,
        "calibration": Path("a.txt"), "calibrate": True, "evaluation": Path("b.txt"),
        "evaluate": True, "recall_target": 0.95, "overwrite": True,
    }  # fmt: skip
    assert {key: seen[key] for key in wanted} == wanted


def test_a_source_that_is_not_there(cli: Cli, tmp_path: Path) -> None:
    result = cli("export", "llm", tmp_path / "nothing", tmp_path / "out.gguf", "--json")
    assert result.code in (1, 2)
    assert result.json["error"]["message"]
    assert not (tmp_path / "out.gguf").exists()

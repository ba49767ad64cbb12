"""`penstock export gguf`."""

from __future__ import annotations

from pathlib import Path

import pytest
from gguf import GGUFReader, GGUFWriter

from benchmarks.gguf_shapes import tiny
from benchmarks.synthetic_gguf import write_gguf
from tests.cli.conftest import Cli


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = tiny("llama", layers=1, neurons=256, dtype="F16", other="F16")
    return write_gguf(shape, tmp_path_factory.mktemp("gguf") / "model.gguf")[0]


def test_a_report_for_people(cli: Cli, source: Path, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    text = tmp_path / "text.txt"
    text.write_text("the king and the queen said " * 40)
    out = tmp_path / "out.gguf"
    args = ("--type", "Q4_K", "--eval", text, "--threads", "1")
    result = cli("export", "gguf", source, out, *args)
    assert result.code == 0, result.err
    for word in ("perplexity", "mean_kl", "relative RMSE", "passed  loads", "smaller"):
        assert word in result.out
    assert f"Wrote {out}" in result.err
    assert cli("inspect", out).code == 0


def test_json_and_refusals(cli: Cli, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    args = ("export", "gguf", source, out, "--no-eval", "--json")
    made = cli(*args, "--target-size", "40%")
    assert (made.code, made.err) == (0, "")
    assert made.json["artifact_bytes"] == out.stat().st_size <= 0.4 * source.stat().st_size
    assert made.json["target"] == "gguf" and made.json["passed"] is True
    again = cli(*args, "--type", "Q8_0")
    assert (again.code, again.json["error"]["code"]) == (2, "UsageError")
    refused = cli(*args, "--type", "Q8_0", "--overwrite", "--min-ratio", "3")
    assert (refused.code, refused.json["error"]["code"]) == (1, "GateError")
    assert refused.json["error"]["report"]["ratio"] < 3
    assert made.json["artifact_bytes"] == out.stat().st_size  # what was there stays
    shown = cli(*args[:-1], "--type", "Q8_0", "--overwrite", "--min-ratio", "3")
    assert shown.code == 1 and "FAILED  min-ratio" in shown.out and "relative RMSE" in shown.out
    for wrong in (
        (),
        ("--type", "Q4_K", "--target-size", "40%"),
        ("--type", "Q4_K", "--fail-below", "mean_kl"),
        ("--type", "Q4_K", "--fail-below", "mean_kl=0.1"),
        ("--target-size", "1000"),
    ):
        assert cli(*args, "--overwrite", *wrong).code == 2, wrong


def test_options_reach_the_file(cli: Cli, source: Path, tmp_path: Path) -> None:
    imatrix, out = tmp_path / "imatrix.gguf", tmp_path / "out.gguf"
    writer = GGUFWriter(imatrix, "imatrix")
    writer.add_type("imatrix")
    import numpy as np

    writer.add_tensor("blk.0.attn_q.weight.in_sum2", np.ones((1, 256), np.float32))
    writer.add_tensor("blk.0.attn_q.weight.counts", np.ones((1, 1), np.float32))
    for step in ("header", "kv_data", "tensors"):
        getattr(writer, f"write_{step}_to_file")()
    writer.close()
    result = cli(
        "export", "gguf", source, out, "--type", "Q5_K", "--output-type", "F16",
        "--embedding-type", "Q8_0", "--imatrix", imatrix, "--no-eval",
    )  # fmt: skip
    assert result.code == 0, result.err
    types = {t.name: t.tensor_type.name for t in GGUFReader(out).tensors}
    assert types["output.weight"] == "F16" and types["token_embd.weight"] == "Q8_0"
    assert types["blk.0.ffn_up.weight"] == "Q5_K"
    assert "importance weights for 1 of" in result.out

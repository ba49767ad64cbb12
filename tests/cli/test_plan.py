"""`penstock plan`."""

from __future__ import annotations

from pathlib import Path

from tests.cli.conftest import Cli


def test_tables_for_people(cli: Cli, tiny_bundle: Path) -> None:
    result = cli("plan", tiny_bundle, "--ffn-resident", "50%")
    assert (result.code, result.err) == (0, "")
    for word in (
        "weights", "predictors", "KV cache", "buffers", "tokenizer", "feed-forward", "together",
        "predictor rank", "false negatives", "read per token", "tokens per second", "least budget",
    ):  # fmt: skip
        assert word in result.out


def test_json_adds_up(cli: Cli, tiny_bundle: Path) -> None:
    result = cli("plan", tiny_bundle, "--ffn-resident", "50%", "--json")
    assert (result.code, result.err) == (0, "")
    plan = result.json
    parts = ("weights", "predictors", "kv_cache", "buffers", "tokenizer", "ffn")
    assert plan["total"] == sum(plan[part] for part in parts)
    assert plan["ffn"] == sum(layer["nbytes"] for layer in plan["layers"])
    assert plan["tokens_per_second"] > 0


def test_less_memory_means_more_reading(cli: Cli, tiny_bundle: Path) -> None:
    reads = [
        cli("plan", tiny_bundle, "--ffn-resident", share, "--json").json["read_bytes"]
        for share in ("100%", "60%", "30%")
    ]
    assert reads[0] == 0
    assert reads[0] < reads[1] < reads[2]


def test_too_small_a_budget(cli: Cli, tiny_bundle: Path) -> None:
    result = cli("plan", tiny_bundle, "--memory", "1MiB")
    assert (result.code, result.out) == (1, "")
    assert "at least" in result.err

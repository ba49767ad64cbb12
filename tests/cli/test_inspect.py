"""`penstock inspect`."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter

from benchmarks.gguf_shapes import SHAPES
from benchmarks.synthetic_gguf import write_gguf
from penstock.loaders.bundle import open_bundle
from tests.cli.conftest import Cli


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """An ordinary GGUF file with what is hard to print."""
    path = tmp_path / "foreign.gguf"
    writer = GGUFWriter(str(path), "mamba")
    writer.add_array("tokenizer.ggml.tokens", [f"[bold]token {i}[/]" for i in range(1000)])
    writer.add_string("tokenizer.chat_template", "{% for %}\n" * 500)
    writer.add_float32("mamba.nan", float("nan"))
    writer.add_bool("mamba.flag", True)
    writer.add_tensor("blk.0.ssm_a", np.zeros((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_any_gguf(cli: Cli, foreign: Path) -> None:
    result = cli("inspect", foreign, "--tensors")
    assert (result.code, result.err) == (0, "")
    assert "[bold]token 0[/]" in result.out and "(1000 values)" in result.out
    assert "blk.0.ssm_a" in result.out and "4 x 32" in result.out
    assert max(map(len, result.out.splitlines())) <= 120


def test_any_gguf_as_json(cli: Cli, foreign: Path) -> None:
    document = cli("inspect", foreign, "--tensors", "--json").json
    assert document["bundle"] is None
    assert document["metadata"]["tokenizer.ggml.tokens"]["length"] == 1000
    assert document["metadata"]["mamba.nan"] is None
    assert document["metadata"]["mamba.flag"] is True
    assert document["tensors"][0]["shape"] == [4, 32]


def test_a_foreign_file_has_nothing_to_verify(cli: Cli, foreign: Path) -> None:
    result = cli("inspect", foreign, "--verify")
    assert result.code == 2
    assert "no checksums" in result.err


def test_a_bundle(cli: Cli, tiny_bundle: Path) -> None:
    result = cli("inspect", tiny_bundle, "--verify")
    assert result.code == 0
    assert "feed-forward" in result.out and "bundle of" in result.out
    assert "every checksum matches" in result.err
    document = cli("inspect", tiny_bundle, "--verify", "--json").json
    assert document["bundle"]["neurons"] == open_bundle(tiny_bundle).neurons
    assert document["model"] is None
    assert document["verified_tensors"] == document["tensor_count"]
    assert "tensors" not in document


def test_a_model_of_experts(cli: Cli, tmp_path: Path) -> None:
    shape = SHAPES["tiny-olmoe"]
    (path,) = write_gguf(shape, tmp_path / "olmoe.gguf")
    result = cli("inspect", path)
    assert (result.code, result.err) == (0, "")
    assert "olmoe" in result.out and "an expert window" in result.out
    assert (
        f"{shape.experts} in each of {shape.layers} blocks, {shape.used} for a token" in result.out
    )
    model = cli("inspect", path, "--json").json["model"]
    assert model["arch"] == "olmoe" and model["context"] == shape.context
    assert (model["experts"], model["experts_used"]) == (shape.experts, shape.used)
    assert model["expert_blocks"] == model["blocks"] == shape.layers
    assert model["kinds"]["expert"]["tensors"] == 3 * shape.layers
    assert (
        model["expert_bytes"] * shape.experts * shape.layers == model["kinds"]["expert"]["nbytes"]
    )
    assert set(model["types"]) == {"F32", "Q8_0"}
    for parts in (model["kinds"], model["types"]):
        assert (
            sum(p["tensors"] for p in parts.values())
            == cli("inspect", path, "--json").json["tensor_count"]
        )


def test_a_split_model(cli: Cli, tmp_path: Path) -> None:
    (whole,) = write_gguf(SHAPES["tiny-llama"], tmp_path / "whole.gguf")
    paths = write_gguf(SHAPES["tiny-llama"], tmp_path / "split.gguf", parts=3)
    expected = cli("inspect", whole, "--json").json["model"]
    for path in paths:
        found = cli("inspect", path, "--json").json["model"]
        assert found["files"] == [str(p) for p in paths]
        assert found["size"] == sum(p.stat().st_size for p in paths)
        assert {**found, "files": 0, "size": 0} == {**expected, "files": 0, "size": 0}
    result = cli("inspect", paths[1])
    assert "3 files" in result.out
    paths[2].unlink()
    result = cli("inspect", paths[0], "--json")
    assert (result.code, result.json["error"]["code"]) == (1, "FormatError")
    assert paths[2].name in result.json["error"]["message"]


def test_a_file_that_names_no_architecture(cli: Cli, tmp_path: Path) -> None:
    from tests.bundle_builder import Parts, Stored, serialize

    parts = Parts({"general.alignment": 32})
    parts.tensors["x"] = Stored((4,), 0, bytes(16))
    (tmp_path / "x.gguf").write_bytes(serialize(parts))
    result = cli("inspect", tmp_path / "x.gguf")
    assert result.code == 0 and "not named" in result.out


@pytest.mark.parametrize("which", ["a bundle", "a resident tensor"])
def test_damage_is_found_and_named(cli: Cli, tiny_bundle: Path, tmp_path: Path, which: str) -> None:
    path = tmp_path / "damaged.gguf"
    shutil.copyfile(tiny_bundle, path)
    bundle = open_bundle(path)
    info = bundle.bundles[1] if which == "a bundle" else next(iter(bundle.resident.values()))
    with open(path, "r+b") as handle:
        handle.seek(info.offset + info.nbytes // 2)
        byte = handle.read(1)[0]
        handle.seek(-1, 1)
        handle.write(bytes([byte ^ 0x10]))
    result = cli("inspect", path, "--verify", "--json")
    assert result.code == 1
    assert result.json["error"]["code"] == "FormatError"
    assert f"'{info.name}'" in result.json["error"]["message"]
    assert cli("inspect", path).code == 0  # the header is whole


def test_not_a_gguf(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(b"PK\3\4" + bytes(100))
    result = cli("inspect", path, "--json")
    assert result.code == 1
    assert result.json["error"]["code"] == "FormatError"

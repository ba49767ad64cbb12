"""The file that is written: readable by standard tools, checked, whole or not there at all."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from penstock.errors import FormatError, StorageError, UsageError
from penstock.export.bundle_writer import BundlePlan, StoredPredictor, bundle_stride, write_bundle
from penstock.export.llm import export_llm
from penstock.export.report import Progress
from penstock.export.sources import open_source
from penstock.loaders.bundle import open_bundle
from penstock.quant.blocks import FORMATS, block_format, decode_rows, encode_rows

ModelMaker = Callable[..., Path]


def test_standard_tools_open_it(make_model: ModelMaker, tmp_path: Path) -> None:
    source = open_source(make_model("llama"))
    write_bundle(source, tmp_path / "m.gguf", BundlePlan(block_format("Q8_0")))
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    names = {t.name: t for t in reader.tensors}
    assert names["blk.1.ffn_bundle.weight"].shape.tolist() == [512, 96]  # 3 * 68 bytes, padded
    assert names["blk.0.attn_q.weight"].tensor_type == gguf.GGMLQuantizationType.Q8_0
    assert reader.get_field("general.architecture").contents() == "llama"
    assert all(int(t.data_offset) % 4096 == 0 for t in reader.tensors)
    assert (tmp_path / "m.gguf").stat().st_size % 4096 == 0


@pytest.mark.parametrize(("block", "stride"), [(512, 512), (4096, 4096)])
def test_bundles_are_padded_to_the_block(
    block: int, stride: int, make_model: ModelMaker, tmp_path: Path
) -> None:
    source = open_source(make_model("arcee"))
    write_bundle(source, tmp_path / "m.gguf", BundlePlan(block_format("F16"), block))
    bundle = open_bundle(tmp_path / "m.gguf")
    assert bundle.stride == stride == bundle_stride(source.spec, block_format("F16"), block)
    with pytest.raises(UsageError, match="block is 100"):
        bundle_stride(source.spec, block_format("F16"), 100)


def test_every_changed_byte_is_noticed(make_model: ModelMaker, tmp_path: Path) -> None:
    """The header's checksum, and each tensor's, in the order of the tensor infos."""
    from penstock import _native

    path = tmp_path / "m.gguf"
    write_bundle(open_source(make_model("nemotron")), path, BundlePlan(block_format("F16")))
    bundle = open_bundle(path)
    for name, info in bundle.file.tensors.items():
        assert _native.crc32c_of_file(str(path), info.offset, info.nbytes) == bundle.checksums[name]
    data = bytearray(path.read_bytes())
    at = bundle.file.value_offsets["penstock.bundle.stride"]
    data[bundle.file.value_offsets["general.name"] + 8] ^= 1
    path.write_bytes(data)
    with pytest.raises(FormatError, match="checksum"):
        open_bundle(path)
    assert at > 0


def test_predictors_are_stored_in_their_own_format(make_model: ModelMaker, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    form = FORMATS["Q8_0"]
    fc1, fc2 = (rng.normal(size=s).astype(np.float32) for s in ((32, 64), (96, 32)))
    bias = rng.normal(size=96).astype(np.float32)
    stored = StoredPredictor(64, 32, form, encode_rows(fc1, form), encode_rows(fc2, form), bias)
    quality = {
        f"penstock.predictor.{k}": np.array([0.9, 1.0], np.float32)
        for k in ("recall", "false_negative_rate", "false_positive_rate")
    }
    ranks = {"penstock.predictor.rank": np.array([32, 0], np.uint32)}
    plan = BundlePlan(block_format("F16"), predictors=(stored, None), metadata={**quality, **ranks})
    write_bundle(open_source(make_model("opt")), tmp_path / "m.gguf", plan)
    bundle = open_bundle(tmp_path / "m.gguf")
    predictor, nothing = bundle.predictors
    assert nothing is None and predictor is not None and predictor.rank == 32
    raw = np.fromfile(bundle.path, np.uint8, predictor.fc2.nbytes, offset=predictor.fc2.offset)
    assert np.abs(decode_rows(raw.reshape(96, -1), form) - fc2).max() < 0.02
    assert predictor.bias is not None
    assert (np.fromfile(bundle.path, "<f4", 96, offset=predictor.bias.offset) == bias).all()


@pytest.mark.parametrize("after", [0, 1, 5])
def test_ctrl_c_leaves_nothing(after: int, make_model: ModelMaker, tmp_path: Path) -> None:
    calls = 0

    def interrupt(progress: Progress) -> None:
        nonlocal calls
        calls += 1
        assert progress.unit == "bytes" and 0 <= progress.done
        if calls > after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_llm(make_model("arcee"), tmp_path / "m.gguf", calibrate=False, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_survives_a_failed_export(make_model: ModelMaker, tmp_path: Path) -> None:
    out = tmp_path / "m.gguf"
    out.write_bytes(b"precious")
    path = make_model("arcee")
    with pytest.raises(UsageError, match="exists"):
        export_llm(path, out, calibrate=False)
    file = path / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-2:] = b"\x00\x7c"  # a NaN in the last tensor's last float32
    data[-4:] = b"\x00\x00\xc0\x7f"
    file.write_bytes(data)
    with pytest.raises(FormatError, match="nan"):
        export_llm(path, out, calibrate=False, overwrite=True)
    assert out.read_bytes() == b"precious" and list(tmp_path.iterdir()) == [out]


def test_a_full_disk_is_a_storage_error(
    make_model: ModelMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        export_llm(make_model("arcee"), tmp_path / "m.gguf", calibrate=False, evaluate=False)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_said_before_any_work(make_model: ModelMaker, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no such folder"):
        export_llm(make_model("arcee"), tmp_path / "no" / "m.gguf")


_CHILD = """
import sys
from penstock.export.llm import export_llm, peak_memory_bytes
before = peak_memory_bytes()
export_llm(sys.argv[1], sys.argv[2], dtype="Q8_0", calibrate=False, evaluate=False, tokenizer=False)
print(peak_memory_bytes() - before)
assert "torch" not in sys.modules and "transformers" not in sys.modules
"""


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """A sharded checkpoint of 220 MB converts with a fraction of that."""
    write_big_opt(tmp_path / "big", layers=8, width=1024, vocab=8192)
    size = sum(p.stat().st_size for p in (tmp_path / "big").glob("*.safetensors"))
    assert size > 200 << 20
    command = [sys.executable, "-c", _CHILD, str(tmp_path / "big"), str(tmp_path / "out.gguf")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert 1 << 20 < int(done.stdout) < 100 << 20


def write_big_opt(folder: Path, layers: int, width: int, vocab: int) -> None:
    """An OPT checkpoint of synthetic weights, one safetensors shard a layer, without torch."""
    import json

    from safetensors.numpy import save_file

    folder.mkdir()
    rng = np.random.default_rng(0)
    config = {
        "model_type": "opt", "hidden_size": width, "num_hidden_layers": layers,
        "ffn_dim": 4 * width, "num_attention_heads": width // 64, "vocab_size": vocab,
        "max_position_embeddings": 512,
        "activation_function": "relu",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    weight_map: dict[str, str] = {}

    def shard(name: str, shapes: dict[str, tuple[int, ...]]) -> None:
        noise = rng.integers(0, 1 << 15, 1 << 16, dtype=np.uint16) % 0x3000
        tensors = {}
        for key, shape in shapes.items():
            tensors[f"model.decoder.{key}"] = np.resize(noise.view(np.float16), shape)
            weight_map[f"model.decoder.{key}"] = name
        save_file(tensors, folder / name)

    linear = {
        "self_attn.q_proj": 1,
        "self_attn.k_proj": 1,
        "self_attn.v_proj": 1,
        "self_attn.out_proj": 1,
    }
    for n in range(layers):
        shapes: dict[str, tuple[int, ...]] = {}
        for key in (*linear, "self_attn_layer_norm", "final_layer_norm"):
            shapes[f"layers.{n}.{key}.bias"] = (width,)
            shapes[f"layers.{n}.{key}.weight"] = (width, width) if key in linear else (width,)
        shapes |= {
            f"layers.{n}.fc1.weight": (4 * width, width),
            f"layers.{n}.fc1.bias": (4 * width,),
        }
        shapes |= {f"layers.{n}.fc2.weight": (width, 4 * width), f"layers.{n}.fc2.bias": (width,)}
        shard(f"model-{n}.safetensors", shapes)
    ends: dict[str, tuple[int, ...]] = {
        "embed_tokens.weight": (vocab, width),
        "embed_positions.weight": (514, width),
    }
    ends |= {"final_layer_norm.weight": (width,), "final_layer_norm.bias": (width,)}
    shard("model-rest.safetensors", ends)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

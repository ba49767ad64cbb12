"""Reading checkpoints: shards, bfloat16, GGUF without a second quantization, and refusals."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from penstock.errors import FormatError, PenstockError, StorageError, UnsupportedModelError
from penstock.export.bundle_writer import BundlePlan, write_bundle
from penstock.export.sources import open_source
from penstock.export.sources.safetensors_file import SafetensorsFile
from penstock.loaders.bundle import open_bundle
from penstock.quant.blocks import FORMATS, block_format, encode_rows

ModelMaker = Callable[..., Path]


def test_shards_and_bfloat16_are_read_as_they_are(
    make_model: ModelMaker, weights: Callable[[Path], dict[str, Any]]
) -> None:
    path = make_model("nemotron", dtype="bfloat16", shard="40KB")
    assert len(list(path.glob("*.safetensors"))) > 2
    source, stored = open_source(path), weights(path)
    assert source.weight_format == "BF16"
    ids = np.array([3, 4, 5, 95, 0, 1])
    up = source.rows("blk.1.ffn_up.weight", ids)
    assert (up == stored["model.layers.1.mlp.up_proj.weight"][ids]).all()
    assert source.parameters == sum(w.size for w in stored.values())


def test_safetensors_rows_equal_the_safetensors_package(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    rng = np.random.default_rng(0)
    stored: dict[str, np.ndarray[Any, Any]] = {
        "a": rng.normal(size=(70, 5)).astype(np.float32),
        "b": rng.normal(size=(9,)).astype(np.float16),
        "c": rng.normal(size=(4, 3)),
    }
    save_file(stored, tmp_path / "x.safetensors")
    file = SafetensorsFile(tmp_path / "x.safetensors")
    for name, values in stored.items():
        ids = rng.permutation(len(values))
        expected = values.astype(np.float32).reshape(len(values), -1)[ids]
        assert (file.rows(name, ids) == expected).all()
    with pytest.raises(FormatError, match="has 9 rows"):
        file.rows("b", np.array([9]))


def damaged(header: bytes, data: bytes = b"\0" * 64) -> bytes:
    return struct.pack("<Q", len(header)) + header + data


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"version https://git-lfs.github.com/spec/v1\n",
        struct.pack("<Q", 1 << 60) + b"{}",
        damaged(b"{]"),
        damaged(b"[1, 2]"),
        damaged(b'{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 1000]}}'),
        damaged(b'{"a": {"dtype": "F32", "shape": [5], "data_offsets": [0, 16]}}'),
        damaged(b'{"a": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}}'),
        damaged(b'{"a": {"dtype": "F32", "shape": "x", "data_offsets": [0, 16]}}'),
        damaged(b'{"a": {"dtype": "F32", "shape": [4], "data_offsets": [-8, 8]}}'),
        damaged(b'{"a": 3}'),
        damaged(b'{"a": {}}'),
    ],
)
def test_damaged_safetensors_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(FormatError, match=r"x\.safetensors"):
        SafetensorsFile(tmp_path / "x.safetensors")


def test_a_pickle_is_refused_with_the_way_out(make_model: ModelMaker) -> None:
    path = make_model("arcee")
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    with pytest.raises(FormatError, match="pickle.*save_pretrained"):
        open_source(path)


def test_a_shard_may_not_lie_elsewhere(make_model: ModelMaker) -> None:
    path = make_model("arcee")
    index = {"weight_map": {"model.norm.weight": "../../secret.safetensors"}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FormatError, match="not a plain"):
        open_source(path)


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_pytorch_tanh"])
def test_dense_activations_are_refused_with_the_reason(
    activation: str, make_model: ModelMaker
) -> None:
    for arch, key in (("llama", "hidden_act"), ("opt", "activation_function")):
        path = make_model(arch, edit={key: activation})
        with pytest.raises(
            UnsupportedModelError, match=f"'{activation}', which is never exactly zero.*llama.cpp"
        ):
            open_source(path)


@pytest.mark.parametrize(
    ("arch", "edit", "message"),
    [
        ("llama", {"model_type": "mistral"}, "'mistral' is not supported.*Supported: arcee, llama"),
        ("llama", {"model_type": "bamboo", "mamba_d_state": 16}, "Mamba"),
        ("llama", {"mlp_bias": True}, "mlp_bias"),
        ("llama", {"model_type": "sparsellama", "hidden_act": "fatrelu"}, "threshold None"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
            "'dynamic'",
        ),
        ("llama", {"intermediate_size": 128}, "do not belong together"),
        ("llama", {"num_hidden_layers": 3}, "'model.layers.2.input_layernorm.weight' is missing"),
        ("llama", {"hidden_size": "wide"}, "'hidden_size' is 'wide'"),
        ("llama", {"num_key_value_heads": 3}, "whole ratio"),
        ("opt", {"_remove_final_layer_norm": True}, "_remove_final_layer_norm"),
        ("opt", {"layer_norm_elementwise_affine": False}, "layer_norm_elementwise_affine"),
    ],
)
def test_what_is_not_supported_is_said(
    arch: str, edit: dict[str, Any], message: str, make_model: ModelMaker
) -> None:
    path = make_model(arch, edit=edit)
    with pytest.raises(PenstockError, match=message):
        open_source(path)


def test_a_folder_or_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no such file"):
        open_source(tmp_path / "absent")
    with pytest.raises(FormatError, match=r"no config\.json"):
        open_source(tmp_path)
    (tmp_path / "x.gguf").write_bytes(b"PK\x03\x04")
    with pytest.raises(FormatError, match="neither"):
        open_source(tmp_path / "x.gguf")


# ---------------------------------------------------------------- GGUF


def write_gguf(
    path: Path, arch: str, dtype: str = "Q8_0", **keys: Any
) -> dict[str, np.ndarray[Any, Any]]:
    """An ordinary GGUF of one layer with random weights; its matrices as written, encoded."""
    rng = np.random.default_rng(3)
    form = FORMATS[dtype]
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(1)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(96)
    writer.add_context_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_layer_norm_eps(1e-5)
    for key, value in keys.items():
        writer.add_string(f"{arch}.{key}", value)
    shapes = {"token_embd": (320, 64), "blk.0.attn_q": (64, 64), "blk.0.attn_k": (32, 64)}
    shapes |= {"blk.0.attn_v": (32, 64), "blk.0.attn_output": (64, 64)}
    shapes |= {"blk.0.ffn_up": (96, 64), "blk.0.ffn_down": (64, 96)}
    if arch == "llama":
        shapes["blk.0.ffn_gate"] = (96, 64)
    written: dict[str, np.ndarray[Any, Any]] = {}
    for name, shape in shapes.items():
        values = rng.normal(size=shape).astype(np.float32)
        raw = encode_rows(values, form)
        written[name] = raw
        if dtype == "F16":
            writer.add_tensor(f"{name}.weight", raw.view(np.float16).reshape(shape))
        else:
            writer.add_tensor(
                f"{name}.weight", raw, raw_dtype=gguf.GGMLQuantizationType(form.ggml_type)
            )
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(64, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return written


@pytest.mark.parametrize("dtype", ["F16", "Q8_0", "Q4_0"])
def test_blocks_of_a_gguf_are_copied_not_quantized_again(dtype: str, tmp_path: Path) -> None:
    written = write_gguf(tmp_path / "in.gguf", "arcee", dtype)
    order = np.random.default_rng(1).permutation(96)
    plan = BundlePlan(block_format(dtype), orders=(order,))
    write_bundle(open_source(tmp_path / "in.gguf"), tmp_path / "out.gguf", plan)
    bundle = open_bundle(tmp_path / "out.gguf")
    info = bundle.bundles[0]
    rows = np.fromfile(bundle.path, np.uint8, info.nbytes, offset=info.offset).reshape(info.shape)
    assert (rows[:, : bundle.row_bytes] == written["blk.0.ffn_up"][order]).all()
    q = bundle.file.tensors["blk.0.attn_q.weight"]
    assert (
        np.fromfile(bundle.path, np.uint8, q.nbytes, offset=q.offset)
        == written["blk.0.attn_q"].ravel()
    ).all()


def test_a_llama_gguf_does_not_say_its_activation(tmp_path: Path) -> None:
    path = tmp_path / "in.gguf"
    write_gguf(path, "llama")
    with pytest.raises(UnsupportedModelError, match="'silu', which is never exactly zero"):
        open_source(path)
    assert open_source(path, "relu").spec.activation == "relu"
    spec = open_source(path, "fatrelu:0.01").spec
    assert (spec.activation, spec.threshold, spec.gated) == ("fatrelu", 0.01, True)
    write_gguf(path, "llama", hidden_activation="relu")
    assert open_source(path).spec.activation == "relu"
    write_gguf(path, "llama", hidden_activation="gelu")
    with pytest.raises(UnsupportedModelError, match="'gelu'"):
        open_source(path, "relu")


def test_other_ggufs_are_refused(tmp_path: Path, make_model: ModelMaker) -> None:
    write_gguf(tmp_path / "in.gguf", "gemma")
    with pytest.raises(UnsupportedModelError, match="'gemma'.*llama.cpp"):
        open_source(tmp_path / "in.gguf")
    write_bundle(
        open_source(make_model("arcee")), tmp_path / "b.gguf", BundlePlan(block_format("F16"))
    )
    with pytest.raises(FormatError, match="already a Penstock bundle"):
        open_source(tmp_path / "b.gguf")


# ---------------------------------------------------------------- tokenizers


def test_the_tokenizer_travels_whole_and_as_ggml_keys(make_model: ModelMaker) -> None:
    from penstock.runtime.tokenizer import Tokenizer

    path = make_model("opt")
    (path / "tokenizer_config.json").write_text(
        json.dumps(
            {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": "{{ 1 }}"}
        )
    )
    keys = dict(open_source(path).tokenizer)
    assert keys["tokenizer.huggingface.json"] == (path / "tokenizer.json").read_text()
    assert (keys["tokenizer.ggml.bos_token_id"], keys["tokenizer.ggml.eos_token_id"]) == (0, 1)
    assert (keys["tokenizer.ggml.model"], keys["tokenizer.ggml.pre"]) == ("gpt2", "gpt-2")
    assert keys["tokenizer.chat_template"] == "{{ 1 }}"
    whole = Tokenizer(keys)
    rebuilt = Tokenizer({k: v for k, v in keys.items() if k != "tokenizer.huggingface.json"})
    for text in ("once upon a time, the KING said 'no' 42 times", "ä€ \n\n x"):
        assert rebuilt.encode(text) == whole.encode(text)


def test_a_sentencepiece_like_vocabulary_gets_scores_in_the_order_of_its_merges() -> None:
    from tokenizers import Tokenizer as Pipeline
    from tokenizers import decoders, models, normalizers

    from penstock.export.hf_tokenizer import _ggml_vocabulary
    from penstock.runtime.tokenizer import Tokenizer

    pieces = [
        "<unk>",
        *(f"<0x{i:02X}>" for i in range(256)),
        "▁",
        "a",
        "b",
        "ab",
        "▁a",
        "abb",
        "▁ab",
    ]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    merges = [("a", "b"), ("▁", "ab"), ("ab", "b"), ("▁", "a")]
    model = models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    pipeline = Pipeline(model)
    pipeline.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    pipeline.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    keys = _ggml_vocabulary(pipeline, json.loads(pipeline.to_str()), len(pieces))
    assert keys["tokenizer.ggml.model"] == "llama"
    rebuilt = Tokenizer(keys)
    for text in ("abb ab a", "babab", "ab ü"):
        assert rebuilt.encode(text, add_bos=False) == pipeline.encode(text).ids


def test_a_missing_or_foreign_tokenizer_is_an_error(make_model: ModelMaker) -> None:
    path = make_model("arcee", vocab_size=64)
    with pytest.raises(FormatError, match="ids up to.*64 embeddings"):
        _ = open_source(path).tokenizer
    (path / "tokenizer.json").write_text("{}")
    with pytest.raises(FormatError, match="damaged"):
        _ = open_source(path).tokenizer
    (path / "tokenizer.json").unlink()
    with pytest.raises(FormatError, match="no tokenizer.json"):
        _ = open_source(path).tokenizer

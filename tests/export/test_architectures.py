"""Every architecture: the bundle's bytes against the checkpoint's weights, and its logits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from penstock.export.bundle_writer import BundlePlan, write_bundle
from penstock.export.sources import open_source
from penstock.loaders.bundle import Bundle, open_bundle
from penstock.quant.blocks import F32, FORMATS, block_format, decode_rows

Weights = Callable[[Path], dict[str, Any]]
FORMS = {form.ggml_type: form for form in (F32, *FORMATS.values())}

FFN = {  # architecture -> names of gate, up, down in layer {}
    "opt": (None, "model.decoder.layers.{}.fc1", "model.decoder.layers.{}.fc2"),
    "arcee": (None, "model.layers.{}.mlp.up_proj", "model.layers.{}.mlp.down_proj"),
    "nemotron": (None, "model.layers.{}.mlp.up_proj", "model.layers.{}.mlp.down_proj"),
    "llama": tuple(f"model.layers.{{}}.mlp.{part}_proj" for part in ("gate", "up", "down")),
}

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("opt", {}),
    ("opt", {"do_layer_norm_before": False}),
    ("opt", {"do_layer_norm_before": False, "word_embed_proj_dim": 32}),
    ("opt", {"enable_bias": False, "tie_word_embeddings": False}),
    ("arcee", {}),
    ("arcee", {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True}),
    ("arcee", {"head_dim": 32}),
    ("arcee", {"dtype": "bfloat16", "shard": "40KB"}),
    ("arcee", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}}),
    ("nemotron", {}),
    ("nemotron", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    ("llama", {}),
    ("llama", {"hidden_act": "relu2", "attention_bias": True, "tie_word_embeddings": True}),
    (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0,
                "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
    ),
    (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        },
    ),
]  # fmt: skip


def name_of(variant: object) -> str:
    if isinstance(variant, dict):
        return "-".join(str(v) for v in variant) or "plain"
    return str(variant)


def tensor(bundle: Bundle, name: str) -> NDArray[np.float32]:
    """A resident tensor, decoded."""
    info = bundle.file.tensors[name]
    raw = np.fromfile(bundle.path, np.uint8, info.nbytes, offset=info.offset)
    form = FORMS[info.type]
    rows = 1 if len(info.shape) == 1 else info.shape[0]
    return decode_rows(raw.reshape(rows, -1), form).reshape(info.shape)


def bundle_rows(bundle: Bundle, layer: int) -> NDArray[np.float32]:
    """(neurons, rows a bundle, width), decoded; checks that the padding is zero."""
    info = bundle.bundles[layer]
    raw = np.fromfile(bundle.path, np.uint8, info.nbytes, offset=info.offset).reshape(info.shape)
    used = bundle.rows * bundle.row_bytes
    assert not raw[:, used:].any()
    rows = raw[:, :used].reshape(-1, bundle.row_bytes)
    return decode_rows(rows, block_format(bundle.dtype)).reshape(bundle.neurons, bundle.rows, -1)


@pytest.mark.parametrize(("arch", "variant"), VARIANTS, ids=name_of)
def test_logits_equal_transformers(
    arch: str, variant: dict[str, Any], make_model: Callable[..., Path], tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from penstock.runtime.flash_engine import FlashEngine

    path = make_model(arch, **variant)
    write_bundle(open_source(path), tmp_path / "m.gguf", BundlePlan(block_format("F16")))
    ids = np.arange(100, dtype=np.int32) * 37 % 300
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = model(torch.from_numpy(ids[None].astype(np.int64))).logits[0].numpy()
    engine = FlashEngine.open_dense(
        open_bundle(tmp_path / "m.gguf"), context=128, batch=128, threads=1
    )
    logits = engine.prefill(ids, 0, all_logits=True)
    # Folded factors (YaRN, OPT-350M's projections) round once more.
    folded = "word_embed_proj_dim" in variant or "yarn" in str(variant)
    assert np.abs(logits - expected).max() < (4e-3 if folded else 1e-3) * np.abs(expected).max()


@pytest.mark.parametrize("arch", FFN)
@pytest.mark.parametrize("ordered", [False, True], ids=["source-order", "reordered"])
def test_every_row_and_column_lies_at_its_place(
    arch: str, ordered: bool, make_model: Callable[..., Path], weights: Weights, tmp_path: Path
) -> None:
    path = make_model(arch)
    orders = tuple(np.random.default_rng(n).permutation(96) for n in range(2)) if ordered else ()
    write_bundle(
        open_source(path), tmp_path / "m.gguf", BundlePlan(block_format("F16"), orders=orders)
    )
    bundle, stored = open_bundle(tmp_path / "m.gguf"), weights(path)
    for layer in range(2):
        bundle.verify_layer(layer)
        order = np.arange(96)
        if ordered:
            order = bundle.file.get_array(f"penstock.order.{layer}", 96).astype(np.int64)
            assert (order == orders[layer]).all()
        rows = bundle_rows(bundle, layer)
        for position, neuron in enumerate(order):
            *up, down = [name.format(layer) for name in FFN[arch] if name is not None]
            expected = [stored[f"{name}.weight"][neuron] for name in up]
            expected.append(stored[f"{down}.weight"][:, neuron])
            assert (rows[position] == np.array(expected).astype(np.float16)).all()
        if arch == "opt":
            bias = stored[f"model.decoder.layers.{layer}.fc1.bias"]
            assert (tensor(bundle, f"blk.{layer}.ffn_up.bias") == bias[order]).all()


def test_opt_drops_the_two_unused_positions(
    make_model: Callable[..., Path], weights: Weights, tmp_path: Path
) -> None:
    path = make_model("opt")
    write_bundle(open_source(path), tmp_path / "m.gguf", BundlePlan(block_format("F16")))
    positions = weights(path)["model.decoder.embed_positions.weight"]
    kept = tensor(open_bundle(tmp_path / "m.gguf"), "position_embd.weight")
    assert kept.shape == (128, 64) and len(positions) == 130
    assert (kept == positions[2:].astype(np.float16)).all()


def test_nemotron_norms_gain_one_and_part_of_a_head_rotates(
    make_model: Callable[..., Path], weights: Weights, tmp_path: Path
) -> None:
    path = make_model("nemotron")
    write_bundle(open_source(path), tmp_path / "m.gguf", BundlePlan(block_format("F16")))
    bundle, stored = open_bundle(tmp_path / "m.gguf"), weights(path)
    assert bundle.file.get_int("nemotron.rope.dimension_count") == 8
    norm = tensor(bundle, "blk.1.ffn_norm.weight")
    assert np.allclose(
        norm, stored["model.layers.1.post_attention_layernorm.weight"] + 1, atol=1e-6
    )
    q = tensor(bundle, "blk.0.attn_q.weight")
    assert (q == stored["model.layers.0.self_attn.q_proj.weight"].astype(np.float16)).all()


def test_llama_rows_of_q_and_k_become_interleaved(
    make_model: Callable[..., Path], weights: Weights, tmp_path: Path
) -> None:
    path = make_model("llama", attention_bias=True)
    write_bundle(open_source(path), tmp_path / "m.gguf", BundlePlan(block_format("F16")))
    bundle, stored = open_bundle(tmp_path / "m.gguf"), weights(path)
    for part, heads in (("q", 4), ("k", 2)):
        matrix = tensor(bundle, f"blk.0.attn_{part}.weight").reshape(heads, 16, 64)
        bias = tensor(bundle, f"blk.0.attn_{part}.bias").reshape(heads, 16)
        old = stored[f"model.layers.0.self_attn.{part}_proj.weight"].reshape(heads, 16, 64)
        old_bias = stored[f"model.layers.0.self_attn.{part}_proj.bias"].reshape(heads, 16)
        for pair in range(8):  # GGUF rotates (2i, 2i + 1), Hugging Face (i, i + half)
            for half in range(2):
                assert (
                    matrix[:, 2 * pair + half] == old[:, pair + 8 * half].astype(np.float16)
                ).all()
                assert (bias[:, 2 * pair + half] == old_bias[:, pair + 8 * half]).all()


def test_tied_embeddings_are_stored_once(make_model: Callable[..., Path], tmp_path: Path) -> None:
    for tied in (True, False):
        path = make_model("arcee", tie_word_embeddings=tied)
        write_bundle(open_source(path), tmp_path / f"{tied}.gguf", BundlePlan(block_format("F16")))
        names = open_bundle(tmp_path / f"{tied}.gguf").file.tensors
        assert ("output.weight" in names) is not tied


@pytest.mark.parametrize(
    ("edit", "activation", "threshold"),
    [
        (
            {"model_type": "sparsellama", "hidden_act": "fatrelu", "hidden_act_param": 0.01},
            "fatrelu",
            0.01,
        ),
        ({"model_type": "bamboo", "hidden_act": "relu"}, "drelu", 0.0),
        ({"hidden_act": "relu2"}, "relu2", 0.0),
    ],
)
def test_llama_kin_have_their_own_activations(
    edit: dict[str, Any],
    activation: str,
    threshold: float,
    make_model: Callable[..., Path],
    tmp_path: Path,
) -> None:
    path = make_model("llama", edit=edit)
    write_bundle(open_source(path), tmp_path / "m.gguf", BundlePlan(block_format("F16")))
    bundle = open_bundle(tmp_path / "m.gguf")
    assert (bundle.arch, bundle.activation, bundle.gated) == ("llama", activation, True)
    assert bundle.threshold == pytest.approx(threshold)


@pytest.mark.parametrize("dtype", ["Q8_0", "Q4_0"])
def test_quantized_rows_are_close(
    dtype: str, make_model: Callable[..., Path], weights: Weights, tmp_path: Path
) -> None:
    path = make_model("llama")
    write_bundle(open_source(path), tmp_path / "m.gguf", BundlePlan(block_format(dtype)))
    bundle, stored = open_bundle(tmp_path / "m.gguf"), weights(path)
    rows = bundle_rows(bundle, 1)
    gate, up, down = (stored[n.format(1) + ".weight"] for n in FFN["llama"] if n is not None)
    steps = 127 if dtype == "Q8_0" else 7
    for place, expected in enumerate((gate, up, down.T)):
        limit = np.abs(expected).max(1, keepdims=True) / steps
        assert (np.abs(rows[:, place] - expected) <= limit).all()
    assert bundle.file.tensors["token_embd.weight"].type_name == "Q8_0"

"""Logits against transformers in float32, for every architecture and number format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import gguf
from numpy.typing import NDArray

from penstock.loaders.bundle import open_bundle
from penstock.runtime.flash_engine import FlashEngine
from penstock.runtime.planner import PlanOptions, make_plan
from tests.bundle_builder import profile
from tests.tiny_models import FAMILIES, TinyModel, make_tiny_model

Floats = NDArray[np.float32]

# Largest difference of a logit, as a part of the largest logit. F16: the same weights, and float
# arithmetic in another order, a KV cache in F16. The block formats also round each activation to
# int8 by blocks of 32, an error of up to 1 / 254 of the block's largest in each product.
TOLERANCE = {"F16": 1e-3, "Q8_0": 2.5e-2, "Q4_0": 2.5e-2}
TOKENS = np.random.default_rng(1).integers(0, 300, 48).astype(np.int32)


def engine_of(path: Path, batch: int = 16, context: int = 64) -> FlashEngine:
    bundle = open_bundle(path)
    options = PlanOptions(mode="dense", context=context, batch=batch, threads=2, ffn_share=1.0)
    return FlashEngine(bundle, make_plan(bundle, profile(), options))


def off(mine: Floats, reference: Floats) -> float:
    assert mine.shape == reference.shape and np.isfinite(mine).all()
    return float(np.abs(mine - reference).max() / np.abs(reference).max())


def check(model: TinyModel, tolerance: float) -> None:
    reference = model.reference(TOKENS)
    engine = engine_of(model.path)
    assert off(engine.prefill(TOKENS, 0, all_logits=True), reference) <= tolerance
    engine.reset()
    decoded = np.stack([engine.decode(int(token)) for token in TOKENS])
    assert off(decoded, reference) <= tolerance
    engine.reset()
    last = engine.prefill(TOKENS[:20])
    mixed = np.stack([last, *(engine.decode(int(token)) for token in TOKENS[20:])])
    assert off(mixed, reference[19:]) <= tolerance


@pytest.mark.parametrize("family", FAMILIES)
def test_f16_logits_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    check(make_tiny_model(tmp_path, family), TOLERANCE["F16"])


@pytest.mark.parametrize("dtype", ["Q8_0", "Q4_0"])
@pytest.mark.parametrize("family", ["opt", "arcee", "nemotron", "llama-relu", "llama-drelu"])
def test_block_format_logits_are_those_of_the_dequantized_weights(
    family: str, dtype: str, tmp_path: Path
) -> None:
    check(make_tiny_model(tmp_path, family, dtype), TOLERANCE[dtype])


def test_the_comparison_would_notice_a_wrong_weight(tmp_path: Path) -> None:
    """One neuron of one layer set to zero is seen by the F16 tolerance."""
    model = make_tiny_model(tmp_path, "arcee")
    model.oracle.model.layers[1].mlp.up_proj.weight.data[7] = 0
    logits = engine_of(model.path).prefill(TOKENS, 0, all_logits=True)
    assert off(logits, model.reference(TOKENS)) > TOLERANCE["F16"]


def test_the_start_models_logits_are_those_of_transformers(
    shared_dir: Path, tmp_path: Path
) -> None:
    import transformers
    from tokenizers import Tokenizer

    from penstock.export.llm import export_llm

    folder = shared_dir / "models" / "storyteller-start"
    path = tmp_path / "start.gguf"
    export_llm(folder, path, calibrate=False, evaluate=False)
    oracle = transformers.AutoModelForCausalLM.from_pretrained(str(folder)).float()
    book = shared_dir / "data" / "fairytales" / "The-Lilac-Fairy-Book_3454.txt"
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    text = book.read_text(encoding="utf-8")[20000:21000]
    tokens = np.array(tokenizer.encode(text).ids[:200], np.int32)
    engine = engine_of(path, batch=64, context=256)
    reference = TinyModel(path, folder, oracle).reference(tokens)
    assert off(engine.prefill(tokens, 0, all_logits=True), reference) <= TOLERANCE["F16"]


# ---------------------------------------------------------------- llama.cpp, a second opinion


def write_plain_gguf(model: TinyModel, path: Path, arch: str) -> None:
    """An ordinary F32 GGUF straight from the checkpoint, with llama.cpp's names and layout."""
    config, weights = model.oracle.config, model.oracle.state_dict()
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    head_dim = config.hidden_size // heads
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_freq_base(10000.0)
    writer.add_tokenizer_model("no_vocab")
    if arch == "nemotron":
        writer.add_layer_norm_eps(config.norm_eps)
        writer.add_rope_dimension_count(head_dim // 2)  # NemotronConfig's half
    else:
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_dimension_count(head_dim)
    names = {
        "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    }  # fmt: skip
    top = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    for name, tensor in weights.items():
        module, kind = name.rsplit(".", 1)
        values = tensor.numpy()
        if module in top:
            target = top[module]
        else:
            _, _, layer, part = module.split(".", 3)
            target = f"blk.{layer}.{names[part]}"
            if arch == "arcee" and part in ("self_attn.q_proj", "self_attn.k_proj"):
                n = heads if "q_proj" in part else kv_heads
                values = values.reshape(n, 2, head_dim // 2, -1).swapaxes(1, 2)
                values = np.ascontiguousarray(values.reshape(tensor.shape))
        if arch == "nemotron" and "norm" in module and kind == "weight":
            values = values + 1
        writer.add_tensor(f"{target}.{kind}", np.ascontiguousarray(values, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("family", ["arcee", "nemotron"])
def test_logits_are_those_of_llama_cpp(family: str, tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    model = make_tiny_model(tmp_path, family)
    plain = tmp_path / "plain.gguf"
    write_plain_gguf(model, plain, family)
    llama = llama_cpp.Llama(
        str(plain), n_ctx=64, n_batch=64, n_threads=1, logits_all=True, verbose=False,
        type_k=0, type_v=0, flash_attn=False,  # a KV cache in F32
    )  # fmt: skip
    llama.eval(TOKENS.tolist())
    reference = np.array(llama.scores[: TOKENS.size], np.float32)
    llama.close()
    logits = engine_of(model.path).prefill(TOKENS, 0, all_logits=True)
    assert off(logits, reference) <= TOLERANCE["F16"]

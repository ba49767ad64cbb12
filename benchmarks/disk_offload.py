"""The peer that offloads to disk: transformers with accelerate, the same shape and share of
memory, under the same kind of cap.

A quarter of the layers is written as a Hugging Face folder and run; the time of the whole is
extrapolated by size, and
called so. As much of the checkpoint as half of its size holds goes to memory, the rest stays on
disk (device_map "auto").
"""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks.capped import Cage, drop_caches
from benchmarks.machine import version
from benchmarks.synthetic import Shape
from benchmarks.synthetic_weights import Recipe, Tile

LAYER_SHARE = 4  # one in so many layers is run
TOKENS = 3  # the first is not counted
OPT_POSITION_OFFSET = 2  # rows that Hugging Face keeps for padding
_SLACK = 160 << 20  # torch's working memory beside the weights


def write_folder(shape: Shape, layers: int, folder: Path) -> None:
    """A Hugging Face OPT checkpoint, F16, random weights: config.json and one safetensors file."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["OPTForCausalLM"], "model_type": "opt", "hidden_size": shape.width,
        "ffn_dim": shape.neurons,
        "num_hidden_layers": layers, "num_attention_heads": shape.heads, "vocab_size": shape.vocab,
        "max_position_embeddings": shape.context, "word_embed_proj_dim": shape.width,
        "do_layer_norm_before": True,
        "tie_word_embeddings": True, "activation_function": "relu", "enable_bias": True,
        "torch_dtype": "float16",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    tensors: list[tuple[str, tuple[int, ...]]] = [
        ("model.decoder.embed_tokens.weight", (shape.vocab, shape.width)),
        (
            "model.decoder.embed_positions.weight",
            (shape.context + OPT_POSITION_OFFSET, shape.width),
        ),
    ]
    for at in (
        "model.decoder.final_layer_norm",
        *(f"model.decoder.layers.{n}" for n in range(layers)),
    ):
        if at.endswith("norm"):
            tensors += [(f"{at}.weight", (shape.width,)), (f"{at}.bias", (shape.width,))]
            continue
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            tensors.append((f"{at}.self_attn.{name}.weight", (shape.width, shape.width)))
            tensors.append((f"{at}.self_attn.{name}.bias", (shape.width,)))
        for name in ("self_attn_layer_norm", "final_layer_norm"):
            tensors += [
                (f"{at}.{name}.weight", (shape.width,)),
                (f"{at}.{name}.bias", (shape.width,)),
            ]
        tensors += [
            (f"{at}.fc1.weight", (shape.neurons, shape.width)),
            (f"{at}.fc1.bias", (shape.neurons,)),
        ]
        tensors += [
            (f"{at}.fc2.weight", (shape.width, shape.neurons)),
            (f"{at}.fc2.bias", (shape.width,)),
        ]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, dims in tensors:
        size = 2 * int(np.prod(dims))
        header[name] = {"dtype": "F16", "shape": dims, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    tile = Tile.draw(Recipe(2**-12), "F16", 4096, shape.width, 9).stored.reshape(-1)
    with open(folder / "model.safetensors", "wb") as handle:
        handle.write(struct.pack("<Q", len(text)) + text)
        for name, dims in tensors:
            left = 2 * int(np.prod(dims))
            if name.endswith("norm.weight"):
                handle.write(np.ones(dims, np.float16).tobytes())
                continue
            while left:
                part = tile[: min(left, tile.nbytes)]
                handle.write(part.data)
                left -= part.nbytes


def measure(shape: Shape, work: Path, memory_share: float, keep: bool) -> dict[str, Any]:
    """Seconds a token of a part of the layers, and what that makes for all of them."""
    layers = max(1, shape.layers // LAYER_SHARE)
    folder = work / f"{shape.name}-{layers}-layers-hf"
    kept = folder.exists()
    if not kept:
        write_folder(shape, layers, folder)
    try:
        size = (folder / "model.safetensors").stat().st_size
        held = int(size * memory_share)
        command = [sys.executable, str(Path(__file__)), str(folder), str(held)]
        with Cage() as cage:
            drop_caches()
            baseline = cage.run([*command, "baseline"]).peak
        with Cage(baseline + held + _SLACK) as cage:
            drop_caches()
            done = cage.run(command)
            kind = cage.memory_kind
    finally:
        if not (kept or keep):
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()
    peer = f"transformers {version('transformers')} + accelerate {version('accelerate')}"
    setting = (
        f"{layers} of {shape.layers} layers ({size / 1e9:.2f} GB, {held / 1e9:.2f} GB of it in "
        f"memory, cap {kind})"
    )
    if done.returncode:
        why = "killed: over the cap" if done.killed else done.errors.strip().splitlines()[-1]
        return {"line": f"{peer}, disk offload, {setting}: {why}", "seconds": None}
    seconds = median(json.loads(done.output)["seconds"][1:])
    block = (4 * shape.width + 2 * shape.neurons) * shape.width * 2
    whole = seconds * (1 + (shape.layers - layers) * block / size)
    line = (
        f"{peer}, disk offload, {setting}: {seconds * 1e3:,.0f} ms a token; EXTRAPOLATED by size "
        f"to all layers: "
        f"{whole * 1e3:,.0f} ms a token"
    )
    return {"line": line, "seconds": seconds, "extrapolated_seconds": whole, "peak": done.peak}


def _child(folder: str, held: int, baseline: bool) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_grad_enabled(False)
    weights = torch.ones(64, 64, dtype=torch.float16)
    weights @ weights
    if baseline:
        return
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        device_map="auto",
        max_memory={"cpu": held},
        offload_folder=folder,
        dtype=torch.float16,
    )
    seconds, cache = [], None
    for token in range(TOKENS):
        began = perf_counter()
        out = model(torch.tensor([[5 + token]]), past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        seconds.append(perf_counter() - began)
    print(json.dumps({"seconds": seconds}))


if __name__ == "__main__":
    _child(sys.argv[1], int(sys.argv[2]), len(sys.argv) > 3)

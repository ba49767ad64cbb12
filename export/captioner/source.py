"""A Hugging Face captioner folder, read and checked: weights, photos, tokenizer, generation."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.errors import BackendMissingError, FormatError, UnsupportedModelError
from penstock.export.captioner import blip, vit_gpt2
from penstock.export.captioner.blip import BlipGraphs
from penstock.export.captioner.generation import read_generation
from penstock.export.captioner.graphs import EncoderDecoder
from penstock.export.captioner.preprocessor import read_preparation
from penstock.export.captioner.tokenizer_files import tokenizer_json
from penstock.export.captioner.vit_gpt2 import VitGpt2Graphs
from penstock.export.hf_config import HFConfig
from penstock.export.onnx.libraries import quiet_libraries

SUPPORTED = (
    f"{blip.ARCHITECTURE} (BLIP), and {vit_gpt2.ARCHITECTURE} of "
    f"{' or '.join(vit_gpt2.ENCODERS)} with {' or '.join(vit_gpt2.DECODERS)}"
)
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")  # in this order; the first that are there


@dataclass(frozen=True)
class CaptionerSource:
    """What a captioner file is made from.

    Attributes:
        network: the model on torch tensors.
        manifest: of the captioner file.
        tokenizer: the text of its tokenizer.json.
        weight_bytes: of the folder's weights.
        notes: what the folder asks for and does not get.
    """

    folder: Path
    network: EncoderDecoder
    manifest: dict[str, Any]
    tokenizer: str
    weight_bytes: int
    notes: tuple[str, ...]


def open_captioner_source(
    folder: str | os.PathLike[str],
    *,
    beams: int | None = None,
    max_tokens: int | None = None,
    prompt: str | None = None,
) -> CaptionerSource:
    """Read a folder, its weights in float32.

    Args:
        beams, max_tokens: None: what its generation_config says.
        prompt: words that captions go on from, for BLIP; None: "a picture of".

    Raises:
        FormatError: a file is missing, damaged, or does not belong to the others.
        UnsupportedModelError: another architecture, or something in it that is not done here.
        BackendMissingError: torch or transformers is not installed.
        StorageError, UsageError.
    """
    path = Path(folder)
    if not path.is_dir():
        raise FormatError(f"{path}: expected a folder of {SUPPORTED}, with its config.json")
    if not (path / "config.json").is_file():
        raise FormatError(f"{path}: has no config.json; expected a folder of {SUPPORTED}")
    architecture = _architecture(HFConfig(path / "config.json"))
    weight_bytes = _weight_bytes(path)
    model = _load(path, architecture)
    settings = model.generation_config
    network: EncoderDecoder
    if architecture == blip.ARCHITECTURE:
        network = BlipGraphs(model)
        text = tokenizer_json(path, network.vocabulary)
        start, ends = _blip_tokens(model, text, blip.PROMPT if prompt is None else prompt)
        if not (path / "generation_config.json").is_file():
            settings = model.text_decoder.generation_config  # which its `generate` goes by
    else:
        network = VitGpt2Graphs(model)
        text = tokenizer_json(path, network.vocabulary)
        start, ends = _gpt2_tokens(path, model, text, prompt or "")
    preparation = read_preparation(path, network.image_size)
    generation = read_generation(
        settings,
        start,
        ends,
        network.max_positions,
        beams=beams,
        max_tokens=max_tokens,
    )
    manifest = {
        "architecture": "encoder-decoder",
        "name": path.resolve().name,
        "source": architecture,
        "image": preparation.image,
        "tokenizer": {"member": "tokenizer.json"},
        "generation": generation.search,
        "decoder": {
            "layers": network.layers,
            "heads": network.heads,
            "head_width": network.head_width,
            "vocabulary": network.vocabulary,
            "positions": network.max_positions,
            "crop": preparation.crop,
            **generation.rules,
        },
    }
    return CaptionerSource(path, network, manifest, text, weight_bytes, generation.notes)


def _architecture(config: HFConfig) -> str:
    names = config.values.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    if name == blip.ARCHITECTURE:
        return blip.ARCHITECTURE
    if name == vit_gpt2.ARCHITECTURE:
        parts = []
        for part in ("encoder", "decoder"):
            values = config.values.get(part)
            parts.append(values.get("model_type") if isinstance(values, dict) else None)
        if parts[0] in vit_gpt2.ENCODERS and parts[1] in vit_gpt2.DECODERS:
            return vit_gpt2.ARCHITECTURE
        name = f"{name} of {parts[0]} with {parts[1]}"
    raise UnsupportedModelError(f"{config.path}: architecture {name}; supported: {SUPPORTED}")


def _weight_bytes(folder: Path) -> int:
    for pattern in WEIGHTS:
        found = list(folder.glob(pattern))
        if found:
            return sum(path.stat().st_size for path in found)
    raise FormatError(f"{folder}: has no weights; expected model.safetensors or parts of it")


def _load(folder: Path, architecture: str) -> Any:
    try:
        with quiet_libraries():
            import torch
            import transformers
    except ImportError as error:
        raise BackendMissingError(
            f"captioners are read with torch and transformers, which cannot be imported ({error}); "
            "install them with: pip install 'penstock[export]'"
        ) from None
    try:
        with quiet_libraries():
            model, seen = getattr(transformers, architecture).from_pretrained(
                folder,
                local_files_only=True,
                weights_only=True,
                dtype=torch.float32,
                attn_implementation="eager",
                output_loading_info=True,
            )
    except Exception as error:  # safetensors, torch and transformers raise kinds of their own
        raise FormatError(
            f"{folder}: transformers {transformers.__version__} cannot load it: "
            f"{' '.join(str(error).split())[:400]}"
        ) from None
    missing = sorted(seen["missing_keys"])
    if missing:
        raise FormatError(
            f"{folder}: {len(missing)} weights are not in its files, such as {missing[0]}; "
            "expected all of them: fetch the checkpoint again"
        )
    return model.eval()


def _blip_tokens(model: Any, tokenizer: str, prompt: str) -> tuple[list[int], list[int]]:
    """As `BlipForConditionalGeneration.generate` begins and ends."""
    text = model.config.text_config
    return [text.bos_token_id, *_encode(tokenizer, prompt)], [text.sep_token_id]


def _gpt2_tokens(
    folder: Path, model: Any, tokenizer: str, prompt: str
) -> tuple[list[int], list[int]]:
    config, decoder = model.generation_config, model.config.decoder
    start = _first(
        config.decoder_start_token_id,
        getattr(model.config, "decoder_start_token_id", None),
        config.bos_token_id,
        decoder.bos_token_id,
    )
    ends = _first(config.eos_token_id, decoder.eos_token_id)
    if start is None or ends is None:
        raise FormatError(
            f"{folder}: neither generation_config.json nor config.json says with which tokens "
            "captions begin (decoder_start_token_id) and end (eos_token_id)"
        )
    ends = ends if isinstance(ends, list) else [ends]
    return [start, *_encode(tokenizer, prompt)], ends


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def _encode(tokenizer: str, text: str) -> list[int]:
    from penstock.runtime.tokenizer import Tokenizer

    if not text:
        return []
    return Tokenizer({"tokenizer.huggingface.json": tokenizer}).encode(text, add_bos=False)

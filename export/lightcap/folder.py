"""A trained captioner as a folder: what training writes and export reads.

config.json             see `LightCapConfig`
encoder.safetensors     the visual encoder
captioner.safetensors   everything behind it, see `LightCap`
vocab.txt               word pieces, one a line
concepts.txt            names of concepts, one a line
card.json               name, licence, data, how good it is; optional, goes into the artifact
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from penstock.errors import BackendMissingError, FormatError, StorageError
from penstock.export.lightcap.clip_resnet import PIXEL_MEAN, PIXEL_STD, ClipResNet
from penstock.export.lightcap.config import ENCODERS, LightCapConfig
from penstock.export.lightcap.mobilenet_v2 import MobileNetV2
from penstock.export.lightcap.model import LightCap

CONFIG, ENCODER, CAPTIONER = "config.json", "encoder.safetensors", "captioner.safetensors"
VOCABULARY, CONCEPTS, CARD = "vocab.txt", "concepts.txt", "card.json"
SMALL_BLOCKS, SMALL_WIDTH = (1, 2, 2, 1), 24
HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class LightCapFolder:
    """A captioner in torch with all that belongs to it.

    Attributes:
        encoder: pixels [batch, 3, side, side] -> grid [batch, cells, channels].
        model: behind it; both in evaluation mode.
        vocabulary: word pieces by id; concepts: names by id.
        card: for people, copied into what is exported.
    """

    config: LightCapConfig
    encoder: nn.Module
    model: LightCap
    vocabulary: list[str]
    concepts: list[str]
    card: dict[str, Any] = field(default_factory=dict)

    @property
    def float_bytes(self) -> int:
        """Of all weights in float32."""
        parts = (self.encoder, self.model)
        return 4 * sum(p.numel() for part in parts for p in part.parameters())

    def pixels(self) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
        """Mean and standard deviation of the encoder's input, of pixels in [0, 1]."""
        return (PIXEL_MEAN, PIXEL_STD) if self.config.encoder == ENCODERS[0] else (HALF, HALF)


def new_encoder(kind: str) -> nn.Module:
    """The encoder of that name, with fresh weights.

    Raises:
        FormatError: there is none.
    """
    if kind == "clip-resnet50":
        return ClipResNet()
    if kind == "small-resnet":
        return ClipResNet(SMALL_BLOCKS, SMALL_WIDTH)
    if kind == "mobilenet-v2":
        return MobileNetV2()
    raise FormatError(f"there is no encoder '{kind}'; expected one of {', '.join(ENCODERS)}")


def write_folder(folder: LightCapFolder, out: Path) -> None:
    """Write it, weights in half precision.

    Raises:
        StorageError: it cannot be written.
    """
    save_file = _safetensors().save_file
    try:
        out.mkdir(parents=True, exist_ok=True)
        for module, name in ((folder.encoder, ENCODER), (folder.model, CAPTIONER)):
            state = {
                key: (value.half() if value.is_floating_point() else value).cpu().contiguous()
                for key, value in module.state_dict().items()
            }
            save_file(state, out / name)
        folder.config.save(out / CONFIG)
        (out / VOCABULARY).write_text("\n".join(folder.vocabulary) + "\n")
        (out / CONCEPTS).write_text("\n".join(folder.concepts) + "\n")
        (out / CARD).write_text(json.dumps(folder.card, indent=1) + "\n")
    except OSError as error:
        raise StorageError(f"{out}: cannot be written: {error.strerror or error}") from None


def read_folder(path: Path) -> LightCapFolder:
    """Read a folder that `write_folder`, or the training, wrote.

    Raises:
        FormatError: a file is missing or damaged, a tensor is not of the configuration's shape, or
            the encoder's grid is another.
        BackendMissingError: safetensors is not installed.
    """
    config = LightCapConfig.load(path / CONFIG)
    _check_grid(config, path / CONFIG)
    encoder = _load(lambda: new_encoder(config.encoder), path / ENCODER)
    model = _load(lambda: LightCap(config), path / CAPTIONER)
    assert isinstance(model, LightCap)
    vocabulary, concepts = _lines(path / VOCABULARY), _lines(path / CONCEPTS)
    for lines, wanted, name in (
        (vocabulary, config.vocabulary, VOCABULARY), (concepts, config.concepts, CONCEPTS),
    ):  # fmt: skip
        if len(lines) != wanted:
            raise FormatError(f"{path / name}: {len(lines)} lines, {CONFIG} says {wanted}")
    card = {}
    if (path / CARD).is_file():
        try:
            card = json.loads((path / CARD).read_text())
        except (ValueError, RecursionError) as error:
            raise FormatError(f"{path / CARD}: not JSON: {error}") from None
        if not isinstance(card, dict):
            raise FormatError(f"{path / CARD}: expected an object, not {type(card).__name__}")
    return LightCapFolder(config, encoder.eval(), model.eval(), vocabulary, concepts, card)


def _check_grid(config: LightCapConfig, path: Path) -> None:
    with torch.device("meta"):
        pixels = torch.empty(1, 3, config.image_size, config.image_size)
        seen = new_encoder(config.encoder).eval()(pixels)
    if tuple(seen.shape[1:]) != (config.cells, config.channels):
        raise FormatError(
            f"{path}: grid {config.grid} of {config.channels} channels; at {config.image_size} "
            f"pixels {config.encoder} gives {seen.shape[1]} cells of {seen.shape[2]} channels"
        )


def _load(make: Callable[[], nn.Module], path: Path) -> nn.Module:
    """What `make` makes, filled; memory is taken when the file's shapes are right."""
    load_file = _safetensors().load_file
    try:
        state = load_file(path)
    except Exception as error:  # safetensors' own kind, or OSError
        raise FormatError(f"{path}: cannot be read as safetensors: {error}") from None
    with torch.device("meta"):
        wanted = make().state_dict()
    odd = sorted(set(wanted) ^ set(state))
    if odd:
        raise FormatError(f"{path}: tensors missing or not known: {', '.join(odd[:4])}")
    for name, tensor in state.items():
        if tensor.shape != wanted[name].shape:
            raise FormatError(
                f"{path}: '{name}' is {list(tensor.shape)}, {CONFIG} asks for "
                f"{list(wanted[name].shape)}"
            )
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise FormatError(f"{path}: '{name}' has values that are not finite")
    module = make()
    _check_ids(module, state, path)
    module.load_state_dict(
        {name: t.float() if t.is_floating_point() else t for name, t in state.items()}
    )
    return module


def _check_ids(module: nn.Module, state: dict[str, Any], path: Path) -> None:
    pieces = state.get("concept_pieces") if isinstance(module, LightCap) else None
    if pieces is None:
        return
    most = state["words.weight"].shape[0]
    if int(pieces.min()) < 0 or int(pieces.max()) >= most:
        raise FormatError(f"{path}: 'concept_pieces' has ids outside 0 to {most - 1}")


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(f"{path}: cannot be read: {error}") from None


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError:
        raise BackendMissingError(
            "captioner folders hold safetensors; install it with: pip install 'penstock[export]'"
        ) from None
    return safetensors.torch

"""How a Hugging Face folder prepares photos, as the manifest's section `image`.

`preprocessor_config.json`, or the image part of `processor_config.json` of newer folders. Values
that a file leaves out are the defaults of its image processor.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.errors import FormatError, UnsupportedModelError
from penstock.export.hf_config import HFConfig, read_json

FILES = ("preprocessor_config.json", "processor_config.json")
RESAMPLES = {2: "bilinear", 3: "bicubic"}  # PIL.Image.Resampling
HALF = [0.5, 0.5, 0.5]
CLIP_MEAN, CLIP_STD = (
    [0.48145466, 0.4578275, 0.40821073],
    [0.26862954, 0.26130258, 0.27577711],
)

# Of transformers' image processors, by the first letters of their names.
DEFAULTS: dict[str, dict[str, Any]] = {
    "Blip": {"size": 384, "resample": 3, "image_mean": CLIP_MEAN, "image_std": CLIP_STD},
    "ViT": {"size": 224, "resample": 2, "image_mean": HALF, "image_std": HALF},
    "DeiT": {
        "size": 256, "resample": 3, "image_mean": HALF, "image_std": HALF,
        "do_center_crop": True, "crop_size": 224,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Preparation:
    """The section `image` of the manifest, and the side of the middle that is cut out of it."""

    image: dict[str, Any]
    crop: int


def read_preparation(folder: Path, image_size: tuple[int, int]) -> Preparation:
    """What the folder says.

    Args:
        image_size: (height, width) that the encoder takes.

    Raises:
        FormatError: there is no such file, or a value in it is wrong.
        UnsupportedModelError: it asks for what is not done here, named.
    """
    config = _config(folder)
    for key, wanted in (("do_resize", True), ("do_rescale", True), ("do_pad", False)):
        if config.flag(key, wanted) is not wanted:
            raise UnsupportedModelError(
                f"{config.path}: {key} is {not wanted}; photos are resized and scaled, not padded"
            )
    resample = config.integer("resample", low=0, high=5)
    if resample not in RESAMPLES:
        raise UnsupportedModelError(
            f"{config.path}: resample is {resample}; supported: 2 (bilinear) and 3 (bicubic)"
        )
    resize, size = _size(config, "size")
    crop = _size(config, "crop_size")[1] if config.flag("do_center_crop") else size
    if resize == "shortest-edge" and not config.flag("do_center_crop"):
        raise UnsupportedModelError(
            f"{config.path}: photos keep their sides' ratio (shortest_edge) and nothing is cut "
            "out; the exported encoder takes squares"
        )
    if crop > size or image_size != (crop, crop):
        raise FormatError(
            f"{config.path}: photos become {crop} x {crop} pixels of {size}, the encoder takes "
            f"{image_size[1]} x {image_size[0]}; take the file that belongs to the checkpoint"
        )
    mean, std = _normalization(config)
    image = {
        "size": size,
        "resize": resize,
        "resample": RESAMPLES[resample],
        "mean": mean,
        "std": std,
    }
    return Preparation(image, crop)


def _config(folder: Path) -> HFConfig:
    for name in FILES:
        path = folder / name
        if not path.is_file():
            continue
        values = read_json(path)
        values = values.get("image_processor", values)
        if isinstance(values, dict):
            kind = values.get("image_processor_type") or values.get("feature_extractor_type") or ""
            for start, defaults in DEFAULTS.items():
                if str(kind).startswith(start):
                    return HFConfig(path, {**defaults, **values})
            raise UnsupportedModelError(
                f"{path}: image processor '{kind}'; supported: those of {', '.join(DEFAULTS)}"
            )
    raise FormatError(
        f"{folder}: has neither {FILES[0]} nor {FILES[1]} with an image processor, which says how "
        "photos are prepared; fetch it from where the checkpoint is from"
    )


def _size(config: HFConfig, key: str) -> tuple[str, int]:
    """`stretch` or `shortest-edge`, and the side: 224, {height, width} or {shortest_edge}."""
    value = config.values.get(key)
    if isinstance(value, dict):
        value = {name: side for name, side in value.items() if side is not None}
        part = HFConfig(config.path, value)
        if set(value) == {"shortest_edge"}:
            return "shortest-edge", part.integer("shortest_edge", low=8, high=2048)
        height = part.integer("height", low=8, high=2048)
        if part.integer("width", low=8, high=2048) != height:
            raise UnsupportedModelError(f"{config.path}: {key} is {value}; supported: squares")
        return "stretch", height
    return "stretch", config.integer(key, low=8, high=2048)


def _normalization(config: HFConfig) -> tuple[list[float], list[float]]:
    """Mean and deviation of pixels in [0, 1]; another rescale factor is folded into them."""
    factor = config.number("rescale_factor", default=1 / 255) * 255
    if not 1e-6 <= factor <= 1e6:
        raise config.wrong("rescale_factor", "a small positive number", factor / 255)
    if not config.flag("do_normalize", True):
        return [0.0] * 3, [1 / factor] * 3
    sides = []
    for key in ("image_mean", "image_std"):
        value = config.values[key]
        numbers = [value] * 3 if isinstance(value, (int, float)) else value
        good = isinstance(numbers, list) and len(numbers) == 3
        if not good or not all(type(x) in (int, float) for x in numbers):
            raise config.wrong(key, "three numbers", value)
        sides.append([x / factor for x in numbers])
    if min(sides[1]) <= 0:
        raise config.wrong("image_std", "positive numbers", config.values["image_std"])
    return sides[0], sides[1]

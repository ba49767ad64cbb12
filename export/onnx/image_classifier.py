"""Image classifiers of Hugging Face folders, as modules from pixels to logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from penstock.errors import BackendMissingError, FormatError, UnsupportedModelError
from penstock.export.onnx.libraries import quiet_libraries
from penstock.export.onnx.torch_model import torch_library

LARGEST_IMAGE = 4096


def load_classifier(folder: Path) -> tuple[Any, Any]:
    """The module, and an example input of one image.

    Nothing is downloaded, and no code of the folder is run.

    Raises:
        FormatError: there is no config.json, or weights are missing or damaged.
        UnsupportedModelError: its architecture is no image classifier of transformers.
        BackendMissingError: transformers or torch is not installed.
    """
    torch = torch_library()
    try:
        import transformers
    except ImportError as error:
        raise BackendMissingError(
            f"Hugging Face folders are read with transformers, which cannot be imported ({error}); "
            "install it with: pip install 'penstock[export]'"
        ) from None
    if not (folder / "config.json").is_file():
        raise FormatError(f"{folder}: there is no config.json; expected a Hugging Face folder")
    try:
        with quiet_libraries():
            config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
            if type(config) not in transformers.AutoModelForImageClassification._model_mapping:
                raise UnsupportedModelError(
                    f"{folder}: a '{config.model_type}' is no image classifier of transformers; "
                    "export a torch module in Python: export_onnx(module, ...)"
                )
            model = transformers.AutoModelForImageClassification.from_pretrained(
                folder, local_files_only=True, use_safetensors=True
            )
    except (OSError, ValueError, KeyError) as error:
        raise FormatError(f"{folder}: transformers cannot load it: {error}") from None
    size = getattr(config, "image_size", None) or 224
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    if not (0 < height <= LARGEST_IMAGE and 0 < width <= LARGEST_IMAGE):
        raise FormatError(f"{folder}: config.json says images of {height} x {width}")
    example = torch.zeros(1, getattr(config, "num_channels", 3), height, width)
    return _logits(torch, model), example


def _logits(torch: Any, model: Any) -> Any:
    class Logits(torch.nn.Module):  # type: ignore[misc]
        """Only what a classifier is used for."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, pixel_values: Any) -> Any:
            return self.model(pixel_values=pixel_values).logits

    return Logits().eval()

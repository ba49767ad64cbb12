"""MobileNetV2: its shape, and the weights of a real TFLite file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from penstock.errors import FormatError, StorageError
from penstock.export.lightcap.mobilenet_v2 import MobileNetV2, _convolutions, load_mobilenet_v2
from penstock.runtime.caption.manifest import ImageInput
from penstock.runtime.caption.photo import read_photo
from penstock.runtime.caption.preprocess import prepare

HALF = (0.5, 0.5, 0.5)


@pytest.fixture(scope="module")
def models(shared_dir: Path) -> Path:
    pytest.importorskip("ai_edge_litert", reason="LiteRT is not installed")
    return shared_dir / "data" / "models"


@pytest.fixture(scope="module")
def trained(models: Path) -> MobileNetV2:
    return load_mobilenet_v2(models / "mobilenet_v2_1.0_224_quant.tflite").eval()


def test_size_and_grid() -> None:
    model = MobileNetV2().eval()
    kernels = sum(p.numel() for p in model.parameters() if p.ndim == 4)
    biases = sum(p.numel() for p in model.parameters() if p.ndim == 1)
    # torchvision's `features`: 2,223,872 with two numbers of each norm, where biases are here
    assert kernels + 2 * biases == 2_223_872
    with torch.no_grad():
        assert model(torch.zeros(2, 3, 224, 224)).shape == (2, 49, 1280)
        assert model(torch.zeros(1, 3, 64, 96)).shape == (1, 6, 1280)


@pytest.mark.parametrize(
    ("photo", "wanted"), [("parrot.jpg", "macaw"), ("cat.bmp", "Egyptian cat")]
)
def test_it_sees_what_it_was_trained_to(
    models: Path, trained: MobileNetV2, photo: str, wanted: str
) -> None:
    labels = (models / "imagenet_labels.txt").read_text().splitlines()
    image = ImageInput(224, "stretch", "bilinear", HALF, HALF)
    pixels = torch.from_numpy(prepare(read_photo(models / photo), image))
    weight, bias = _convolutions(models / "mobilenet_v2_1.0_224_quant.tflite")[-1]
    with torch.no_grad():
        mean = trained(pixels).mean(dim=1)[0].numpy()
    scores = weight.reshape(len(labels), -1) @ mean + bias
    assert labels[int(np.argmax(scores))] == wanted


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mobilenet_v1_0.25_128_quant.tflite", "28 convolutions, expected the 52"),
        ("version-RFB-320.tflite", "convolution 0 has kernel"),
        ("vww_96_float.tflite", "convolutions, expected the 52"),
        ("cat.bmp", "not a TFLite model"),
    ],
)
def test_other_files_are_refused(models: Path, name: str, said: str) -> None:
    with pytest.raises(FormatError, match=said):
        load_mobilenet_v2(models / name)


def test_damaged_files_are_refused(models: Path, tmp_path: Path) -> None:
    data = (models / "mobilenet_v2_1.0_224_quant.tflite").read_bytes()
    (tmp_path / "cut.tflite").write_bytes(data[: len(data) // 2])
    with pytest.raises(FormatError, match=r"cut.tflite"):
        load_mobilenet_v2(tmp_path / "cut.tflite")
    with pytest.raises(StorageError, match=r"none.tflite"):
        load_mobilenet_v2(tmp_path / "none.tflite")

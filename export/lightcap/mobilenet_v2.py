"""MobileNetV2 (arXiv 1801.04381) as a small visual encoder, and its weights from a TFLite file.

For captioners far smaller than the paper's: 2.2 M parameters instead of CLIP ResNet-50's 23.5 M.
Batch norms are folded, as they are in TFLite files. Strided convolutions pad at the end only, as
TensorFlow's SAME does at even sizes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from penstock.errors import BackendMissingError, FormatError
from penstock.loaders.tflite_file import read_tflite

PIXEL_MEAN = PIXEL_STD = (0.5, 0.5, 0.5)  # pixels in [-1, 1]
CHANNELS = 1280
# expansion, channels, blocks, stride: table 2 of the paper
STAGES = (
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2),
    (6, 320, 1, 1),
)  # fmt: skip


class ConvReLU6(nn.Module):
    """A convolution and, unless `linear`, ReLU6."""

    def __init__(
        self, inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1,
        linear: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.stride, self.size, self.linear = stride, size, linear
        padding = size // 2 if stride == 1 else 0
        self.conv = nn.Conv2d(inputs, outputs, size, stride, padding, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, inputs, height, width] -> [batch, outputs, height / stride, width / stride]."""
        if self.stride == 2 and self.size > 1:
            x = F.pad(x, (0, 1, 0, 1))
        x = self.conv(x)
        return x if self.linear else F.relu6(x)


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project; added to the input where shapes allow."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int) -> None:
        super().__init__()
        wide = inputs * expansion
        parts = [ConvReLU6(inputs, wide, 1)] if expansion > 1 else []
        parts += [
            ConvReLU6(wide, wide, 3, stride, groups=wide),
            ConvReLU6(wide, outputs, 1, linear=True),
        ]
        self.parts = nn.Sequential(*parts)
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """[batch, inputs, height, width] -> [batch, outputs, height / stride, width / stride]."""
        made: Tensor = self.parts(x)
        return x + made if self.adds else made


class MobileNetV2(nn.Module):
    """[batch, 3, 224, 224] in [-1, 1] -> grid features [batch, 49, 1280]."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [ConvReLU6(3, 32, 3, 2)]
        channels = 32
        for expansion, outputs, blocks, first_stride in STAGES:
            for block in range(blocks):
                stride = first_stride if block == 0 else 1
                layers.append(InvertedResidual(channels, outputs, expansion, stride))
                channels = outputs
        self.layers = nn.Sequential(*layers, ConvReLU6(channels, CHANNELS, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised pixels to the grid, row by row."""
        grid: Tensor = self.layers(pixels)
        return grid.flatten(2).transpose(1, 2)


def load_mobilenet_v2(path: Path) -> MobileNetV2:
    """Weights of `mobilenet_v2_1.0_224_quant.tflite` or its float kin; what is quantized becomes
    float.

    Raises:
        FormatError: not TFLite, damaged, or its convolutions are not those of MobileNetV2 1.0.
        StorageError: the file cannot be read.
        BackendMissingError: LiteRT is not installed.
    """
    model = MobileNetV2()
    ours = [module.conv for module in model.modules() if isinstance(module, ConvReLU6)]
    theirs = _convolutions(path)
    if len(theirs) < len(ours):
        raise FormatError(
            f"{path}: {len(theirs)} convolutions, expected the {len(ours)} of MobileNetV2 1.0"
        )
    for index, (conv, (weight, bias)) in enumerate(zip(ours, theirs, strict=False)):
        depthwise = conv.groups > 1
        kernel = weight.transpose(3, 0, 1, 2) if depthwise else weight.transpose(0, 3, 1, 2)
        if kernel.shape != tuple(conv.weight.shape) or bias.shape != (conv.out_channels,):
            raise FormatError(
                f"{path}: convolution {index} has kernel {list(kernel.shape)} and "
                f"{bias.size} biases, expected {list(conv.weight.shape)}"
            )
        with torch.no_grad():
            conv.weight.copy_(torch.from_numpy(np.ascontiguousarray(kernel)))
            assert conv.bias is not None
            conv.bias.copy_(torch.from_numpy(bias))
    return model


def _convolutions(path: Path) -> list[tuple[Any, Any]]:
    """Kernels [outputs, height, width, inputs] and biases in the order of the graph, as floats."""
    try:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType
    except ImportError:
        raise BackendMissingError(
            "reading TFLite weights needs LiteRT, which is not installed; install it with: "
            "pip install 'penstock[litert]'"
        ) from None
    read_tflite(path)  # LiteRT trusts offsets
    try:
        interpreter = Interpreter(
            str(path),
            experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        )
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise FormatError(f"{path}: LiteRT refuses it: {' '.join(str(error).split())}") from None
    details = {entry["index"]: entry for entry in interpreter.get_tensor_details()}

    def real(index: int) -> Any:
        stored = interpreter.get_tensor(index)
        grid = details[index]["quantization_parameters"]
        if not grid["scales"].size:
            return stored.astype(np.float32)
        along = [1] * stored.ndim  # one scale, or one for each slice of a dimension
        along[grid["quantized_dimension"]] = -1
        scales, zeros = (grid[key].reshape(along) for key in ("scales", "zero_points"))
        return ((stored.astype(np.float64) - zeros) * scales).astype(np.float32)

    operators = interpreter._get_ops_details()
    wanted = ("CONV_2D", "DEPTHWISE_CONV_2D")
    return [
        (real(op["inputs"][1]), real(op["inputs"][2]))
        for op in operators
        if op["op_name"] in wanted
    ]

"""The bundle file, read and checked: docs/bundle-format.md in code."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penstock import _native
from penstock.errors import FormatError, UnsupportedModelError
from penstock.loaders.gguf_file import GGUFFile, TensorInfo, read_gguf

LAYOUT_VERSION = 1
DTYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 8}  # ggml type numbers
ACTIVATIONS = {"relu": 0, "relu2": 1, "fatrelu": 2, "drelu": 3}
_ZERO_CRC = b"\0\0\0\0"


@dataclass(frozen=True)
class Predictor:
    """Low-rank predictor of a layer's active neurons: fc2 (fc1 x) + bias > 0."""

    rank: int
    fc1: TensorInfo  # (rank, width)
    fc2: TensorInfo  # (neurons, rank)
    bias: TensorInfo | None  # (neurons,)
    recall: float  # share of active magnitude found on held-out calibration text
    false_negative_rate: float
    false_positive_rate: float

    @property
    def nbytes(self) -> int:
        return self.fc1.nbytes + self.fc2.nbytes + (self.bias.nbytes if self.bias else 0)


@dataclass(frozen=True)
class LayerProfile:
    """What calibration measured of one layer; shares are of the layer's neurons."""

    active: float
    predicted: float
    window: NDArray[np.float32]  # (points,) window sizes, ascending
    misses: NDArray[np.float32]  # (points,) predicted neurons missing, per token
    exact_misses: NDArray[np.float32]  # (points,) truly active neurons missing, per token

    def miss_share(self, window_share: float, exact: bool = False) -> float:
        """Neurons read per token, as a share, with a window of this share of the layer."""
        curve = self.exact_misses if exact else self.misses
        return float(np.interp(window_share, self.window, curve))


@dataclass(frozen=True)
class Bundle:
    """A checked bundle file.

    Attributes:
        file: the GGUF header.
        arch: `general.architecture`.
        layers, width, neurons: shape of the feed-forward network.
        dtype: name of the weights' number format.
        rows: rows a bundle: 2, or 3 when gated.
        row_bytes, stride: bytes of a row; bytes from one bundle to the next.
        bundles: the bundle tensor of each layer.
        predictors: of each layer, None where it has none.
        profiles: of each layer, None when the file has no statistics.
    """

    file: GGUFFile
    arch: str
    layers: int
    width: int
    neurons: int
    dtype: str
    activation: str
    threshold: float
    gated: bool
    row_bytes: int
    stride: int
    bundles: tuple[TensorInfo, ...]
    predictors: tuple[Predictor | None, ...]
    profiles: tuple[LayerProfile | None, ...]
    checksums: dict[str, int]

    @property
    def path(self) -> str:
        return str(self.file.path)

    @property
    def rows(self) -> int:
        return 3 if self.gated else 2

    @property
    def ffn_bytes(self) -> int:
        return sum(info.nbytes for info in self.bundles)

    @property
    def resident(self) -> dict[str, TensorInfo]:
        """Every tensor that is not a layer's bundles."""
        names = {info.name for info in self.bundles}
        return {name: t for name, t in self.file.tensors.items() if name not in names}

    def tensor(self, name: str, shape: tuple[int, ...], kinds: tuple[str, ...]) -> TensorInfo:
        """A tensor that must be there, in this shape and one of these formats."""
        info = self.file.tensors.get(name)
        if info is None:
            raise FormatError(
                f"{self.path}: tensor '{name}' is missing; a bundle of architecture '{self.arch}' "
                "needs it. The file is damaged or incomplete, export it again."
            )
        if info.shape != shape or info.type not in [DTYPES[k] for k in kinds]:
            raise FormatError(
                f"{self.path}: tensor '{name}' at offset {info.offset} is {info.type_name} "
                f"{info.shape}; expected {' or '.join(kinds)} {shape}"
            )
        return info

    def verify_layer(self, layer: int) -> None:
        """Read a layer's bundles and compare with their checksum. Raises FormatError."""
        info = self.bundles[layer]
        found = _native.crc32c_of_file(self.path, info.offset, info.nbytes)
        if found != self.checksums[info.name]:
            raise FormatError(
                f"{self.path}: the bundles of layer {layer} (offset {info.offset}, {info.nbytes} "
                f"bytes) have checksum {found:08x}, expected {self.checksums[info.name]:08x}; the "
                "file is damaged, fetch or export it again"
            )


def is_bundle(file: GGUFFile) -> bool:
    """Whether a GGUF file is one of ours."""
    return "penstock.version" in file.metadata


def open_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Open and check a bundle's header (not yet its weights).

    Raises:
        FormatError: damaged, truncated, of another version, or not a bundle.
        UnsupportedModelError: an activation that this version does not know.
    """
    return check_bundle(read_gguf(path))


def check_bundle(file: GGUFFile) -> Bundle:
    """Check a parsed header against the bundle format."""
    if not is_bundle(file):
        raise FormatError(
            f"{file.path}: a GGUF file, but not a Penstock bundle (no key 'penstock.version'); "
            "make one with `penstock export llm SOURCE OUT`"
        )
    version = file.get_int("penstock.version")
    if version != LAYOUT_VERSION:
        raise FormatError(
            f"{file.path}: bundle layout version {version}, this Penstock reads {LAYOUT_VERSION}; "
            "update Penstock, or export the model again"
        )
    _check_header(file)
    arch = file.get_str("general.architecture")
    layers = file.get_int(f"{arch}.block_count", low=1, high=4096)
    width = file.get_int(f"{arch}.embedding_length", low=1, high=1 << 20)
    neurons = file.get_int(f"{arch}.feed_forward_length", low=1, high=1 << 20)
    dtype = file.get_str("penstock.bundle.type")
    if dtype not in ("F16", "Q8_0", "Q4_0"):
        raise file.wrong("penstock.bundle.type", "F16, Q8_0 or Q4_0", dtype)
    activation = file.get_str("penstock.activation")
    if activation not in ACTIVATIONS:
        raise UnsupportedModelError(
            f"{file.path}: activation '{activation}' is not known here; "
            f"supported: {', '.join(ACTIVATIONS)}"
        )
    gated = file.get_bool("penstock.gated")
    block = 1 if dtype == "F16" else 32
    if width % block:
        raise file.wrong(f"{arch}.embedding_length", f"a multiple of {block} for {dtype}", width)
    row_bytes = width * 2 if dtype == "F16" else width // 32 * (34 if dtype == "Q8_0" else 18)
    stride = file.get_int("penstock.bundle.stride", low=1, high=1 << 26)
    if stride % 512 or stride < (3 if gated else 2) * row_bytes:
        raise file.wrong(
            "penstock.bundle.stride",
            f"a multiple of 512 of at least {(3 if gated else 2) * row_bytes}",
            stride,
        )
    bundles = tuple(_bundle_tensor(file, n, neurons, stride) for n in range(layers))
    sums = _whole_numbers(file, "penstock.checksum.tensors", len(file.tensors), "u")
    checksums = {name: int(s) for name, s in zip(file.tensors, sums, strict=True)}
    return Bundle(
        file=file,
        arch=arch,
        layers=layers,
        width=width,
        neurons=neurons,
        dtype=dtype,
        activation=activation,
        threshold=file.get_float("penstock.activation.threshold", 0.0),
        gated=gated,
        row_bytes=row_bytes,
        stride=stride,
        bundles=bundles,
        predictors=_predictors(file, layers, width, neurons),
        profiles=_profiles(file, layers),
        checksums=checksums,
    )


def _check_header(file: GGUFFile) -> None:
    expected = file.get_int("penstock.checksum.header", high=2**32 - 1)
    at = file.value_offsets["penstock.checksum.header"]
    header = file.header[:at] + _ZERO_CRC + file.header[at + 4 :]
    found = _native.crc32c(np.frombuffer(header, np.uint8))
    if found != expected:
        raise FormatError(
            f"{file.path}: the header (bytes 0 to {len(file.header)}) has checksum {found:08x}, "
            f"expected {expected:08x}; the file is damaged, fetch or export it again"
        )


def _whole_numbers(file: GGUFFile, key: str, length: int, kinds: str) -> NDArray[np.generic]:
    """An array of up to four bytes a number: 'u' without, 'i' with a sign."""
    values = file.get_array(key, length)
    if values.dtype.kind not in kinds or values.dtype.itemsize > 4:
        raise file.wrong(key, f"{length} whole numbers of 32 bits", values)
    return values


def _bundle_tensor(file: GGUFFile, layer: int, neurons: int, stride: int) -> TensorInfo:
    name = f"blk.{layer}.ffn_bundle.weight"
    info = file.tensors.get(name)
    if info is None or info.shape != (neurons, stride) or info.type != 24:
        seen = "missing" if info is None else f"{info.type_name} {info.shape}"
        raise FormatError(
            f"{file.path}: tensor '{name}' is {seen}; expected I8 ({neurons}, {stride})"
        )
    return info


def _predictors(
    file: GGUFFile, layers: int, width: int, neurons: int
) -> tuple[Predictor | None, ...]:
    if "penstock.predictor.rank" not in file.metadata:
        return (None,) * layers
    ranks = _whole_numbers(file, "penstock.predictor.rank", layers, "ui")
    quality = [
        file.get_array(f"penstock.predictor.{key}", layers)
        for key in ("recall", "false_negative_rate", "false_positive_rate")
    ]
    found: list[Predictor | None] = []
    for n in range(layers):
        rank = int(ranks[n])
        if rank == 0:
            found.append(None)
            continue
        fc1 = file.tensors.get(f"blk.{n}.fc1.weight")
        fc2 = file.tensors.get(f"blk.{n}.fc2.weight")
        bias = file.tensors.get(f"blk.{n}.fc2.bias")
        if (
            fc1 is None or fc1.shape != (rank, width) or fc1.type not in DTYPES.values()
            or fc2 is None or fc2.shape != (neurons, rank) or fc2.type not in DTYPES.values()
            or (bias is not None and (bias.shape != (neurons,) or bias.type != 0))
        ):  # fmt: skip
            raise FormatError(
                f"{file.path}: the predictor of layer {n} is missing or misshapen; expected "
                f"blk.{n}.fc1.weight ({rank}, {width}), blk.{n}.fc2.weight ({neurons}, {rank}) "
                f"and, if any, blk.{n}.fc2.bias F32 ({neurons},)"
            )
        found.append(Predictor(rank, fc1, fc2, bias, *(float(q[n]) for q in quality)))
    return tuple(found)


def _profiles(file: GGUFFile, layers: int) -> tuple[LayerProfile | None, ...]:
    if "penstock.stats.active" not in file.metadata:
        return (None,) * layers
    active = file.get_array("penstock.stats.active", layers)
    predicted = file.get_array("penstock.stats.predicted", layers)
    window = file.get_array("penstock.stats.window").astype(np.float32)
    points = window.size
    shares = np.isfinite(window) & (window >= 0) & (window <= 1)
    if points < 2 or not shares.all() or not np.all(np.diff(window) > 0):
        expected = "two or more ascending window sizes, shares from 0 to 1"
        raise file.wrong("penstock.stats.window", expected, window)
    misses = (
        file.get_array("penstock.stats.misses", layers * points)
        .astype(np.float32)
        .reshape(layers, points)
    )
    exact = file.get_array("penstock.stats.exact_misses", layers * points).astype(np.float32)
    exact = exact.reshape(layers, points)
    measured = {"misses": misses, "exact_misses": exact, "active": active, "predicted": predicted}
    for key, curve in measured.items():
        values = np.asarray(curve, np.float32)
        if not (np.isfinite(values).all() and (values >= 0).all() and (values <= 1).all()):
            raise file.wrong(f"penstock.stats.{key}", "shares from 0 to 1", values)
    return tuple(
        LayerProfile(float(active[n]), float(predicted[n]), window, misses[n], exact[n])
        for n in range(layers)
    )

"""Bundles that the specification allows are opened; each thing that it forbids is refused."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from penstock.errors import FormatError, UnsupportedModelError
from penstock.loaders.bundle import open_bundle
from penstock.loaders.gguf_file import read_gguf
from tests.bundle_builder import Parts, Shape, Stored, crc32c, serialize, tiny_parts, write_tiny

BUNDLE = "blk.1.ffn_bundle.weight"


def test_crc32c_is_castagnolis() -> None:
    assert crc32c(b"123456789") == 0xE3069283  # the check value of RFC 3720's polynomial
    assert crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, B.4
    assert crc32c(b"\xff" * 32) == 0x62A8AB43


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("dtype", ["F16", "Q8_0", "Q4_0"])
def test_opens_what_the_specification_describes(tmp_path: Path, dtype: str, gated: bool) -> None:
    shape = Shape("llama" if gated else "arcee", dtype, "relu" if gated else "relu2", gated)
    path = write_tiny(tmp_path / "b.gguf", shape)
    bundle = open_bundle(path)
    assert (bundle.arch, bundle.layers, bundle.width, bundle.neurons) == (shape.arch, 2, 64, 96)
    assert (bundle.dtype, bundle.gated, bundle.rows) == (dtype, gated, 3 if gated else 2)
    row = {"F16": 128, "Q8_0": 68, "Q4_0": 36}[dtype]
    assert bundle.row_bytes == row and bundle.stride == 512
    assert [p.rank for p in bundle.predictors if p] == [8, 8]
    assert bundle.ffn_bytes == 2 * 96 * 512
    assert not any("ffn_bundle" in name for name in bundle.resident)
    for layer in range(2):
        bundle.verify_layer(layer)


def test_other_gguf_tools_open_it(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "b.gguf")
    bundle, oracle = open_bundle(path), gguf.GGUFReader(path)
    for tensor in oracle.tensors:
        mine = bundle.file.tensors[tensor.name]
        assert (mine.offset, mine.nbytes) == (tensor.data_offset, tensor.n_bytes)
        assert mine.offset % 4096 == 0
        assert bundle.checksums[tensor.name] == crc32c(tensor.data.tobytes())


def test_miss_curves_are_interpolated(tmp_path: Path) -> None:
    profile = open_bundle(write_tiny(tmp_path / "b.gguf")).profiles[0]
    assert profile is not None
    assert profile.miss_share(0.25) == pytest.approx(0.25)
    assert profile.miss_share(0.125) == pytest.approx(0.375)
    assert profile.miss_share(1.0) == 0.0


def test_a_layer_without_predictor_has_none(tmp_path: Path) -> None:
    def edit(parts: Parts) -> None:
        parts.metadata["penstock.predictor.rank"][1] = 0

    assert open_bundle(write_tiny(tmp_path / "b.gguf", edit=edit)).predictors[1] is None


# ---------------------------------------------------------------- refusals


def without(key: str) -> Callable[[Parts], None]:
    return lambda parts: parts.metadata.__delitem__(key)


def changed(key: str, value: Any) -> Callable[[Parts], None]:
    def edit(parts: Parts) -> None:
        assert key in parts.metadata
        parts.metadata[key] = value

    return edit


def dropped(name: str) -> Callable[[Parts], None]:
    def edit(parts: Parts) -> None:
        del parts.tensors[name]
        parts.metadata["penstock.checksum.tensors"] = np.zeros(len(parts.tensors), np.uint32)

    return edit


def retyped(name: str, kind: int, shape: tuple[int, ...], nbytes: int) -> Callable[[Parts], None]:
    def edit(parts: Parts) -> None:
        assert name in parts.tensors
        parts.tensors[name] = Stored(shape, kind, bytes(nbytes))

    return edit


def sums_as(values: Any) -> Callable[[Parts], None]:
    return changed("penstock.checksum.tensors", values)


F32 = np.float32
COUNT = len(tiny_parts(Shape()).tensors)
REFUSED: dict[str, tuple[Callable[[Parts], None], str]] = {
    "not a bundle": (without("penstock.version"), "a GGUF file, but not a Penstock bundle"),
    "layout 2": (changed("penstock.version", 2), "layout version 2, this Penstock reads 1; upd"),
    "layout text": (changed("penstock.version", "1"), "'penstock.version' is '1'; expected a wh"),
    "no header checksum": (without("penstock.checksum.header"), "'penstock.checksum.header' is mi"),
    "header checksum": (changed("penstock.checksum.header", 7), "expected 00000007; the file is"),
    "sum as f32": (changed("penstock.checksum.header", 0.0), "'penstock.checksum.header' is 0.0"),
    "no sums": (without("penstock.checksum.tensors"), "'penstock.checksum.tensors' is missing"),
    "sums as floats": (
        sums_as(np.full(COUNT, np.nan, F32)), f"{COUNT} float32; expected {COUNT} whole numbers"
    ),
    "sums signed": (sums_as(np.full(COUNT, -1, np.int32)), "expected .* whole numbers of 32 bits"),
    "sums u64": (sums_as(np.full(COUNT, 2**40, np.uint64)), "expected .* whole numbers of 32 bits"),
    "too few sums": (
        sums_as(np.zeros(COUNT - 1, np.uint16)), f"an array of {COUNT - 1} uint16; expected an arr"
    ),
    "sums as text": (sums_as([""]), "'penstock.checksum.tensors' is .*; expected an array"),
    "no arch": (without("general.architecture"), "'general.architecture' is missing"),
    "no layers": (changed("arcee.block_count", 0), "'arcee.block_count' is 0; expected a whole"),
    "layer too many": (changed("arcee.block_count", 3), "'blk.2.ffn_bundle.weight' is missing"),
    "width": (changed("arcee.embedding_length", 0), "'arcee.embedding_length' is 0"),
    "neurons": (changed("arcee.feed_forward_length", 97), r"is I8 \(96, 512\); expected I8 \(97"),
    "no type": (without("penstock.bundle.type"), "'penstock.bundle.type' is missing"),
    "type": (changed("penstock.bundle.type", "Q5_0"), "is 'Q5_0'; expected F16, Q8_0 or Q4_0"),
    "gated": (changed("penstock.gated", 1), "'penstock.gated' is 1; expected true or false"),
    "stride 500": (changed("penstock.bundle.stride", 500), "is 500; expected a multiple of 512"),
    "stride 0": (changed("penstock.bundle.stride", 0), "'penstock.bundle.stride' is 0"),
    "stride 1024": (changed("penstock.bundle.stride", 1024), r"expected I8 \(96, 1024\)"),
    "bundle missing": (dropped(BUNDLE), f"tensor '{BUNDLE}' is missing; expected I8"),
    "bundle as F16": (retyped(BUNDLE, 1, (96, 512), 98304), f"'{BUNDLE}' is F16"),
    "bundle transposed": (retyped(BUNDLE, 24, (512, 96), 49152), r"is I8 \(512, 96\); expected"),
    "fc1 missing": (dropped("blk.0.fc1.weight"), "the predictor of layer 0 is missing or missha"),
    "fc2 missing": (dropped("blk.1.fc2.weight"), r"blk.1.fc2.weight \(96, 8\)"),
    "fc1 shape": (retyped("blk.0.fc1.weight", 1, (8, 32), 512), r"blk.0.fc1.weight \(8, 64\)"),
    "fc1 I8": (retyped("blk.0.fc1.weight", 24, (8, 64), 512), "predictor of layer 0"),
    "bias F16": (retyped("blk.0.fc2.bias", 1, (96,), 192), "predictor of layer 0"),
    "rank": (
        changed("penstock.predictor.rank", np.array([9, 8], np.uint32)), r"fc1.weight \(9, 64\)"
    ),
    "ranks": (changed("penstock.predictor.rank", np.array([8], np.uint32)), "an array of 2 num"),
    "rank NaN": (
        changed("penstock.predictor.rank", np.full(2, np.nan, F32)), "expected 2 whole numbers"
    ),
    "no recall": (without("penstock.predictor.recall"), "'penstock.predictor.recall' is missing"),
    "windows fall": (
        changed("penstock.stats.window", np.array([0, 0.5, 0.4, 1], F32)), "ascending window sizes"
    ),
    "window NaN": (
        changed("penstock.stats.window", np.array([0, np.nan, 0.4, 1], F32)), "ascending window"
    ),
    "window below 0": (
        changed("penstock.stats.window", np.array([-1e38, 0.5, 0.6, 1], F32)), "shares from 0 to 1"
    ),
    "window above 1": (
        changed("penstock.stats.window", np.array([0, 0.5, 0.6, 2], F32)), "shares from 0 to 1"
    ),
    "misses": (changed("penstock.stats.misses", np.zeros(7, F32)), "expected an array of 8 num"),
    "misses 2": (changed("penstock.stats.misses", np.full(8, 2, F32)), "expected shares from 0 to"),
    "active NaN": (changed("penstock.stats.active", np.full(2, np.nan, F32)), "shares from 0 to 1"),
    "predicted NaN": (
        changed("penstock.stats.predicted", np.full(2, np.nan, F32)), "shares from 0 to 1"
    ),
    "threshold": (changed("penstock.activation.threshold", "0"), "expected a finite number"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_naming_file_key_and_expectation(case: str, tmp_path: Path) -> None:
    edit, message = REFUSED[case]
    path = write_tiny(tmp_path / "bad.gguf", edit=edit)
    with pytest.raises(FormatError, match=message) as error:
        open_bundle(path)
    assert str(error.value).startswith(f"{path}: ")


def test_an_unknown_activation_says_which_are_known(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "b.gguf", edit=changed("penstock.activation", "silu"))
    with pytest.raises(UnsupportedModelError, match="'silu' is not known .*relu, relu2, fatrelu"):
        open_bundle(path)


def test_block_formats_need_whole_blocks(tmp_path: Path) -> None:
    shape = replace(Shape(dtype="Q8_0"), rank=0)
    path = write_tiny(tmp_path / "b.gguf", shape, changed("arcee.embedding_length", 48))
    with pytest.raises(FormatError, match="is 48; expected a multiple of 32 for Q8_0"):
        open_bundle(path)


def test_a_flipped_bit_anywhere_in_the_header_is_found(tmp_path: Path) -> None:
    """CRC-32C finds any single bit, in the padding too."""
    content = serialize(tiny_parts(replace(Shape(), layers=1, rank=0, stats=False)))
    path = tmp_path / "b.gguf"
    path.write_bytes(content)
    end = read_gguf(path).data_offset
    for at in [*range(min(end, 700)), *range(700, end, 11)]:
        flipped = bytearray(content)
        flipped[at] ^= 1 << at % 8
        path.write_bytes(flipped)
        with pytest.raises(FormatError, match="b.gguf: "):
            open_bundle(path)


@pytest.mark.parametrize("layer", [0, 1])
def test_a_flipped_bit_of_a_bundle_is_found_by_its_layers_checksum(
    tmp_path: Path, layer: int
) -> None:
    path = write_tiny(tmp_path / "b.gguf")
    at = open_bundle(path).bundles[layer].offset + 700
    content = bytearray(path.read_bytes())
    content[at] ^= 0x10
    path.write_bytes(content)
    bundle = open_bundle(path)
    bundle.verify_layer(1 - layer)
    with pytest.raises(FormatError, match=rf"the bundles of layer {layer} \(offset \d+, 49152"):
        bundle.verify_layer(layer)


def test_a_bundle_cut_short_is_refused(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "b.gguf")
    content = path.read_bytes()
    for keep in (0, 3, 24, len(content) // 2, len(content) - 4096):
        path.write_bytes(content[:keep])
        with pytest.raises(FormatError):
            open_bundle(path)


def test_a_key_that_is_written_twice_cannot_replace_the_first(tmp_path: Path) -> None:
    content = bytearray(serialize(tiny_parts(Shape())))
    other = b"general.name"
    at = content.index(other)
    content[at : at + len(other)] = b"general.xxxx"
    struct.pack_into("<I", content, content.index(b"general.xxxx") + len(other), 8)
    path = tmp_path / "b.gguf"
    path.write_bytes(content)
    with pytest.raises(FormatError, match="the header .* has checksum"):
        open_bundle(path)

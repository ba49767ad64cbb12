"""What a file costs: where its bytes are, and that they are few."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from penstock.errors import StorageError, UsageError
from penstock.export.omg4.psplat_writer import psplat_size, write_psplat
from penstock.export.omg4.static_quantization import quantize_splats
from penstock.export.report import Progress
from penstock.loaders.splats.codebook import Codebook
from penstock.loaders.splats.encoded import EncodedSplats, SubVector
from penstock.loaders.splats.model import SplatModel
from penstock.loaders.splats.psplat_file import PsplatFile
from tests.loaders.splats.encoded_builder import random_encoded


def sphere(count: int, seed: int = 0) -> SplatModel:
    """Discs on a sphere with smooth colours: what trained scenes are like, in little."""
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(count, 3))
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    half = means + [0, 0, 1 + 1e-9]  # the turn that takes z to the normal
    quaternions = np.stack([half[:, 2], -half[:, 1], half[:, 0], np.zeros(count)], axis=1)
    quaternions /= np.linalg.norm(quaternions, axis=1, keepdims=True)
    wide = np.sqrt(4 * np.pi / count) * np.exp(rng.normal(0, 0.3, (count, 2)))
    scales = np.concatenate([wide, np.full((count, 1), 1e-3)], axis=1)
    colours = np.sin(3 * means) + rng.normal(0, 0.05, (count, 3))
    return SplatModel(
        means.astype("f4"),
        scales.astype("f4"),
        quaternions.astype("f4"),
        rng.uniform(0.9, 1, count).astype("f4"),
        colours[:, None].astype("f4"),
    )


@pytest.mark.parametrize("count", [50, 1500, 12_000])
def test_sizes_add_up_to_the_file(tmp_path: Path, count: int) -> None:
    encoded = quantize_splats(sphere(count))
    sizes = write_psplat(tmp_path / "a.psplat", encoded)
    assert (tmp_path / "a.psplat").stat().st_size == sizes.total
    told = sizes.head + sizes.codebooks + sizes.nets + sizes.positions + sum(sizes.parts.values())
    assert told + sizes.padding == pytest.approx(sizes.total)
    assert 0 <= sizes.padding < 40 + 0.01 * sizes.total or count == 50
    assert set(sizes.parts) == {part.name for part in encoded.parts}
    assert psplat_size(encoded) == sizes
    assert json.loads(json.dumps(sizes.to_dict()))["total"] == sizes.total


def test_a_static_scene_takes_less_than_its_numbers_at_fixed_width() -> None:
    encoded = quantize_splats(sphere(12_000))
    sizes = psplat_size(encoded)
    assert sizes.bytes_a_splat < 0.8 * encoded.fixed_bits / 8
    assert sizes.bytes_a_splat < 11  # SPZ and SOG: some 14


@pytest.mark.parametrize("dynamic", [False, True])
def test_entropy_coding_has_its_switch(tmp_path: Path, dynamic: bool) -> None:
    encoded = random_encoded(500, 2, dynamic=dynamic, seed=4)
    sizes = write_psplat(tmp_path / "plain.psplat", encoded, entropy=False)
    assert psplat_size(encoded, entropy=False) == sizes
    # An index takes what `fixed_bits` says that it takes, or less: unused codes are dropped.
    for part in encoded.parts:
        most, least = (
            max(size - 1, 0).bit_length()
            for size in (part.codebook.size, len(np.unique(part.indices)))
        )
        bits = sizes.parts[part.name] * 8 / 500
        assert least - 1e-6 <= bits <= most + 1e-6, part.name
    write_psplat(tmp_path / "coded.psplat", encoded)
    found = []
    for name in ("plain", "coded"):
        with PsplatFile.open(tmp_path / f"{name}.psplat") as file:
            found.append(file.read_all())
    for name in ("means", "scales", "opacities", "sh"):
        a, b = (np.sort(getattr(one, name).ravel()) for one in found)
        assert (a == b).all(), name


def test_few_splats_cost_little_more_each_than_many() -> None:
    few, many = (psplat_size(quantize_splats(sphere(n))) for n in (1500, 12_000))
    assert few.head < 800
    assert few.bytes_a_splat < many.bytes_a_splat + 2.5


def test_groups_are_reported(tmp_path: Path) -> None:
    seen: list[Progress] = []
    encoded = random_encoded(400, dynamic=True, seed=1)
    sizes = write_psplat(tmp_path / "a.psplat", encoded, least_group=50, progress=seen.append)
    assert [p.done for p in seen] == list(range(1, sizes.groups + 1))
    assert sizes.groups > 1 and {p.total for p in seen} == {sizes.groups}


def test_large_groups_are_cut_for_the_readers_threads(tmp_path: Path) -> None:
    encoded = quantize_splats(sphere(5000))
    whole = write_psplat(tmp_path / "whole.psplat", encoded)
    pieces = write_psplat(tmp_path / "pieces.psplat", encoded, least_group=150)
    assert whole.groups == 1 and pieces.total - whole.total < 0.04 * whole.total
    with (
        PsplatFile.open(tmp_path / "whole.psplat") as one,
        PsplatFile.open(tmp_path / "pieces.psplat") as many,
    ):
        first, *others = (segment.count for segment in many.info.segments)
        assert first == 300 and len(others) % 2 == 0
        assert max(others) - min(others) <= 1 and max(others) <= 600
        assert many.active(0.0) == tuple(range(pieces.groups))
        a, b = one.read_all(), many.read_all(threads=2)
    assert (a.means == b.means).all() and (a.sh == b.sh).all()


def test_numbers_by_first_use_need_one_group(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    encoded = random_encoded(3000, seed=9)
    book = Codebook.half(rng.normal(size=(2900, 3)))
    indices = rng.permutation(3000).astype(np.uint16) % 2900
    kept = tuple(part for part in encoded.parts if part.attribute not in ("dc", "opponent"))
    own = replace(encoded, parts=(*kept, SubVector("dc", book, indices)))
    assert write_psplat(tmp_path / "a.psplat", own, least_group=100).groups == 1
    assert write_psplat(tmp_path / "b.psplat", encoded, least_group=100).groups > 1


def test_the_same_splats_make_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_psplat(tmp_path / name, random_encoded(300, 2, dynamic=True, seed=2), least_group=50)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_what_no_file_holds(tmp_path: Path) -> None:
    encoded = random_encoded(20, seed=3)
    path = tmp_path / "a.psplat"
    part = encoded.parts[0]
    last = np.full(20, part.codebook.size, np.uint16)
    broken: list[tuple[str, tuple[SubVector, ...]]] = [
        ("its codebook has", (SubVector(part.name, part.codebook, last), *encoded.parts[1:])),
        ("no attribute", (SubVector("weight", part.codebook, part.indices), *encoded.parts)),
        ("'scale' is missing", tuple(p for p in encoded.parts if p.attribute != "scale")),
    ]
    for message, parts in broken:
        wrong = EncodedSplats(encoded.lattice, encoded.cells, tuple(parts), 0, encoded.digits)
        with pytest.raises(UsageError, match=message):
            write_psplat(path, wrong)
    with pytest.raises(UsageError, match="alignment"):
        write_psplat(path, encoded, alignment=17)
    many = tuple(replace(part, name=f"{part.name}.{k}", first=0) for k in range(60))
    for entropy in (False, True):
        with pytest.raises(UsageError, match="sub-vectors with .* at most 64"):
            write_psplat(path, replace(encoded, parts=(*encoded.parts, *many)), entropy=entropy)
    with pytest.raises(StorageError):
        write_psplat(tmp_path / "none" / "a.psplat", encoded)
    assert list(tmp_path.iterdir()) == []

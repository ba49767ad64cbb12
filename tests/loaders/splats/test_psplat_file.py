"""What is written is read: by the reader, and by another one made from the specification alone."""

from __future__ import annotations

import math
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings

from penstock.errors import FormatError, StorageError
from penstock.export.omg4.psplat_writer import write_psplat
from penstock.loaders.splats.decoding import decode_splats
from penstock.loaders.splats.encoded import EncodedSplats, Net
from penstock.loaders.splats.model import SplatModel, check_model, named_arrays
from penstock.loaders.splats.psplat_file import PsplatFile
from penstock.loaders.splats.psplat_sections import join_floats, split_floats
from tests.loaders.splats import psplat_reference
from tests.loaders.splats.encoded_builder import encoded_splats, random_encoded


def rows_of(model: SplatModel) -> np.ndarray:
    """[n, all numbers], in an order that does not depend on the splats'."""
    arrays = [a.reshape(model.count, math.prod(a.shape[1:])) for a in named_arrays(model).values()]
    rows = np.concatenate(arrays, axis=1).astype(np.float64)
    return rows[np.lexsort(rows.T[::-1])]


@settings(deadline=None, max_examples=40)
@given(encoded=encoded_splats)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, encoded: EncodedSplats
) -> None:
    path = tmp_path_factory.mktemp("psplat") / "a.psplat"
    sizes = write_psplat(path, encoded, least_group=20)
    expected = decode_splats(encoded)
    with PsplatFile.open(path) as file:
        model = check_model(file.read_all(), path)
        info = file.info
        assert (info.count, info.degree, info.dynamic) == (
            encoded.count,
            encoded.degree,
            encoded.dynamic,
        )
        assert sum(segment.count for segment in info.segments) == encoded.count
        for segment in info.segments:
            assert file.segment(segment.index).nbytes == segment.decoded_nbytes
    assert path.stat().st_size == sizes.total
    assert (rows_of(model) == rows_of(expected)).all()


@settings(deadline=None, max_examples=25)
@given(encoded=encoded_splats)
def test_the_specification_alone_reads_it(
    tmp_path_factory: pytest.TempPathFactory, encoded: EncodedSplats
) -> None:
    path = tmp_path_factory.mktemp("psplat") / "a.psplat"
    write_psplat(path, encoded, least_group=30)
    groups = psplat_reference.read(path)
    with PsplatFile.open(path) as file:
        assert [(s.start, s.end, s.count) for s in file.info.segments] == [
            (g.start, g.end, len(g.positions)) for g in groups
        ]
        for number, group in enumerate(groups):
            model = file.segment(number)
            assert np.allclose(model.means, group.positions, rtol=1e-6, atol=1e-6)
            scales = np.exp(np.clip(group.columns["scale"], -40, 40))
            assert np.allclose(model.scales, scales, rtol=1e-4)
            opacities = np.clip(np.array(group.columns["opacity"])[:, 0], 0, 1)
            assert np.allclose(model.opacities, opacities, atol=1e-6)
            if "rest" in group.columns:
                rest = np.array(group.columns["rest"])[:, : 3 * (model.sh.shape[1] - 1)]
                assert np.allclose(model.sh[:, 1:].reshape(model.count, -1), rest, atol=1e-5)
            if model.motion is not None:
                centers = np.array(group.columns["t_center"])[:, 0]
                assert np.allclose(model.motion.t_centers, centers, atol=1e-5)


def test_a_segment_has_every_splat_that_is_seen(tmp_path: Path) -> None:
    encoded = random_encoded(600, dynamic=True, seed=3)
    path = tmp_path / "a.psplat"
    write_psplat(path, encoded, least_group=40)
    with PsplatFile.open(path) as file:
        assert len(file.info.segments) > 3
        every = file.read_all().motion
        assert every is not None
        for time in np.linspace(0, 10, 41):
            weights = np.exp(-0.5 * ((time - every.t_centers) / every.t_sigmas) ** 2)
            found = 0
            for index in file.active(float(time)):
                motion = file.segment(index).motion
                assert motion is not None
                own = np.exp(-0.5 * ((time - motion.t_centers) / motion.t_sigmas) ** 2)
                found += int((own > 0.05).sum())
            assert found == int((weights > 0.05).sum())
        # Not everything is needed at all times.
        needed = sum(file.info.segments[k].count for k in file.active(5.0))
        assert needed < file.info.count


def test_segments_in_any_order_and_from_threads(tmp_path: Path) -> None:
    path = tmp_path / "a.psplat"
    write_psplat(path, random_encoded(500, dynamic=True, seed=4), least_group=40)
    with PsplatFile.open(path) as file:
        expected = [file.segment(k) for k in range(len(file.info.segments))]
    with PsplatFile.open(path) as file:
        found: dict[int, SplatModel] = {}

        def read(index: int) -> None:
            found[index] = file.segment(index)

        threads = [threading.Thread(target=read, args=(k,)) for k in range(len(expected))][::-1]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for k, model in enumerate(expected):
        assert (rows_of(found[k]) == rows_of(model)).all()
        assert (found[k].means == model.means).all()  # the same order, too


@pytest.mark.parametrize("dynamic", [False, True])
def test_threads_change_nothing(tmp_path: Path, dynamic: bool) -> None:
    path = tmp_path / "a.psplat"
    write_psplat(path, random_encoded(20_000, 1, dynamic=dynamic, seed=7))  # of several blocks
    with PsplatFile.open(path) as file:
        one, three = file.read_all(threads=1), file.read_all(threads=3)
        assert len(file.info.segments) > 1
    for name, array in named_arrays(one).items():
        assert (named_arrays(three)[name] == array).all()


@pytest.mark.parametrize("dynamic", [False, True])
def test_no_splats(tmp_path: Path, dynamic: bool) -> None:
    path = tmp_path / "a.psplat"
    write_psplat(path, random_encoded(0, 2, dynamic=dynamic))
    with PsplatFile.open(path) as file:
        model = check_model(file.read_all(), path)
        assert model.count == 0 and model.degree == 2 and model.dynamic == dynamic
        assert file.info.segments == () and file.active(1.0) == ()
        with pytest.raises(IndexError):
            file.segment(0)


def test_aligned_segments(tmp_path: Path) -> None:
    path = tmp_path / "a.psplat"
    encoded = random_encoded(300, dynamic=True, seed=5)
    sizes = write_psplat(path, encoded, least_group=40, alignment=12)
    assert sizes.groups > 1
    with PsplatFile.open(path) as file:
        assert all(segment.offset % 4096 == 0 for segment in file.info.segments)
        assert (rows_of(file.read_all()) == rows_of(decode_splats(encoded))).all()


def test_nets_travel_along(tmp_path: Path) -> None:
    path = tmp_path / "a.psplat"
    values = np.arange(5).astype(np.float16)
    encoded = random_encoded(0)
    nets = (Net("cont", values), Net("dc", values[:0]))
    write_psplat(path, EncodedSplats(encoded.lattice, encoded.cells, (), 0, nets=nets))
    with PsplatFile.open(path) as file:
        assert [(net.name, net.values.tolist()) for net in file._codebooks()[1]] == [
            ("cont", [0.0, 1.0, 2.0, 3.0, 4.0]),
            ("dc", []),
        ]


def test_a_flipped_bit_anywhere_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.psplat"
    write_psplat(path, random_encoded(80, 1, dynamic=True, seed=6), least_group=30)
    content = path.read_bytes()
    # Every byte of the head, every seventh of what one checksum each covers.
    for at in [*range(600), *range(600, len(content), 7)]:
        damaged = bytearray(content)
        damaged[at] ^= 1 << at % 8
        path.write_bytes(damaged)
        with pytest.raises(FormatError, match=r"a\.psplat: "), PsplatFile.open(path) as file:
            file.read_all()


def test_a_file_cut_short_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.psplat"
    write_psplat(path, random_encoded(30, seed=7))
    content = path.read_bytes()
    for size in range(len(content)):
        path.write_bytes(content[:size])
        with pytest.raises(FormatError):
            PsplatFile.open(path)
    path.write_bytes(content + b"\0")
    with pytest.raises(FormatError, match="at offset 16"):
        PsplatFile.open(path)


def test_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        PsplatFile.open(tmp_path / "none.psplat")
    path = tmp_path / "a.psplat"
    write_psplat(path, random_encoded(10))
    file = PsplatFile.open(path)
    file.close()
    file.close()
    with pytest.raises(ValueError, match="closed"):
        file.segment(0)


def test_floats_are_cut_in_halves_that_ascend() -> None:
    numbers = np.array([-3e38, -1.5, -1e-40, -0.0, 0.0, 1e-40, 1.0, 1.5, 3e38], np.float32)
    upper, lower = split_floats(numbers)
    ordered = upper.astype(np.int64) << 16 | lower
    assert (np.diff(ordered) > 0).all()
    assert (join_floats(upper, lower).view(np.uint32) == numbers.view(np.uint32)).all()

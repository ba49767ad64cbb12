"""Playing a .psplat file by segments: the picture of the whole model, inside the budget."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import threading
import time as clock
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import wait
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from penstock.errors import BudgetError, FormatError, UsageError
from penstock.export.omg4.psplat_writer import write_psplat
from penstock.export.omg4.static_quantization import quantize_splats
from penstock.loaders.splats.codebook import Codebook, Map, halves_of_levels
from penstock.loaders.splats.formats import summary
from penstock.loaders.splats.model import SplatModel
from penstock.loaders.splats.psplat_file import MODEL_NBYTES, PsplatFile
from penstock.runtime.splats.camera import Camera, orbit
from penstock.runtime.splats.player import PLANNED, SplatPlayer, busiest
from penstock.runtime.splats.renderer import SplatRenderer
from tests.loaders.splats.encoded_builder import random_encoded, with_nets
from tests.runtime.splats.scenes import random_model

TIMES = [0.0, 0.1, 0.7, 0.71, 1.3, 1.999, 0.3, 2.0]
SIZE = (120, 80)
COUNT = 8000
ROOT = Path(__file__).resolve().parents[3]


def short_lived(count: int) -> SplatModel:
    """Splats that are seen for a tenth of the scene, and some for all of it."""
    model = random_model(count, degree=1, dynamic=True, seed=11, size=0.04)
    assert model.motion is not None
    sigmas = np.full(count, 0.04, np.float32)
    sigmas[::10] = 2.0
    return replace(model, motion=replace(model.motion, t_sigmas=sigmas))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("player") / "short.psplat"
    write_psplat(out, quantize_splats(short_lived(COUNT)), least_group=200)
    return out


@pytest.fixture(scope="module")
def camera() -> Camera:
    return orbit(short_lived(500), 1, width=SIZE[0], height=SIZE[1])[0]


@pytest.fixture(scope="module")
def whole(path: Path) -> Iterator[SplatRenderer]:
    with PsplatFile.open(path) as file:
        assert len(file.info.segments) > 3
        yield SplatRenderer(file.read_all())


@pytest.mark.parametrize("ahead", [False, True])
def test_it_plays_what_is_in_the_file(
    path: Path, camera: Camera, whole: SplatRenderer, ahead: bool
) -> None:
    # So little apart that a renderer which may keep colours would keep them.
    cameras = orbit(short_lived(500), len(TIMES), width=SIZE[0], height=SIZE[1], turn_degrees=1.0)
    with SplatPlayer(path, ahead=ahead) as player:
        assert (player.start, player.end, player.fps, player.count) == (0.0, 2.0, 10.0, COUNT)
        assert player.budget is None
        for time, near in zip(TIMES, cameras, strict=True):
            frame, expected = player.render(near, time), whole.render(near, time)
            np.testing.assert_array_equal(frame.image, expected.image)
            assert frame.times.visible == expected.times.visible
            assert frame.times.active <= COUNT
        again = player.render(camera, TIMES[-1])
        assert again.times.load_ms <= again.times.total_ms


def test_it_keeps_its_budget(path: Path, camera: Camera, whole: SplatRenderer) -> None:
    with SplatPlayer(path) as player:
        least = player.least(*SIZE)
        assert player.least(*SIZE) < player.least(2000, 1000)
        decoded = sum(segment.decoded_nbytes for segment in player.info.segments)
    for budget in (least, least + 100_000, 2 * least):
        with SplatPlayer(path, memory=budget, picture=SIZE) as player:
            assert player.budget == budget
            for time in TIMES:
                image = player.render(camera, time).image
                assert player.bytes <= budget
                np.testing.assert_array_equal(image, whole.render(camera, time).image)
    with SplatPlayer(path) as player:
        for time in TIMES:
            player.render(camera, time)
        assert player.bytes > decoded / 2  # all of it stays where no budget is set


@pytest.fixture(scope="module")
def with_implicit_colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """So few bytes a splat that the nets' own arrays would be most of what decoding takes."""
    out = tmp_path_factory.mktemp("nets") / "nets.psplat"
    write_psplat(out, with_nets(quantize_splats(random_model(1 << 14, degree=0, seed=1))))
    return out


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's /proc")
def test_the_process_grows_by_no_more_than_the_budget(
    path: Path, with_implicit_colours: Path, tmp_path: Path
) -> None:
    """As the kernel sees it: arrays, what the native code takes, and what is read ahead."""
    warm = tmp_path / "warm.psplat"
    few = with_nets(quantize_splats(random_model(3000, degree=1, dynamic=True)))
    write_psplat(warm, few, least_group=500)
    command = [sys.executable, "-m", "tests.runtime.splats.play_peak", *map(str, SIZE)]
    done = subprocess.run(
        [*command, warm, path, with_implicit_colours],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for found in json.loads(done.stdout):
        assert 1 << 20 < found["added"] <= found["least"]


def test_implicit_colours_are_played(with_implicit_colours: Path, camera: Camera) -> None:
    with PsplatFile.open(with_implicit_colours) as file:
        models = [file.read_all(threads=threads) for threads in (1, 3)]
    assert (models[0].sh == models[1].sh).all()
    with SplatPlayer(with_implicit_colours) as player:
        image = player.render(camera).image
    assert image.max() > 0.1
    np.testing.assert_array_equal(image, SplatRenderer(models[0]).render(camera).image)


def test_a_budget_is_looked_at_before_codebooks_are(
    with_implicit_colours: Path, tmp_path: Path
) -> None:
    """They may be large: a file of 2 MiB can hold 2^24 numbers."""
    data = bytearray(with_implicit_colours.read_bytes())
    size, offset = struct.unpack_from("<IQ", data, 108)
    data[offset + size // 2] ^= 0x10
    damaged = tmp_path / "damaged.psplat"
    damaged.write_bytes(data)
    with pytest.raises(BudgetError):
        SplatPlayer(damaged, memory="100KiB")
    assert summary(damaged).count == 1 << 14
    with SplatPlayer(damaged) as player, pytest.raises(FormatError, match="codebook section"):
        assert player.extent


@pytest.mark.parametrize("seed", range(6))
def test_codebooks_take_what_the_head_says(tmp_path: Path, seed: int) -> None:
    out = tmp_path / "a.psplat"
    encoded = random_encoded(40, 1, dynamic=True, seed=seed)
    write_psplat(out, with_nets(encoded, seed) if seed % 2 else encoded)
    with PsplatFile.open(out) as file:
        books, nets = file._codebooks()
        arrays = [a for b in books for a in (b.entries, b.levels, b.numbers) if a is not None]
        held = sum(array.nbytes for array in arrays)
        learned = MODEL_NBYTES * (2 + len(file._head.channels))
        values = sum(net.values.nbytes for net in nets)
        assert 0 <= file.codebook_nbytes - learned - held - values < 200  # names of nets


@pytest.mark.parametrize("map_of", list(Map))
def test_entries_are_made_without_a_larger_copy(map_of: Map) -> None:
    levels = np.random.default_rng(0).integers(0x0400, 0xFC00, (1 << 14, 64)).astype(np.uint16)
    numbers = np.linspace(-1, 1, 1 << 16, dtype=np.float32)
    book = Codebook(
        map_of, len(levels), 64, 1 << 16, levels, -1.5, 0.25,
        numbers if map_of is Map.TABLE else None,
    )  # fmt: skip
    tracemalloc.start()
    try:
        assert book.problem() is None
        entries = book.entries
        assert tracemalloc.get_traced_memory()[1] < entries.nbytes + (1 << 20)
    finally:
        tracemalloc.stop()
    if map_of is Map.UNIFORM:
        np.testing.assert_array_equal(entries, np.float32(-1.5 + 0.25 * levels.astype(np.float64)))
    elif map_of is Map.HALF:
        np.testing.assert_array_equal(entries, halves_of_levels(levels).astype(np.float32))
    else:
        np.testing.assert_array_equal(entries, numbers[levels])


def test_budgets_that_are_too_small(path: Path, camera: Camera) -> None:
    with pytest.raises(BudgetError, match="at least") as error:
        SplatPlayer(path, memory="100KiB")
    least = error.value.least_bytes
    assert least is not None
    with pytest.raises(BudgetError):
        SplatPlayer(path, memory=least - 1)
    with SplatPlayer(path, memory=least) as player:
        assert player.least(*PLANNED) == least
        large = replace(camera, width=4000, height=3000)
        with pytest.raises(BudgetError, match="4000 x 3000") as later:
            player.render(large, 0.0)
        assert later.value.least_bytes == player.least(4000, 3000)
        player.render(camera, 0.0)  # and it goes on
    with pytest.raises(UsageError, match="not a size"):
        SplatPlayer(path, memory="some")


def test_a_share_of_the_decoded_scene(path: Path) -> None:
    with SplatPlayer(path, memory="5000%") as player:
        decoded = sum(segment.decoded_nbytes for segment in player.info.segments)
        assert player.budget == pytest.approx(50 * decoded, rel=1e-6)


def test_the_busiest_time(path: Path) -> None:
    with SplatPlayer(path) as player:
        most = busiest(player.info)
        moments = [segment.start for segment in player.info.segments]
        counts = [
            sum(s.count for s in player.info.segments if s.start <= t < s.end) for t in moments
        ]
        assert most.splats == max(counts) < COUNT


def test_static_files_and_empty_ones(tmp_path: Path, camera: Camera) -> None:
    for count in (0, 300):
        out = tmp_path / f"{count}.psplat"
        write_psplat(out, quantize_splats(random_model(count, degree=1)))
        with SplatPlayer(out, memory="64MiB", background=(0, 0, 1)) as player:
            frame = player.render(camera)
            assert (frame.times.visible > 0) == (count > 0)
            middle, radius = player.extent
            assert middle.shape == (3,) and radius > 0
            np.testing.assert_array_equal(player.render(camera, 55.0).image, frame.image)


def test_extent(path: Path) -> None:
    with SplatPlayer(path) as player:
        middle, radius = player.extent
        assert np.abs(middle).max() < 0.5
        assert 0.5 < radius < 1.5


def test_a_damaged_segment(path: Path, tmp_path: Path, camera: Camera) -> None:
    """It is named when its time comes, and not before; other times play on."""
    with PsplatFile.open(path) as file:
        last = max(file.info.segments, key=lambda segment: segment.start)
    data = bytearray(path.read_bytes())
    data[last.offset + last.nbytes // 2] ^= 0x40
    copy = tmp_path / "damaged.psplat"
    copy.write_bytes(data)
    with SplatPlayer(copy) as player:
        for time in (0.0, 0.5):
            player.render(camera, time)
        with pytest.raises(FormatError, match=f"segment {last.index}"):
            player.render(camera, (last.start + min(last.end, 2.0)) / 2)
        player.render(camera, 0.0)


def test_a_damaged_segment_is_not_read_ahead_again_and_again(
    path: Path, tmp_path: Path, camera: Camera, monkeypatch: pytest.MonkeyPatch
) -> None:
    with PsplatFile.open(path) as file:
        last = max(file.info.segments, key=lambda segment: segment.start)
        segments = len(file.info.segments)
    data = bytearray(path.read_bytes())
    data[last.offset + last.nbytes // 2] ^= 0x40
    copy = tmp_path / "damaged.psplat"
    copy.write_bytes(data)
    seen, segment = [], PsplatFile.segment

    def watched(self: PsplatFile, index: int) -> SplatModel:
        seen.append(index)
        return segment(self, index)

    monkeypatch.setattr(PsplatFile, "segment", watched)
    with SplatPlayer(copy) as player:
        for _ in range(segments + 3):
            player.render(camera, 0.0)
            if player._next is not None:
                wait([player._next[1]])
        assert seen.count(last.index) == 1 and len(seen) == segments
        with pytest.raises(FormatError, match=f"segment {last.index}"):
            player.render(camera, (last.start + min(last.end, 2.0)) / 2)
        assert seen.count(last.index) == 2


def test_a_larger_picture_while_a_segment_is_read_ahead(
    path: Path, camera: Camera, monkeypatch: pytest.MonkeyPatch
) -> None:
    segment = PsplatFile.segment

    def slow(self: PsplatFile, index: int) -> SplatModel:
        if threading.current_thread() is not threading.main_thread():
            clock.sleep(0.1)
        return segment(self, index)

    monkeypatch.setattr(PsplatFile, "segment", slow)
    large = replace(camera, width=1000, height=800)
    with SplatPlayer(path) as player:
        least, time = player.least(1000, 800), _busiest_time(player)
    with SplatPlayer(path, memory=least, picture=SIZE) as player:
        player.render(camera, time)
        assert player._next is not None  # the small picture leaves room for it
        player.render(large, time)
        assert player._next is None and player.bytes <= least


def _busiest_time(player: SplatPlayer) -> float:
    """Seconds when the most is active, and something comes after it."""
    segments = player.info.segments

    def active(time: float) -> int:
        return sum(s.count for s in segments if s.start <= time < s.end)

    return max((s.start for s in segments if s.start > 0), key=active)


def test_closed_and_wrong(path: Path, camera: Camera) -> None:
    player = SplatPlayer(path)
    with pytest.raises(UsageError, match="time is nan"):
        player.render(camera, np.nan)
    player.close()
    player.close()
    with pytest.raises(UsageError, match="is closed"):
        player.render(camera, 0.0)

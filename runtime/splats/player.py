"""Plays a .psplat file under a memory budget: segments are read when their time comes.

with SplatPlayer(Path("flame.psplat"), memory="64MiB") as player:
    frame = player.render(camera, time=1.5)

What is counted: what the open file keeps, the segments that are ready to be drawn, the reading of
one more, the rasteriser's room, two pictures (one that is drawn, one that the caller may still
have), and what the caller says that it does with them. The interpreter and the libraries are not.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from penstock import _native
from penstock.errors import BudgetError, UsageError
from penstock.loaders.cores import compute_threads
from penstock.loaders.splats.psplat_file import PsplatFile, PsplatInfo, SegmentInfo
from penstock.runtime.budget import format_size, parse_size
from penstock.runtime.splats.camera import Camera, extent_of
from penstock.runtime.splats.renderer import MOST_PAIRS, Frame, SplatRenderer
from penstock.runtime.splats.scene import Scene, making_bytes, scene_bytes

PLANNED = (640, 480)  # pixels of the pictures that a budget is checked for first
PAIRS_A_SPLAT = 4  # of a splat and a tile that are listed at a time; more are drawn in bands
LEAST_PAIRS = 1 << 16
BASE_BYTES = 256 << 10  # the player itself, and what it allocates for a picture
SEGMENT_BYTES = 1 << 10  # what the file and the player know of a segment
SAMPLE = 1 << 14  # splats that `extent` looks at


@dataclass(frozen=True)
class PlayPlan:
    """Bytes of each part, at its most, with pictures of one size.

    Attributes:
        held: what the open file keeps.
        resident: the segments of the time that needs most.
        work: reading a segment and making it ready.
        room: the rasteriser's.
        pictures: two, and what the caller does with them.
    """

    held: int
    resident: int
    work: int
    room: int
    pictures: int

    @property
    def least(self) -> int:
        """The smallest budget that works."""
        return BASE_BYTES + self.held + self.resident + self.work + self.room + self.pictures


class SplatPlayer:
    """One file, open. For one thread at a time.

    Attributes:
        info: of the file: count, degree, dynamic, segments and others.
        start, end: seconds, both 0 of a static scene; fps: None where the file names none.
        count: splats. budget: bytes; None: as many as the scene takes.
    """

    def __init__(
        self,
        path: Path,
        *,
        memory: str | int | None = None,
        threads: int | None = None,
        footprint: str = "exact",
        background: Sequence[float] = (0.0, 0.0, 0.0),
        colour_tolerance: float = 0.0,
        picture: tuple[int, int] = PLANNED,
        pixel_bytes: int = 0,
        ahead: bool = True,
    ) -> None:
        """
        Args:
            memory: a budget, as '64MiB' or '25%' of the decoded scene; None: no limit.
            threads, footprint, background: as SplatRenderer takes them.
            colour_tolerance: likewise. Over 0, what is drawn depends on when segments were read and
                on what was drawn before; at 0 on the file, the camera and the time alone.
            picture: width and height that will be drawn; larger ones are checked when they are.
            pixel_bytes: bytes a pixel that the caller takes beside two pictures, as
                `images.pixel_bytes`.
            ahead: whether the next segment is read by a thread while there is room for it.

        Raises:
            BudgetError: the budget is too small for such pictures; it has the least.
            FormatError, StorageError: as PsplatFile.open. UsageError: as SplatRenderer.
        """
        self._file = PsplatFile.open(Path(path))
        self._worker: ThreadPoolExecutor | None = None
        try:
            self.info: PsplatInfo = self._file.info
            self.start, self.end, self.fps = self.info.start, self.info.end, self.info.fps
            self.count = self.info.count
            self._segments = {segment.index: segment for segment in self.info.segments}
            self._starts = sorted((segment.start, segment.index) for segment in self.info.segments)
            whole = sum(segment.decoded_nbytes for segment in self.info.segments)
            self.budget = None if memory is None else parse_size(memory, max(whole, 1))
            self._held = self._file.codebook_nbytes + SEGMENT_BYTES * len(self._segments)
            self._busiest = busiest(self.info)
            self._work = max(
                self._file.reading_nbytes, *(_work_bytes(s) for s in self.info.segments), 0
            )
            pairs = PAIRS_A_SPLAT * self._busiest.splats
            self._most_pairs = min(max(pairs, LEAST_PAIRS), MOST_PAIRS)
            self._threads = compute_threads(threads)
            self._pixel_bytes = pixel_bytes
            self._largest: PlayPlan | None = None  # of the pictures so far
            self._allowed(*picture)
            self._renderer = SplatRenderer(
                [],
                threads=threads,
                footprint=footprint,
                background=background,
                colour_tolerance=colour_tolerance,
                most_pairs=self._most_pairs,
            )
            self._scenes: dict[int, Scene] = {}  # the one that was drawn last is at the end
            self._picture, self._picture_bytes = picture, 0
            self._closed = False
            self._next: tuple[int, Future[Scene]] | None = None
            self._failed: set[int] = set()  # when they were read ahead
            if ahead and len(self._segments) > 1:
                self._worker = ThreadPoolExecutor(1, thread_name_prefix="penstock-splats")
        except BaseException:
            self._file.close()
            raise

    def render(self, camera: Camera, time: float | None = None) -> Frame:
        """One picture.

        Args:
            time: seconds; None: where the scene starts.

        Raises:
            BudgetError: the budget is too small for pictures of this size.
            FormatError, StorageError: a segment is damaged, or cannot be read.
            UsageError: the player is closed, or the time is not finite.
        """
        time = self.start if time is None else time
        allowed = self._allowed(camera.width, camera.height)
        begin = perf_counter()
        needed = self._load(self._active(time), allowed)
        loaded = perf_counter()
        self._renderer.scenes = needed
        frame = self._renderer.render(camera, time)
        self._picture_bytes = frame.image.nbytes
        self._read_ahead(time, allowed)
        return replace(frame, times=replace(frame.times, load_ms=1e3 * (loaded - begin)))

    @property
    def bytes(self) -> int:
        """Bytes that it takes now, of those that are counted."""
        scenes = sum(scene.nbytes for scene in self._scenes.values())
        if self._next is not None:
            scenes += self._scene_bytes(self._next[0])
        room = self._renderer.room_bytes
        return BASE_BYTES + self._held + scenes + room + self._picture_bytes

    @property
    def extent(self) -> tuple[NDArray[np.float64], float]:
        """(middle [3], radius) of what is there at the start, as `camera.extent` of a model."""
        scenes = self._load(self._active(self.start), self._allowed(*self._picture))
        step = max(1, sum(scene.count for scene in scenes) // SAMPLE)
        means = [scene.means[:, ::step].T for scene in scenes]
        return extent_of(np.concatenate(means) if means else np.empty((0, 3)))

    def least(self, width: int, height: int) -> int:
        """The smallest budget in bytes for pictures of this size."""
        return self._plan(width, height).least

    def close(self) -> None:
        """Close the file; twice is once."""
        if self._closed:
            return
        self._closed = True
        if self._worker is not None:
            self._worker.shutdown(wait=True, cancel_futures=True)
            self._worker = None
        self._next = None
        self._scenes = {}
        self._renderer.scenes = []
        self._file.close()

    def __enter__(self) -> SplatPlayer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # ------------------------------------------------------------ the budget

    def _plan(self, width: int, height: int) -> PlayPlan:
        return PlayPlan(
            held=self._held,
            resident=self._busiest.nbytes,
            work=self._work,
            room=_native.splat_room_bytes(
                self._busiest.splats, width, height, self._threads, self._most_pairs
            ),
            pictures=(2 * 12 + self._pixel_bytes) * width * height,
        )

    def _allowed(self, width: int, height: int) -> float:
        """Bytes that segments may take that are ready to be drawn.

        Raises:
            BudgetError: not even those of one time.
        """
        if self.budget is None:
            return math.inf
        plan = self._plan(width, height)
        if self.budget < plan.least:
            decoded = sum(segment.decoded_nbytes for segment in self.info.segments)
            raise BudgetError(
                f"{self.info.path}: a budget of {format_size(self.budget)} ({self.budget} bytes) "
                f"is too small for pictures of {width} x {height}: at least "
                f"{format_size(plan.least)} ({plan.least} bytes) are needed, room to draw in "
                f"included; decoded, all splats take {format_size(decoded)}. Allow more, or draw "
                "smaller pictures",
                plan.least,
            )
        if self._largest is None or plan.least > self._largest.least:
            self._largest = plan  # its room is kept when smaller ones follow
        return self.budget - self._largest.least + self._largest.resident

    # ------------------------------------------------------------ segments

    def _active(self, time: float) -> tuple[int, ...]:
        if self._closed:
            raise UsageError(f"{self.info.path}: the player is closed; open it again")
        if not math.isfinite(time):
            raise UsageError(f"the time is {time}; expected a finite number of seconds")
        return self._file.active(time)

    def _load(self, needed: Sequence[int], allowed: float) -> list[Scene]:
        """The scenes of these segments; others leave where there is no room."""
        self._collect(needed, allowed)
        for index in needed:
            if index in self._scenes:
                self._scenes[index] = self._scenes.pop(index)  # to the end
        coming = None if self._next is None else self._next[0]
        self._make_room(coming, needed, allowed)  # this picture may be larger than the last
        for index in needed:
            if index not in self._scenes:
                self._make_room(index, needed, allowed)  # as planned, there is some
                self._scenes[index] = self._read(index)
                self._failed.discard(index)
        return [self._scenes[index] for index in needed]

    def _make_room(self, index: int | None, kept: Sequence[int], allowed: float) -> bool:
        """Whether a segment (None: nothing more) fits beside what is kept; then let go of what was
        drawn longest ago, as far as that needs the room."""
        wanted = 0 if index is None else self._scene_bytes(index)
        others = [there for there in self._scenes if there not in kept]
        taken = sum(self._scene_bytes(there) for there in self._scenes)
        if taken - sum(self._scene_bytes(there) for there in others) + wanted > allowed:
            return False
        self._renderer.scenes = []  # it keeps some of them alive
        for there in others:
            if taken + wanted <= allowed:
                break
            del self._scenes[there]
            taken -= self._scene_bytes(there)
        return True

    def _read(self, index: int) -> Scene:
        return Scene(self._file.segment(index), in_order=True)

    def _read_ahead(self, time: float, allowed: float) -> None:
        """Begin to read the segment that comes next, where it fits beside what is drawn."""
        if self._worker is None or self._next is not None:
            return
        coming = self._starts[bisect_right(self._starts, (time, len(self._segments))) :]
        known = self._scenes.keys() | self._failed
        index = next((i for _, i in coming if i not in known), None)
        if index is None:
            return
        ready = [i for i in self._scenes if self._segments[i].start > time]
        if self._make_room(index, [*self._active(time), *ready], allowed):
            self._next = index, self._worker.submit(self._read, index)

    def _collect(self, needed: Sequence[int], allowed: float) -> None:
        """Take in the segment that is read ahead. It is waited for where others are to be read, as
        two never are at once, and where it does not fit beside this picture any more."""
        if self._next is None:
            return
        index, future = self._next
        fits = sum(self._scene_bytes(i) for i in {index, *needed}) <= allowed
        if fits and not future.done() and all(i in self._scenes for i in needed):
            return
        self._next = None
        try:
            self._scenes[index] = future.result()
        except Exception:
            if index in needed:
                raise
            self._failed.add(index)  # tried again when its time comes, and not before

    def _scene_bytes(self, index: int) -> int:
        segment = self._segments[index]
        return scene_bytes(segment.count, (self.info.degree + 1) ** 2, self.info.dynamic)


@dataclass(frozen=True)
class Busiest:
    """The most that is active at one time; not always both at the same."""

    splats: int
    nbytes: int


def busiest(info: PsplatInfo) -> Busiest:
    """What the segments of any one time take, as scenes."""
    k = (info.degree + 1) ** 2
    sizes = [
        (segment.count, scene_bytes(segment.count, k, info.dynamic)) for segment in info.segments
    ]
    if not info.dynamic:
        return Busiest(sum(n for n, _ in sizes), sum(nbytes for _, nbytes in sizes))
    changes: list[tuple[float, int, int]] = []
    for segment, (n, nbytes) in zip(info.segments, sizes, strict=True):
        changes += [(segment.start, n, nbytes), (segment.end, -n, -nbytes)]
    changes.sort()  # at one time, those that leave come first
    splats = nbytes = most_splats = most_bytes = 0
    for _, more, more_bytes in changes:
        splats, nbytes = splats + more, nbytes + more_bytes
        most_splats, most_bytes = max(most_splats, splats), max(most_bytes, nbytes)
    return Busiest(most_splats, most_bytes)


def _work_bytes(segment: SegmentInfo) -> int:
    """Reading a segment and making it ready, beside its scene."""
    return segment.decoded_nbytes + segment.work_nbytes + making_bytes(segment.count)

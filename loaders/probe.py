"""What the storage and the memory of this device can do, measured and remembered.

The figures decide how many reads are kept in flight, by which back end, and over which gaps two
reads are merged into one. They are cached for each device and file system.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import platformdirs

from penstock import _native
from penstock.errors import StorageError
from penstock.loaders.cores import usable_cores
from penstock.loaders.file_names import native_name

PROFILE_VERSION = 2  # 1: measured into pages of 4 KiB at low depths
BLOCKS = (4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20)
DEPTHS = (1, 4, 16, 64, 128, 256)
QUICK_SECONDS = 24 * 3600.0  # a quick profile is measured again after a day
QUICK_BYTES = 2 << 20  # a quick probe runs inside a model's budget, before the model is loaded


@dataclass(frozen=True)
class RandomRead:
    """Random reads of one block size at one depth through one back end."""

    block: int
    depth: int
    backend: str
    bytes_per_second: float
    reads_per_second: float


@dataclass(frozen=True)
class DeviceProfile:
    """Measured figures of one device and file system.

    Attributes:
        device: what identifies it in the cache.
        direct: whether reads bypass the page cache.
        alignment: bytes that direct reads are aligned to; 0 where they are refused.
        backend, depth: the fastest way found to read small blocks at random.
        sequential_bytes_per_second: large reads in order.
        memory_bytes_per_second: all cores together.
    """

    device: str
    direct: bool
    alignment: int
    backend: str
    depth: int
    random: tuple[RandomRead, ...]
    sequential_bytes_per_second: float
    memory_bytes_per_second: float
    quick: bool
    measured_at: float

    def random_bytes_per_second(self, block: int) -> float:
        """Throughput of random reads of this size at the chosen depth, interpolated."""
        best: dict[int, float] = {}
        for r in self._chosen():
            best[r.block] = max(best.get(r.block, 0.0), r.bytes_per_second)
        if not best:
            return self.sequential_bytes_per_second
        sizes, rates = zip(*sorted(best.items()), strict=True)
        if block < sizes[0]:  # bound by operations: the rate falls with the size
            return float(rates[0] * block / sizes[0])
        return float(np.interp(np.log2(block), np.log2(sizes), rates))

    @property
    def merge_gap(self) -> int:
        """Bytes of gap that cost less to read through than a second read does."""
        reads = max((r.reads_per_second for r in self._chosen()), default=0.0)
        if reads <= 0:
            return 0
        gap = self.sequential_bytes_per_second / reads
        return int(min(gap, 256 << 10)) // 512 * 512

    def _chosen(self) -> list[RandomRead]:
        return [r for r in self.random if r.backend == self.backend]


def probe(path: str | os.PathLike[str], *, quick: bool = False) -> DeviceProfile:
    """Measure the storage that holds `path` (a file, or a folder to write a test file into).

    quick takes about a second and 2 MiB of memory; the whole takes some ten seconds.

    Raises:
        StorageError: nothing there can be read or written.
    """
    target = Path(path)
    if not target.exists():
        raise StorageError(f"{target}: no such file or folder")
    if target.is_file() and target.stat().st_size >= (1 if quick else 8) << 20:
        return _measure(target, quick)
    folder = target if target.is_dir() else target.parent
    size = (16 if quick else 512) << 20
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".penstock-probe-") as handle:
            block = np.random.default_rng(0).bytes(8 << 20)  # zeros may never reach the device
            for _ in range(size // len(block)):
                handle.write(block)
            handle.flush()
            os.fsync(handle.fileno())
            return _measure(Path(handle.name), quick)
    except OSError as error:
        raise StorageError(f"{folder}: cannot write a file to measure: {error.strerror}") from None


def load_profile(path: str | os.PathLike[str]) -> DeviceProfile:
    """The cached profile of the device that holds `path`, or a quick measurement, then cached.

    Cached, so that the same model and budget give the same plan every time.
    """
    cached = cached_profile(path)
    if cached is not None:
        return cached
    try:
        profile = probe(path, quick=True)
    except StorageError:  # a small file in a folder that cannot be written
        return _unmeasured(path)
    try:
        save_profile(profile)
    except OSError:
        pass  # no home that can be written: measure again next time
    return profile


def cached_profile(path: str | os.PathLike[str]) -> DeviceProfile | None:
    """The profile that `penstock probe` left for this device, or None."""
    try:
        raw = json.loads(_cache_file(device_of(path)).read_text())
        if raw.pop("version") != PROFILE_VERSION:
            return None
        raw["random"] = tuple(RandomRead(**entry) for entry in raw["random"])
        profile = DeviceProfile(**raw)
        stale = profile.quick and time.time() - profile.measured_at > QUICK_SECONDS
        return None if stale else profile
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None  # absent or damaged: it is only a cache


def save_profile(profile: DeviceProfile) -> Path:
    """Remember a profile for its device. Returns where."""
    target = _cache_file(profile.device)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    with open(partial, "w") as handle:
        json.dump({"version": PROFILE_VERSION, **asdict(profile)}, handle, indent=1)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(partial, target)
    return target


def device_of(path: str | os.PathLike[str]) -> str:
    """'254:0-ext4': device numbers and file system type."""
    number = os.stat(path).st_dev
    return f"{os.major(number)}-{os.minor(number)}-{_file_system(Path(path).resolve())}"


def _file_system(path: Path) -> str:
    try:
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    except OSError:
        return "unknown"
    holding = [m for m in mounts if path.is_relative_to(m[1])]
    return max(holding, key=lambda m: len(m[1]))[2] if holding else "unknown"


def _cache_file(device: str) -> Path:
    return Path(platformdirs.user_cache_dir("penstock")) / f"probe-{device}.json"


def _unmeasured(path: str | os.PathLike[str]) -> DeviceProfile:
    """A cautious guess, of a SATA disk, for storage that cannot be measured."""
    with native_name(path) as name:
        alignment = _native.direct_alignment(name)
    random = (RandomRead(16 << 10, 16, "auto", 200e6, 12500.0),)
    return DeviceProfile(
        device_of(path), alignment != 0, alignment, "auto", 16, random, 500e6, 5e9, True, 0.0
    )


def _measure(path: Path, quick: bool) -> DeviceProfile:
    with native_name(path) as name:
        return _measure_named(path, name, quick)


def _measure_named(path: Path, name: str, quick: bool) -> DeviceProfile:
    alignment = _native.direct_alignment(name)
    seconds = 0.05 if quick else 0.5
    limit = QUICK_BYTES if quick else 64 << 20  # bytes in flight
    backends = ["io_uring", "threads"]
    try:
        _native.measure_reads(name, 4096, 1, "io_uring", 0.001, False)
    except StorageError:
        backends = ["threads"]
    random: list[RandomRead] = []

    def measure(block: int, depth: int, backend: str) -> RandomRead:
        rate, reads = _native.measure_reads(name, block, depth, backend, seconds, False)
        random.append(RandomRead(block, depth, backend, rate, reads))
        return random[-1]

    depths = (16, 64, 128) if quick else DEPTHS
    trial = [measure(16 << 10, d, b) for b in backends for d in depths]
    fastest = max(r.bytes_per_second for r in trial)
    # The least depth within 5 % of the best: more in flight only costs memory and latency.
    chosen = min((r for r in trial if r.bytes_per_second >= 0.95 * fastest), key=lambda r: r.depth)
    for block in (4 << 10, 64 << 10, 256 << 10) if quick else (b for b in BLOCKS if b != 16 << 10):
        if block * 2 <= path.stat().st_size:
            measure(block, max(1, min(chosen.depth, limit // block)), chosen.backend)
    large = min(1 << 20, limit // 4)
    sequential, _ = _native.measure_reads(
        name, large, max(1, min(16, limit // large)), chosen.backend, seconds, True
    )
    memory = _native.measure_memory(usable_cores(), QUICK_BYTES if quick else 512 << 20, 2)
    return DeviceProfile(
        device=device_of(path),
        direct=alignment != 0,
        alignment=alignment,
        backend=chosen.backend,
        depth=chosen.depth,
        random=tuple(random),
        sequential_bytes_per_second=max(sequential, fastest),
        memory_bytes_per_second=memory,
        quick=quick,
        measured_at=time.time(),
    )

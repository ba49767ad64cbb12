"""What a run did: bytes, hits, throughput and where the time went."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from penstock.runtime.budget import format_size, peak_memory

if TYPE_CHECKING:
    from penstock.runtime.flash_engine import FlashEngine


@dataclass(frozen=True)
class LayerStats:
    """One layer's neurons since the last reset."""

    layer: int
    hits: int
    misses: int
    overflow: int
    computed: int
    active: int

    @property
    def hit_rate(self) -> float:
        total = self.hits + self.misses + self.overflow
        return self.hits / total if total else 1.0


@dataclass(frozen=True)
class RunStats:
    """Since the last reset. Times are seconds, sizes bytes.

    Attributes:
        tokens: tokens run, of prompts and decoded.
        generated: tokens of the answers. The first comes from the prompt's logits, and the last
            need not be run, so `decoded`, those that were run, may be fewer.
        read_bytes: read from storage; per_token_bytes: for each decoded token, without prompts.
        tokens_per_second: decoded tokens over the time they took.
        hit_rate: window hits / neurons wanted.
        merged: share of the neurons read that came with a neighbour's read.
        effective_throughput: bytes of storage reads over the time with a read in flight.
        raw_throughput: what the probe measured at the bundle's size.
        storage, upkeep, predict, compute: where the time went; they add up to total.
        weights_memory: what the engine allocated, and the plan's figure for the tokenizer;
            peak_memory: the whole process at most, Python and libraries included.
    """

    tokens: int
    generated: int
    decoded: int
    read_bytes: int
    per_token_bytes: float
    reads: int
    hit_rate: float
    merged: float
    effective_throughput: float
    raw_throughput: float
    total: float
    storage: float
    upkeep: float
    predict: float
    compute: float
    tokens_per_second: float
    weights_memory: int
    peak_memory: int
    layers: tuple[LayerStats, ...]

    def to_dict(self) -> dict[str, Any]:
        """For --json."""
        return asdict(self)

    def __str__(self) -> str:
        def share(seconds: float) -> str:
            return f"{100 * seconds / self.total:.0f} %" if self.total else "-"

        return "\n".join(
            [
                f"tokens            {self.tokens - self.decoded} of prompts, "
                f"{self.generated} generated, {self.tokens_per_second:.1f} per second",
                f"read from storage {format_size(self.read_bytes)} in {self.reads} reads, "
                f"{format_size(self.per_token_bytes)} per decoded token",
                f"window hit rate   {100 * self.hit_rate:.1f} %, "
                f"{100 * self.merged:.0f} % of misses merged",
                f"throughput        {format_size(self.effective_throughput)}/s, "
                f"raw {format_size(self.raw_throughput)}/s for single bundles",
                f"time              {self.total:.2f} s: storage {share(self.storage)}, "
                f"upkeep {share(self.upkeep)}, predictors {share(self.predict)}, "
                f"compute {share(self.compute)}",
                f"memory            {format_size(self.weights_memory)} model and tokenizer, "
                f"{format_size(self.peak_memory)} process peak with Python and libraries",
            ]
        )


@dataclass(frozen=True)
class Snapshot:
    """Native counters at one moment. Around prompts, so that generation is told apart from them."""

    tokens: int = 0
    read_bytes: int = 0
    total_ns: int = 0

    @staticmethod
    def of(engine: FlashEngine) -> Snapshot:
        """What they are now."""
        native = engine.decoder.stats()
        return Snapshot(native.tokens, native.io_bytes, native.total_ns)

    def __add__(self, other: Snapshot) -> Snapshot:
        return Snapshot(
            self.tokens + other.tokens,
            self.read_bytes + other.read_bytes,
            self.total_ns + other.total_ns,
        )

    def __sub__(self, other: Snapshot) -> Snapshot:
        return Snapshot(
            self.tokens - other.tokens,
            self.read_bytes - other.read_bytes,
            self.total_ns - other.total_ns,
        )


def collect(engine: FlashEngine, prompts: Snapshot, generated: int) -> RunStats:
    """Read the native counters; what prompts did not take, decoding did."""
    native = engine.decoder.stats()
    decoded = Snapshot.of(engine) - prompts
    layers = []
    reads = missed = 0
    for i in range(engine.bundle.layers):
        s = engine.decoder.ffn_stats(i)
        layers.append(LayerStats(i, s.hits, s.misses, s.overflow, s.predicted, s.active))
        if engine.plan.layers[i].residency in ("window", "exact"):
            reads += s.reads
            missed += s.misses + s.overflow
    wanted = sum(layer.hits + layer.misses + layer.overflow for layer in layers)
    total, storage = native.total_ns * 1e-9, native.wait_ns * 1e-9
    upkeep, predict = native.upkeep_ns * 1e-9, native.predict_ns * 1e-9
    busy = native.io_busy_ns * 1e-9
    return RunStats(
        tokens=native.tokens,
        generated=generated,
        decoded=decoded.tokens,
        read_bytes=native.io_bytes,
        per_token_bytes=decoded.read_bytes / decoded.tokens if decoded.tokens else 0.0,
        reads=native.io_reads,
        hit_rate=sum(layer.hits for layer in layers) / wanted if wanted else 1.0,
        merged=1.0 - reads / missed if missed else 0.0,
        effective_throughput=native.io_bytes / busy if busy else 0.0,
        raw_throughput=engine.plan.profile.random_bytes_per_second(engine.bundle.stride),
        total=total,
        storage=storage,
        upkeep=upkeep,
        predict=predict,
        compute=max(0.0, total - storage - upkeep - predict),
        tokens_per_second=decoded.tokens / (decoded.total_ns * 1e-9) if decoded.total_ns else 0.0,
        weights_memory=engine.decoder.memory_bytes + engine.plan.tokenizer,
        peak_memory=peak_memory(),
        layers=tuple(layers),
    )

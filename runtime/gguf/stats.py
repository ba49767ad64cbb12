"""What a run of an ordinary GGUF file did."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from penstock.runtime.budget import format_size


@dataclass(frozen=True)
class GgufStats:
    """Since the last reset. Times are seconds, sizes bytes.

    Attributes:
        tokens: tokens run, of prompts and answers; generated: of answers; decoded: those that were
            run one at a time, which the rates are over.
        per_token_bytes: read for each decoded token.
        experts: of each layer, 0 in a dense model.
        hit_rate: experts chosen that were in memory; 1 where there is no expert window.
        effective_throughput: read bytes over the time with a read in flight; raw_throughput: what
            the probe measured for large reads in order.
        storage: the graph waited for reads; compute: the rest of total.
        process_memory: of the process now, Python and libraries included, each page once. Its peak
            would count the ring as often as it is mapped, and pages of the file that llama.cpp's
            loading touches.

    read_bytes, per_token_bytes, reads, hit_rate, effective_throughput, storage and compute are None
    where the plan's mode is 'mapped': the system reads the weights while llama.cpp computes, and
    nobody counts.
    """

    tokens: int
    generated: int
    decoded: int
    read_bytes: int | None
    per_token_bytes: float | None
    reads: int | None
    hit_rate: float | None
    effective_throughput: float | None
    raw_throughput: float
    total: float
    storage: float | None
    compute: float | None
    tokens_per_second: float
    planned_memory: int
    process_memory: int
    experts: int = 0

    def to_dict(self) -> dict[str, Any]:
        """For --json."""
        return asdict(self)

    def __str__(self) -> str:
        def size(nbytes: float | None) -> str:
            return "unknown" if nbytes is None else format_size(nbytes)

        def share(part: float | None, whole: float, digits: int = 0) -> str:
            return "-" if part is None or not whole else f"{100 * part / whole:.{digits}f} %"

        tokens = (
            f"{self.tokens} ({self.tokens - self.decoded} of prompts, "
            f"{self.generated} generated, {self.tokens_per_second:.2f} per second)"
        )
        process = f"{format_size(self.process_memory)} in the process with Python and libraries"
        if self.read_bytes is None:
            rows = [
                ("tokens", tokens),
                ("read from storage", "unknown, by the system, in llama.cpp's own mapping"),
                ("time", f"{self.total:.2f} s"),
                ("memory", f"{size(self.planned_memory)} planned beside the weights, {process}"),
            ]
        else:
            rows = [
                ("tokens", tokens),
                (
                    "read from storage",
                    f"{size(self.read_bytes)} in {self.reads} reads, "
                    f"{size(self.per_token_bytes)} per decoded token",
                ),
                *([("expert hit rate", share(self.hit_rate, 1.0, 1))] if self.experts else []),
                (
                    "throughput",
                    f"{size(self.effective_throughput)}/s, "
                    f"raw {size(self.raw_throughput)}/s in order",
                ),
                (
                    "time",
                    f"{self.total:.2f} s: storage {share(self.storage, self.total)}, "
                    f"compute {share(self.compute, self.total)}",
                ),
                ("memory", f"{size(self.planned_memory)} planned, {process}"),
            ]
        return "\n".join(f"{name:17} {value}" for name, value in rows)

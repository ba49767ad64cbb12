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
        hit_rate: experts chosen that were in memory; 1 where there is no expert window.
        effective_throughput: read bytes over the time with a read in flight; raw_throughput: what
            the probe measured for large reads in order.
        storage: the graph waited for reads; compute: the rest of total.
    """

    tokens: int
    generated: int
    decoded: int
    read_bytes: int
    per_token_bytes: float
    reads: int
    hit_rate: float
    effective_throughput: float
    raw_throughput: float
    total: float
    storage: float
    compute: float
    tokens_per_second: float
    planned_memory: int
    peak_memory: int

    def to_dict(self) -> dict[str, Any]:
        """For --json."""
        return asdict(self)

    def __str__(self) -> str:
        def share(seconds: float) -> str:
            return f"{100 * seconds / self.total:.0f} %" if self.total else "-"

        lines = [
            f"tokens            {self.tokens} ({self.tokens - self.decoded} of prompts, "
            f"{self.generated} generated, {self.tokens_per_second:.2f} per second)",
            f"read from storage {format_size(self.read_bytes)} in {self.reads} reads, "
            f"{format_size(self.per_token_bytes)} per decoded token",
            f"expert hit rate   {100 * self.hit_rate:.1f} %",
            f"throughput        {format_size(self.effective_throughput)}/s, "
            f"raw {format_size(self.raw_throughput)}/s in order",
            f"time              {self.total:.2f} s: storage {share(self.storage)}, "
            f"compute {share(self.compute)}",
            f"memory            {format_size(self.planned_memory)} planned, "
            f"{format_size(self.peak_memory)} process peak with Python and libraries",
        ]
        return "\n".join(lines)

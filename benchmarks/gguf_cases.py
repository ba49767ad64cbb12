"""What the GGUF benchmark measures, and what it asks for."""

from __future__ import annotations

from dataclasses import dataclass, replace

from benchmarks.gguf_shapes import SHAPES, Shape

FITS = 2.0  # cap at which everything fits, of the file's size
STREAMING_SHARE = 0.85  # of raw sequential throughput, where storage is the bottleneck
RESIDENT_SHARE = 0.97  # of llama.cpp, when everything fits
BEHIND_BELADY = 5.0  # points of hits, at most


@dataclass(frozen=True)
class Case:
    """A file and what it is measured at.

    Attributes:
        shape: of the file; quick: with --quick.
        bars: cap -> least ratio to mmap, None: no bar.
    """

    name: str
    shape: Shape
    quick: Shape
    bars: dict[float, float | None]

    @property
    def middle(self) -> float:
        """The cap at which rare contenders are measured too."""
        return sorted(self.bars)[len(self.bars) // 2]

    @property
    def experts(self) -> bool:
        return self.shape.experts > 0


DENSE, MIXTURE = SHAPES["llama-3b"], SHAPES["olmoe-7b"]
SMALL_DENSE = replace(
    SHAPES["tiny-llama"], name="small-dense", layers=10, width=1280, neurons=5120, heads=20,
    kv_heads=4, vocab=4096,
)  # fmt: skip
SMALL_MIXTURE = replace(
    SHAPES["tiny-olmoe"].typed("Q4_0"), name="small-mixture", layers=6, width=1024, neurons=1024,
    heads=16, kv_heads=16, experts=32, vocab=4096,
)  # fmt: skip
MOE_BARS = {0.75: None, 0.55: 5.0, 0.4: None}
CASES = (
    Case("dense 3B, Q8_0", DENSE, SMALL_DENSE, {0.85: 2.5, 0.75: 2.0, 0.6: 1.6}),
    Case("MoE 7B, Q4_0, uniform", MIXTURE, SMALL_MIXTURE, MOE_BARS),
    Case(
        "MoE 7B, Q4_0, reuse 0.4",
        replace(MIXTURE, reuse=0.4),
        replace(SMALL_MIXTURE, reuse=0.4),
        MOE_BARS,
    ),
)

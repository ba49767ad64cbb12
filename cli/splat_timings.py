"""Times of drawn frames: medians of the stages, for people and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from penstock.cli.console import size

if TYPE_CHECKING:
    from penstock.runtime.splats.renderer import RenderTimes

Number = TypeVar("Number", int, float)
STAGES = ("load", "colour", "project", "sort", "bin", "blend", "write")


@dataclass
class Timings:
    """What each frame took, in milliseconds by stage.

    Attributes:
        frames: one entry a frame, by the names of STAGES.
        visible, pairs: splats drawn, and pairs of a splat and a tile.
        memory: the most bytes that splats took at once.
    """

    frames: list[dict[str, float]] = field(default_factory=list)
    visible: list[int] = field(default_factory=list)
    pairs: list[int] = field(default_factory=list)
    memory: int = 0

    def add(self, times: RenderTimes, memory: int, write_ms: float = 0.0) -> None:
        """One more frame."""
        spent = {name: float(getattr(times, f"{name}_ms", 0.0)) for name in STAGES}
        self.frames.append(spent | {"write": write_ms})
        self.visible.append(times.visible)
        self.pairs.append(times.pairs)
        self.memory = max(self.memory, memory)

    def frame_ms(self) -> list[float]:
        """Of each frame, all stages of drawing it."""
        return [sum(frame.values()) - frame["write"] for frame in self.frames]

    def to_dict(self) -> dict[str, Any]:
        """For JSON: percentiles over frames of drawing, medians by stage; `write` is apart."""
        whole = self.frame_ms()
        stages = {name: percentile([f[name] for f in self.frames], 50) for name in STAGES}
        return {
            "frames": len(whole),
            "frame_ms": {
                "p50": percentile(whole, 50),
                "p95": percentile(whole, 95),
                "max": max(whole),
            },
            "stage_ms": stages,
            "visible": percentile(self.visible, 50),
            "pairs": percentile(self.pairs, 50),
            "splat_bytes": self.memory,
        }

    def line(self) -> str:
        """One line for people."""
        facts = self.to_dict()
        stages = facts["stage_ms"]
        write = stages.pop("write")
        largest = sorted(stages.items(), key=lambda item: -item[1])
        parts = ", ".join(f"{name} {spent:.1f}" for name, spent in largest if spent >= 0.05)
        frame = facts["frame_ms"]
        if facts["frames"] > 1:
            text = f"{frame['p50']:.1f} ms to draw a frame (95 %: {frame['p95']:.1f}; {parts})"
        else:
            text = f"{frame['p50']:.1f} ms to draw it ({parts})"
        if write >= 0.05:
            text += f", {write:.1f} ms to put it out"
        return (
            f"{text}; {facts['visible']:,} splats drawn, {size(self.memory)} for splats and drawing"
        )


def percentile(values: Sequence[Number], share: int) -> Number:
    """The smallest value that `share` per cent of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * share // 100) - 1)]

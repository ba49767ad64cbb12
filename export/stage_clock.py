"""How long each stage of an export takes, and, for those who ask, which one it is in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter

from penstock.export.report import Progress, ProgressCallback


@dataclass
class StageClock:
    """`with clock("check"): ...` times a stage.

    Attributes:
        progress: is told where each stage begins and ends; not told of one that fails.
        seconds: of each stage; of one that ran twice, together.
    """

    progress: ProgressCallback | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        self._tell(stage, 0)
        start = perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + perf_counter() - start
        self._tell(stage, 1)

    def _tell(self, stage: str, done: int) -> None:
        if self.progress is not None:
            self.progress(Progress(stage, done, 1, "step"))

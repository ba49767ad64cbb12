"""What every written model goes through before it is kept: loaded back, run, compared, timed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.errors import PenstockError
from penstock.export.artifact_report import Gate, Latency, Metric
from penstock.export.comparison import compare_models, measure_latency
from penstock.export.dataset import Dataset
from penstock.export.report import Progress, ProgressCallback

if TYPE_CHECKING:
    from penstock.runtime.backends.tensor_model import TensorModel

LATENCY_RUNS = 50

Open = Callable[[Path, int], "TensorModel"]
"""Opens a model file with a number of threads."""


@dataclass(frozen=True)
class Checked:
    """What was seen; metrics and latencies are missing where a gate failed before them."""

    gates: tuple[Gate, ...]
    metrics: tuple[Metric, ...] = ()
    before: Latency | None = None
    after: Latency | None = None


def check_artifact(
    source: Path,
    written: Path,
    name: Path,
    open_model: Open,
    data: Dataset,
    *,
    limit: int | None = None,
    threads: int = 1,
    runs: int = LATENCY_RUNS,
    progress: ProgressCallback | None = None,
) -> Checked:
    """Load what was written and hold it against its source.

    Args:
        written: the file; name: what it will be called, for messages.
        threads: for the comparison; latency is that of one thread.
        runs: timed, of each model in turn.

    Raises:
        UsageError: the data does not fit the source, or labels are no classes of it.
        PenstockError: the source itself cannot be run.
    """

    def seen(error: PenstockError) -> str:
        return str(error).replace(str(written), str(name))

    count = len(data) if limit is None else min(limit, len(data))
    with ExitStack() as opened:
        before = opened.enter_context(open_model(source, threads))
        try:
            after = opened.enter_context(open_model(written, threads))
        except PenstockError as error:
            return Checked((Gate("loads", False, seen(error)),))
        loads = Gate("loads", True, "loaded back")
        try:
            metrics = compare_models(
                before,
                after,
                data,
                limit=limit,
                on_sample=lambda done: _tell(progress, "comparison", done, count),
            )
        except PenstockError as error:
            if str(written) not in str(error):  # of the data, or the source
                raise
            name_of_gate = "finite" if "not finite" in str(error) else "runs"
            return Checked((loads, Gate(name_of_gate, False, seen(error))))
    sample = next(iter(data.samples(1)))
    with open_model(source, 1) as before, open_model(written, 1) as after:
        slow, fast = measure_latency([before, after], sample, runs)
    loads = Gate("loads", True, "loaded back and run")
    finite = Gate("finite", True, f"all outputs, over {count} samples")
    return Checked((loads, finite), metrics, slow, fast)


def _tell(progress: ProgressCallback | None, stage: str, done: int, total: int) -> None:
    if progress is not None:
        progress(Progress(stage, done, total, "samples"))

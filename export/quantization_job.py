"""What quantizing takes in any format: data, a search, and a file that is kept if it holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from penstock.export.artifact_check import Open, check_artifact
from penstock.export.artifact_report import ArtifactReport
from penstock.export.comparison import compare_models, evaluator
from penstock.export.dataset import Dataset, synthetic
from penstock.export.gates import Floors, GateError, check_metrics, with_gates
from penstock.export.mixed_precision import FLOAT, PrecisionBuilder
from penstock.export.precision_search import (
    Found,
    PrecisionSearch,
    search_data,
    search_precisions,
)
from penstock.export.report import ProgressCallback
from penstock.export.stage_clock import StageClock
from penstock.loaders.partial_file import partial_file
from penstock.loaders.tensor_graph import TensorSpec

NOISE_SAMPLES = 8
"""Of random inputs, where there is no data."""
SHOWN_LAYERS = 5


@dataclass
class QuantizationJob:
    """A model of some format on its way to a smaller one; formats add what they need.

    Attributes:
        source: the float model, which `open_model` opens; inputs: what it takes.
        calibration, evaluation, samples, threads, progress: as `quantize_model` takes them.
        clock: of the stages, those before the job included.
    """

    source: Path
    inputs: Sequence[TensorSpec]
    open_model: Open
    calibration: Dataset | None
    evaluation: Dataset | None
    samples: int | None
    threads: int
    clock: StageClock
    progress: ProgressCallback | None

    def check_floors(self, floors: Floors) -> None:
        """Say before the work that a metric with a floor will not be taken.

        Raises:
            UsageError: see `check_metrics`; or as `compare_models`.
        """
        if floors.metrics:
            data, _, _ = self.report_data()
            with self.open_model(self.source, self.threads) as model:
                taken = compare_models(model, model, data, limit=1)
            check_metrics(floors, [metric.name for metric in taken])

    def search(self, builder: PrecisionBuilder, search: PrecisionSearch) -> Found:
        """Rank the layers, and choose a mix where one is wanted; see `search_precisions`."""
        data, notes = search_data(search, self.calibration, self.evaluation, self.noise)
        with self.open_model(self.source, self.threads) as before:
            found = search_precisions(
                builder,
                search,
                evaluator(before, data, limit=search.limit),
                progress=self.progress,
            )
        return replace(found, notes=(*found.notes, *notes))

    def noise(self) -> Dataset:
        """Random inputs, always the same."""
        return synthetic(self.inputs, NOISE_SAMPLES)

    def report_data(self) -> tuple[Dataset, int | None, tuple[str, ...]]:
        """What the report is measured on, how many samples of it at most, and notes on that."""
        if self.evaluation is not None:
            return self.evaluation, None, ()
        if self.calibration is not None:
            note = "metrics are over the calibration data: --eval gives them over other data"
            return self.calibration, self.samples, (note,)
        data = self.noise()
        note = f"metrics are over {data.name}: they say that the model runs, not how good it is"
        return data, None, (f"{note}; give data (--eval)",)

    def keep(
        self, content: bytes, out: Path, draft: ArtifactReport, data: Dataset, limit: int | None,
        floors: Floors,
    ) -> ArtifactReport:  # fmt: skip
        """Write, check, and keep or refuse.

        Args:
            draft: the report less all that comes from running the file.

        Raises:
            GateError: the artifact was refused; nothing was written.
        """
        with partial_file(out) as (handle, written):
            handle.write(content)
            handle.flush()
            with self.clock("check"):
                checked = check_artifact(
                    self.source,
                    written,
                    out,
                    self.open_model,
                    data,
                    limit=limit,
                    threads=self.threads,
                    progress=self.progress,
                )
            report = replace(
                draft,
                metrics=checked.metrics,
                latency_before=checked.before,
                latency_after=checked.after,
                gates=(*checked.gates, *draft.gates),
                seconds=self.clock.seconds,
            )
            report = with_gates(report, floors)
            if not report.passed:
                raise GateError(report)
        return report


def left_float(formats: Mapping[str, str], found: Found, why: str = "") -> tuple[str, ...]:
    """A note that names layers which no search left float; `why` stands behind the word."""
    left = [name for name, form in formats.items() if form == FLOAT]
    if not left or found.mix is not None:
        return ()
    more = f" and {len(left) - SHOWN_LAYERS} more" if len(left) > SHOWN_LAYERS else ""
    names = ", ".join(left[:SHOWN_LAYERS])
    return (f"{len(left)} of {len(formats)} layers stay float{why}: {names}{more}",)

"""Options of the commands that end in one artifact and one report: quantize, export."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from penstock.cli.console import emit_json, print_rich, say
from penstock.cli.progress import stages

if TYPE_CHECKING:
    from penstock.export.artifact_report import ArtifactReport
    from penstock.export.dataset import Preprocessing
    from penstock.export.gates import Floors, GateError
    from penstock.export.precision_search import PrecisionSearch
    from penstock.export.quantize import DataPaths
    from penstock.export.report import ProgressCallback


class Colours(str, Enum):
    """Order of the channels."""

    RGB = "RGB"
    BGR = "BGR"


class Resize(str, Enum):
    """How a photo becomes an input of another shape."""

    STRETCH = "stretch"
    CENTRE_CROP = "centre-crop"


def parse_numbers(text: str) -> tuple[float, ...]:
    """'0.485,0.456,0.406' as three numbers."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(
            f"'{text}' is not a list of numbers; write it as 0.485,0.456,0.406"
        ) from None


@dataclass(frozen=True)
class Data:
    """Data that a model is calibrated and measured on, in the names of `DataPaths`."""

    calibration: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Folder of images, or .npz with an array for each input: ranges of activations.",
        ),
    ] = None
    evaluation: Annotated[
        Path | None,
        typer.Option(
            "--eval",
            metavar="PATH",
            help="The same: what the report is measured on. Without it: the calibration data, or "
            "noise.",
        ),
    ] = None
    labels: Annotated[
        Path | None,
        typer.Option(metavar="CSV", help="Lines 'file,class' under a heading, for the accuracy."),
    ] = None
    samples: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Samples to calibrate on. Without it: all."),
    ] = None
    value_range: Annotated[
        str | None,
        typer.Option(metavar="LOW,HIGH", help="What black and white of an image become: 0,1."),
    ] = None
    mean: Annotated[
        str | None,
        typer.Option(metavar="N[,N...]", help="Subtracted from each channel."),
    ] = None
    std: Annotated[
        str | None,
        typer.Option(metavar="N[,N...]", help="What each channel is divided by, after --mean."),
    ] = None
    colours: Annotated[Colours, typer.Option(help="Order of the channels.")] = Colours.RGB
    resize: Annotated[Resize, typer.Option(help="How images become inputs of another shape.")] = (
        Resize.STRETCH
    )
    image_size: Annotated[
        str | None,
        typer.Option(
            metavar="HEIGHT,WIDTH", help="Of images, where the model takes any size: 224,224."
        ),
    ] = None

    def paths(self) -> DataPaths:
        """For the Python API."""
        from penstock.export.quantize import DataPaths

        preprocessing = self._preprocessing()
        if self.calibration is None and self.evaluation is None:
            given = {
                "--samples": self.samples,
                "--value-range": self.value_range,
                "--mean": self.mean,
                "--std": self.std,
            }
            for name, value in given.items():
                if value is not None:
                    raise typer.BadParameter(f"{name} needs data: --calibration or --eval")
        return DataPaths(self.calibration, self.evaluation, self.labels, preprocessing)

    def _preprocessing(self) -> Preprocessing:
        from penstock.export.dataset import Preprocessing

        ends = None if self.value_range is None else parse_numbers(self.value_range)
        if ends is not None and len(ends) != 2:
            raise typer.BadParameter("--value-range takes two numbers: --value-range 0,255")
        sides = None if self.image_size is None else parse_numbers(self.image_size)
        if sides is not None and (len(sides) != 2 or any(side % 1 for side in sides)):
            raise typer.BadParameter("--image-size takes height and width: --image-size 224,224")
        return Preprocessing(
            value_range=None if ends is None else (ends[0], ends[1]),
            mean=(0.0,) if self.mean is None else parse_numbers(self.mean),
            std=(1.0,) if self.std is None else parse_numbers(self.std),
            colours=self.colours.value,
            resize=self.resize.value,
            size=None if sides is None else (int(sides[0]), int(sides[1])),
        )


@dataclass(frozen=True)
class Gating:
    """What the artifact must hold to be kept."""

    fail_below: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METRIC=VALUE",
            help="Refuse the artifact below it: accuracy=0.85, sqnr_db=30. May be given several "
            "times.",
        ),
    ] = None
    min_ratio: Annotated[
        float | None,
        typer.Option(metavar="X", help="Refuse it unless it is X times smaller than SOURCE."),
    ] = None

    def floors(self) -> Floors:
        """For the Python API."""
        from penstock.export.gates import Floors, parse_floors

        return Floors(parse_floors(self.fail_below or []), self.min_ratio)


@dataclass(frozen=True)
class Precisions:
    """More than one precision."""

    sensitivity: Annotated[
        bool, typer.Option("--sensitivity", help="Rank the layers by what each costs alone.")
    ] = False
    target_size: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Mix int4, int8 and float into a file of at most this size: 220kB, 25%.",
        ),
    ] = None
    max_drop: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="The smallest mix that loses at most X of the accuracy: 0.01 is a point.",
        ),
    ] = None

    def search(self, source: Path) -> PrecisionSearch:
        """For the Python API."""
        from penstock.export.precision_search import PrecisionSearch
        from penstock.runtime.backends.open_model import read_graph
        from penstock.runtime.budget import parse_size

        target = self.target_size
        size = None if target is None else parse_size(target, read_graph(source).size)
        return PrecisionSearch(self.sensitivity, size, self.max_drop)


def show_artifact(report: ArtifactReport, as_json: bool) -> None:
    """The report, for people or for machines."""
    from penstock.export.artifact_report import render_artifact

    if as_json:
        emit_json(report.to_dict())
    else:
        print_rich(render_artifact(report))
        say(f"Wrote {report.artifact}.")


@contextmanager
def reporting(as_json: bool) -> Iterator[ProgressCallback | None]:
    """Shows progress while an artifact is made, and what was measured of one that is refused; the
    error goes on."""
    from penstock.export.gates import GateError

    with stages(wanted=not as_json) as on_progress:
        try:
            yield on_progress
        except GateError as error:
            _show_refused(error, as_json)
            raise


def _show_refused(error: GateError, as_json: bool) -> None:
    """What was measured of an artifact that was not kept; the error follows."""
    from penstock.export.artifact_report import render_artifact

    if not as_json:
        print_rich(render_artifact(error.report))

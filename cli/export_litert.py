"""`penstock export litert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from penstock.cli import options
from penstock.cli.artifact_options import Data, Gating, reporting, show_artifact
from penstock.cli.option_groups import grouped
from penstock.cli.options import examples

EXAMPLES = examples(
    "penstock export litert model.pt2 model.tflite",
    "penstock export litert model.pt2 small.tflite --recipe weight-int4 --calibration photos/",
    "penstock export litert old.tflite repaired.tflite",
)


@grouped
def litert(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", hidden=True)],
    out: Annotated[Path, typer.Argument(metavar="OUT", hidden=True)],
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="WORDS",
            help="Quantize it too: weight-int8, weight-int4, dynamic-int8, dynamic-int4; "
            "static-int8 or static-int16, with minmax, percentile or entropy.",
        ),
    ] = None,
    *,
    data: Data,
    gating: Gating,
    threads: options.Threads = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Make a TFLite file of a torch program, and hold it against torch.

    SOURCE is a file that torch.export.save wrote, *.pt2; its sample inputs give the shapes. It is
    loaded without running code that may be in it. Or SOURCE is a TFLite file, which is repaired:
    operator codes that stand only in the deprecated field, missing signatures, tensors without
    names. OUT is refused, and nothing is written, where it computes something else than SOURCE.
    It needs the extra 'litert-export': pip install 'penstock[litert-export]'.
    """
    from penstock.export.litert.from_file import export_litert_file

    with reporting(as_json) as on_progress:
        report = export_litert_file(
            source,
            out,
            recipe=recipe,
            data=data.paths(),
            floors=gating.floors(),
            samples=data.samples,
            threads=threads,
            overwrite=overwrite,
            progress=on_progress,
        )
    show_artifact(report, as_json)

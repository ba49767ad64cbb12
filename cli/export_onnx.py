"""`penstock export onnx`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from penstock.cli import options
from penstock.cli.artifact_options import Data, Gating, Precisions, reporting, show_artifact
from penstock.cli.option_groups import grouped
from penstock.cli.options import examples

EXAMPLES = examples(
    "penstock export onnx model.pt2 model.onnx",
    "penstock export onnx old.onnx model.onnx",
    "penstock export onnx ./vit-folder vit8.onnx --recipe static-int8 --calibration photos/",
)


@grouped
def onnx(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", hidden=True)],
    out: Annotated[Path, typer.Argument(metavar="OUT", hidden=True)],
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            "--quantize",
            metavar="WORDS",
            help="A recipe, as penstock quantize takes it. Without it: float.",
        ),
    ] = None,
    *,
    data: Data,
    precisions: Precisions,
    gating: Gating,
    threads: options.Threads = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Write an ONNX file and hold it against what it was made from.

    SOURCE is a program that torch.export.save wrote (*.pt2), loaded without running code that is in
    it; an ONNX file, which is cleaned: constants folded, batch norms merged, opset raised; or the
    Hugging Face folder of an image classifier. OUT is refused, and nothing written, where it does
    not load, does not compute the same, or nothing was there to be cleaned. Needs the extra
    'export'; for ONNX files 'quantize' does.
    """
    from penstock.export.onnx.export import export_onnx

    with reporting(as_json) as on_progress:
        report = export_onnx(
            source,
            out,
            recipe=recipe,
            data=data.paths(),
            floors=gating.floors(),
            search=precisions.search(source),
            samples=data.samples,
            threads=threads,
            overwrite=overwrite,
            progress=on_progress,
        )
    show_artifact(report, as_json)

"""`penstock quantize`: make an ONNX or TFLite model smaller."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from penstock.cli import options
from penstock.cli.artifact_options import Data, Gating, Precisions, reporting, show_artifact
from penstock.cli.option_groups import grouped
from penstock.cli.options import examples

EXAMPLES = examples(
    "penstock quantize model.onnx small.onnx",
    "penstock quantize model.onnx small.onnx --recipe 'static-int8 entropy' --calibration photos/",
    "penstock quantize vww.tflite vww4.tflite --target-size 220kB --calibration photos/",
    "penstock quantize model.onnx small.onnx --eval test.npz --fail-below accuracy=0.85",
)


@grouped
def quantize(
    model: options.Model,
    out: Annotated[Path, typer.Argument(metavar="OUT", hidden=True)],
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="WORDS",
            help="What to do, see above. Without it: static-int8 with --calibration, else "
            "dynamic-int8.",
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
    """Make an ONNX or TFLite model smaller, and measure what it cost.

    OUT is loaded back and held against MODEL before it is kept: one that does not load, did not
    shrink, has no layer quantized or is worse than --fail-below allows is refused, and nothing is
    written.

    Recipes of ONNX: dynamic-int8; static-int8 (words: minmax, percentile, percentile=P, entropy,
    symmetric, uint8-weights); both take per-channel and reduce-range; weight-int8, weight-int4;
    block-int4 (rtn, k-quant, hqq, gptq) and block-int8, both with block=N, symmetric and qdq. Of
    TFLite: dynamic-int8, dynamic-int4, static-int8 and static-int16 (minmax, percentile, entropy,
    average), weight-int8, weight-int4. Metrics for --fail-below: sqnr_db, cosine, of classifiers
    agreement and, with --labels, accuracy. They need the extra 'quantize' (ONNX) or
    'litert-export' (TFLite).
    """
    from penstock.export.quantize import quantize_model

    with reporting(as_json) as on_progress:
        report = quantize_model(
            model,
            out,
            recipe,
            data=data.paths(),
            floors=gating.floors(),
            search=precisions.search(model),
            samples=data.samples,
            threads=threads,
            overwrite=overwrite,
            progress=on_progress,
        )
    show_artifact(report, as_json)

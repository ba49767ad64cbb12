"""`penstock export gguf`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from penstock.cli import options
from penstock.cli.artifact_options import reporting, show_artifact
from penstock.cli.options import examples

EXAMPLES = examples(
    "penstock export gguf model-f16.gguf model-q4.gguf --type Q4_K --imatrix imatrix.gguf",
    "penstock export gguf model-f16.gguf model-small.gguf --target-size 1.5GiB",
    "penstock export gguf ./arcee-4b arcee.gguf --type Q6_K --fail-below mean_kl=0.01 --json",
)


class GgufType(str, Enum):
    """Number formats of a GGUF."""

    Q4_K = "Q4_K"
    Q5_K = "Q5_K"
    Q6_K = "Q6_K"
    Q8_0 = "Q8_0"
    Q4_0 = "Q4_0"
    F16 = "F16"


def gguf(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", hidden=True)],
    out: Annotated[Path, typer.Argument(metavar="OUT", hidden=True)],
    matrices: Annotated[
        GgufType | None, typer.Option("--type", help="Number format of the matrices.")
    ] = None,
    target_size: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Instead of a type: the best mix of types in so much, such as 1.5GiB or 30% of "
            "the source.",
        ),
    ] = None,
    output: Annotated[
        GgufType | None,
        typer.Option(
            "--output-type", help="Of the output matrix. Without it: Q6_K, or wider as --type is."
        ),
    ] = None,
    embedding: Annotated[
        GgufType | None,
        typer.Option("--embedding-type", help="Of the token embedding. Without it: as --type."),
    ] = None,
    imatrix: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Importance matrix of llama-imatrix, in GGUF."),
    ] = None,
    evaluation: Annotated[
        Path | None,
        typer.Option("--eval", metavar="FILE", help="Text for perplexity in the report."),
    ] = None,
    no_evaluation: Annotated[
        bool, typer.Option("--no-eval", help="Do not run the source and OUT.")
    ] = False,
    fail_below: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METRIC=VALUE",
            help="Keep nothing where perplexity or mean_kl is above this, or same_top1 below; may "
            "be given several times.",
        ),
    ] = None,
    min_ratio: Annotated[
        float | None,
        typer.Option(metavar="X", help="Keep nothing that is not X times smaller."),
    ] = None,
    threads: options.Threads = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Quantize a language model into a GGUF file for llama.cpp.

    SOURCE is a GGUF file of any architecture, best with F16, BF16 or F32 weights, or a Hugging Face
    folder of a llama, arcee or nemotron model. Norms and other small tensors stay as they are, as
    llama.cpp's own tool keeps them. OUT is written whole or not at all. The command ends in a
    report: sizes, the error of each tensor, and perplexity, divergence and time of a token of both
    files in llama.cpp, which needs the extra 'llama': pip install 'penstock[llama]'.
    """
    if no_evaluation and evaluation is not None:
        raise typer.BadParameter("choose --eval or --no-eval, not both")
    from penstock.export.gates import Floors, parse_floors
    from penstock.export.gguf.export import export_gguf

    with reporting(as_json) as on_progress:
        report = export_gguf(
            source,
            out,
            None if matrices is None else matrices.value,
            target_size=target_size,
            output=None if output is None else output.value,
            embedding=None if embedding is None else embedding.value,
            imatrix=imatrix,
            evaluate=not no_evaluation,
            evaluation=evaluation,
            floors=Floors(parse_floors(fail_below or []), min_ratio),
            threads=threads,
            overwrite=overwrite,
            progress=on_progress,
        )
    show_artifact(report, as_json)

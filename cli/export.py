"""`penstock export`: one command for each kind of model."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from penstock.cli import (
    export_captioner,
    export_gguf,
    export_lightcap,
    export_litert,
    export_onnx,
    options,
)
from penstock.cli.console import emit_json, print_rich, say
from penstock.cli.options import examples
from penstock.cli.plain_help import PlainCommand, PlainGroup
from penstock.cli.progress import stages

EXAMPLES = examples(
    "penstock export llm ./opt-125m opt-125m.gguf",
    "penstock export llm ./run/final story.gguf --name storyteller --calibration book.txt",
    "penstock export llm model-f16.gguf bundle.gguf --type Q4_0 --no-calibration --json",
)

app = typer.Typer(
    name="export",
    no_args_is_help=True,
    cls=PlainGroup,
    rich_markup_mode=None,
    help="Turn a trained model into a file that Penstock runs.",
    epilog=examples("penstock export llm ./opt-125m opt-125m.gguf"),
)


class WeightType(str, Enum):
    """Number formats of a bundle."""

    F16 = "F16"
    Q8_0 = "Q8_0"
    Q4_0 = "Q4_0"


class Block(str, Enum):
    """What the size of a neuron on storage is a multiple of."""

    B512 = "512"
    B4096 = "4096"


@app.callback()
def _targets() -> None:
    """Turn a trained model into a file that Penstock runs."""


@app.command(cls=PlainCommand, epilog=EXAMPLES)
def llm(
    source: Annotated[
        Path,
        typer.Argument(metavar="SOURCE", hidden=True),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", hidden=True)],
    weight_type: Annotated[
        WeightType, typer.Option("--type", help="Number format of the weights.")
    ] = WeightType.F16,
    block: Annotated[
        Block, typer.Option(help="Logical block size of the storage: 4096 for 4Kn drives.")
    ] = Block.B512,
    name: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="The model's name in the bundle. Without it: the folder's, or the GGUF file's.",
        ),
    ] = None,
    activation: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="For a llama GGUF, which does not say: relu, relu2, drelu or fatrelu:THRESHOLD.",
        ),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Text that predictors are trained on. Without it: fairy tales of the package.",
        ),
    ] = None,
    no_calibration: Annotated[
        bool,
        typer.Option("--no-calibration", help="No predictors: the bundle runs in exact mode only."),
    ] = False,
    evaluation: Annotated[
        Path | None,
        typer.Option("--eval", metavar="FILE", help="Held-out text for perplexity in the report."),
    ] = None,
    no_evaluation: Annotated[
        bool, typer.Option("--no-eval", help="Leave out the perplexity.")
    ] = False,
    recall: Annotated[
        float,
        typer.Option(
            min=0.5,
            max=1.0,
            metavar="X",
            help="Share of active magnitude that predictors must find.",
        ),
    ] = 0.99,
    threads: options.Threads = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Make a bundle of a language model with a sparse activation (ReLU, squared ReLU).

    SOURCE is a Hugging Face folder (config.json, tokenizer.json, safetensors), or a GGUF file of
    architecture opt, arcee, nemotron or llama. OUT is written whole or not at all. The command ends
    in a report: sizes, sparsity, predictors, perplexity. Calibration needs the extra 'export': pip
    install 'penstock[export]'.
    """
    if no_calibration and calibration is not None:
        raise typer.BadParameter("choose --calibration or --no-calibration, not both")
    if no_evaluation and evaluation is not None:
        raise typer.BadParameter("choose --eval or --no-eval, not both")
    from penstock.export.llm import export_llm
    from penstock.export.report import render

    with stages(wanted=not as_json) as on_progress:
        report = export_llm(
            source,
            out,
            dtype=weight_type.value,
            block=int(block.value),
            name=name,
            activation=activation,
            calibrate=not no_calibration,
            calibration=calibration,
            evaluate=not no_evaluation,
            evaluation=evaluation,
            recall_target=recall,
            threads=threads,
            overwrite=overwrite,
            progress=on_progress,
        )
    if as_json:
        emit_json(report.to_dict())
    else:
        print_rich(render(report))
        say(f"Wrote {out}.")


app.command(cls=PlainCommand, epilog=export_gguf.EXAMPLES)(export_gguf.gguf)
app.command(cls=PlainCommand, epilog=export_litert.EXAMPLES)(export_litert.litert)
app.command(cls=PlainCommand, epilog=export_onnx.EXAMPLES)(export_onnx.onnx)
app.command(cls=PlainCommand, epilog=export_captioner.EXAMPLES)(export_captioner.captioner)
app.command(cls=PlainCommand, epilog=export_lightcap.EXAMPLES)(export_lightcap.lightcap)

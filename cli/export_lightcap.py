"""`penstock export lightcap`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from penstock.cli import options
from penstock.cli.artifact_options import Gating, reporting, show_artifact
from penstock.cli.option_groups import grouped
from penstock.cli.options import examples

EXAMPLES = examples(
    "penstock export lightcap ./trained small.captioner --photos ./train-photos",
    "penstock export lightcap ./trained small.captioner --photos ./train-photos "
    "--eval ./held-out --captions captions.txt --fail-below cider_d=0.3",
    "penstock export lightcap ./trained plain.captioner --float --json",
)


@grouped
def lightcap(
    source: Annotated[Path, typer.Argument(metavar="FOLDER", hidden=True)],
    out: Annotated[Path, typer.Argument(metavar="OUT", hidden=True)],
    photos: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Photos that the ranges of the encoder's activations come from, the first 200. "
            "Without it: made-up pictures.",
        ),
    ] = None,
    evaluation: Annotated[
        Path | None,
        typer.Option(
            "--eval",
            metavar="PATH",
            help="Photos that the report is measured on. Without it: those of --photos.",
        ),
    ] = None,
    captions: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="What people say of those photos, for CIDEr-D: COCO's annotations (*.json), or "
            "lines image,caption under that heading.",
        ),
    ] = None,
    plain: Annotated[
        bool, typer.Option("--float", help="Weights in float32. Without it: int8.")
    ] = False,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="WORDS",
            help="How the encoder is quantized, as penstock quantize takes it. Without it: "
            "static-int8, as suits the kind of encoder.",
        ),
    ] = None,
    beams: Annotated[
        int,
        typer.Option(min=1, max=10, metavar="N", help="Captions searched for at a time."),
    ] = 3,
    max_tokens: Annotated[
        int, typer.Option(min=1, max=64, metavar="N", help="Tokens of a caption, at most.")
    ] = 20,
    *,
    gating: Gating,
    threads: options.Threads = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Make one file of a trained LightCap captioner, for 'penstock caption --model OUT'.

    FOLDER is what examples/train_captioner writes: config.json, encoder.safetensors,
    captioner.safetensors, vocab.txt, concepts.txt and, if there is one, card.json. It becomes four
    ONNX graphs: encoder, concepts, prefix and a decoder that caches the photo's keys and values.
    The graphs are held against torch, and the int8 ones against float; OUT is refused, and nothing
    written, where they differ. Metrics for --fail-below: grid_sqnr_db, concepts_equal, cosine,
    captions_equal and, with --captions, cider_d. Needs the extra 'export': pip install
    'penstock[export]'.
    """
    if plain and recipe is not None:
        raise typer.BadParameter("choose --float or --recipe, not both")
    from penstock.export.lightcap.export_folder import export_lightcap_folder

    with reporting(as_json) as on_progress:
        report = export_lightcap_folder(
            source,
            out,
            int8=not plain,
            recipe=recipe,
            photos=photos,
            evaluation=evaluation,
            captions=captions,
            beams=beams,
            max_tokens=max_tokens,
            floors=gating.floors(),
            threads=threads,
            overwrite=overwrite,
            progress=on_progress,
        )
    show_artifact(report, as_json)

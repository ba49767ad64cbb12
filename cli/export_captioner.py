"""`penstock export captioner`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from penstock.cli import options
from penstock.cli.artifact_options import Gating, reporting, show_artifact
from penstock.cli.option_groups import grouped
from penstock.cli.options import examples

EXAMPLES = examples(
    "penstock export captioner ./blip-image-captioning-base blip.captioner",
    "penstock export captioner ./vit-gpt2 vit.captioner --beams 1 --photos ./photos",
    "penstock export captioner ./blip blip.captioner --float --json",
)


@grouped
def captioner(
    source: Annotated[Path, typer.Argument(metavar="FOLDER", hidden=True)],
    out: Annotated[Path, typer.Argument(metavar="OUT", hidden=True)],
    plain: Annotated[
        bool, typer.Option("--float", help="Weights in float32. Without it: int8.")
    ] = False,
    beams: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=10,
            metavar="N",
            help="Captions searched for at a time. Without it: what generation_config says.",
        ),
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Tokens of a caption, at most. Without it: what generation_config says.",
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="Words that captions go on from; '' for none. Without it: 'a picture of' for "
            "BLIP.",
        ),
    ] = None,
    photos: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Photos that int8 and float are compared on. Without it: made-up pictures.",
        ),
    ] = None,
    *,
    gating: Gating,
    threads: options.Threads = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Make one file of a Hugging Face captioner, for 'penstock caption --model OUT'.

    FOLDER is a checkpoint of BLIP (BlipForConditionalGeneration), or of a ViT or DeiT with GPT-2
    (VisionEncoderDecoderModel): config.json, weights, preprocessor_config.json and tokenizer files.
    Encoder and decoder become ONNX graphs with a cache of keys and values. The graphs are held
    against torch, and the int8 ones against float; OUT is refused, and nothing written, where they
    differ. Metrics for --fail-below: cosine, sqnr_db, token_agreement, captions_equal. Needs the
    extra 'export': pip install 'penstock[export]'.
    """
    from penstock.export.captioner.convert import export_captioner

    with reporting(as_json) as on_progress:
        report = export_captioner(
            source,
            out,
            int8=not plain,
            beams=beams,
            max_tokens=max_tokens,
            prompt=prompt,
            photos=photos,
            floors=gating.floors(),
            threads=threads,
            overwrite=overwrite,
            progress=on_progress,
        )
    show_artifact(report, as_json)

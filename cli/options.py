"""Arguments and options that several commands share, declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from penstock.loaders.cores import THREADS_MOST


def parse_share(text: str) -> float:
    """'25%' or '0.25' as a number from 0 to 1."""
    number, percent = (text[:-1], True) if text.endswith("%") else (text, False)
    try:
        share = float(number) / (100 if percent else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise typer.BadParameter(f"'{text}' is not a share; write it as 25% or 0.25")
    return share


Model = Annotated[Path, typer.Argument(metavar="MODEL", hidden=True)]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on stdout, also for errors.")
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it is there.")]

# ---------------------------------------------------------------- how to load
Memory = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Memory budget: 24MiB, 2GiB, 2GB, or 50% of the file. Without it: as much as the "
        "model can use, up to 80 % of the free memory.",
    ),
]
FfnResident = Annotated[
    float | None,
    typer.Option(
        metavar="SHARE",
        parser=parse_share,
        help="Share of the feed-forward weights kept in memory, such as 25%; instead of a size.",
    ),
]
Exact = Annotated[
    bool, typer.Option("--exact", help="The same tokens as dense evaluation, always.")
]
Dense = Annotated[bool, typer.Option("--dense", help="Compute every neuron, for comparison.")]
Context = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="TOKENS",
        help="Tokens of the KV cache. Without it: the model's own, at most 2048.",
    ),
]
Lora = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATH[:SCALE]",
        help="LoRA adapter in GGUF, for an ordinary GGUF file; may be given several times.",
    ),
]
KvType = Annotated[
    str | None,
    typer.Option(
        metavar="TYPE",
        help="Of the KV cache of an ordinary GGUF file: f16, q8_0 or q4_0. Without it: the first "
        "that is a small part of the budget.",
    ),
]
Policy = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Which expert of a GGUF file leaves the window: adaptive, lfu, lru or last-k.",
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        min=1, max=THREADS_MOST, metavar="N", help="Threads of compute. Without it: all cores."
    ),
]

# ---------------------------------------------------------------- how to choose tokens
MaxTokens = Annotated[int, typer.Option(min=1, metavar="N", help="Tokens at most.")]
Temperature = Annotated[
    float,
    typer.Option(
        min=0.0, metavar="X", help="0 always takes the best token; higher is more random."
    ),
]
TopK = Annotated[
    int, typer.Option(min=0, metavar="N", help="Draw from this many best tokens; 0: from all.")
]
TopP = Annotated[
    float, typer.Option(metavar="X", help="Draw from this share of the probability; 1: all.")
]
MinP = Annotated[
    float, typer.Option(metavar="X", help="Least probability relative to the best token; 0: any.")
]
RepetitionPenalty = Annotated[
    float, typer.Option(metavar="X", help="Over 1 discourages tokens seen lately; 1 does nothing.")
]
Seed = Annotated[
    int | None,
    typer.Option(min=0, metavar="N", help="Start of the random numbers, to repeat a run."),
]
Stop = Annotated[
    list[str] | None,
    typer.Option(metavar="TEXT", help="End the text here; may be given several times."),
]
RecordTrace = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Write which experts the routers chose, for `penstock bench replay`; for an ordinary "
        "GGUF file whose experts are streamed.",
    ),
]
Stats = Annotated[
    bool, typer.Option("--stats", help="Print reads, hits, times and memory on stderr afterwards.")
]


def examples(*lines: str) -> str:
    """The end of a command's --help: examples to paste, kept line by line."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)

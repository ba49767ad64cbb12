"""`penstock bench`: measurements and comparisons."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from penstock.cli import options
from penstock.cli.console import emit_json, percent, print_table, say
from penstock.cli.options import examples, parse_share
from penstock.cli.plain_help import PlainCommand, PlainGroup

if TYPE_CHECKING:
    from penstock.loaders.expert_trace import ExpertTrace
    from penstock.runtime.gguf.replay import Replay

EXAMPLES = examples(
    "penstock bench replay run.trace",
    "penstock bench replay monday.trace tuesday.trace --capacity 25% --capacity 50%",
    "penstock bench replay run.trace --json | jq '.traces[].windows[].best'",
)

app = typer.Typer(
    name="bench",
    no_args_is_help=True,
    cls=PlainGroup,
    rich_markup_mode=None,
    help="Compare what Penstock could do.",
    epilog=examples("penstock bench replay run.trace"),
)


@app.callback()
def _comparisons() -> None:
    """Compare what Penstock could do."""


@app.command(cls=PlainCommand, epilog=EXAMPLES)
def replay(
    traces: Annotated[list[Path], typer.Argument(metavar="TRACE...", hidden=True)],
    capacity: Annotated[
        list[float] | None,
        typer.Option(
            metavar="SHARE",
            parser=parse_share,
            help="Share of all experts that fit the window, such as 25%; may be given several "
            "times. Without it: 25, 50 and 75 %.",
        ),
    ] = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Compare replacement policies on recorded runs.

    TRACE is a file made by `penstock run --record-trace`. Each policy of the expert window serves
    the run's tokens from an empty window; prompts, which use nearly every expert, are left out.
    Beside it stands Belady's rule, the best possible, which knows the future: in brackets, how many
    percentage points of hits a policy is behind it.
    """
    from penstock.loaders.expert_trace import read_trace
    from penstock.runtime.gguf.replay import SHARES
    from penstock.runtime.gguf.replay import replay as replayed

    loaded = [(path, read_trace(path)) for path in traces]
    found = [(path, trace, replayed(trace, capacity or SHARES)) for path, trace in loaded]
    if as_json:
        documents = [
            {
                "file": path,
                "model": trace.model,
                "arch": trace.arch,
                "layers": trace.layers,
                "experts": trace.experts,
                "experts_used": trace.used,
                "tokens": trace.tokens,
                "windows": [window.to_dict() for window in windows],
            }
            for path, trace, windows in found
        ]
        emit_json({"traces": documents})
        return
    _print(found)


def _print(found: list[tuple[Path, ExpertTrace, list[Replay]]]) -> None:
    policies = list(found[0][2][0].hit_rates)
    rows = []
    for path, trace, windows in found:
        for window in windows:
            cells = [
                f"{percent(window.hit_rates[name])} (-{window.behind(name):.1f})"
                for name in policies
            ]
            size = f"{window.capacity} of {trace.layers * trace.experts}"
            rows.append(
                (
                    str(path),
                    f"{window.share:.0%}",
                    size,
                    *cells,
                    percent(window.optimum),
                    window.best,
                )
            )
    columns = ["trace", ">window", ">experts", *(f">{name}" for name in policies)]
    print_table([*columns, ">Belady", "best policy"], rows, "hit rates of single tokens")
    for path, trace, _ in found:
        say(
            f"{path}: {trace.tokens} tokens of {trace.model}, {trace.layers} layers of "
            f"{trace.experts} experts, {trace.used} a token"
        )

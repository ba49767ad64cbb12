"""`penstock demo`: the embedded model at four memory settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.cli import options
from penstock.cli.console import emit_json, percent, print_facts, print_table, say, size
from penstock.cli.options import examples

if TYPE_CHECKING:
    from penstock.runtime.embedded import DemoRun

EXAMPLES = examples(
    "penstock demo",
    'penstock demo --prompt "The old king had three daughters" --seed 7',
    "penstock demo --memory 24MiB --max-tokens 200",
)


def demo(
    memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="One budget, such as 24MiB, instead of the shares."),
    ] = None,
    prompt: Annotated[
        str, typer.Option(metavar="TEXT", help="The text to continue.")
    ] = "Once upon a time there was a king who",
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Start of the random numbers.")] = 1,
    max_tokens: options.MaxTokens = 120,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Run the embedded model at several memory budgets.

    The small storyteller that comes with Penstock continues a text with 100 %, 50 % and 25 % of its
    feed-forward weights in memory, then in exact mode, which must tell the same story as dense
    evaluation does. Nothing is downloaded.
    """
    from penstock.runtime.embedded import (
        check_setting,
        demo_run,
        demo_settings,
        embedded_model,
    )

    path = embedded_model()
    runs: list[DemoRun] = []
    settings = demo_settings(memory)
    for setting in settings:
        check_setting(
            path, setting
        )  # a budget that is too small is refused before anything is told
    for setting in settings:
        if not as_json:
            print(f"--- {setting.name}\n{prompt}", end="", flush=True)
        run = demo_run(
            path,
            setting,
            prompt,
            seed=seed,
            max_tokens=max_tokens,
            on_piece=None if as_json else _print_piece,
        )
        runs.append(run)
        if not as_json:
            print("\n", flush=True)
    same = runs[-2].text == runs[-1].text
    if as_json:
        emit_json(_document(runs, prompt, seed, same))
        return
    _print_runs(runs)
    verdict = "the same text, to the last byte" if same else "DIFFERENT texts"
    print_facts([("exact and dense", verdict)])
    say("time: reading from storage / window upkeep / predictors / compute")


def _print_piece(piece: str) -> None:
    print(piece, end="", flush=True)


def _print_runs(runs: list[DemoRun]) -> None:
    rows = []
    for run in runs:
        s = run.stats
        parts = (s.storage, s.upkeep, s.predict, s.compute)
        split = " / ".join(f"{100 * part / s.total:.0f}" if s.total else "-" for part in parts)
        rows.append(
            (
                run.setting.name,
                size(s.weights_memory),
                size(s.per_token_bytes),
                percent(s.hit_rate),
                f"{split} %",
                f"{s.tokens_per_second:.0f}",
                size(s.peak_memory),
            )
        )
    columns = ["", ">model memory", ">read per token", ">hit rate", ">time split"]
    print_table([*columns, ">tokens/s", ">process peak"], rows)


def _document(runs: list[DemoRun], prompt: str, seed: int, same: bool) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "seed": seed,
        "runs": [
            {
                "name": run.setting.name,
                "mode": run.setting.mode,
                "ffn_resident": run.setting.ffn_resident,
                "memory": run.setting.memory,
                "text": run.text,
                "stats": run.stats.to_dict(),
            }
            for run in runs
        ],
        "exact_equals_dense": same,
    }

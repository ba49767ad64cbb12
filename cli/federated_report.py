"""`penstock federated report`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from penstock.cli import options
from penstock.cli.console import emit_json, percent, print_facts, print_table, say, size
from penstock.cli.options import examples

if TYPE_CHECKING:
    from penstock.federated.report.summary import Summary

EXAMPLES = examples(
    "penstock federated report run/",
    "penstock federated report run/ --html run.html",
    "penstock federated report run/ --json | jq .final_macro_f1",
)
LAST = 10  # rounds of the table, and devices


def report(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", hidden=True)],
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write one HTML page with plots, whole in one file."),
    ] = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Show what a federated run did.

    FOLDER is a run's, of the server or of a simulation; it may still go on. Shows accuracy and
    macro-F1 by round and by chunk of time, forgetting, bytes to and from each device, seconds on
    server and devices, peak memory and who took part. The page needs no network and no script.
    """
    from penstock.federated.report.page import write_page
    from penstock.federated.report.summary import summarise_folder

    summary = summarise_folder(folder, note=lambda text: say(f"Note: {text}."))
    if html is not None:
        write_page(summary, html)
        say(f"wrote {html}")
    if as_json:
        emit_json(summary.to_dict())
    elif html is None:
        show_summary(summary)


def show_summary(summary: Summary) -> None:
    """A run, for people."""
    from penstock.federated.printable import printable
    from penstock.federated.report.page import widths
    from penstock.federated.report.plots import most

    rounds = summary.rounds
    where = {"server": "the server's test data", "devices": "the devices' data", "": "nothing"}
    facts = [
        ("run", f"{summary.run}, {summary.algorithm}, {len(rounds)} rounds"),
        ("measured on", where[summary.measured_on]),
        ("accuracy", _share(summary.final_accuracy)),
        ("macro-F1", _share(summary.final_macro_f1)),
        ("sent", f"{size(summary.bytes_down)} to devices, {size(summary.bytes_up)} by them"),
        ("server", f"{summary.server_seconds / len(rounds):.2f} s a round, without waiting"),
        (
            "devices",
            f"{len(summary.devices)}; {sum(len(r.devices) for r in rounds) / len(rounds):.1f} "
            "updates counted a round",
        ),
    ]
    if summary.forgetting is not None:
        facts.append(("forgetting", f"{100 * summary.forgetting:+.1f} points of macro-F1"))
    if summary.epsilon is not None:
        facts.append(("epsilon", f"{summary.epsilon:.3g} spent"))
    print_facts(facts)
    columns = ["round", ">counted", ">without", ">loss", ">accuracy", ">macro-F1", ">down", ">up"]
    rows = []
    for r in rounds[-LAST:]:
        accuracy = r.global_accuracy if r.global_accuracy >= 0 else r.accuracy
        macro_f1 = r.global_macro_f1 if r.global_macro_f1 >= 0 else r.macro_f1
        rows.append(
            (
                str(r.round_number),
                str(len(r.devices)),
                str(len(r.refused)),
                f"{r.loss:.4f}" if r.loss >= 0 else "-",
                _share(accuracy if accuracy >= 0 else None),
                _share(macro_f1 if macro_f1 >= 0 else None),
                size(sum(r.bytes_down.values())),
                size(sum(r.bytes_up.values())),
            )
        )
    print_table(
        [*columns, ">server s"],
        [(*row, f"{r.server_seconds:.2f}") for row, r in zip(rows, rounds[-LAST:], strict=True)],
        title=f"last {LAST} of {len(rounds)} rounds" if len(rounds) > LAST else None,
    )
    shown, cut = most(summary.devices, LAST)
    print_table(
        ["device", ">width", ">counted", ">without", ">down", ">up", ">seconds"],
        [
            (
                printable(d.device),  # older servers took any name
                widths(d),
                str(d.counted),
                str(d.refused),
                size(d.bytes_down),
                size(d.bytes_up),
                f"{d.seconds:.1f}",
            )
            for d in shown
        ],
        title=cut or None,
    )


def _share(value: float | None) -> str:
    return "-" if value is None else percent(value)

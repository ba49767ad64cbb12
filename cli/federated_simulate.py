"""`penstock federated simulate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from penstock.cli import options
from penstock.cli.console import emit_json, say
from penstock.cli.federated_report import show_summary
from penstock.cli.options import examples

EXAMPLES = examples(
    "penstock federated simulate --config simulation.toml",
    "penstock federated simulate --config simulation.toml --clients 1000 --alpha 0.1",
    "penstock federated simulate --config simulation.toml --resume --html run.html",
)


def simulate(
    config: Annotated[
        Path,
        typer.Option(metavar="FILE", help="Settings: a server's TOML with [simulation] added."),
    ],
    clients: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Virtual devices, in place of the file's."),
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Rounds, in place of the file's.")
    ] = None,
    partition: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="How the data is shared out, in place of the file's: iid, dirichlet or by-user.",
        ),
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(metavar="X", help="Of dirichlet: small is skewed, 10000 nearly IID."),
    ] = None,
    actors: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Processes that train. Without it: one a core."),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the report's page here as well.")
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on after the newest checkpoint of the run's folder."),
    ] = False,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Run a federation of virtual devices on this machine.

    Trains for real, on Flower's Ray engine: each device has its part of a data set, and the rounds,
    checks, checkpoints and the report are those of `penstock federated server`: at the end
    report.json and report.html are in the run's folder. Only the network and the daemon are left
    out. Thousands of devices take turns on the machine's cores. Needs the extra 'simulation'.
    """
    from penstock.federated.report.page import write_page
    from penstock.federated.report.run_report import REPORT_PAGE
    from penstock.federated.report.summary import summarise_folder
    from penstock.federated.simulation.settings import read_simulation
    from penstock.federated.simulation.simulate import simulate as run_simulation
    from penstock.loaders.partial_file import check_writable

    given = {"devices": clients, "partition": partition, "alpha": alpha, "actors": actors}
    changed: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    simulation, server = read_simulation(config, changed, rounds)
    folder = Path(server.run.folder)
    if html is not None and (folder.exists() or html.parent.resolve() != folder.resolve()):
        check_writable(html)  # else it goes into the folder that the run makes
    run_simulation(simulation, server, resume=resume, note=say)
    summary = summarise_folder(folder)
    if html is not None:
        write_page(summary, html)
        say(f"wrote {html}")
    if as_json:
        emit_json(summary.to_dict())
    else:
        show_summary(summary)
        say(f"The page: {folder / REPORT_PAGE}")

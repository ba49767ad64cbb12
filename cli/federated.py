"""`penstock federated`: learn on the device; one file a command."""

from __future__ import annotations

import typer

from penstock.cli import federated_client, federated_report, federated_server, federated_simulate
from penstock.cli.options import examples
from penstock.cli.plain_help import PlainCommand, PlainGroup

app = typer.Typer(
    name="federated",
    no_args_is_help=True,
    cls=PlainGroup,
    rich_markup_mode=None,
    help="Keep a model learning on the device, with others.",
    epilog=examples(
        "penstock federated ingest windows.npz --config device.toml",
        "penstock federated client --superlink fl.example.org:8000 --config device.toml",
    ),
)


@app.callback()
def _federation() -> None:
    """Keep a model learning on the device, with others."""


app.command(cls=PlainCommand, epilog=federated_client.CLIENT_EXAMPLES)(federated_client.client)
app.command(cls=PlainCommand, epilog=federated_client.INGEST_EXAMPLES)(federated_client.ingest)
app.command(cls=PlainCommand, epilog=federated_client.FORGET_EXAMPLES)(federated_client.forget)
app.command(cls=PlainCommand, epilog=federated_server.EXAMPLES)(federated_server.server)
app.command(cls=PlainCommand, epilog=federated_simulate.EXAMPLES)(federated_simulate.simulate)
app.command(cls=PlainCommand, epilog=federated_report.EXAMPLES)(federated_report.report)

"""`penstock federated server`: a federation's server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from penstock.cli import options
from penstock.cli.console import emit_json, say
from penstock.cli.options import examples

EXAMPLES = examples(
    "penstock federated server --config server.toml --make-certificates fl.example.org",
    "penstock federated server --config server.toml",
    "penstock federated server --config server.toml --resume --json",
)


def server(
    config: Annotated[
        Path,
        typer.Option("--config", metavar="FILE", help="The federation's settings, in TOML."),
    ],
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on after the newest whole checkpoint of the run's folder."
        ),
    ] = False,
    make_certificates: Annotated[
        str | None,
        typer.Option(
            "--make-certificates",
            metavar="NAMES",
            help="Write a certificate authority and a server certificate for these host names and "
            "addresses, commas between them, into the run's folder, and end.",
        ),
    ] = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Run a federation's rounds: SuperLink, checkpoints, journal, until the last round ends.

    Each round asks the devices what they can do, sends each a model of its width, averages what is
    back by the deadline and passes every check, writes a checkpoint and tells a line on stderr. A
    SuperLink or a run that dies is started again from the newest checkpoint; Ctrl-C or SIGTERM ends
    all, and --resume goes on later. At the end report.json and report.html are in the run's folder;
    `penstock federated report FOLDER` shows it meanwhile too. Needs the extra 'federated': pip
    install 'penstock[federated]'.
    """
    from penstock.federated.report.run_report import REPORT_JSON, REPORT_PAGE
    from penstock.federated.server.certificates import make_certificates as write_certificates
    from penstock.federated.server.serve import serve
    from penstock.federated.server.settings import read_settings
    from penstock.federated.server.superlink import SuperLink

    settings = read_settings(config)
    folder = Path(settings.run.folder)
    if make_certificates is not None:
        names = [name.strip() for name in make_certificates.split(",") if name.strip()]
        write_certificates(folder / "certificates", names)
        if as_json:
            emit_json({"certificates": str(folder / "certificates")})
        else:
            say(f"Certificates in {folder / 'certificates'}; every device gets ca.pem.")
        return

    def started(link: SuperLink) -> None:
        where = f"{link.settings.host}:{link.settings.port}"
        say(f"Listening for devices at {where}; the run's folder is {folder}")

    served = serve(config, settings, resume=resume, note=say, on_start=started)
    last = served.summary.rounds[-1]
    facts = {
        "run": served.outcome.run,
        "rounds": served.outcome.rounds,
        "restarts": served.restarts,
        "folder": str(folder),
        "global_accuracy": last.global_accuracy,
        "global_macro_f1": last.global_macro_f1,
        "epsilon": last.epsilon,
        "report": str(folder / REPORT_JSON),
        "page": str(folder / REPORT_PAGE),
    }
    if as_json:
        emit_json(facts)
    else:
        say(f"Run {served.outcome.run}: {served.outcome.rounds} rounds; see {facts['page']}")

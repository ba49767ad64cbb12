"""`penstock federated client` and `penstock federated ingest`: the device's side."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated, Any

import typer

from penstock.cli import options
from penstock.cli.console import emit_json, print_facts, say, size
from penstock.cli.options import examples

CLIENT_EXAMPLES = examples(
    "penstock federated client --superlink fl.example.org:8000 --config device.toml",
    "penstock federated client --config device.toml --status",
    "penstock federated client --config device.toml --key",
)
INGEST_EXAMPLES = examples(
    "penstock federated ingest windows.npz --config device.toml",
    "penstock federated ingest monday.csv --window 128 --step 64 --label-names walk,sit,stand",
    "penstock federated ingest features.csv --shape 9x128 --label activity --ignore user,time",
)

Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="The device's configuration, in TOML. Without it: everything at its default.",
    ),
]


def client(
    superlink: Annotated[
        str | None,
        typer.Option(
            "--superlink", metavar="HOST:PORT", help="The federation. Replaces the file's address."
        ),
    ] = None,
    config: Config = None,
    status: Annotated[
        bool, typer.Option("--status", help="Say what the running daemon does, and end.")
    ] = False,
    key: Annotated[
        bool,
        typer.Option(
            "--key", help="Print the device's public key, for the server to register, and end."
        ),
    ] = False,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Keep this device in a federation, until SIGTERM or Ctrl-C.

    A daemon in the foreground, for systemd or a terminal: it starts one warm process that joins the
    SuperLink, trains when asked and when the device's conditions hold (power, network, memory), and
    starts it again when it crashes or hangs. Nothing that the SuperLink sends is executed. Samples,
    models and unfinished messages are in one database and survive kill -9. Needs the extra
    'federated': pip install 'penstock[federated]'.
    """
    from penstock.federated.daemon.config import load_config
    from penstock.federated.daemon.device_status import device_status
    from penstock.federated.daemon.supervisor import supervise

    settings = load_config(config, superlink=superlink)
    if key:
        from penstock.federated.daemon.identity import load_identity

        identity = load_identity(settings.folder)
        if as_json:
            emit_json({"device": identity.device, "public_key": identity.public_key})
        else:
            print(identity.public_key.read_text(encoding="ascii").strip())
        return
    if status:
        found = device_status(settings)
        if as_json:
            emit_json(found)
        else:
            print_facts((name, _shown(name, value)) for name, value in found.items())
        if not found["running"]:
            raise typer.Exit(1)
        return
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    if not as_json:
        say(f"Device in {settings.folder}; Ctrl-C leaves the federation.")
    try:
        code = supervise(settings, config, superlink)
    finally:
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGINT, before[1])
    if as_json:
        emit_json({"exit": code})
    if code:
        raise typer.Exit(code)


def ingest(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", hidden=True)],
    config: Config = None,
    label_names: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Of the labels 0, 1, ...: walk,sit,stand. Needed once, where files have names.",
        ),
    ] = None,
    label: Annotated[
        str, typer.Option(metavar="COLUMN", help="CSV: the column with the label, if there is one.")
    ] = "label",
    ignore: Annotated[
        str | None,
        typer.Option(metavar="COLUMNS", help="CSV: columns that are no values: user,time."),
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option(metavar="SHAPE", help="CSV: fold rows into windows of this shape: 9x128."),
    ] = None,
    window: Annotated[
        int,
        typer.Option(min=0, metavar="ROWS", help="CSV: rows are moments; so many make a window."),
    ] = 0,
    step: Annotated[
        int,
        typer.Option(
            min=0, metavar="ROWS", help="CSV: from one window to the next. Without it: no overlap."
        ),
    ] = 0,
    chunk: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="The time chunk that the windows are for. Without it: the one in which they are "
            "first used.",
        ),
    ] = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Add sensor windows, and labels where there are some, to the device's store.

    FILE is .csv with a header line, or .npz with 'inputs' [n, ...] and 'labels' [n]. An empty label
    or -1 is none. All of a file is added, or nothing of it; a window that is there already is not
    added twice, and gets its label when it had none. The daemon may run meanwhile.
    """
    from penstock.federated.client.ingest import ingest as take_in
    from penstock.federated.client.ingest_csv import CsvLayout, parse_shape
    from penstock.federated.client.labels import parse_label_names
    from penstock.federated.client.store import Store
    from penstock.federated.daemon.config import load_config

    settings = load_config(config)
    layout = CsvLayout(
        label,
        tuple(ignore.split(",")) if ignore else (),
        parse_shape(shape) if shape else (),
        window,
        step,
    )
    names = parse_label_names(label_names) if label_names else ()
    results = []
    with Store.open(settings.store, settings.storage.disk_bytes) as store:
        if store.salvage is not None:
            say(f"Note: {store.salvage}.")
        for path in files:
            found = take_in(store, path, label_names=names, layout=layout, chunk=chunk)
            results.append(found)
            if not as_json:
                added = found.added
                say(
                    f"{path}: {found.windows} windows of shape {found.shape}, {found.labelled} "
                    f"labelled: {added.new} new, {added.labelled} got their label, {added.known} "
                    f"were there" + (f", {added.evicted} old ones went" if added.evicted else "")
                )
        counts = store.counts()
    if as_json:
        emit_json({"files": results, "store": counts})
    else:
        say(
            f"The store has {counts.labelled} labelled and {counts.unlabelled} unlabelled windows, "
            f"{counts.waiting} for later chunks, in {size(counts.nbytes)}."
        )


def _shown(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name.endswith("bytes") and isinstance(value, int):
        return size(value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items()) or "none"
    return "" if value is None else str(value)

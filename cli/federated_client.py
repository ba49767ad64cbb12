"""`penstock federated client`, `ingest` and `forget`: the device's side."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.cli import options
from penstock.cli.console import emit_json, print_facts, say, size
from penstock.cli.options import examples

if TYPE_CHECKING:
    from penstock.federated.client.ingest_csv import CsvLayout
    from penstock.federated.client.store import Counts

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
FORGET_EXAMPLES = examples(
    "penstock federated forget monday.csv --window 128 --step 64 --config device.toml",
    "penstock federated forget --with-label walk --chunk 3",
    "penstock federated forget --all",
)

Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="The device's configuration, in TOML. Without it: everything at its default.",
    ),
]

LabelColumn = Annotated[
    str, typer.Option(metavar="COLUMN", help="CSV: the column with the label, if there is one.")
]
Ignore = Annotated[
    str | None,
    typer.Option(metavar="COLUMNS", help="CSV: columns that are no values: user,time."),
]
Shape = Annotated[
    str | None,
    typer.Option(metavar="SHAPE", help="CSV: fold rows into windows of this shape: 9x128."),
]
WindowRows = Annotated[
    int,
    typer.Option(min=0, metavar="ROWS", help="CSV: rows are moments; so many make a window."),
]
StepRows = Annotated[
    int,
    typer.Option(
        min=0, metavar="ROWS", help="CSV: from one window to the next. Without it: no overlap."
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
    label: LabelColumn = "label",
    ignore: Ignore = None,
    shape: Shape = None,
    window: WindowRows = 0,
    step: StepRows = 0,
    chunk: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="The time chunk that the windows are for. Without it: the one in which they are "
            "first used.",
        ),
    ] = None,
    relabel: Annotated[
        bool,
        typer.Option(
            "--relabel",
            help="Windows that are there with another label get the file's. An empty label changes "
            "none.",
        ),
    ] = False,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Add sensor windows, and labels where there are some, to the device's store.

    FILE is .csv with a header line, or .npz with 'inputs' [n, ...] and 'labels' [n]. An empty label
    or -1 is none. All of a file is added, or nothing of it; a window that is there already is not
    added twice, and gets its label when it had none; with --relabel also when it had another. The
    daemon may run meanwhile.
    """
    from penstock.federated.client.ingest import ingest as take_in
    from penstock.federated.client.labels import parse_label_names
    from penstock.federated.client.store import Store
    from penstock.federated.daemon.config import load_config

    settings = load_config(config)
    layout = _layout(label, ignore, shape, window, step)
    names = parse_label_names(label_names) if label_names else ()
    results = []
    with Store.open(settings.store, settings.storage.disk_bytes) as store:
        if store.salvage is not None:
            say(f"Note: {store.salvage}.")
        for path in files:
            found = take_in(
                store, path, label_names=names, layout=layout, chunk=chunk, relabel=relabel
            )
            results.append(found)
            if not as_json:
                added = found.added
                say(
                    f"{path}: {found.windows} windows of shape {found.shape}, {found.labelled} "
                    f"labelled: {added.new} new, {added.labelled} got their label, "
                    + (f"{added.relabelled} got another label, " if relabel else "")
                    + f"{added.known} were there"
                    + (f", {added.evicted} old ones went" if added.evicted else "")
                )
        counts = store.counts()
    if as_json:
        emit_json({"files": results, "store": counts})
    else:
        _say_counts(counts)


def forget(
    files: Annotated[list[Path] | None, typer.Argument(metavar="FILE...", hidden=True)] = None,
    config: Config = None,
    with_label: Annotated[
        str | None,
        typer.Option(metavar="LABEL", help="Windows with this label, name or number; -1: none."),
    ] = None,
    chunk: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Windows of this time chunk.")
    ] = None,
    everything: Annotated[
        bool,
        typer.Option("--all", help="All windows; the next ones may have another shape and names."),
    ] = False,
    label: LabelColumn = "label",
    ignore: Ignore = None,
    shape: Shape = None,
    window: WindowRows = 0,
    step: StepRows = 0,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Delete windows from the device's store, on disk too.

    Which: those that the FILEs hold (.csv or .npz, read as `ingest` reads them; their labels do not
    matter), with a label, of a chunk, or all; where more than one is given, what all of them name.
    All of it is done, or nothing. What the models have learnt from the windows stays. The daemon
    may run meanwhile.
    """
    from penstock.federated.client.forget import Which, parse_label, windows_of
    from penstock.federated.client.forget import forget as take_out
    from penstock.federated.client.store import Store
    from penstock.federated.daemon.config import load_config

    settings = load_config(config)
    layout = _layout(label, ignore, shape, window, step)
    with Store.open(settings.store, settings.storage.disk_bytes) as store:
        gone = take_out(
            store,
            Which(
                windows_of(store, files or (), layout),
                None if with_label is None else parse_label(with_label, store.labels),
                chunk,
                everything,
            ),
        )
        counts = store.counts()
    if as_json:
        emit_json({"deleted": gone, "store": counts})
        return
    say(
        f"Deleted {gone.labelled} labelled and {gone.unlabelled} unlabelled windows, of them "
        f"{gone.exemplars} exemplars."
    )
    if gone.log_remains:
        say(
            "Note: the log beside the store may still hold them: another process used it, or there "
            "was no room; run this again to empty it."
        )
    for copy in gone.copies:
        say(f"Note: {copy} was moved aside when it was damaged; it may still hold them.")
    _say_counts(counts)


def _layout(label: str, ignore: str | None, shape: str | None, window: int, step: int) -> CsvLayout:
    from penstock.federated.client.ingest_csv import CsvLayout, parse_shape

    return CsvLayout(
        label,
        tuple(ignore.split(",")) if ignore else (),
        parse_shape(shape) if shape else (),
        window,
        step,
    )


def _say_counts(counts: Counts) -> None:
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

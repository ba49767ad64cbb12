"""One HTML page about a run, whole in one file: no script, no font, nothing from the network."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from penstock.federated.report.plots import MIB, MOST_DEVICES, first, most, plots
from penstock.federated.report.records import RoundRecord
from penstock.federated.report.summary import DeviceSummary, Summary, known
from penstock.federated.report.svg_plot import STYLE
from penstock.loaders.partial_file import partial_file

MOST_ROUNDS = 200  # in the table
CSS = """
:root{--paper:#fff;--ink:#1b1b1b;--soft:#5c5c5c;--rule:#dedede;
--c0:#0072b2;--c1:#d55e00;--c2:#009e73;--c3:#a8508a}
@media (prefers-color-scheme:dark){:root{--paper:#16181b;--ink:#e8e8e8;--soft:#a6a6a6;
--rule:#34383d;--c0:#56b4e9;--c1:#e69f00;--c2:#45c9a2;--c3:#e59cc7}}
*{box-sizing:border-box}
body{margin:0 auto;padding:1.5rem;max-width:76rem;background:var(--paper);color:var(--ink);
font:15px/1.5 system-ui,sans-serif}
h1{font-size:1.5rem;margin:0 0 .3rem}h2{font-size:1.1rem;margin:2rem 0 .5rem}
h3{font-size:.95rem;margin:0;font-weight:600}
p,figcaption{color:var(--soft);margin:.2rem 0}
dl{display:grid;grid-template-columns:repeat(auto-fit,minmax(11rem,1fr));gap:.8rem;margin:1rem 0}
dt{color:var(--soft);font-size:.85rem}dd{margin:0;font-size:1.15rem}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,30rem),1fr));gap:1.5rem}
figure{margin:0}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:.85rem;font-variant-numeric:tabular-nums}
th,td{text-align:right;padding:.2rem .7rem .2rem 0;border-bottom:1px solid var(--rule)}
th:first-child,td:first-child,.text{text-align:left}
th{color:var(--soft);font-weight:600}
@media print{body{max-width:none}}
"""


def write_page(summary: Summary, out: Path) -> None:
    """Write the page; whole, or not at all.

    Raises:
        StorageError: the folder or the device does not take it.
    """
    with partial_file(out) as (handle, _):
        handle.write(page(summary).encode())


def page(summary: Summary) -> str:
    """The page's text."""
    title = f"Federated run {summary.run[:8]}, {summary.algorithm}"
    drawn = "".join(
        f"<figure><h3>{escape(name)}</h3>{plot}<figcaption>{escape(note)}</figcaption></figure>"
        for name, plot, note in plots(summary)
        if plot
    )
    body = [
        f"<h1>{escape(title)}</h1>",
        f"<p>Written by Penstock. {len(summary.rounds)} rounds, "
        f"{len(summary.devices)} devices.</p>",
        _facts(summary),
        f'<h2>Plots</h2><div class="plots">{drawn}</div>',
        _chunk_table(summary),
        _device_table(summary.devices),
        _refusal_table(summary.devices),
        _round_table(summary.rounds),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title><style>{CSS}{STYLE}</style></head>"
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )


def widths(device: DeviceSummary) -> str:
    """The widths that a device trained, for people."""
    return ", ".join(f"{ratio:g}" for ratio in device.ratios) or "–"


def _facts(s: Summary) -> str:
    where = {"server": "on the server's test data", "devices": "on the devices' own data"}
    count = len(s.rounds)
    facts = [
        (f"accuracy {where.get(s.measured_on, '')}".strip(), _share(s.final_accuracy)),
        ("macro-F1", _share(s.final_macro_f1)),
        ("forgetting, macro-F1 points", _points(s.forgetting)),
        ("sent to devices", _bytes(s.bytes_down)),
        ("sent by devices", _bytes(s.bytes_up)),
        ("server, seconds a round", f"{s.server_seconds / count:.2f}"),
        ("updates counted a round", f"{sum(len(r.devices) for r in s.rounds) / count:.1f}"),
    ]
    if s.epsilon is not None:
        facts.append(("epsilon spent", f"{s.epsilon:.3g}"))
    cells = "".join(f"<div><dt>{escape(n)}</dt><dd>{escape(v)}</dd></div>" for n, v in facts)
    return f"<dl>{cells}</dl>"


def _chunk_table(s: Summary) -> str:
    if len(s.chunks) < 2:
        return ""
    rows = [
        (
            str(c.chunk),
            str(c.rounds),
            _share(first(c.global_accuracy, c.accuracy)),
            _share(first(c.global_macro_f1, c.macro_f1)),
            _points(c.forgetting),
            f"{c.server_seconds:.1f}",
        )
        for c in s.chunks
    ]
    head = ("chunk", "rounds", "accuracy", "macro-F1", "forgetting", "server seconds")
    return "<h2>Chunks of time</h2>" + _table(head, rows)


def _device_table(devices: Sequence[DeviceSummary]) -> str:
    shown, note = most(devices)
    rows = [
        (
            d.device,
            str(d.counted),
            str(d.refused),
            _share(d.participation),
            widths(d),
            _bytes(d.bytes_down),
            _bytes(d.bytes_up),
            f"{d.seconds:.1f}",
            "–" if d.peak_bytes is None else _bytes(d.peak_bytes),
        )
        for d in shown
    ]
    head = (
        "device", "counted", "without update", "participation", "width", "down", "up", "seconds",
        "peak",
    )  # fmt: skip
    return f"<h2>Devices</h2>{f'<p>{escape(note)}</p>' if note else ''}" + _table(head, rows)


def _refusal_table(devices: Sequence[DeviceSummary]) -> str:
    found = [(d.device, reason, n) for d in devices for reason, n in d.reasons.items()]
    if not found:
        return ""
    found.sort(key=lambda row: (-row[2], row[0]))
    rows = [(device, str(count), reason) for device, reason, count in found[:MOST_DEVICES]]
    more = len(found) - len(rows)
    return (
        "<h2>Rounds without an update</h2>"
        + _table(("device", "rounds", "reason"), rows, text=2)
        + (f"<p>And {more} more; the JSON has all.</p>" if more else "")
    )


def _round_table(rounds: Sequence[RoundRecord]) -> str:
    rows = [
        (
            str(r.round_number),
            str(r.chunk),
            str(len(r.devices)),
            str(len(r.refused)),
            f"{r.examples:,}",
            "–" if known(r.loss) is None else f"{r.loss:.4f}",
            _share(first(known(r.global_accuracy), known(r.accuracy))),
            _share(first(known(r.global_macro_f1), known(r.macro_f1))),
            _bytes(sum(r.bytes_down.values())),
            _bytes(sum(r.bytes_up.values())),
            f"{r.server_seconds:.2f}",
        )
        for r in rounds[-MOST_ROUNDS:]
    ]
    head = (
        "round", "chunk", "counted", "without", "examples", "loss", "accuracy", "macro-F1", "down",
        "up", "server seconds",
    )  # fmt: skip
    cut = f"<p>The last {MOST_ROUNDS}.</p>" if len(rounds) > MOST_ROUNDS else ""
    return f"<h2>Rounds</h2>{cut}" + _table(head, rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], text: int | None = None) -> str:
    def cell(tag: str, index: int, value: str) -> str:
        kind = ' class="text"' if index == text else ""
        scope = ' scope="col"' if tag == "th" else ""
        return f"<{tag}{scope}{kind}>{escape(value)}</{tag}>"

    top = "".join(cell("th", i, name) for i, name in enumerate(head))
    lines = "".join(
        f"<tr>{''.join(cell('td', i, value) for i, value in enumerate(row))}</tr>" for row in rows
    )
    return (
        f'<div class="scroll"><table><thead><tr>{top}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
    )


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _points(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:+.1f}"


def _bytes(value: float) -> str:
    for unit, size in (("GiB", 1 << 30), ("MiB", MIB), ("KiB", 1 << 10)):
        if value >= size:
            return f"{value / size:.1f} {unit}"
    return f"{value:.0f} B"

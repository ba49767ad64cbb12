"""Which plots a run's page shows, and from which figures."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from penstock.federated.report.records import RoundRecord
from penstock.federated.report.summary import DeviceSummary, Summary, known
from penstock.federated.report.svg_plot import Series, bar_plot, line_plot

MOST_DEVICES = 40  # in plots and tables; the JSON has all
MIB = 1 << 20


def plots(s: Summary) -> list[tuple[str, str, str]]:
    """Heading, SVG and caption of each plot; the SVG is empty where nothing was measured."""
    rounds, numbers = s.rounds, [float(r.round_number) for r in s.rounds]

    def over(*named: tuple[str, Sequence[float | None]]) -> list[Series]:
        lines = [Series(name, numbers, values) for name, values in named]
        return [line for line in lines if any(value is not None for value in line.ys)]

    marks = _chunk_marks(s)
    quality = over(
        ("global accuracy", [known(r.global_accuracy) for r in rounds]),
        ("global F1", [known(r.global_macro_f1) for r in rounds]),
        ("device accuracy", [known(r.accuracy) for r in rounds]),
        ("device F1", [known(r.macro_f1) for r in rounds]),
    )
    shown, note = most(s.devices)
    names = [d.device for d in shown]
    chunks = [f"chunk {c.chunk}" for c in s.chunks] if len(s.chunks) > 1 else []
    accuracies = [first(c.global_accuracy, c.accuracy) for c in s.chunks]
    scores = [first(c.global_macro_f1, c.macro_f1) for c in s.chunks]
    slowest = [max(r.device_seconds.values(), default=None) for r in rounds]
    return [
        (
            "Accuracy and macro-F1 by round",
            line_plot("Accuracy by round", quality, x="round", y="share", marks=marks),
            "Of the global model on the server's test data, and of the devices on their own.",
        ),
        (
            "Accuracy and macro-F1 by chunk of time",
            bar_plot(
                "Macro-F1 at the end of each chunk",
                chunks,
                [
                    Series("accuracy", (), accuracies),
                    Series("macro-F1", (), scores),
                ],
                x="chunk",
                y="share",
            )
            if chunks
            else "",
            "At the end of each chunk.",
        ),
        (
            "Forgetting",
            bar_plot(
                "Forgetting by chunk",
                chunks,
                [Series("forgetting", (), [c.forgetting for c in s.chunks])],
                x="chunk",
                y="macro-F1 lost",
            )
            if chunks
            else "",
            "Mean loss of macro-F1 on earlier chunks' test data, against the best before.",
        ),
        (
            "Loss of local training",
            line_plot(
                "Loss", over(("loss", [known(r.loss) for r in rounds])), x="round", y="loss",
                marks=marks, floor=0.0,
            ),
            "Mean over devices, weighted by their examples.",
        ),
        (
            "Communication by round",
            line_plot(
                "Bytes by round",
                over(
                    ("down", [sum(r.bytes_down.values()) / MIB for r in rounds]),
                    ("up", [sum(r.bytes_up.values()) / MIB for r in rounds]),
                ),
                x="round", y="MiB", floor=0.0,
            ),
            "Bytes of arrays to and from all devices.",
        ),
        (
            "Communication by device",
            bar_plot(
                "Bytes by device",
                names,
                [
                    Series("down", (), [d.bytes_down / MIB for d in shown]),
                    Series("up", (), [d.bytes_up / MIB for d in shown]),
                ],
                x="device", y="MiB",
            ),
            f"Of the whole run. {note}",
        ),
        (
            "Seconds by round",
            line_plot(
                "Seconds by round",
                over(
                    ("server", [r.server_seconds for r in rounds]),
                    ("slowest device", slowest),
                    ("median device", [_median(r) for r in rounds]),
                ),
                x="round", y="seconds", floor=0.0,
            ),
            "The server's own work without waiting, and training on devices.",
        ),
        (
            "Peak memory by device",
            bar_plot(
                "Peak memory by device",
                names,
                [
                    Series(
                        "resident",
                        (),
                        [None if d.peak_bytes is None else d.peak_bytes / MIB for d in shown],
                    )
                ],
                x="device", y="MiB",
            ),
            f"Most resident memory of the device's process. {note}",
        ),
        (
            "Participation",
            line_plot(
                "Participation",
                over(
                    ("updates counted", [float(len(r.devices)) for r in rounds]),
                    ("without an update", [float(len(r.refused)) for r in rounds]),
                ),
                x="round", y="devices", floor=0.0,
            ),
            "Devices asked in the round.",
        ),
        (
            "Differential privacy",
            line_plot(
                "Epsilon", over(("epsilon", [known(r.epsilon) for r in rounds])), x="round",
                y="epsilon", floor=0.0,
            ),
            "Spent up to the round, by the accountant.",
        ),
    ]  # fmt: skip


def _chunk_marks(s: Summary) -> list[tuple[float, str]]:
    pairs = zip(s.rounds, s.rounds[1:], strict=False)
    return [
        (float(after.round_number), f"chunk {after.chunk}")
        for before, after in pairs
        if after.chunk != before.chunk
    ]


def most(
    devices: Sequence[DeviceSummary], count: int = MOST_DEVICES
) -> tuple[list[DeviceSummary], str]:
    """Those that are shown: all, or those that sent and received most, with a note that says so."""
    if len(devices) <= count:
        return list(devices), ""
    ranked = sorted(devices, key=lambda d: (-d.bytes_down - d.bytes_up, d.device))
    note = f"The {count} of {len(devices)} devices with most traffic; the JSON has all."
    return ranked[:count], note


def first(*values: float | None) -> float | None:
    """The first that is there."""
    return next((value for value in values if value is not None), None)


def _median(record: RoundRecord) -> float | None:
    times = record.device_seconds.values()
    return statistics.median(times) if times else None

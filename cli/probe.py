"""`penstock probe`: measure the storage and the memory of this device."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from penstock.cli import options
from penstock.cli.console import emit_json, print_facts, print_table, say, size
from penstock.cli.options import examples

EXAMPLES = examples(
    "penstock probe",
    "penstock probe /mnt/models/model.gguf",
    "penstock probe --quick --json | jq .profile.sequential_bytes_per_second",
)


def probe(
    path: Annotated[
        Path,
        typer.Argument(metavar="[PATH]", hidden=True),
    ] = Path("."),
    quick: Annotated[
        bool, typer.Option("--quick", help="Take half a second, and remember nothing.")
    ] = False,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Measure storage and memory, and remember it for the planner.

    PATH is a model file, or a folder into which a test file of 512 MiB is written for a moment;
    without it, the current folder. Plans and loads on the same device and file system use the
    figures. Takes some ten seconds.
    """
    from penstock.loaders.probe import probe as measure
    from penstock.loaders.probe import save_profile

    profile = measure(path, quick=quick)
    saved = None if quick else save_profile(profile)
    if as_json:
        emit_json({"profile": profile, "merge_gap": profile.merge_gap, "saved": saved})
        return
    print_table(
        ["random reads", ">in flight", ">per second", ">throughput", ""],
        [
            (
                f"{size(r.block)}, {r.backend}",
                str(r.depth),
                f"{r.reads_per_second:.0f}",
                f"{size(r.bytes_per_second)}/s",
                "chosen" if (r.backend, r.depth) == (profile.backend, profile.depth) else "",
            )
            for r in profile.random
        ],
        f"{path} on {profile.device}",
    )
    direct = f"yes, aligned to {profile.alignment}" if profile.direct else "refused here: buffered"
    print_facts(
        [
            ("reads in order", f"{size(profile.sequential_bytes_per_second)}/s"),
            ("memory", f"{size(profile.memory_bytes_per_second)}/s, all cores"),
            ("direct reads", direct),
            ("merge gap", f"{size(profile.merge_gap)}: a gap this long costs as much as a read"),
        ]
    )
    say(f"Remembered in {saved}." if saved else "A quick measurement: not remembered.")

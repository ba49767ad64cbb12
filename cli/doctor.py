"""`penstock doctor`: what works on this machine."""

from __future__ import annotations

import typer

from penstock.cli import options
from penstock.cli.console import emit_json, say
from penstock.cli.options import examples

EXAMPLES = examples(
    "penstock doctor",
    "penstock doctor --json | jq '.checks[] | select(.state == \"failed\")'",
)
NAME_WIDTH = 26


def doctor(as_json: options.Json = False, debug: options.Debug = False) -> None:
    """Run a small model through each engine and say what works here.

    Looks at versions, processor, memory, storage and the optional libraries, then runs the embedded
    model, and two small GGUF files that it writes into a temporary folder and that must give the
    same logits streamed as resident. Takes some ten seconds. The exit code is 1 where something
    that is installed fails; what is not installed is no failure.
    """
    from penstock.runtime.doctor import FAILED, NOTE, Check, all_well, examine

    checks: list[Check] = []
    group = ""
    for check in examine():
        checks.append(check)
        if as_json:
            continue
        if check.group != group:
            group = check.group
            print(group, flush=True)
        state = {NOTE: "", FAILED: "FAILED: "}.get(check.state, f"{check.state}: ")
        print(f"  {check.name:{NAME_WIDTH}}{state}{check.detail}", flush=True)
    well = all_well(checks)
    if as_json:
        emit_json({"ok": well, "checks": [check.to_dict() for check in checks]})
    else:
        say("What is installed works." if well else "Something that is installed does not work.")
    if not well:
        raise typer.Exit(1)

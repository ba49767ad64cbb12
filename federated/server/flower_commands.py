"""`python -m penstock.federated.server.flower_commands '[["list", "penstock"], ...]'`: several
`flwr` commands in one process, one line of JSON each.

Flower takes one to three seconds to import, so a hundred keys are registered in one process and not
in a hundred. Commands are Flower's public ones; nothing of its inside is used.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from typing import Any

from penstock.federated.flower_content import no_calls_home


def main() -> None:
    """Run the commands of the only argument."""
    no_calls_home()
    commands: list[list[str]] = json.loads(sys.argv[1])
    real = sys.__stdout__
    for words in commands:
        print(json.dumps(answer(words)), file=real, flush=True)


def answer(words: Sequence[str]) -> dict[str, Any]:
    """What one command prints with `--format json`; where it fails, `success` is false and
    `error-message` says why."""
    from flwr.cli.app import app

    heard = io.StringIO()
    real, shown, errors = sys.__stdout__, sys.stdout, sys.stderr
    failure = ""
    # Flower writes its JSON to sys.__stdout__ and everything else to the other two.
    sys.__stdout__ = sys.stdout = sys.stderr = heard  # type: ignore[assignment,misc]
    try:
        app([*words, "--format", "json"], standalone_mode=False)
    except (Exception, SystemExit) as error:  # a command must not end those after it
        failure = str(error) or type(error).__name__
    finally:
        sys.__stdout__, sys.stdout, sys.stderr = real, shown, errors  # type: ignore[misc]
    text = heard.getvalue()
    try:
        found = json.loads(text[text.index("{") :])
    except ValueError:
        found = {}
    if isinstance(found, dict) and found.get("success") is True:
        return found
    told = found.get("error-message") if isinstance(found, dict) else None
    return {"success": False, "error-message": told or text.strip()[-1000:] or failure}


if __name__ == "__main__":
    main()

"""Makes docs/cli.md from the commands' own help.

python -m penstock.cli.generate_docs > docs/cli.md
"""

from __future__ import annotations

from collections.abc import Iterator

import click
import typer

from penstock.cli.main import app

WIDTH = 90
INTRODUCTION = """\
# The command line

<!-- Generated: python -m penstock.cli.generate_docs > docs/cli.md -->

What every command keeps to:

- **Data goes to stdout, talk to stderr.** `penstock run model.gguf "Once" > story.txt` saves the
  text and nothing else.
- **`--json` prints one JSON document on stdout and nothing else**, also when the command fails:
  `{"error": {"code": "BudgetError", "message": "...", "least_bytes": 16659264}}`. The codes are the
  names in [errors.md](errors.md), and `InternalError` and `Interrupted`. `chat`, which is for
  people, has no `--json`.
- **Exit codes:** 0 done; 1 failed; 2 wrong usage; 130 interrupted by Ctrl-C; 143 terminated. A
  reader of a pipe who leaves early (`| head`) has what it wanted: 0. So has who stops `serve` or
  `splat view`.
- **No traceback** without `--debug`. Progress bars only where stderr is a terminal.
- **Sizes** are written `512MiB`, `2GiB`, `2GB`, `1.5G`, in plain bytes, or as `50%` of the model's
  file. **Shares** are written `25%` or `0.25`.
- **Sampling:** `run`, `chat` and `demo` draw with temperature 0.8 from the best 95 % of the
  probability unless told otherwise; `--temperature 0` always takes the best token. The
  [Python API](python-api.md) is greedy unless told otherwise.
- A prompt from stdin loses its final newline, as `echo` adds one. The text on stdout gains one;
  `--json` has it exactly.
"""


def generate() -> str:
    """The page."""
    pages = [INTRODUCTION]
    for path, text in _walk(typer.main.get_command(app), "penstock", None):
        pages.append(f"## {path}\n\n```text\n{text}\n```\n")
    return "\n".join(pages)


def _walk(
    command: click.Command, name: str, parent: click.Context | None
) -> Iterator[tuple[str, str]]:
    settings = {**command.context_settings, "max_content_width": WIDTH}
    context = click.Context(
        command, info_name=name, parent=parent, terminal_width=WIDTH, **settings
    )
    lines = command.get_help(context).rstrip().splitlines()
    yield context.command_path, "\n".join(line.rstrip() for line in lines)
    if isinstance(command, click.Group):
        for child, node in command.commands.items():
            yield from _walk(node, child, context)


if __name__ == "__main__":
    print(generate(), end="")

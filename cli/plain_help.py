"""Plain `--help`: the same in a terminal, in a pipe and in docs/cli.md.

Typer escapes brackets for rich even where rich does not print the help, and newer versions of
click drop the help of Typer's arguments: commands describe those in their text instead.
"""

from __future__ import annotations

import click
from typer.core import TyperCommand, TyperGroup


class PlainCommand(TyperCommand):
    """A command whose help shows brackets as brackets."""

    def get_help(self, ctx: click.Context) -> str:
        return super().get_help(ctx).replace("\\[", "[")


class PlainGroup(TyperGroup):
    """A group of commands whose help shows brackets as brackets."""

    def get_help(self, ctx: click.Context) -> str:
        return super().get_help(ctx).replace("\\[", "[")

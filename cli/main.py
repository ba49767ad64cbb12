"""The `penstock` command: the list of commands, and one policy for errors and exit codes.

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted, 143 terminated.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import Annotated, Any

import click
import typer

from penstock.cli import (
    bench,
    caption,
    chat,
    demo,
    doctor,
    export,
    federated,
    inspect_file,
    plan,
    probe,
    quantize,
    run,
    serve,
    splat,
)
from penstock.cli.console import emit_json, say
from penstock.cli.options import examples
from penstock.cli.plain_help import PlainCommand, PlainGroup
from penstock.errors import PenstockError, UsageError

DONE, FAILED, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130

app = typer.Typer(
    name="penstock",
    cls=PlainGroup,
    add_completion=False,
    suggest_commands=False,  # click does it
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help: it reads the same in a pipe, in the docs and on a phone
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        import penstock

        print(f"penstock {penstock.__version__}")
        raise typer.Exit()


@app.callback(
    epilog=examples(
        "penstock demo",
        'penstock run model.gguf "Once upon a time" --memory 24MiB',
        "penstock plan model.gguf --memory 2GiB",
    )
)
def penstock_command(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Run models that do not fit in memory, under a memory budget that is kept."""


app.command(cls=PlainCommand, epilog=run.EXAMPLES)(run.run)
app.command(cls=PlainCommand, epilog=chat.EXAMPLES)(chat.chat)
app.command(cls=PlainCommand, epilog=serve.EXAMPLES)(serve.serve)
app.command(cls=PlainCommand, epilog=caption.EXAMPLES)(caption.caption)
app.command(cls=PlainCommand, epilog=plan.EXAMPLES)(plan.plan)
app.command(cls=PlainCommand, epilog=probe.EXAMPLES)(probe.probe)
app.command(cls=PlainCommand, epilog=quantize.EXAMPLES)(quantize.quantize)
app.command(cls=PlainCommand, epilog=inspect_file.EXAMPLES)(inspect_file.inspect)
app.command(cls=PlainCommand, epilog=demo.EXAMPLES)(demo.demo)
app.command(cls=PlainCommand, epilog=doctor.EXAMPLES)(doctor.doctor)
app.add_typer(bench.app)
app.add_typer(export.app)
app.add_typer(federated.app)
app.add_typer(splat.app)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line. Returns the exit code."""
    if argv is None:  # a process of its own: SIGTERM unwinds, so that no partial file stays
        signal.signal(signal.SIGTERM, _terminate)
    args = list(sys.argv[1:] if argv is None else argv)
    flags = args[: args.index("--")] if "--" in args else args
    as_json, debug = "--json" in flags, "--debug" in flags
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)  # not on a test's stream
        if reconfigure is not None:  # a terminal without UTF-8 gets '?', not a traceback
            reconfigure(errors="replace")
    try:
        try:
            return _run(args)
        except Exception as error:
            if debug and not isinstance(error, (click.ClickException, BrokenPipeError)):
                traceback.print_exc()
            return _report(error, as_json)
        except KeyboardInterrupt:
            if debug:
                traceback.print_exc()
            return _fail("Interrupted", "interrupted", INTERRUPTED, as_json)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # the reader (`| head`) has what it wanted
        return DONE
    except OSError as error:  # of that flush: all else is reported
        return _report(error, as_json)
    finally:
        _drop_unwritten()


def _drop_unwritten() -> None:
    """What is still buffered for a stream that takes no more has nowhere to go: Python would try
    again at its end, and exit with 120."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _terminate(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _run(args: list[str]) -> int:
    command = typer.main.get_command(app)
    try:
        # Not command.main(): it has a policy of its own for errors, interrupts and closed pipes.
        with command.make_context("penstock", args) as context:
            command.invoke(context)
    except click.exceptions.Exit as ended:
        return ended.exit_code
    return DONE


def _report(error: Exception, as_json: bool) -> int:
    if isinstance(error, BrokenPipeError):
        raise error
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show(sys.stderr)
        return WRONG_USAGE
    if isinstance(error, click.UsageError):
        usage = error.ctx.get_usage() if error.ctx is not None and not as_json else ""
        if usage:
            say(usage)
        return _fail("UsageError", error.format_message(), WRONG_USAGE, as_json)
    if isinstance(error, click.ClickException):
        return _fail("Error", error.format_message(), error.exit_code, as_json)
    if isinstance(error, UsageError):
        return _fail("UsageError", str(error), WRONG_USAGE, as_json)
    if isinstance(error, PenstockError):
        least, refused = getattr(error, "least_bytes", None), getattr(error, "report", None)
        facts = {} if least is None else {"least_bytes": least}
        if refused is not None:
            facts["report"] = refused.to_dict()
        return _fail(type(error).__name__, str(error), FAILED, as_json, facts)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        # Files that are made raise StorageError: this is what is printed.
        _drop_unwritten()
        return _fail("StorageError", f"the output: {error.strerror}", FAILED, as_json=False)
    message = (
        f"{type(error).__name__}: {error}. This is a fault of Penstock's, not yours: run the "
        "command again with --debug and report what it prints."
    )
    return _fail("InternalError", message, FAILED, as_json)


def _fail(
    code: str, message: str, status: int, as_json: bool, facts: dict[str, Any] | None = None
) -> int:
    say(f"Error: {message}")
    if as_json:
        emit_json({"error": {"code": code, "message": message, **(facts or {})}})
    return status


if __name__ == "__main__":
    sys.exit(main())

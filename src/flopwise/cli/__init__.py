"""The command line: thin. Parse, call, print. One file per group of commands."""

from __future__ import annotations

import errno
import sys

import typer

from flopwise.errors import FlopwiseError, one_line

app = typer.Typer(
    name="flopwise", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="Where should the next FLOP go? Run, measure, fit, predict and plan the three scaling laws.",
)  # fmt: skip


def command_line() -> typer.Typer:
    """The app with the commands of every group."""
    from flopwise.cli import data, experiments, infer, laws, plan, report, runs

    if not app.registered_commands:
        for group in (experiments, runs, laws, plan, infer, report, data):
            group.register(app)
    return app


def main() -> None:
    """Run a command. Bad input and full disks give one line and exit code 2; Ctrl-C says how to go on."""
    try:
        command_line()(standalone_mode=True)
    except SystemExit as e:
        if e.code == 130:  # typer's word for Ctrl-C
            sys.exit(_stopped())
        raise
    except FlopwiseError as e:
        sys.exit(_fail(str(e)))
    except OSError as e:
        if e.errno == errno.EPIPE:
            sys.exit(0)
        full = "; free some space and start again, nothing finished is lost"
        place = f"{e.filename}: " if e.filename else ""
        sys.exit(_fail(f"{place}{e.strerror or e}{full if e.errno in (errno.ENOSPC, errno.EDQUOT) else ''}"))
    except KeyboardInterrupt:
        sys.exit(_stopped())


def _fail(message: str) -> int:
    print(f"flopwise: {one_line(message, 2000)}", file=sys.stderr)
    return 2


def _stopped() -> int:
    print("\nstopped; the same command goes on where it stopped", file=sys.stderr)
    return 130

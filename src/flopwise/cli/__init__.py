"""The command line: thin. Parse, call, print. One file per group of commands."""

from __future__ import annotations

import errno
import io
import sys
from typing import Any

import typer

from flopwise.errors import FlopwiseError, MissingExtra, one_line

USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[1]
"""Every complaint of typer's about the words it was given; it has no public name of its own."""
EXTRAS = dict.fromkeys(("torch", "safetensors", "tokenizers", "transformers"), "train")
"""Packages that only some commands need, and the extra that brings each."""

app = typer.Typer(
    name="flopwise", add_completion=False, pretty_exceptions_enable=False,
    help="Where should the next FLOP go? Run, measure, fit, predict and plan the three scaling laws.",
)  # fmt: skip


def command_line() -> typer.Typer:
    """The app with the commands of every group."""
    from flopwise.cli import (
        coverage,
        data,
        experiments,
        infer,
        isoflop,
        laws,
        next,
        plan,
        policy,
        posttrain,
        pretrain,
        report,
        runs,
        score,
        verify,
    )

    if not app.registered_commands:
        for group in (
            experiments,
            pretrain,
            posttrain,
            runs,
            laws,
            isoflop,
            coverage,
            plan,
            next,
            verify,
            infer,
            score,
            policy,
            report,
            data,
        ):
            group.register(app)
    return app


def main() -> None:
    """Run a command. Bad input and full disks give one line and exit code 2; Ctrl-C says how to go on."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that lacks a letter gets a question mark
    try:
        words = sys.argv[1:] or ["--help"]
        code = command_line()(words, prog_name="flopwise", standalone_mode=False)
        sys.exit(_stopped() if code == 130 else code)  # 130: typer's word for Ctrl-C
    except USAGE_ERROR as e:
        sys.exit(_fail(_usage(e)))
    except ModuleNotFoundError as e:
        if e.name not in EXTRAS:
            raise
        sys.exit(_fail(str(MissingExtra(e.name, EXTRAS[e.name], "this command"))))
    except FlopwiseError as e:
        sys.exit(_fail(str(e)))
    except OSError as e:
        if e.errno == errno.EPIPE:
            sys.exit(0)
        full = "; free some space and start again, nothing finished is lost"
        place = f"{e.filename}: " if e.filename else ""
        sys.exit(_fail(f"{place}{e.strerror or e}{full if e.errno in (errno.ENOSPC, errno.EDQUOT) else ''}"))
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(_stopped())


def _usage(error: Any) -> str:
    """What typer says of wrong words on the command line, and where to read on."""
    said = error.format_message().rstrip(".") or "wrong words"
    if checks := getattr(error.__cause__, "errors", None):  # typer's own words may leave the value out
        said = said.replace("Invalid value", f"Invalid value {checks()[0]['input']!r:.60}", 1)
    command = error.ctx.command_path if error.ctx else "flopwise"
    return f"{said[0].lower()}{said[1:]}; see {command} --help"


def _fail(message: str) -> int:
    print(f"flopwise: {one_line(message, 2000)}", file=sys.stderr)
    return 2


def _stopped() -> int:
    print("\nstopped; the same command goes on where it stopped", file=sys.stderr)
    return 130

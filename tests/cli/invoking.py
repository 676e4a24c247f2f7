"""Commands as tests call them: what was printed, or the one line of a mistake."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer
from typer.testing import CliRunner

from flopwise.errors import FlopwiseError


def invoking(app: typer.Typer) -> tuple[Callable[..., str], Callable[..., str]]:
    """`run(*arguments)` and `refused(*arguments)` of an app."""

    def run(*arguments: Any) -> str:
        """Exit code 0 and what was printed."""
        result = CliRunner().invoke(app, [str(a) for a in arguments])
        assert result.exit_code == 0, result.output + repr(result.exception)
        return result.stdout

    def refused(*arguments: Any) -> str:
        """The one line of an error that a person caused."""
        result = CliRunner().invoke(app, [str(a) for a in arguments])
        assert isinstance(result.exception, FlopwiseError), result.output + repr(result.exception)
        assert "\n" not in str(result.exception)
        return str(result.exception)

    return run, refused

"""`flopwise report`: one HTML file from a folder of runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("report")(report)


def report(
    folder: Annotated[Path, typer.Argument(help="Folder of runs.")] = Path("demo"),
    out: Annotated[Path, typer.Option("-o", "--out", help="Where to write the page.")] = Path("report.html"),
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the results as JSON; write nothing.")
    ] = False,
) -> None:
    """Write the report: one page that opens offline, and results.json beside it."""
    if as_json:
        import json

        from flopwise.report.collect import collect

        typer.echo(json.dumps(collect(folder), indent=1))
        return
    from flopwise.report.html import build

    page = build(folder, out)
    typer.echo(f"{page} ({page.stat().st_size / 1e3:,.0f} kB)")

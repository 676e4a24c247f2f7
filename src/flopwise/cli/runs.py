"""`flopwise runs`, `tree`, `query`: what every run was and what it cost."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from flopwise.cli.tree import tree
from flopwise.errors import one_line

Runs = Annotated[Path, typer.Argument(help="Folder of runs.")]
HEADLINES = ("loss", "val_accuracy", "greedy", "accept_rate", "auc_within")
"""The metric that a list shows of a run: the first of these that it has, else its first."""

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("runs")(runs)
    app.command("tree")(tree)
    app.command("query")(query)


def _warn(problems: list[str]) -> None:
    for line in problems:
        typer.echo(f"flopwise: left out {one_line(line)}", err=True)


def _plain(value: object) -> str:
    """A value as text that neither a terminal nor rich's markup obeys."""
    from rich.markup import escape

    return escape(one_line("" if value is None else f"{value:.6g}" if isinstance(value, float) else value))


def _console() -> Any:
    """The terminal; as wide as it takes where the output goes to a file or pipe."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=250)


def runs(folder: Runs = Path("demo"), as_json: Json = False) -> None:
    """List runs: what they were, what they cost, how they did."""
    from flopwise.records.store import RunStore

    store = RunStore(folder)
    records = store.records()
    _warn(store.problems)
    if as_json:
        typer.echo(json.dumps([r.model_dump(mode="json") for r in records], indent=1))
        return
    from rich.table import Table

    table = Table(
        "id",
        "name",
        "kind",
        "status",
        "FLOPs",
        "with ancestors",
        "seconds",
        "result",
        box=None,
        pad_edge=False,
    )
    for r in records:
        measured = {k: m.value for k, m in r.metrics.items() if m.value is not None}
        first = next((k for k in (*HEADLINES, *measured) if k in measured), None)
        headline = f"{first} {measured[first]:.4g}" if first else r.reason or ""
        table.add_row(
            r.id[:8], _plain(r.name), _plain(r.kind), r.status, f"{r.spend.total_flops:.2e}",
            f"{r.lineage_spend.total_flops:.2e}", f"{r.spend.wall_s or 0:.0f}", _plain(headline),
        )  # fmt: skip
    _console().print(table)


def query(
    sql: Annotated[str, typer.Argument(help="SQL over the tables runs, metrics and curve.")],
    folder: Annotated[Path, typer.Option("--runs", help="Folder of runs.")] = Path("demo"),
    as_json: Json = False,
) -> None:  # fmt: skip
    """Ask the records in SQL, for example: SELECT name, total_flops FROM runs ORDER BY 2 DESC"""
    from flopwise.records.store import RunStore

    store = RunStore(folder)
    names, rows = store.query(sql)
    _warn(store.problems)
    if as_json:
        finite = [[None if isinstance(v, float) and not math.isfinite(v) else v for v in row] for row in rows]
        typer.echo(json.dumps([dict(zip(names, row, strict=True)) for row in finite], indent=1, default=str))
        return
    from rich.table import Table

    table = Table(*map(_plain, names), box=None, pad_edge=False)
    for row in rows:
        table.add_row(*map(_plain, row))
    console = _console()
    if console.measure(table, options=console.options.update_width(100_000)).maximum <= console.width:
        console.print(table)
        return
    for row in rows:  # too wide for columns: a line per value
        for name, value in zip(names, row, strict=True):
            console.print(f"{_plain(name)}  {_plain(value)}", highlight=False)
        console.print()

"""`flopwise runs`, `tree`, `query`: what every run was and what it cost."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flopwise.cli.tree import tree
from flopwise.errors import one_line

if TYPE_CHECKING:
    from flopwise.records.store import RunStore

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


def runs(
    folder: Runs = Path("demo"),
    ledger: Annotated[str | None, typer.Option(help="The ledger of this run (name or id).")] = None,
    as_json: Json = False,
) -> None:
    """List runs: what they were, what they cost, how they did; or what one spent, by purpose and model."""
    from flopwise.records.store import RunStore

    store = RunStore(folder)
    if ledger is not None:
        _ledger(store, ledger, as_json)
        return
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


def _ledger(store: RunStore, run: str, as_json: bool) -> None:
    """What a run's models did, for what, and the totals that this adds up to."""
    from flopwise.flops.ledger import KINDS, TOTALS

    record = store.get(run)
    spend = record.spend
    if as_json:
        totals = spend.to_dict() | {"total_flops": spend.total_flops, "at_least": spend.at_least}
        typer.echo(json.dumps({"id": record.id, "name": record.name, **totals}, indent=1))
        return
    names = {r.id: r.name or r.id for r in store.records()}

    def cells(row: dict[str, Any]) -> list[str]:
        numbers = [row.get(key) for key in ("tokens", "flops", "seconds")]
        return [
            format(n, form) if isinstance(n, int | float) else "unknown"
            for n, form in zip(numbers, (",", ".3e", ",.1f"), strict=True)
        ]

    lines: list[tuple[str, ...]] = [("for", "model", "tokens", "FLOPs", "seconds", "part of")]
    for row in spend.by:
        kind = str(row.get("kind"))
        model = names.get(str(row.get("model")), str(row.get("model")))
        part = (KINDS.get(kind) or "no total").replace("_flops", "")
        lines.append((_text(kind), _text(model), *cells(row), part))
    for name in TOTALS:
        known = getattr(spend, name) or not spend.at_least
        value = f"{getattr(spend, name):.3e}" if known else "unknown"
        lines.append((f"all {name.removesuffix('_flops')}", "", "", value, "", ""))
    widths = [max(len(line[i]) for line in lines) for i in range(6)]
    typer.echo(f"{_text(record.name or record.id)}: {record.kind}, {record.method}, {record.status}")
    for line in lines:
        cut = [c.rjust(widths[i]) if 2 <= i <= 4 else c.ljust(widths[i]) for i, c in enumerate(line)]
        typer.echo("  ".join(cut).rstrip())
    if spend.unknown:
        typer.echo(f"at least: {_text(spend.unknown)}")
    if not spend.by:
        typer.echo("this run has no breakdown: it was made before there was one, or it ran no model")


def _text(value: object) -> str:
    return one_line(value, 60)


def query(
    sql: Annotated[str, typer.Argument(help="SQL over the tables runs, metrics, ledger and curve.")],
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

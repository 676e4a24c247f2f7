"""`flopwise runs`, `tree`, `query`: what every run was and what it cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

Runs = Annotated[Path, typer.Argument(help="Folder of runs.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("runs")(runs)
    app.command("tree")(tree)
    app.command("query")(query)


def _warn(problems: list[str]) -> None:
    for line in problems:
        typer.echo(f"flopwise: left out {line}", err=True)


def runs(folder: Runs = Path("demo"), as_json: Json = False) -> None:
    """List runs: what they were, what they cost, how they did."""
    from flopwise.records.store import RunStore

    store = RunStore(folder)
    records = store.records()
    _warn(store.problems)
    if as_json:
        typer.echo(json.dumps([r.model_dump(mode="json") for r in records], indent=1))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("id", "name", "kind", "status", "FLOPs", "with ancestors", "seconds", "result", box=None, pad_edge=False)
    for r in records:
        headline = next((f"{k} {m.value:.4g}" for k, m in r.metrics.items() if m.value is not None), r.reason or "")
        table.add_row(
            r.id[:8], escape(r.name or ""), r.kind, r.status, f"{r.spend.total_flops:.2e}",
            f"{r.lineage_spend.total_flops:.2e}", f"{r.spend.wall_s or 0:.0f}", escape(headline),
        )  # fmt: skip
    Console().print(table)


def tree(folder: Runs = Path("demo"), as_json: Json = False) -> None:
    """The family tree: every model under what it was made from, with its own FLOPs and its lineage's."""
    from flopwise.records.store import Node, RunStore

    store = RunStore(folder)
    roots = store.tree()
    _warn(store.problems)

    def as_dict(node: Node) -> dict[str, Any]:
        r = node.record
        return {
            "id": r.id, "name": r.name, "kind": r.kind, "own_flops": r.spend.total_flops,
            "lineage_flops": r.lineage_spend.total_flops, "children": [as_dict(c) for c in node.children],
        }  # fmt: skip

    if as_json:
        typer.echo(json.dumps([as_dict(n) for n in roots], indent=1))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.tree import Tree

    def label(node: Node) -> str:
        r = node.record
        return f"{escape(r.name or r.id)}  {r.kind}  own {r.spend.total_flops:.2e}, with ancestors {r.lineage_spend.total_flops:.2e}"

    def grow(branch: Tree, node: Node) -> None:
        for child in node.children:
            grow(branch.add(label(child)), child)

    console = Console()
    for root in roots:
        branch = Tree(label(root))
        grow(branch, root)
        console.print(branch)


def query(
    sql: Annotated[str, typer.Argument(help="SQL over the tables runs, metrics and curve.")],
    folder: Annotated[Path, typer.Option("--runs", help="Folder of runs.")] = Path("demo"), as_json: Json = False,
) -> None:  # fmt: skip
    """Ask the records in SQL, for example: SELECT name, total_flops FROM runs ORDER BY 2 DESC"""
    from flopwise.records.store import RunStore

    store = RunStore(folder)
    names, rows = store.query(sql)
    _warn(store.problems)
    if as_json:
        typer.echo(json.dumps([dict(zip(names, row, strict=True)) for row in rows], indent=1, default=str))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(*map(escape, names), box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(escape("" if v is None else f"{v:.6g}" if isinstance(v, float) else str(v)) for v in row))
    Console().print(table)

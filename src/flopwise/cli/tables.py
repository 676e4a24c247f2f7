"""Options that commands on tables share, and how they read one."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from flopwise.cli.shared import read
from flopwise.errors import one_line

TABLE_HELP = (
    "A CSV, TSV, Parquet, JSON or JSON-lines file or its URL, a DuckDB or SQLite file (with --sql), "
    "a folder of "
    "runs, or the folder of one run."
)
MAP_HELP = (
    "Which column, or SQL expression, is which variable: N=n_params,loss=val_loss or N='N_billion * 1e9'"
)
SQL_HELP = "A query whose answer is the table: SELECT ... FROM source."
CLUSTER_HELP = "Column of runs whose points share noise (checkpoints or branches of one run)."

Source = Annotated[str, typer.Argument(metavar="TABLE", help=TABLE_HELP)]
Map = Annotated[list[str] | None, typer.Option("--map", help=MAP_HELP)]
Where = Annotated[str | None, typer.Option("--where", help="An SQL condition on the table's columns.")]
Sql = Annotated[str | None, typer.Option("--sql", help=SQL_HELP)]
Cluster = Annotated[str | None, typer.Option("--cluster", help=CLUSTER_HELP)]
Seed = Annotated[int, typer.Option("--seed", min=0)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def console() -> Any:
    """Where tables are printed: as wide as the terminal, or 120 columns into a file; texts are not broken."""
    import sys

    from rich.console import Console

    width = None if sys.stdout.isatty() else 120
    return Console(markup=False, highlight=False, soft_wrap=True, width=width)


@contextmanager
def heard() -> Iterator[None]:
    """What the library warns of, one line each on stderr."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for line in dict.fromkeys(one_line(w.message) for w in caught if issubclass(w.category, UserWarning)):
        typer.echo(f"flopwise: {line}", err=True)


def table_of(
    source: str, mapping: list[str] | None, where: str | None, sql: str | None, cluster: str | None
) -> tuple[dict[str, Any], str | None]:
    """The table, and what to cluster by: for a folder of runs its trunks, whose branches share noise."""
    with heard():
        table = read(source, mapping, where, sql)
    return table, cluster or ("run" if Path(source).is_dir() and "run" in table else None)

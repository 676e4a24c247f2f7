"""Tables of observations: a person's own file, URL, database or dataframe, a folder of runs."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flopwise.errors import FlopwiseError, one_line
from flopwise.records.columns import Table, as_columns, numbers, require

__all__ = ["Table", "numbers", "read_table", "require"]

SPENT = ("train_flops", "generate_flops", "score_flops")


def read_table(
    source: Any, rename: Mapping[str, str] | None = None, where: str | None = None, held_out: bool = False,
    sql: str | None = None,
) -> Table:  # fmt: skip
    """Read observations as columns.

    Args:
        source: a CSV, TSV, Parquet, JSON or JSON-lines file (.gz too), or a URL of one (http, https; s3, gs,
            hf and others where fsspec knows them); a DuckDB or SQLite file; a folder of runs, which gives one
            row per finished cooldown run of its ladder (`pretrain.law.observation`); the folder of one run,
            which gives what it logged, with the FLOPs spent until then as C; a mapping, a list of rows or a
            dataframe (pandas, polars, Arrow, DuckDB).
        rename: which column holds a law's variable, as {"N": "n_params", "loss": "val_loss"}; or an SQL
            expression of columns, as {"N": "N_billion * 1e9"}; or a constant, as {"D": "300B"}.
        where: an SQL condition (DuckDB's) on the source's own columns, as "loss < 4 AND split = 'val'"; new
            names of `rename` are known too where they are not the name of another column.
        held_out: keep the runs that a ladder held out of its own fit.
        sql: a query, as "SELECT N, D, avg(loss) AS loss FROM source GROUP BY N, D"; its answer is the table
            that `rename` and `where` are about. In a DuckDB or SQLite file it names the file's own tables,
            elsewhere the table is `source`. It can read nothing else and change nothing.

    Raises:
        FlopwiseError: no such file, unreadable, no such column (the closest are named), bad SQL, no rows.
    """
    from flopwise.records.database import Question, from_columns
    from flopwise.records.files import from_file
    from flopwise.records.remote import fetched, is_url, shown

    is_path = isinstance(source, str | Path)
    who = f"table {shown(source) if is_path else 'given'}"
    if sql is not None and not sql.strip():
        raise FlopwiseError("sql is empty, must be a query, as SELECT * FROM source")
    question = Question({name: str(text) for name, text in (rename or {}).items()}, where, sql, who)
    if is_path and is_url(source) and not os.path.exists(source):
        with fetched(source) as path:
            table = from_file(path, question)
    elif is_path and not os.path.isdir(source):
        table = from_file(Path(source), question)
    else:
        found = _from_folder(Path(source), held_out) if is_path else as_columns(source)
        table = from_columns(found, question)
    if not table or not len(next(iter(table.values()))):
        raise FlopwiseError(f"{who} has no rows{f' where {one_line(where, 200)}' if where else ''}")
    return table


def _from_folder(path: Path, held_out: bool) -> Table:
    """One run's curve, or the ladder of a folder of runs."""
    from flopwise.records.folder import SPEC_FILE, RunFolder

    if not (path / SPEC_FILE).is_file():
        return _ladder(path, held_out)
    rows = RunFolder(path).curve()
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = {name: np.array([row.get(name, np.nan) for row in rows]) for name in names}
    spent = [numbers(table, n, str(path)) for n in SPENT if n in table]
    return table | ({"C": np.sum(spent, axis=0)} if spent else {})


def _ladder(root: Path, held_out: bool) -> Table:
    """One row per finished cooldown run, in an order that does not depend on ids or times."""
    from flopwise.pretrain.observations import columns, observation
    from flopwise.records.store import RunStore

    store = RunStore(root)
    found = [r for r in store.records() if (r.kind, r.method, r.status) == ("pretrain", "cooldown", "done")]
    found = [r for r in found if r.extra.get("variant") != "tuning"]  # a search, no rungs
    for line in store.problems:
        warnings.warn(f"left out {line}", stacklevel=3)
    rows = [observation(r) for r in found if held_out or not r.extra.get("held_out")]
    if not rows:
        raise FlopwiseError(f"{root} has no finished cooldown run of a ladder; see `flopwise runs {root}`")
    return columns(sorted(rows, key=lambda row: (row["N"], row["seed"], row["D"])))

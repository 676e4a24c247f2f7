"""Tables as series: one file per recording, or one table whose column says which recording a row is of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flopwise.data.modalities.base import Entry, Item
from flopwise.errors import FlopwiseError, one_line


def table_entries(file: Path, name: str, label: str | None, options: Mapping[str, Any]) -> list[Entry]:
    """Entries of a table; rows are in the order of `time_column`, else as they stand.

    Raises:
        FlopwiseError: with `id_column`, where the table is read at once: as reading an entry.
    """
    if options.get("id_column") is None:
        return [Entry(name, lambda: [_whole(file, name, label, options)])]
    items = _by_recording(file, name, label, options)
    return [Entry(item.id, lambda item=item: [item]) for item in items]  # type: ignore[misc]


def _whole(file: Path, name: str, label: str | None, options: Mapping[str, Any]) -> Item:
    table = _table(file)
    rows = np.arange(len(next(iter(table.values()))))
    return _item(table, rows, file, name, label, options)


def _by_recording(file: Path, name: str, label: str | None, options: Mapping[str, Any]) -> list[Item]:
    table = _table(file)
    keys = np.array([str(v) for v in _column(table, str(options["id_column"]), file).tolist()])
    return [
        _item(table, np.flatnonzero(keys == key), file, f"{name}#{key}", label, options)
        for key in dict.fromkeys(keys.tolist())
    ]


def _table(file: Path) -> dict[str, np.ndarray]:
    from flopwise.records.table import read_table

    return dict(read_table(file))


def _column(table: Mapping[str, np.ndarray], column: str, file: Path) -> np.ndarray:
    if column not in table:
        raise FlopwiseError(
            f"{one_line(file, 200)} has no column {column!r:.60}; there are {one_line(', '.join(table), 200)}"
        )
    return table[column]


def _item(
    table: Mapping[str, np.ndarray],
    rows: np.ndarray,
    file: Path,
    name: str,
    label: str | None,
    options: Mapping[str, Any],
) -> Item:
    time, kind = options.get("time_column"), options.get("class_column")
    if time is not None:
        rows = rows[np.argsort(_column(table, time, file)[rows], kind="stable")]
    if kind is not None:
        found = {str(v) for v in _column(table, kind, file)[rows].tolist()}
        if len(found) != 1:
            raise FlopwiseError(
                f"{one_line(name, 200)} has {len(found)} classes in {kind!r:.60}, must have one"
            )
        label = found.pop()
    apart = (options.get("id_column"), time, kind)
    columns = options.get("columns") or [c for c in table if c not in apart]
    values = [_values(_column(table, c, file)[rows], c, file) for c in columns]
    return Item(name, np.stack(values, axis=1), label)


def _values(raw: np.ndarray, column: str, file: Path) -> np.ndarray:
    """A column as floats [n], NaN where nothing stands."""
    from flopwise.records.columns import missing, numbers

    gaps = np.array([missing(v) for v in raw.tolist()], dtype=bool)
    known = raw.astype(object)
    known[gaps] = 0.0
    values = numbers({column: known}, column, one_line(file, 200))
    values[gaps] = np.nan
    return values

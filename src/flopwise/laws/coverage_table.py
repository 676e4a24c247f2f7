"""Tables of samples as counts per problem: one row per problem, per sample, or per search for a success."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flopwise.errors import FlopwiseError, one_line
from flopwise.laws.counts import Array, Counts
from flopwise.records.columns import numbers, require

SHAPES = (
    "n (samples) and c (right ones) with one row per problem; or attempts and solved (true or false) where "
    "each problem was tried until solved; or problem and correct with one row per sample"
)

TRUTH = dict.fromkeys(("true", "1", "1.0", "yes"), True) | dict.fromkeys(("false", "0", "0.0", "no"), False)


def read_counts(table: Mapping[str, Any], by: Sequence[str] = ()) -> dict[tuple[str, ...], Counts]:
    """Counts of every group of a table, in order of appearance.

    Args:
        table: columns `n` and `c` (and `stopped`, where sampling ended at a right sample); or `attempts` and
            `solved`; or `problem` and `correct` with one row per sample. With one row per problem, `problem`
            may be there too.
        by: columns whose values name the group; none: all rows are one.

    Raises:
        FlopwiseError: no such columns, a value is not what it should be, a problem comes twice in a group.
    """
    for column in by:
        require(table, column, "coverage")
    if {"n", "c"} <= set(table):
        n, c = (numbers(table, name, "coverage") for name in ("n", "c"))
        stopped = _truth(table, "stopped") if "stopped" in table else np.zeros(len(n), bool)
    elif {"attempts", "solved"} <= set(table):
        n, stopped = numbers(table, "attempts", "coverage"), _truth(table, "solved")
        c = stopped.astype(float)
    elif {"problem", "correct"} <= set(table):
        return _from_samples(table, by)
    else:
        there = one_line(", ".join(map(str, table)), 200)
        raise FlopwiseError(f"coverage: needs columns {SHAPES}; there are {there}; name others with --map")
    groups = _groups(table, by, len(n))
    out = {}
    for name, rows in groups.items():
        if "problem" in table:
            _once([str(v) for v in np.asarray(table["problem"])[rows].tolist()], name, by)
        out[name] = Counts.of(n[rows], c[rows], stopped[rows])
    return out


def _from_samples(table: Mapping[str, Any], by: Sequence[str]) -> dict[tuple[str, ...], Counts]:
    right = _truth(table, "correct")
    problem = np.array([str(v) for v in np.asarray(table["problem"]).tolist()])
    out = {}
    for name, rows in _groups(table, by, len(right)).items():
        _, where, n = np.unique(problem[rows], return_inverse=True, return_counts=True)
        out[name] = Counts.of(n, np.bincount(where, right[rows]))
    return out


def _groups(table: Mapping[str, Any], by: Sequence[str], rows: int) -> dict[tuple[str, ...], Array]:
    """Rows of each group."""
    if not by:
        return {(): np.arange(rows)}
    found: dict[tuple[str, ...], list[int]] = {}
    for i, name in enumerate(zip(*(np.asarray(table[column]).tolist() for column in by), strict=True)):
        found.setdefault(tuple(map(str, name)), []).append(i)
    return {name: np.array(where) for name, where in found.items()}


def _once(problems: list[str], group: tuple[str, ...], by: Sequence[str]) -> None:
    seen: set[str] = set()
    for problem in problems:
        if problem in seen:
            place = f" of {', '.join(group)}" if group else ""
            more = " further" if by else ""
            raise FlopwiseError(
                f"coverage: problem {one_line(problem, 40)!r}{place} comes twice; "
                f"name the{more} column that tells its rows apart with --by, or pick rows with --where"
            )
        seen.add(problem)


def _truth(table: Mapping[str, Any], column: str) -> Array:
    """A column of true and false, in the spellings of `TRUTH`."""
    require(table, column, "coverage")
    values = np.asarray(table[column]).tolist()
    out = np.empty(len(values), dtype=bool)
    for row, value in enumerate(values):
        text = str(value).strip().lower()
        if text not in TRUTH:
            raise FlopwiseError(
                f"coverage: column {column!r} holds {one_line(value, 40)!r} in row {row + 1}, "
                "must be true or false, 1 or 0"
            )
        out[row] = TRUTH[text]
    return out

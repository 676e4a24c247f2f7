"""Runs that could be made: from a table, or on a grid around the runs there are; each with what it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from flopwise.errors import FlopwiseError
from flopwise.laws.law import Array
from flopwise.plan.next_design import Option

if TYPE_CHECKING:
    from flopwise.laws.result import Fit

MOST_ROWS = 400
"""Candidates that are reckoned with; of more, an even share in the order of their cost."""
POINTS = {1: 40, 2: 14, 3: 7, 4: 4}
"""Of a grid along each variable, by the number of variables."""
REACH = 30.0
"""A grid reaches this many times beyond the largest that was fitted, where the budget allows."""
ENDS = 8
"""Places a run may be stopped at, and rows of it that are reckoned with."""


@dataclass(frozen=True)
class Candidates:
    """Rows that runs would give: columns of the laws' variables [n], FLOPs to reach each row [n] and the run
    that a row is of [n].

    `from_table` [n]: its row in the table of candidates, counted from 0, or -1 for a grid's.
    """

    x: dict[str, Array]
    cost: Array
    run: Array
    from_table: Array

    def options(self, most: float) -> list[Option]:
        """Ways to make a run for `most` FLOPs or less: each run as a whole, or stopped earlier at a row."""
        out = []
        for name in np.unique(self.run):
            rows = np.flatnonzero(self.run == name)
            rows = rows[np.argsort(self.cost[rows], kind="stable")]
            for end in np.unique(np.linspace(0, len(rows) - 1, ENDS).round().astype(int)):
                part = rows[: end + 1]
                if self.cost[part[-1]] <= most * (1 + 1e-9):
                    part = part[np.unique(np.linspace(0, end, ENDS).round().astype(int))]
                    out.append(Option(tuple(map(int, part)), float(self.cost[part[-1]]), int(name)))
        return out

    @property
    def shared(self) -> bool:
        """Whether a run gives several rows."""
        return len(np.unique(self.run)) < len(self.run)


def cost_of(table: Mapping[str, Any], column: str | None, who: str) -> Array:
    """FLOPs of each row [n]: of a column, else C, else 6 N D.

    Raises:
        FlopwiseError: there is none of these, or a cost is not above 0.
    """
    from flopwise.records.table import numbers

    if column or "C" in table:
        values = numbers(table, column or "C", who)
    elif {"N", "D"} <= set(table):
        values = 6 * numbers(table, "N", who) * numbers(table, "D", who)
    else:
        raise FlopwiseError(f"{who}: what a run costs is not known; name its column of FLOPs with --cost")
    if not (values > 0).all():
        raise FlopwiseError(f"{who}: a run costs {values.min():g} FLOPs, must be above 0")
    return values


def from_table(
    fits: Sequence[Fit], table: Mapping[str, Any], cost: str | None = None, cluster: str | None = None
) -> Candidates:
    """Candidates of a table with the laws' variables; rows of one `cluster` are one run."""
    from flopwise.records.table import numbers, require

    who = "next: candidates"
    x = {v: numbers(table, v, who) for f in fits for v in f.form.variables}
    price = cost_of(table, cost, who)
    run = np.arange(len(price))
    if cluster is not None:
        require(table, cluster, who)
        run = np.unique(np.asarray(table[cluster]).astype(str), return_inverse=True)[1].ravel()
    kept = np.arange(len(price))
    if len(kept) > MOST_ROWS:
        order = np.lexsort((price, run)) if cluster else np.argsort(price, kind="stable")
        kept = np.sort(order[np.linspace(0, len(order) - 1, MOST_ROWS).round().astype(int)])
    return Candidates({v: values[kept] for v, values in x.items()}, price[kept], run[kept], kept)


def from_grid(
    fits: Sequence[Fit], budget: float, aims: Mapping[str, Array],
    axes: Mapping[str, tuple[float, float, int]] | None = None,
) -> Candidates:  # fmt: skip
    """Candidates on a grid, even in logarithms.

    `axes`: from, to and number of values of a variable; of the others from the smallest that was fitted to
    `REACH` times the largest, not beyond the aim, and not beyond what the budget affords.

    Raises:
        FlopwiseError: an axis of a variable that no law has.
    """
    names = list(dict.fromkeys(v for f in fits for v in f.form.variables))
    for name in axes or {}:
        if name not in names:
            raise FlopwiseError(f"next: --grid names {name}; the laws' variables are {', '.join(names)}")
    points = POINTS.get(len(names), 3)
    lines = []
    for name in names:
        if axes and name in axes:
            low, high, n = axes[name]
        else:
            ends = [f.ranges[name] for f in fits if name in f.ranges]
            low, top, n = min(e[0] for e in ends), max(e[1] for e in ends), points
            high = min(REACH * top, max(float(np.max(aims[name])), top)) if len(names) > 1 else top
            if names == ["N", "D"] or set(names) == {"N", "D"}:
                other = min(f.ranges["D" if name == "N" else "N"][0] for f in fits)
                high = max(min(high, budget / 6 / other), low)
        if low <= 0:
            raise FlopwiseError(f"next: {name} begins at {low:g}, a grid needs more; give --candidates TABLE")
        lines.append(np.unique(np.geomspace(low, high, n)))
    places = np.array(list(product(*lines)))
    x = {name: places[:, i] for i, name in enumerate(names)}
    if "C" not in x and not {"N", "D"} <= set(x):
        raise FlopwiseError(
            f"next: what a run costs does not follow from {', '.join(names)}; give --candidates TABLE with a "
            f"column C of FLOPs, or name it with --cost"
        )
    price = cost_of(x, None, "next")
    order = np.flatnonzero(price <= budget * (1 + 1e-9))
    if len(order) > MOST_ROWS:
        order = order[np.linspace(0, len(order) - 1, MOST_ROWS).round().astype(int)]
    x = {v: values[order] for v, values in x.items()}
    return Candidates(x, price[order], np.arange(len(order)), np.full(len(order), -1))

"""Best settings before a law is fitted: the minimum over a learning rate, and bowls in rate and batch.

A law of the best loss needs the best loss at each size and budget. `best_of` takes it from a sweep over one
setting. `bowls` fits a quadratic in two logarithms, as of learning rate and batch size, around the best run
of each size and budget, and `tuned` the power laws of its minima (Li et al. 2025, arXiv 2503.04715: lr* =
c N^a D^b, B* = d D^e; the loss is convex in the two logarithms).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from flopwise.errors import FlopwiseError
from flopwise.laws.bowl import quadratic
from flopwise.laws.isoflop_lines import PowerLaw, positive, power_law
from flopwise.laws.isoflop_minimum import lowest
from flopwise.laws.law import Array

_TERMS = 6
"""Of a quadratic in two variables."""


def best_of(
    table: Any, group: Sequence[str] = ("N", "D"), over: str = "lr", target: str = "loss"
) -> dict[str, Array]:
    """One row per group: the lowest `target` over a setting, to fit a law to.

    Where the lowest run has neighbours on both sides, the minimum of the parabola in log `over` through the
    three; else the lowest run as it is. Runs of one setting count with their mean.

    Returns:
        Columns of the groups, `over` and `target` at the minimum, every other column that is constant within
        all groups, `how` ("parabola", "edge": lowest at the smallest or largest setting of three or more,
        "few": one or two settings) and `runs`.

    Raises:
        FlopwiseError: a column is missing, or `over` or `target` not above 0.
    """
    from flopwise.records.table import read_table

    table = read_table(table)
    columns = positive(table, (over, target), "best_of")
    over_values, y = columns[over], columns[target]
    members = _groups(table, group, "best_of")
    rows = [_best(over_values[m], y[m]) for m in members]
    firsts = np.array([m[0] for m in members])
    out = {
        name: np.asarray(values)[firsts]
        for name, values in table.items()
        if name not in (over, target) and all(len(set(np.asarray(values)[m].tolist())) == 1 for m in members)
    }
    return out | {
        over: np.array([r[0] for r in rows]), target: np.array([r[1] for r in rows]),
        "how": np.array([r[2] for r in rows]), "runs": np.array([len(m) for m in members]),
    }  # fmt: skip


def _best(setting: Array, y: Array) -> tuple[float, float, str]:
    values, of = np.unique(setting, return_inverse=True)
    mean = np.bincount(of, y) / np.bincount(of)
    i = int(mean.argmin())
    if len(values) < 3:
        return float(values[i]), float(mean[i]), "few"
    if i in (0, len(values) - 1):
        return float(values[i]), float(mean[i]), "edge"
    made = lowest(np.log(values[i - 1 : i + 2]), mean[i - 1 : i + 2], "parabola")
    if made.why:  # three equal losses
        return float(values[i]), float(mean[i]), "edge"
    return float(np.exp(made.x)), made.y, "parabola"


@dataclass(frozen=True)
class Bowl:
    """A quadratic in the logarithms of two settings around a group's best run.

    `at`: settings at the minimum, None where it is not to be used (`warning` says why); `se`: standard errors
    of their logarithms; `loss` at the minimum; `n` runs in the fit; `scatter` of log loss around it.
    """

    group: dict[str, Any]
    at: dict[str, float] | None
    se: dict[str, float] | None
    loss: float | None
    n: int
    scatter: float | None
    warning: str = ""


@dataclass
class Tuned:
    """Bowls of all groups and power laws of the best settings in the group's columns."""

    bowls: list[Bowl]
    laws: dict[str, PowerLaw]
    warnings: list[str] = field(default_factory=list)

    def to_dict(self, level: float = 0.95) -> dict[str, Any]:
        """All of it, as JSON takes it."""
        return {
            "bowls": [asdict(b) for b in self.bowls],
            "laws": {name: law.to_dict(level) for name, law in self.laws.items()}, "warnings": self.warnings,
        }  # fmt: skip


def bowls(
    table: Any, settings: tuple[str, str] = ("lr", "bs_tokens"), group: Sequence[str] = ("N", "D"),
    target: str = "loss", within: float = 0.02,
) -> list[Bowl]:  # fmt: skip
    """The best pair of settings of each group, by a quadratic bowl in their logarithms.

    Args:
        within: runs whose loss is within this share of the group's lowest are fitted: farther out the bowl is
            no quadratic.

    Raises:
        FlopwiseError: a column is missing, a value is not above 0, or `within` is not.
    """
    from flopwise.records.table import read_table

    if not 0 < within < 10:
        raise FlopwiseError(f"bowls: within is {within}, must be above 0, as 0.02 for 2% of the lowest loss")
    table = read_table(table)
    first, second = settings
    columns = positive(table, (first, second, target), "bowls")
    u, v, y = (np.log(columns[name]) for name in (first, second, target))
    out = []
    for m in _groups(table, group, "bowls"):
        near = m[y[m] <= y[m].min() + np.log1p(within)]
        label = {name: np.asarray(table[name])[m[0]].item() for name in group}
        box = np.array([[s[m].min(), s[m].max()] for s in (u, v)])
        out.append(_bowl(label, settings, np.stack([u[near], v[near]]), y[near], box))
    return out


def _bowl(label: dict[str, Any], settings: tuple[str, str], x: Array, y: Array, box: Array) -> Bowl:
    n = len(y)

    def refused(why: str) -> Bowl:
        return Bowl(label, None, None, None, n, None, why)

    if n < _TERMS + 2 or min(len(np.unique(s)) for s in x) < 3:
        return refused(
            f"{n} runs near the best with {len(np.unique(x[0]))} and {len(np.unique(x[1]))} settings: a bowl "
            f"needs {_TERMS + 2} with 3 each; widen `within`"
        )
    middle = x.mean(axis=1)
    q = quadratic(x - middle[:, None], y, np.zeros(n))
    if q is None:
        return refused("the runs near the best lie on one curve of the two settings")
    if not q.convex:
        return refused("the surface is not convex: no minimum")
    at = middle + q.at
    for name, value, (low, high) in zip(settings, at, box, strict=True):
        if not low <= value <= high:
            return refused(
                f"the minimum is at {name} {np.exp(value):.3g}, outside {np.exp(low):.3g} to "
                f"{np.exp(high):.3g}"
            )
    scatter = float(np.sqrt(q.rss / q.dof))
    return Bowl(
        label, dict(zip(settings, map(float, np.exp(at)), strict=True)),
        dict(zip(settings, map(float, np.sqrt(np.diag(q.covariance(scatter)))), strict=True)),
        float(np.exp(q.lowest)), n, scatter,
    )  # fmt: skip


def tuned(
    table: Any, settings: tuple[str, str] = ("lr", "bs_tokens"), group: Sequence[str] = ("N", "D"),
    target: str = "loss", within: float = 0.02,
    laws: Mapping[str, Sequence[str]] | None = None, weighted: bool = False,
) -> Tuned:  # fmt: skip
    """Power laws of the best settings, by the minima of bowls.

    Args:
        laws: which of the group's columns each setting depends on, as {"lr": ("N", "D"), "bs_tokens":
            ("D",)}; by default each on all.
        weighted: minima count by their standard errors, instead of alike.

    Raises:
        FlopwiseError: as `bowls`, or too few minima for a law.
    """
    found = bowls(table, settings, group, target, within)
    usable = [b for b in found if b.at is not None and b.se is not None]
    if not usable:
        raise FlopwiseError(
            f"tuned: none of {len(found)} groups has a minimum; the first: {found[0].warning}"
        )
    out = Tuned(found, {})
    for name, variables in (laws or dict.fromkeys(settings, tuple(group))).items():
        if name not in settings or not set(variables) <= set(group):
            raise FlopwiseError(
                f"tuned: law of {name!r} in {', '.join(variables)}: settings are {', '.join(settings)}, "
                f"columns {', '.join(group)}"
            )
        y = np.array([(b.at or {})[name] for b in usable])
        se = np.array([(b.se or {})[name] for b in usable]) if weighted else None
        x = positive({v: [b.group[v] for b in usable] for v in variables}, variables, "tuned")
        out.laws[name] = power_law(name, y, x, se, who="tuned")
    if left := len(found) - len(usable):
        out.warnings.append(f"{left} of {len(found)} groups have no minimum to use; see their own warnings")
    return out


def _groups(table: Mapping[str, Any], group: Sequence[str], who: str) -> list[Array]:
    """Rows of each group, in the order of the groups' values."""
    from flopwise.records.table import require

    if isinstance(group, str) or not group:
        raise FlopwiseError(f"{who}: group is {group!r}, must be a list of columns, as ['N', 'D']")
    labels = []
    for name in group:
        require(table, name, who)
        labels.append(np.unique(np.asarray(table[name]), return_inverse=True)[1])
    _, of = np.unique(np.stack(labels), axis=1, return_inverse=True)
    of = of.ravel()
    return [np.flatnonzero(of == i) for i in range(of.max() + 1)]

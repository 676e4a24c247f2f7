"""What a fit was fitted to, as points; its predictions, as curves with bands."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import numpy as np

from flopwise.errors import FlopwiseError, one_line
from flopwise.laws.backtesting import Backtest
from flopwise.laws.law import Array
from flopwise.laws.plotting.figure import CROWD, short
from flopwise.laws.result import Fit

NO_POINTS = "The fit was read from a file, which does not hold the points: curves over the fitted ranges."

FORMULA = 240
"""Letters of a formula that are shown."""


class Data(NamedTuple):
    """Measured points: variables [n] each, target [n], row of the table less one [n]."""

    x: dict[str, Array]
    y: Array
    rows: Array

    def tips(self, target: str) -> list[str]:
        """What to tell of each: the row, its variables, its target."""
        return [
            f"row {row + 1}: "
            + ", ".join(f"{name} = {short(v[i], 4)}" for name, v in self.x.items())
            + f", {target} = {self.y[i]:.5g}"
            for i, row in enumerate(self.rows)
        ]


def measured(fit: Fit) -> Data | None:
    """The points of a fit; None where it was read from a file.

    Of counts, shares c / n; where the law is one of k alone, pass@k as these counts measure it (Chen et al.
    2021, arXiv 2107.03374, eq. 1), mean over problems, at powers of two.
    """
    problem, names = fit.problem, fit.form.variables
    if problem is None:
        return None
    if not fit.form.from_counts:
        return _thinned(Data({v: problem.x[v] for v in names}, problem.y, np.arange(len(problem.y))))
    n, c = problem.x["n"], problem.x["c"]
    if names == ("k",) and "k" not in problem.x:
        from flopwise.laws.counts import Counts

        counts = Counts.of(n, c)
        k = 2.0 ** np.arange(int(np.log2(n.max())) + 1)
        return Data({"k": k}, np.array([counts.solved_by(v).mean() for v in k]), np.arange(len(k)))
    x = {v: problem.x.get(v, np.ones(len(n))) for v in names}
    return _thinned(Data(x, c / n, np.arange(len(n))))


def same(fit: Fit, test: Backtest) -> None:
    """Raise unless a back-test is of the fit's law and of as many rows."""
    rows = test.trials[0].n + len(test.trials[0].rows)
    if test.law != fit.law or rows != fit.n:
        raise FlopwiseError(
            f"plot: the back-test is of {one_line(test.law, 60)} on {rows} rows, the fit of "
            f"{one_line(fit.law, 60)} on {fit.n}; give the one made from the same table"
        )


def _thinned(data: Data) -> Data:
    step = -(-len(data.y) // CROWD)
    return Data({v: a[::step] for v, a in data.x.items()}, data.y[::step], data.rows[::step])


def thinned_note(fit: Fit, data: Data | None) -> str:
    """That not all points are drawn."""
    if data is None or fit.form.from_counts or len(data.y) >= fit.n:
        return ""
    return f"{len(data.y)} of {fit.n} points are drawn, evenly over the table."


def grid(low: float, high: float, log: bool, n: int = 160) -> Array:
    """Values for a curve, evenly on the axis they are drawn on."""
    return np.geomspace(low, high, n) if log else np.linspace(low, high, n)


def reach(fit: Fit, name: str, log: bool, to: float | None, far: float) -> tuple[float, str]:
    """How far to draw a variable, and why no farther than the data where the law is not to be believed."""
    low, high = fit.ranges[name]
    if to is not None:
        if not (np.isfinite(to) and to > low):
            raise FlopwiseError(f"plot: to is {to}, must be a number above {low:g}, the smallest {name}")
        return float(to), ""
    if fit.form.unready and (reason := fit.form.unready(fit.params, fit.ranges)):
        return high, f"Not extrapolated: {reason}."
    if high <= 1:
        return high, ""
    return (high * far if log else high + 0.25 * (high - low)), ""


def about(fit: Fit, extra: str = "") -> str:
    """The law and how well it is known, for the line under the title."""
    # Parameters that were held stand in the formula with all their digits.
    formula = re.sub(r"\d+\.\d{4,}", lambda m: f"{float(m[0]):.4g}", fit.form.formula)
    text = one_line(formula, FORMULA) + ("…" if len(formula) > FORMULA else "")
    if fit.law != fit.form.formula:
        text = f"{one_line(fit.law, 60)}: {text}"
    return f"{text}. {extra}".strip()


def level_of(options: dict[str, Any]) -> float:
    """The option `level`, checked."""
    level = options.pop("level", 0.95)
    if not (isinstance(level, int | float) and 0 < level < 1):
        raise FlopwiseError(f"plot: level is {level}, must be between 0 and 1, as 0.95")
    return float(level)

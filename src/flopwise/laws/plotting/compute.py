"""Figures of compute: loss along budgets, the compute-optimal frontier, forecasts of coverage."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flopwise.errors import FlopwiseError
from flopwise.laws.counts import Counts
from flopwise.laws.coverage import Forecast
from flopwise.laws.isoflop import group
from flopwise.laws.law import Array
from flopwise.laws.plotting.figure import (
    BLUE,
    INK,
    VERMILLION,
    Band,
    Bars,
    Figure,
    Line,
    Mark,
    Panel,
    Points,
    Rule,
    Shade,
    axis,
    labelled,
    ramps,
    short,
)  # fmt: skip
from flopwise.laws.plotting.points import NO_POINTS, about, measured
from flopwise.laws.result import Fit

BUDGETS = 8
"""Budgets drawn, at most."""
FRONTIER = 15
"""Budgets that the frontier is computed at."""
TOLERANCE = 0.1
"""Runs within this share of C are one budget."""


def _in_n_and_d(fit: Fit, kind: str) -> None:
    if fit.form.variables != ("N", "D"):
        raise FlopwiseError(
            f"plot: {kind!r} needs a law in N and D; {fit.law} is one in {', '.join(fit.form.variables)}"
        )


def _given(C: float | Sequence[float]) -> Array:
    values = np.unique(np.atleast_1d(np.asarray(C, dtype=float)))
    if not (len(values) and np.isfinite(values).all() and values.min() > 6):
        raise FlopwiseError(f"plot: C is {str(C)[:60]}, must be FLOPs above 6, one number or several")
    return values


def _span(fit: Fit) -> tuple[float, float]:
    """C = 6 N D of the smallest and largest run that was fitted."""
    if fit.problem is not None:
        C = 6 * fit.problem.x["N"] * fit.problem.x["D"]
        return float(C.min()), float(C.max())
    if support := fit.diagnostics.get("support", {}).get("C"):
        return float(support[0]), float(support[1])
    (n0, n1), (d0, d1) = fit.ranges["N"], fit.ranges["D"]
    return 6 * n0 * d0, 6 * n1 * d1


def isoflop(fit: Fit, level: float, C: float | Sequence[float] | None = None) -> Figure:
    """Loss against size at budgets C = 6 N D (those that were run, or some given), minima joined.

    Bars: intervals of the best size (`Fit.optimal`). Points lie within a tenth of their budget.
    """
    _in_n_and_d(fit, "isoflop")
    data = measured(fit)
    spent = np.zeros(0) if data is None else 6 * data.x["N"] * data.x["D"]
    if C is not None:
        budgets = _given(C)
    else:
        groups = [g for g in group(spent, TOLERANCE) if len(g) >= 3] if len(spent) else []
        if groups and sum(map(len, groups)) > len(spent) / 2:
            budgets = np.array([np.exp(np.log(spent[g]).mean()) for g in groups])
        else:
            budgets = np.geomspace(*_span(fit), 6)
        if len(budgets) > BUDGETS:
            budgets = budgets[np.linspace(0, len(budgets) - 1, BUDGETS).round().astype(int)]
    best = [fit.optimal(float(c), level=level) for c in budgets]
    under: list[Mark] = []
    over: list[Mark] = []
    xs, ys = [], []
    for c, at, colour in zip(budgets, best, ramps(budgets), strict=True):
        near = np.flatnonzero(np.abs(np.log(spent / c)) < np.log(1 + TOLERANCE))
        sizes = [at.N / 12, at.N * 12] if data is None or not len(near) else data.x["N"][near]
        N = np.geomspace(min(np.min(sizes), at.N / 3) / 1.2, max(np.max(sizes), at.N * 3) * 1.2, 120)
        p = fit.predict(level=level, N=N, D=c / (6 * N))
        under += [Band(N, p.low, p.high, colour, opacity=0.1)]
        over.append(Line(N, p.value, colour, short(c, 2)))
        xs.append(N)
        ys.append(p.value)
        if data is not None and len(near):
            tips = data.tips(fit.form.target)
            over.append(Points(data.x["N"][near], data.y[near], colour, tips=[tips[i] for i in near]))
            ys.append(data.y[near])
    N = np.array([b.N for b in best])
    loss = np.array([b.loss for b in best])
    low, high = np.array([b.intervals["N"] for b in best]).T
    over += [
        Line(N, loss, INK, dashed=True, width=1.2),
        Bars(N, loss, low, high, INK, "", sideways=True),
        Points(
            N, loss, INK, "best size, with interval", "diamond",
            tips=[f"C = {short(b.C, 3)}: N = {b.N:.4g}, D = {b.D:.4g}" for b in best],
        ),
    ]  # fmt: skip
    out = Figure(
        "Loss against size at fixed compute",
        about(fit, f"Bars: {level:.0%} of the best size; shaded: {level:.0%} for a single run."),
        [Panel(
            axis(np.concatenate([*xs, low, high]), labelled(fit.form, "N"), True),
            axis(np.concatenate(ys), labelled(fit.form, fit.form.target), True), under + over,
        )],
        legend_title="C = 6 N D (FLOP)",
    )  # fmt: skip
    if data is None:
        out.notes.append(NO_POINTS)
    return out


def frontier(fit: Fit, level: float, C: float | Sequence[float] | None = None) -> Figure:
    """The best N and D at each budget, with intervals; C: the budgets, else from the runs to 10 times."""
    _in_n_and_d(fit, "frontier")
    low, high = _span(fit)
    budgets = np.geomspace(low, 10 * high, FRONTIER) if C is None else _given(C)
    best = [fit.optimal(float(c), level=level) for c in budgets]
    panels = []
    for name in ("N", "D"):
        y = np.array([getattr(b, name) for b in best])
        ends = np.array([b.intervals[name] for b in best]).T
        slope = f", grows as C^{np.polyfit(np.log(budgets), np.log(y), 1)[0]:.2f}" if len(y) > 1 else ""
        marks: list[Mark] = [
            Shade(low, high, "fitted range"),
            Band(budgets, ends[0], ends[1], BLUE, f"{level:.0%}", 0.2),
            Line(budgets, y, BLUE, "compute-optimal"),
        ]
        if len(y) <= 3:
            marks.append(Bars(budgets, y, ends[0], ends[1], BLUE))
        marks.append(Points(budgets, y, BLUE))
        panels.append(
            Panel(
                axis(budgets, "C = 6 N D (FLOP)", True, n=5),
                axis(y, labelled(fit.form, name), True, soft=ends),
                marks,
                f"{name}*{slope}",
            )
        )
    return Figure(
        "Compute-optimal parameters and training tokens",
        about(fit, f"Shaded: {level:.0%} from the fit's uncertainty, if the form holds."), panels, 2,
    )  # fmt: skip


def coverage(made: Forecast, samples: Counts | None = None) -> Figure:
    """pass@k: measured as far as samples go, forecast with its interval beyond."""
    k = np.array([p.k for p in made.points], dtype=float)
    value, low, high = (
        np.array([getattr(p, name) for p in made.points]) for name in ("value", "low", "high")
    )
    known = np.array([p.measured for p in made.points])
    marks: list[Mark] = [Rule(float(made.n), True, f"{made.n} samples a problem drawn")]
    marks.append(Band(k, low, high, BLUE, f"{made.level:.0%} for {made.over} problems", 0.18))
    # The dashes start at the last measured point, so that the curve is one.
    last = int(np.flatnonzero(known)[-1]) if known.any() else 0
    if known.sum() > 1:
        marks.append(Line(k[known], value[known], BLUE, "measured"))
    if not known.all():
        marks.append(Line(k[last:], value[last:], BLUE, f"forecast ({made.form})", dashed=True))
    marks.append(Points(k, value, BLUE))
    if samples is not None:
        at = 2.0 ** np.arange(int(np.log2(samples.n.max())) + 1)
        seen = np.array([samples.solved_by(v).mean() for v in at])
        marks.append(Points(at, seen, VERMILLION, "measured afterwards", "diamond", hollow=True))
        k, value = np.concatenate([k, at]), np.concatenate([value, seen])
    panel = Panel(
        axis(k, "k (samples per problem)", True),
        axis(value, "pass@k", False, soft=np.append(low, high), percent=True),
        marks,
    )  # fmt: skip
    return Figure(
        "Coverage: problems solved by at least one of k samples",
        f"{made.problems} problems, {made.solved} solved in the samples drawn. At k = {short(made.k)}: "
        f"{made.value:.1%}, {made.low:.1%} to {made.high:.1%}.", [panel],
    )  # fmt: skip

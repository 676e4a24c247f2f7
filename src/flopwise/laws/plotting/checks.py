"""Figures that question a fit: residuals, profiles, and the errors of a back-test."""

from __future__ import annotations

from typing import Any

import numpy as np

from flopwise.errors import FlopwiseError, one_line
from flopwise.laws.backtesting import Backtest
from flopwise.laws.fitting import MOST
from flopwise.laws.law import Array
from flopwise.laws.plotting.figure import (
    BLUE,
    GREY,
    INK,
    VERMILLION,
    Axis,
    Figure,
    Line,
    Mark,
    Note,
    Panel,
    Points,
    Rule,
    axis,
    in_columns,
    labelled,
    percentage,
    ramps,
    short,
    wide,
)  # fmt: skip
from flopwise.laws.plotting.points import Data, measured, same, thinned_note
from flopwise.laws.result import Fit
from flopwise.laws.uncertainty import robust_scale

OUTLIER = 4.5
"""Robust standard deviations from which on a point is labelled."""
LABELS = 6
LEVELS = (0.9, 0.95)
"""That a profile has lines for."""
HIGH = 2.2
"""How far up a profile is drawn, in heights of the 95% line."""


def predicted(fit: Fit, data: Data) -> Array:
    """The law at each point [n]."""
    variables: dict[str, Any] = dict(data.x)
    return np.asarray(fit.predict(**variables).value)


def relative(fit: Fit, data: Data) -> Array:
    """Predicted over measured, less 1, as back-tests count it; on a plain scale predicted less measured."""
    value = predicted(fit, data)
    return value / data.y - 1 if fit.scale == "log" else value - data.y


def residuals(fit: Fit, backtest: Backtest | None = None) -> Figure:
    """Residuals against each variable and against what is predicted; rows of outliers are named.

    Lines are at two robust standard deviations. Rows that a back-test of the same table held out are shown
    with the errors made there too.
    """
    data = measured(fit)
    if data is None:
        raise FlopwiseError(
            "plot: the fit was read from a file, which does not hold the points; fit the table again to see "
            "residuals"
        )
    percent, r = fit.scale == "log", relative(fit, data)
    # As `robust_scale` of the residuals that were fitted, in the units drawn.
    sigma = robust_scale(r, len(fit.params))
    value = predicted(fit, data)
    tips = [f"{tip}; {_size(e, percent)}" for tip, e in zip(data.tips(fit.form.target), r, strict=True)]
    far = np.flatnonzero(np.abs(r) > OUTLIER * sigma) if sigma > 0 and fit.n < MOST else np.zeros(0, int)
    far = far[np.argsort(-np.abs(r[far]))][:LABELS]
    held, errors = np.zeros(0, dtype=int), np.zeros(0)
    if backtest is not None:
        same(fit, backtest)
        trial = backtest.trials[0]
        place = {int(row): i for i, row in enumerate(data.rows)}
        kept = [i for i, row in enumerate(trial.rows) if int(row) in place]
        held = np.array([place[int(trial.rows[i])] for i in kept], dtype=int)
        errors = trial.errors[kept] if percent else trial.errors[kept] * data.y[held]
    what = "predicted / measured − 1" if percent else f"predicted − measured {fit.form.target}"
    upright = axis(
        np.concatenate([r, errors, [2.2 * sigma, -2.2 * sigma]]), what, False, percent=percent
    )  # fmt: skip
    panels = []
    for name, x in [*data.x.items(), ("", value)]:
        log = wide(x) if name else percent and float(x.min()) > 0
        marks: list[Mark] = [Rule(0.0, colour=INK, dashed=False)]
        marks += [Rule(s * 2 * sigma, colour=GREY) for s in (-1, 1)]
        marks.append(Points(x, r, BLUE, "fitted", tips=tips))
        if len(held):
            marks.append(
                Points(x[held], errors, VERMILLION, "the same rows while held out", "diamond", hollow=True)
            )
        across = axis(x, labelled(fit.form, name) if name else f"predicted {fit.form.target}", log, n=5)
        marks += _rows(x[far], r[far], data.rows[far], across, upright)
        panels.append(Panel(across, upright, marks))
    columns = min(len(panels), 3)
    out = Figure(
        f"Residuals of {one_line(fit.law, 60)}",
        f"Dashed: two robust standard deviations, {_size(2 * sigma, percent).lstrip('+')}.",
        in_columns(panels, columns), columns,
    )  # fmt: skip
    if len(far):
        out.notes.append(f"Labelled: beyond {OUTLIER:g}.")
    if more := thinned_note(fit, data):
        out.notes.append(more)
    return out


def _rows(x: Array, r: Array, rows: Array, across: Axis, upright: Axis) -> list[Mark]:
    """Row numbers beside points; of points too close for a label each, in one."""
    at = [np.array([a.share(float(v)) for v in values]) for values, a in ((x, across), (r, upright))]
    out: list[Mark] = []
    left = list(np.argsort(-at[1]))
    while left:
        first = left[0]
        close = [
            i for i in left if abs(at[0][i] - at[0][first]) < 0.12 and abs(at[1][i] - at[1][first]) < 0.07
        ]
        left = [i for i in left if i not in close]
        numbers = ", ".join(str(n + 1) for n in sorted(int(rows[i]) for i in close))
        out.append(Note(float(x[first]), float(r[first]), f"row{'s' if len(close) > 1 else ''} {numbers}"))
    return out


def _size(value: float, percent: bool) -> str:
    return f"{value:+.2%}" if percent else f"{value:+.3g}"


def profiles(fit: Fit) -> Figure:
    """How far the objective rises as a parameter leaves its fitted value, all others following.

    The rise is scaled so that it passes the square of Student's t at the ends of an interval
    (`flopwise.laws.profile`); a curve that never gets there leaves the parameter open.
    """
    panels = []
    for p in fit.form.parameters:
        made = fit.profile(p.name)
        if made is None:
            raise FlopwiseError(
                "plot: this file of a fit holds no profiles; fit the table again, with --intervals profile"
            )
        t = {level: fit.t(level, p.name) for level in LEVELS}
        top = t[0.95] ** 2
        low, high = made.interval(t[0.95])
        below, above = made.open_ends(t[0.95])
        fine = np.unique(np.concatenate([np.linspace(made.values[0], made.values[-1], 400), made.values]))
        rise = np.interp(fine, made.values, made.z) ** 2
        best = float(made.values[np.argmin(np.abs(made.z))])
        first, last = (_end(fine, rise, best, HIGH * top, side) for side in (-1, 1))
        seen = (fine >= first) & (fine <= last)
        fine, rise = fine[seen], rise[seen]
        dots = (made.values >= fine[0]) & (made.values <= fine[-1])
        back = np.exp if p.log else np.asarray
        x = back(fine)
        log = p.log and wide(x)
        ends = [float(x[0] if below else back(low)), float(x[-1] if above else back(high))]
        marks: list[Mark] = [
            Rule(level_t**2, text=f"{level:.0%}", colour=GREY) for level, level_t in t.items()
        ]
        marks += [
            Line(x, rise, BLUE),
            Points(back(made.values[dots]), made.z[dots] ** 2, BLUE, "refitted there"),
            Line(np.array(ends), np.zeros(2), VERMILLION, "95% interval", width=4.0),
            Points(np.array([fit.params[p.name]]), np.zeros(1), VERMILLION, "fitted", "diamond"),
        ]
        across = axis(x, "", log, n=4)
        said = " and ".join(w for w, is_open in (("below", below), ("above", above)) if is_open)
        panels.append(
            Panel(
                across,
                axis([0.0, HIGH * top], "rise of the objective, z²", False, n=5),
                marks,
                f"{one_line(p.name, 30)} = {fit.params[p.name]:.4g}" + (f" (open {said})" if said else ""),
            )
        )
    open_too = any("open" in panel.title for panel in panels)
    return Figure(
        f"Profiles of {one_line(fit.law, 60)}",
        "How much worse the best fit gets as one parameter is held elsewhere."
        + (" Open: no value on that side is ruled out; the bar ends where the search did." * open_too),
        in_columns(panels, min(len(panels), 3)), min(len(panels), 3),
    )  # fmt: skip


def _end(x: Array, rise: Array, at: float, limit: float, side: int) -> float:
    """Where, on a side of `at`, the rise first passes a limit; the last value if nowhere."""
    there = x[(side * (x - at) > 0) & (rise > limit)]
    if not len(there):
        return float(x[-1] if side > 0 else x[0])
    return float(there.min() if side > 0 else there.max())


def errors(test: Backtest) -> Figure:
    """Errors of held-out rows against how far beyond the fitted ones they lie, by threshold."""
    marks: list[Mark] = [Rule(0.0, colour=INK, dashed=False)]
    every = np.concatenate([t.errors for t in test.trials])
    distance = np.concatenate([t.distance for t in test.trials])
    colours = ramps(np.arange(len(test.trials)))
    # Many points from few rows go below few points from many.
    for t, colour in zip(test.trials[::-1], colours[::-1], strict=True):
        tips = [
            f"row {row + 1}: {d:.3g} times beyond, {_size(e, True)}, {'in' if i else 'out'}side its interval"
            for row, d, e, i in zip(t.rows, t.distance, t.errors, t.inside, strict=True)
        ]
        label = f"{short(t.threshold, 3)}: {t.n} rows, rms {t.rms:.2%}"
        for kept, shape in ((t.inside, "circle"), (~t.inside, "cross")):
            i = np.flatnonzero(kept)
            marks.append(
                Points(
                    t.distance[i],
                    t.errors[i],
                    colour,
                    label if shape == "circle" else "",
                    shape,
                    tips=[tips[j] for j in i],
                )
            )
    # A few absurd predictions, from too few rows, must not flatten all others.
    limit = 3 * float(np.quantile(np.abs(every), 0.9))
    beyond = int((np.abs(every) > limit).sum()) if np.abs(every).max() > 2 * limit else 0
    shown = every[np.abs(every) <= limit] if beyond else every
    panel = Panel(
        axis(distance, f"{test.by} over the largest that was fitted", bool(distance.min() > 0)),
        axis(np.append(shown, 0.0), "predicted / measured − 1", False, percent=True), marks,
    )  # fmt: skip
    inside = sum(int(t.inside.sum()) for t in test.trials)
    out = Figure(
        f"Error against distance: {one_line(test.law, 60)}",
        f"Fitted to the smaller runs, the larger ones predicted. {inside} of {len(every)} lie inside their "
        f"95% intervals ({percentage(round(inside / len(every), 3))}); crosses lie outside.",
        [panel], legend_title=f"fitted up to {test.by} =",
    )  # fmt: skip
    if beyond:
        out.notes.append(f"{beyond} lie beyond the axis, up to {every[np.argmax(np.abs(every))]:+.0%}.")
    if test.skipped:
        out.notes.append(f"{len(test.skipped)} lower thresholds could not be fitted.")
    return out

"""The figure of a fit itself: points, curves and bands; held-out rows where a back-test is given."""

from __future__ import annotations

import numpy as np

from flopwise.errors import FlopwiseError
from flopwise.laws.backtesting import Backtest
from flopwise.laws.law import Array
from flopwise.laws.plotting.figure import (
    BLUE,
    GREY,
    INK,
    VERMILLION,
    Band,
    Figure,
    Line,
    Mark,
    Panel,
    Points,
    Shade,
    axis,
    capital,
    in_columns,
    labelled,
    noun,
    ramp,
    ramps,
    short,
    wide,
)  # fmt: skip
from flopwise.laws.plotting.points import NO_POINTS, Data, about, grid, measured, reach, thinned_note
from flopwise.laws.result import Fit

CURVES = 6
"""Curves of a law in two variables, at most."""
SAME = 0.02
"""Values of a variable within this share are one for counting how many there are."""


def figure(fit: Fit, level: float, to: float | None = None, backtest: Backtest | None = None) -> Figure:
    """One variable: points, curve, bands. Two: a curve for each of up to six values of the other.

    More: predicted against measured; without points, the law along each variable with the others in the
    middle of their ranges. With `backtest`, curves are those of its fit to the smaller runs, and the rows it
    held out are hollow.
    """
    data, shown = measured(fit), fit
    held = np.zeros(0, dtype=bool)
    if data is not None and backtest is not None:
        if backtest.law != fit.law or int(backtest.trials[0].rows.max()) >= fit.n:
            raise FlopwiseError(
                f"plot: the back-test is of {backtest.law} with other rows than this fit of {fit.law}; give "
                f"the one made from the same table"
            )
        held, shown = np.isin(data.rows, backtest.trials[0].rows), backtest.fit
    names = fit.form.variables
    if len(names) == 1:
        out = _one(shown, data, held, level, to)
    elif len(names) == 2:
        out = _two(shown, data, held, level, to)
    elif data is not None:
        out = _against_measured(shown, data, held, level)
    else:
        out = _along_each(shown, level)
    if data is None:
        out.notes.append(NO_POINTS)
    elif len(held):
        trial = backtest.trials[0] if backtest is not None else None
        assert trial is not None
        out.notes.append(
            f"Fitted to the {trial.n} filled points; the {len(trial.rows)} hollow ones were held out."
        )
    if more := thinned_note(fit, data):
        out.notes.append(more)
    return out


def _bands(level: float, run: bool) -> str:
    return (
        f"Shaded: {level:.0%} for a single run (light) and for the law itself (dark)."
        if run
        else f"Shaded: {level:.0%} for a single run."
    )


def _scatter(data: Data | None, held: Array, colours: list[str], target: str, label: str) -> list[Mark]:
    """Fitted points filled, held-out ones hollow."""
    if data is None:
        return []
    out: list[Mark] = []
    x, tips = next(iter(data.x.values())), data.tips(target)
    held = held if len(held) else np.zeros(len(data.y), dtype=bool)
    for kept, hollow, text in ((~held, False, label), (held, True, "held out")):
        i = np.flatnonzero(kept)
        if len(i):
            out.append(
                Points(
                    x[i],
                    data.y[i],
                    [colours[j] for j in i],
                    text,
                    "diamond" if hollow else "circle",
                    hollow,
                    [tips[j] for j in i],
                )
            )
    return out


def _one(fit: Fit, data: Data | None, held: Array, level: float, to: float | None) -> Figure:
    (name,), target = fit.form.variables, fit.form.target
    low, high = fit.ranges[name]
    log = wide(np.array([low, high]) if data is None else data.x[name])
    if log and data is not None:
        low = min(low, float(data.x[name].min()))
    end, why = reach(fit, name, log, to, 3.0)
    if data is not None and to is None:
        end = max(end, float(data.x[name].max())) if not why else end
    x = grid(low, end, log)
    p = fit.predict(level=level, **{name: x})
    marks: list[Mark] = [
        Shade(*fit.ranges[name], "fitted range"),
        Band(x, p.low, p.high, BLUE, f"{level:.0%}, a single run", 0.14),
        Band(x, p.mean_low, p.mean_high, BLUE, f"{level:.0%}, the law", 0.3),
        Line(x, p.value, BLUE, "the law"),
    ]
    points = _scatter(data, held, [INK] * (len(data.y) if data else 0), target, "measured")
    hard = np.concatenate([p.value, data.y if data else []])
    panel = Panel(
        axis(np.concatenate([x, data.x[name] if data else []]), labelled(fit.form, name), log),
        axis(
            hard, labelled(fit.form, target), fit.scale == "log" and float(hard.min()) > 0,
            soft=np.concatenate([p.low, p.high]),
        ),
        marks + points,
    )  # fmt: skip
    out = Figure(f"{capital(noun(target))} against {noun(name)}", about(fit, _bands(level, True)), [panel])
    if why:
        out.notes.append(why)
    return out


def _two(fit: Fit, data: Data | None, held: Array, level: float, to: float | None) -> Figure:
    x_name, by = fit.form.variables
    target = fit.form.target
    if data is not None and len(_different(data.x[by])) > len(_different(data.x[x_name])):
        x_name, by = by, x_name
    values = _values(fit, data, by)
    log = wide(np.array(fit.ranges[x_name]))
    end, why = reach(fit, x_name, log, to, 2.0)
    x = grid(fit.ranges[x_name][0], end, log)
    marks: list[Mark] = []
    hard, soft = [], []
    for value, colour in zip(values, ramps(values), strict=True):
        p = fit.predict(level=level, **{x_name: x, by: np.full(len(x), value)})
        marks.insert(0, Band(x, p.low, p.high, colour, opacity=0.1))
        marks.append(Line(x, p.value, colour, short(float(f"{value:.3g}"))))
        hard.append(p.value)
        soft += [p.low, p.high]
    colours: list[str] = []
    if data is not None:
        data = Data({x_name: data.x[x_name], by: data.x[by]}, data.y, data.rows)
        colours = [ramp(float(s)) for s in _share(data.x[by], values)]
        hard.append(data.y)
    every = np.concatenate(hard)
    xs = x if data is None else np.concatenate([x, data.x[x_name]])
    panel = Panel(
        axis(xs, labelled(fit.form, x_name), log),
        axis(
            every, labelled(fit.form, target), fit.scale == "log" and float(every.min()) > 0,
            soft=np.concatenate(soft),
        ),
        marks + _scatter(data, held, colours, target, ""),
    )  # fmt: skip
    out = Figure(
        f"{capital(noun(target))} against {noun(x_name)} at {len(values)} values of {by}",
        about(fit, _bands(level, False)), [panel], legend_title=labelled(fit.form, by),
    )  # fmt: skip
    if data is not None and len(_different(data.x[by])) > len(values):
        out.notes.append(f"Points have the colour of their {by}, between those of the curves.")
    if why:
        out.notes.append(why)
    return out


def _different(values: Array) -> Array:
    """One value for each group of nearly equal ones, rising."""
    v = np.unique(values)
    gap = np.diff(v) > SAME * np.maximum(np.abs(v[1:]), np.abs(v[:-1]))
    starts = np.concatenate([[0], np.flatnonzero(gap) + 1])
    return np.array([group.mean() for group in np.split(v, starts[1:])])


def _values(fit: Fit, data: Data | None, by: str) -> Array:
    """Which values of the other variable get a curve: all, or six evenly over their ranks."""
    if data is None:
        low, high = fit.ranges[by]
        return grid(low, high, wide(np.array([low, high])), CURVES - 1)
    found = _different(data.x[by])
    if len(found) <= CURVES:
        return found
    v = np.sort(data.x[by])
    return np.unique(v[np.linspace(0.03 * (len(v) - 1), 0.97 * (len(v) - 1), CURVES).round().astype(int)])


def _share(values: Array, curves: Array) -> Array:
    """Where on the ramp of the curves' colours a value lies."""
    log = curves.min() > 0 and values.min() > 0
    v, c = (np.log(values), np.log(curves)) if log else (values, curves)
    return np.interp(v, c, np.linspace(0, 1, len(c)))


def _against_measured(fit: Fit, data: Data, held: Array, level: float) -> Figure:
    target = fit.form.target
    p = fit.predict(level=level, **data.x)
    log = fit.scale == "log"
    both = np.concatenate([p.value, data.y])
    ends = np.array([both.min(), both.max()])
    order = np.argsort(p.value)
    # Measured upright, so that a band around what is predicted is where a single run should lie.
    marks: list[Mark] = [
        Band(p.value[order], p.low[order], p.high[order], BLUE, f"{level:.0%}, a single run", 0.14),
        Line(ends, ends, GREY, "measured as predicted", width=1.2),
    ]
    at = Data({"predicted": p.value}, data.y, data.rows)
    tips = data.tips(target)
    for mark in _scatter(at, held, [VERMILLION if not len(held) else INK] * len(data.y), target, "measured"):
        assert isinstance(mark, Points)
        rows = [int(tip.split()[1].rstrip(":")) for tip in mark.tips]
        place = {int(row) + 1: i for i, row in enumerate(data.rows)}
        told = [f"{tips[place[r]]}; predicted {p.value[place[r]]:.5g}" for r in rows]
        marks.append(Points(mark.x, mark.y, INK, mark.label, mark.shape, mark.hollow, told))
    axes = [
        axis(both, f"{what} {labelled(fit.form, target)}", log and float(both.min()) > 0)
        for what in ("predicted", "measured")
    ]
    return Figure(
        f"{capital(noun(target))}: measured against predicted", about(fit, _bands(level, False)),
        [Panel(axes[0], axes[1], marks)],
    )  # fmt: skip


def _along_each(fit: Fit, level: float) -> Figure:
    names, target = fit.form.variables, fit.form.target
    middle = {v: float(grid(*fit.ranges[v], wide(np.array(fit.ranges[v])), 3)[1]) for v in names}
    panels = []
    for name in names:
        log = wide(np.array(fit.ranges[name]))
        x = grid(*fit.ranges[name], log)
        p = fit.predict(level=level, **(middle | {name: x}))
        panels.append(
            Panel(
                axis(x, labelled(fit.form, name), log, n=4),
                axis(
                    p.value,
                    labelled(fit.form, target),
                    fit.scale == "log" and float(p.value.min()) > 0,
                    soft=np.concatenate([p.low, p.high]),
                ),
                [Band(x, p.low, p.high, BLUE, f"{level:.0%}, a single run", 0.14), Line(x, p.value, BLUE)],
            )
        )
    at = ", ".join(f"{name} = {short(float(f'{v:.3g}'))}" for name, v in middle.items())
    return Figure(
        f"{capital(noun(target))} along each variable", about(fit, f"The others are at {at}."),
        in_columns(panels, 3),
        min(3, len(panels)),
    )  # fmt: skip

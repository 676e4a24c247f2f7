"""The figure of a fit itself: points, curves and bands; held-out rows where a back-test is given."""

from __future__ import annotations

import numpy as np

from flopwise.laws.backtesting import Backtest
from flopwise.laws.law import Array
from flopwise.laws.plotting.figure import (
    BLUE,
    GREY,
    INK,
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
from flopwise.laws.plotting.points import NO_POINTS, Data, about, grid, measured, reach, same, thinned_note
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
    held = np.zeros(0 if data is None else len(data.y), dtype=bool)
    note = NO_POINTS if data is None else ""
    if data is not None and backtest is not None:
        trial = backtest.trials[0]
        same(fit, backtest)
        held, shown = np.isin(data.rows, trial.rows), backtest.fit
        note = f"Fitted to the {trial.n} filled points; the {len(trial.rows)} hollow ones were held out."
    names = fit.form.variables
    if len(names) == 1:
        out = _one(shown, data, held, level, to)
    elif len(names) == 2:
        out = _two(shown, data, held, level, to)
    elif data is not None:
        out = _against_measured(shown, data, held, level)
    else:
        out = _along_each(shown, level)
    out.notes.extend(text for text in (note, thinned_note(fit, data)) if text)
    return out


def _bands(level: float, run: bool) -> str:
    return (
        f"Shaded: {level:.0%} for a single run (light) and for the law itself (dark)."
        if run
        else f"Shaded: {level:.0%} for a single run."
    )


def _scatter(
    x: Array, data: Data, held: Array, colours: list[str], label: str, tips: list[str]
) -> list[Mark]:  # fmt: skip
    """Fitted points filled, held-out ones hollow."""
    out: list[Mark] = []
    for kept, hollow, text in ((~held, False, label), (held, True, "held out")):
        i = np.flatnonzero(kept)
        if len(i):
            shape = "diamond" if hollow else "circle"
            of, told = [colours[j] for j in i], [tips[j] for j in i]
            out.append(Points(x[i], data.y[i], of, text, shape, hollow, told))
    return out


def _one(fit: Fit, data: Data | None, held: Array, level: float, to: float | None) -> Figure:
    (name,), target = fit.form.variables, fit.form.target
    low, high = fit.ranges[name]
    log = wide(np.array([low, high]) if data is None else data.x[name])
    if log and data is not None:
        low = min(low, float(data.x[name].min()))
    end, why = reach(fit, name, log, to, 3.0)
    if data is not None and to is None and not why:
        end = max(end, float(data.x[name].max()))
    x = grid(low, end, log)
    p = fit.predict(level=level, **{name: x})
    marks: list[Mark] = [
        Shade(*fit.ranges[name], "fitted range"),
        Band(x, p.low, p.high, BLUE, f"{level:.0%}, a single run", 0.14),
        Band(x, p.mean_low, p.mean_high, BLUE, f"{level:.0%}, the law", 0.3),
        Line(x, p.value, BLUE, "the law"),
    ]
    if data is not None:
        ink = [INK] * len(data.y)
        marks += _scatter(data.x[name], data, held, ink, "measured", data.tips(target))
    hard = np.concatenate([p.value, data.y if data else []])
    panel = Panel(
        axis(np.concatenate([x, data.x[name] if data else []]), labelled(fit.form, name), log),
        axis(
            hard, labelled(fit.form, target), fit.scale == "log" and float(hard.min()) > 0,
            soft=np.concatenate([p.low, p.high]),
        ),
        marks,
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
    if data is not None and to is None and not why:
        end = max(end, float(data.x[x_name].max()))
    x = grid(fit.ranges[x_name][0], end, log)
    marks: list[Mark] = [Shade(*fit.ranges[x_name])]
    hard, soft = [], []
    for value, colour in zip(values, ramps(values), strict=True):
        p = fit.predict(level=level, **{x_name: x, by: np.full(len(x), value)})
        marks.insert(1, Band(x, p.low, p.high, colour, opacity=0.1))
        marks.append(Line(x, p.value, colour, short(value, 3)))
        hard.append(p.value)
        soft += [p.low, p.high]
    if data is not None:
        colours = [ramp(float(s)) for s in _share(data.x[by], values)]
        marks += _scatter(data.x[x_name], data, held, colours, "", data.tips(target))
        hard.append(data.y)
    every = np.concatenate(hard)
    xs = x if data is None else np.concatenate([x, data.x[x_name]])
    panel = Panel(
        axis(xs, labelled(fit.form, x_name), log),
        axis(
            every, labelled(fit.form, target), fit.scale == "log" and float(every.min()) > 0,
            soft=np.concatenate(soft),
        ),
        marks,
    )  # fmt: skip
    out = Figure(
        f"{capital(noun(target))} against {noun(x_name)} at {len(values)} values of {by}",
        about(fit, f"{_bands(level, False)} Grey: the fitted range."), [panel],
        legend_title=labelled(fit.form, by),
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
    tips = [f"{tip}; predicted {v:.5g}" for tip, v in zip(data.tips(target), p.value, strict=True)]
    marks += _scatter(p.value, data, held, [INK] * len(data.y), "measured", tips)
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
    at = ", ".join(f"{name} = {short(v, 3)}" for name, v in middle.items())
    return Figure(
        f"{capital(noun(target))} along each variable", about(fit, f"The others are at {at}."),
        in_columns(panels, 3),
        min(3, len(panels)),
    )  # fmt: skip

"""Which unfinished runs may be stopped, since their results can no longer matter.

A run's curve so far is carried to its end by a curve law, loss = E + b x^-c, with an interval. In two ways
its end can cease to matter: only the best run of its group counts (a sweep of a setting) and it will not be
that; or the end, wherever it falls in its interval, would move what is to be known by less than a small
share of the interval that is there anyway. The second is a linearised update: what the variance of the aim
falls by once the end is measured and no longer carried. Both are about the runs that are given, one at a
time, and take the curve law for true: a rate that has yet to be decayed ends lower than its curve says, so
compare runs of one schedule only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from flopwise.errors import FlopwiseError, one_line
from flopwise.laws.law import Array
from flopwise.plan.next_belief import BEND, Evidence, knowledge
from flopwise.plan.next_candidates import cost_of
from flopwise.plan.next_design import Option

if TYPE_CHECKING:
    from flopwise.laws.result import Fit

LEVEL = 0.8
"""Of the interval of a final value that is shown."""
SURE = 0.99
"""Of the interval that a run's end must be out of to be no longer the best of its group."""
SMALL = 0.05
"""Share of the interval of what is to be known that a run may move it by and still not matter."""
FEWEST = 5
"""Points of a curve that a law is fitted to."""
EARLY = 0.2
"""Share of a curve that is left out at its beginning, where no curve is a power law yet."""
CURVE = "m2"
FLOOR = 0.002
"""Assumed: what a carried end is uncertain by at least, relative, a tenth of a decade on; a random walk."""


@dataclass(frozen=True)
class Verdict:
    """Of one unfinished run. `reached` and `until`: where it is and where it would end; `final`, `low`,
    `high`: its carried end with an 80% interval; `moves`: by how much of the aim's 95% half-width finishing
    it may move the prediction (95%), NaN where only the group decides; `saves`: FLOPs left to spend on it."""

    run: str
    reached: float
    until: float
    final: float
    low: float
    high: float
    moves: float
    stop: bool
    why: str
    saves: float


@dataclass(frozen=True)
class Stopping:
    """Verdicts on all unfinished runs; `left`: FLOPs yet to be spent, `saved`: of those by stopping."""

    runs: list[Verdict]
    left: float
    saved: float
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self)


@dataclass(frozen=True)
class _Partial:
    """One unfinished run: its rows, where it would end, its end [value, standard error of the logarithm]."""

    name: str
    rows: Array
    until: float
    end: float
    error: float
    why: str = ""


def stopping(
    fit: Fit, partial: Any, *, run: str = "run", along: str | None = None, until: float | str | None = None,
    best_within: Sequence[str] | None = None, at: Mapping[str, Any] | None = None, bend: float = BEND,
    small: float = SMALL,
) -> Stopping:  # fmt: skip
    """Say of every unfinished run whether it may be stopped.

    Args:
        fit: of the finished runs.
        partial: table of the unfinished ones, a row for each evaluation: the law's variables, its target, the
            run's name.
        run: column that names the run.
        along: the variable that grows as a run goes on; D, or the law's only one, without.
        until: where runs end, a number for all or a column (`along` with "_end" without).
        best_within: columns of which only the best run of each combination counts, as ("N", "D_end").
        at: where the law is to be known, as `next_runs` takes it.
        bend: what the form is assumed to err by a decade away from the aim.
        small: share of the aim's half-width that is too little to go on for.

    Raises:
        FlopwiseError: a column is missing, a run is beyond its end.
    """
    from flopwise.plan.next_runs import aims_of
    from flopwise.records.table import numbers, read_table, require

    table = read_table(partial)
    law = fit.form
    along = along or ("D" if "D" in law.variables else law.variables[0])
    who = "next: running"
    require(table, run, f"{who}: to tell runs apart")
    x = {v: numbers(table, v, who) for v in dict.fromkeys((*law.variables, along))}
    y = numbers(table, law.target, who)
    names = np.asarray(table[run]).astype(str)
    if isinstance(until, int | float):
        ends = np.full(len(y), float(until))
    else:
        ends = numbers(table, until or f"{along}_end", f"{who}: where runs end (--until)")
    runs = [_carried(n, np.flatnonzero(names == n), x[along], y, ends) for n in dict.fromkeys(names.tolist())]
    final = {v: np.array([x[v][r.rows[-1]] if v != along else r.until for r in runs]) for v in law.variables}
    moves = _moves(fit, final, runs, aims_of([fit], at), bend)
    lost = _beaten(table, runs, best_within)
    price = cost_of({v: np.append(x[v], final[v]) for v in law.variables}, None, who)
    verdicts = []
    for i, r in enumerate(runs):
        z = _z(LEVEL)
        low, high = r.end * math.exp(-z * r.error), r.end * math.exp(z * r.error)
        saves = float(price[len(y) + i] - price[r.rows[-1]])
        stop, why = False, r.why or "its end may still matter"
        if not r.why and best_within is not None:
            stop = lost[i] != ""
            why = lost[i] or "it may yet be the best of its group"
        elif not r.why and moves[i] < small:
            stop, why = True, f"wherever it ends, the prediction moves by {moves[i]:.1%} of its interval"
        verdicts.append(
            Verdict(r.name, float(x[along][r.rows[-1]]), r.until, r.end, low, high, float(moves[i]), stop,
                    why, saves)
        )  # fmt: skip
    notes = [f"ends are carried by {CURVE}; runs whose rate is yet to be decayed will end lower"]
    return Stopping(verdicts, sum(v.saves for v in verdicts), sum(v.saves for v in verdicts if v.stop), notes)


def _z(level: float) -> float:
    from flopwise.laws.quantiles import ndtri

    return ndtri(0.5 + level / 2)


def _carried(name: str, rows: Array, along: Array, y: Array, ends: Array) -> _Partial:
    """A run's end by its curve so far."""
    from flopwise.laws import fit as fit_law

    rows = rows[np.argsort(along[rows], kind="stable")]
    x, values, until = along[rows], y[rows], float(ends[rows[-1]])
    if x[-1] > until * (1 + 1e-9):
        raise FlopwiseError(
            f"next: run {one_line(name, 40)} is at {x[-1]:.4g}, beyond its end {until:.4g}; "
            "give the end with --until"
        )
    last = float(values[-1])
    late = x >= EARLY * x[-1]
    tenths = 10 * math.log10(until / x[-1]) if until > x[-1] else 0.0
    floor = FLOOR * math.sqrt(tenths)
    try:
        made = fit_law(CURVE, {"x": x[late], "loss": values[late]}, loss="log_squared", intervals="delta")
    except FlopwiseError as e:
        return _Partial(
            name, rows, until, last, math.inf, f"its curve cannot be carried on: {one_line(e, 80)}"
        )
    if late.sum() < FEWEST:
        return _Partial(name, rows, until, last, math.inf, f"{late.sum()} points so far, {FEWEST} are needed")
    p = made.predict(x=until, level=0.68)
    error = float(np.log(p.high / p.low)) / 2 / _z(0.68)
    return _Partial(name, rows, until, float(p.value), float(np.hypot(error, floor)))


def _moves(
    fit: Fit, final: dict[str, Array], runs: list[_Partial], aims: dict[str, Array], bend: float
) -> Array:
    """How far finishing each run may move the aim, in 95% half-widths of it [runs].

    The run is a measurement already, of a noise that its carried end adds; finishing takes that part away.
    """
    m = len(runs)
    start = knowledge([Evidence(fit)], final, aims, [None], bend, 0).beliefs[0]
    out = np.empty(m)
    for i, r in enumerate(runs):
        option = [Option((i,), 1.0, i)]
        own = r.error if fit.scale == "log" else r.error * r.end
        vague = replace(start, noise=replace(start.noise, within=start.noise.within + min(own, 10.0) ** 2))
        now, then = vague.given(option), start.given(option)
        gone = max(now.variance - then.variance, 0.0)
        out[i] = math.sqrt(gone / max(now.variance, 1e-300))
    return out


def _beaten(table: Mapping[str, Any], runs: list[_Partial], within: Sequence[str] | None) -> list[str]:
    """Of each run why it will not be its group's best, or ""."""
    from flopwise.records.table import require

    if within is None:
        return [""] * len(runs)
    for name in within:
        require(table, name, "next: --best-within")
    groups = [tuple(str(np.asarray(table[n])[r.rows[-1]]) for n in within) for r in runs]
    z, out = _z(SURE), []
    for r, group in zip(runs, groups, strict=True):
        rivals = [s for s, g in zip(runs, groups, strict=True) if g == group and s is not r and not s.why]
        best = min(rivals, key=lambda s: s.end * math.exp(z * s.error), default=None)
        sure = best is not None and r.end * math.exp(-z * r.error) > best.end * math.exp(z * best.error)
        out.append(f"{one_line(best.name, 40)} will end lower" if sure and best is not None else "")
    return out

"""A law's only honest judge: fitted to the smaller runs, how well does it predict the larger ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flopwise.errors import FlopwiseError
from flopwise.laws.fitting import fit
from flopwise.laws.law import Array, Law, get, own
from flopwise.laws.result import Fit

LEVELS = 6
"""Thresholds that a back-test is repeated over, at most."""
STEPS = 12
"""Different values of the scale up to which each is a step of its own; more are taken as continuous."""
APART = 10**0.5
"""Between thresholds on a continuous scale: the runs within this factor of the largest are held out first."""
SAME = 1e-6
"""Values of a computed C this close are one: rounding must not split the largest runs."""


@dataclass(frozen=True)
class Trial:
    """One threshold: fitted up to it, everything beyond predicted. Arrays have a place per held-out row."""

    threshold: float
    n: int
    """Rows fitted to."""
    rows: Array
    distance: Array
    """How many times beyond the threshold each row lies."""
    errors: Array
    """Relative: predicted over measured, less 1."""
    inside: Array
    """Whether the row lies in its 95% interval."""
    fit: Fit

    @property
    def rms(self) -> float:
        """Root mean square of the relative errors."""
        return float(np.sqrt(np.mean(np.square(self.errors))))


@dataclass(frozen=True)
class Backtest:
    """How a law fitted to the smaller runs predicts the largest, and how that depends on distance."""

    law: str
    by: str
    held_out: float
    """The largest value of `by`, held out first."""
    trials: list[Trial]
    """The largest held out, then lower thresholds."""
    skipped: list[str] = field(default_factory=list)
    """Thresholds below which the law could not be fitted, and why."""

    @property
    def fit(self) -> Fit:
        """To all but the largest."""
        return self.trials[0].fit

    @property
    def errors(self) -> list[float]:
        """Relative errors of the largest."""
        return [float(e) for e in self.trials[0].errors]

    @property
    def inside(self) -> list[bool]:
        """Whether each of the largest lies in its 95% interval."""
        return [bool(v) for v in self.trials[0].inside]

    @property
    def rms(self) -> float:
        """Root mean square of the relative errors of the largest."""
        return self.trials[0].rms

    @property
    def covered(self) -> float:
        """Share of held-out rows inside their interval, over all thresholds."""
        return float(np.mean(np.concatenate([t.inside for t in self.trials])))

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {
            "law": self.law, "by": self.by, "held_out": self.held_out, "errors": self.errors,
            "inside": self.inside, "rms": self.rms, "covered": self.covered,
            "trials": [
                {
                    "threshold": t.threshold, "fitted_to": t.n, "rows": (t.rows + 1).tolist(),
                    "distance": t.distance.tolist(), "errors": t.errors.tolist(),
                    "inside": t.inside.tolist(), "rms": t.rms,
                }
                for t in self.trials
            ],
            "skipped": self.skipped,
        }  # fmt: skip


def backtest(
    law: str | Law, table: Any, hold_out: str = "largest", by: str = "C", cluster: str | None = None,
    seed: int = 0, target: str | None = None, loss: str = "log_huber", delta: float = 1e-3,
    fixed: Mapping[str, float] | None = None,
) -> Backtest:  # fmt: skip
    """Fit without the rows at the largest value of `by`, predict them; then again from less and less.

    `by` "C" is 6 N D where the table has N and D and no C; a law that knows neither is held out by its first
    variable. `hold_out`: "largest" repeats over up to six thresholds; "largest_only" stops after the first.

    Raises:
        FlopwiseError: there is no such column, one value only, or too few rows remain.
    """
    from flopwise.records.table import read_table

    if not isinstance(by, str):
        raise FlopwiseError(f"backtest: by is {str(by)[:40]}, must be the name of a column")
    if hold_out not in ("largest", "largest_only"):
        raise FlopwiseError(f"backtest: hold_out is {hold_out!r}, must be 'largest' or 'largest_only'")
    columns = read_table(table)
    form = own(law, columns) if isinstance(law, str) and "=" in law else get(law)
    form = form.from_shares() if loss == "binomial" else form
    by, scale = scale_of(columns, by, form)
    if not len(scale):
        raise FlopwiseError("backtest: the table has no rows")
    thresholds = _thresholds(scale)
    if not len(thresholds):
        raise FlopwiseError(
            f"backtest: {by} is {scale.max():.6g} in every row; there is nothing smaller to fit to"
        )
    target = target or form.target
    truth = _truth(form, columns, target)
    trials: list[Trial] = []
    skipped = []
    if hold_out == "largest_only":
        thresholds = thresholds[:1]
    elif len(thresholds) > LEVELS:
        thresholds = thresholds[np.unique(np.linspace(0, len(thresholds) - 1, LEVELS).round().astype(int))]
    for threshold in thresholds:
        kept = scale <= (threshold * (1 + SAME) if threshold > 0 else threshold)
        small = {name: v[kept] for name, v in columns.items()}
        try:
            fitted = fit(
                form, small, loss=loss, delta=delta, cluster=cluster, seed=seed, target=target,
                intervals="delta", fixed=fixed,
            )  # fmt: skip
            trials.append(_trial(fitted, columns, truth, scale, kept, float(threshold)))
        except FlopwiseError as e:
            if not trials:
                raise
            skipped.append(f"up to {by} = {threshold:.4g}: {e}")
            break
    return Backtest(form.name, by, float(scale.max()), trials, skipped)


def _trial(
    fitted: Fit, columns: Mapping[str, Array], truth: Array, scale: Array, kept: Array, threshold: float
) -> Trial:
    from flopwise.records.table import numbers

    held = np.flatnonzero(~kept)
    at: dict[str, Any] = {v: numbers(columns, v, "backtest")[held] for v in fitted.form.variables}
    p = fitted.predict(**at)
    # A measured zero (an accuracy, a reward) is judged by the usual size of what is measured.
    usual = 0.0 if fitted.scale == "log" else 0.1 * float(np.sqrt(np.mean(np.square(truth))))
    size = np.maximum(np.abs(truth[held]), max(usual, 1e-300))
    near = SAME * size  # data without noise leave intervals without width
    return Trial(
        threshold, int(kept.sum()), held, scale[held] / max(threshold, 1e-300),
        (p.value - truth[held]) / size,
        (p.low - near <= truth[held]) & (truth[held] <= p.high + near), fitted,
    )  # fmt: skip


def _truth(form: Law, columns: Mapping[str, Array], target: str) -> Array:
    """What is predicted, as measured; of counts, their share."""
    from flopwise.records.table import numbers

    if form.from_counts and target not in columns:
        if form.variables and not set(form.variables) <= set(columns):
            raise FlopwiseError(
                f"backtest: {form.name} is fitted to counts and predicts {target} at "
                f"{', '.join(form.variables)}; "
                f"for coverage at more samples see `flopwise coverage`"
            )
        return numbers(columns, "c", "backtest") / numbers(columns, "n", "backtest")
    return numbers(columns, target, "backtest")


def _thresholds(scale: Array) -> Array:
    """The largest scale to fit to, then smaller ones; values closer than rounding are one."""
    values = np.unique(scale)
    new = np.append(True, values[1:] > values[:-1] * (1 + SAME) if values[0] > 0 else np.diff(values) > 0)
    steps = np.maximum.reduceat(values, np.flatnonzero(new))
    if len(steps) <= STEPS or steps[0] <= 0 or steps[-1] < APART * steps[0]:
        return steps[:-1][::-1]
    wanted = steps[-1] / APART ** np.arange(1, 2 * LEVELS + 1)
    below = [steps[steps <= w].max() for w in wanted if (steps <= w).any()]
    return np.unique(below)[::-1]


def scale_of(columns: Mapping[str, Array], by: str, form: Law) -> tuple[str, Array]:
    """The column that says how large a run is, and its name."""
    from flopwise.records.table import numbers

    if by == "C" and by not in columns:
        if {"N", "D"} <= set(columns):
            return by, 6 * numbers(columns, "N", "backtest") * numbers(columns, "D", "backtest")
        by = next((v for v in form.variables if v in columns), by)
    return by, numbers(columns, by, "backtest: to hold out by")

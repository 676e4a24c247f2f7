"""Which form to believe: judged by predicting held-out scale, never by how well it fits what it saw."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from flopwise.errors import FlopwiseError
from flopwise.laws.fitting import fit
from flopwise.laws.law import Law, get
from flopwise.laws.result import Fit

SIMPLER = 0.9
"""A form with more parameters must bring the error below this share of the simpler one's to displace it."""


@dataclass(frozen=True)
class Backtest:
    """How a law fitted to the smaller runs predicts the largest. Errors are relative, per held-out point."""

    law: str
    held_out: float
    """The value of `by` that was held out."""
    errors: list[float]
    inside: list[bool]
    """Whether each held-out point lies in its 95% interval."""
    fit: Fit

    @property
    def rms(self) -> float:
        """Root mean square of the relative errors."""
        return float(np.sqrt(np.mean(np.square(self.errors))))

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {
            "law": self.law, "held_out": self.held_out, "errors": self.errors, "inside": self.inside,
            "rms": self.rms,
        }  # fmt: skip


@dataclass(frozen=True)
class Choice:
    """The chosen fit, on all data, with every candidate's trial."""

    fit: Fit
    fits: list[Fit]
    trials: list[Backtest]
    reasons: list[str]

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {
            "chosen": self.fit.law, "reasons": self.reasons, "fits": [f.to_dict() for f in self.fits],
            "trials": [t.to_dict() for t in self.trials],
        }  # fmt: skip


def backtest(
    law: str | Law, table: Any, hold_out: str = "largest", by: str = "C", cluster: str | None = None,
    seed: int = 0,
    target: str | None = None, loss: str = "log_huber", delta: float = 1e-3,
) -> Backtest:  # fmt: skip
    """Fit without the rows at the largest value of `by`, then predict them.

    `by` "C" is 6 N D where the table has N and D and no C.

    Raises:
        FlopwiseError: there is no such column, one value only, or too few rows remain.
    """
    from flopwise.records.table import numbers, read_table

    if hold_out != "largest":
        raise FlopwiseError(f"backtest: hold_out is {hold_out!r}, must be 'largest'")
    form = get(law)
    columns = {str(name): np.asarray(values) for name, values in _mapping(table, read_table).items()}
    if by == "C" and by not in columns and {"N", "D"} <= set(columns):
        columns["C"] = 6 * numbers(columns, "N", "backtest") * numbers(columns, "D", "backtest")
    scale = numbers(columns, by, "backtest: to hold out by")
    # Rounding of a computed C must not split the largest runs.
    held = scale >= scale.max() * (1 - 1e-6)
    if held.all():
        raise FlopwiseError(
            f"backtest: {by} is {scale.max():.6g} in every row; there is nothing smaller to fit to"
        )
    target = target or form.target
    small = {name: values[~held] for name, values in columns.items()}
    fitted = fit(form, small, loss=loss, delta=delta, cluster=cluster, seed=seed, target=target)
    truth = numbers(columns, target, "backtest")[held]
    predicted = fitted.predict(**{v: numbers(columns, v, "backtest")[held] for v in form.variables})
    inside = (predicted.low <= truth) & (truth <= predicted.high)
    errors = (predicted.value - truth) / np.maximum(np.abs(truth), 1e-300)
    return Backtest(form.name, float(scale.max()), errors.tolist(), inside.tolist(), fitted)


def choose(
    table: Any, candidates: Sequence[str], target: str = "loss", cluster: str | None = None, by: str = "N",
    seed: int = 0,
) -> Choice:  # fmt: skip
    """Choose among forms by back-testing on the largest `by`, then fit the chosen one to everything.

    A form with more parameters must predict better by a tenth to displace one with fewer. The chosen fit
    carries its back-test's error as `misfit`: beyond the ladder it will hardly do better.

    Raises:
        FlopwiseError: no candidate can be fitted.
    """
    trials, fits, reasons = [], [], []
    for name in sorted(candidates, key=lambda c: len(get(c).parameters)):
        try:
            trial = backtest(name, table, by=by, cluster=cluster, seed=seed, target=target)
            fits.append(fit(name, table, cluster=cluster, seed=seed, target=target))
            trials.append(trial)
        except FlopwiseError as e:
            reasons.append(f"{name} was left out: {e}")
    if not trials:
        raise FlopwiseError(
            f"choose: no candidate can be fitted; {reasons[0] if reasons else 'none was given'}"
        )
    best = 0
    for i in range(1, len(trials)):
        if trials[i].rms < SIMPLER * trials[best].rms:
            best = i
    trial = trials[best]
    rule = f"a form with more parameters must be better by {1 - SIMPLER:.0%} to displace a simpler one"
    reasons.append(
        f"{trial.law} is chosen: its back-test on the largest {by} errs by {trial.rms:.2%} ({rule})"
    )
    reasons += [f"{t.law}: {t.rms:.2%}" for i, t in enumerate(trials) if i != best]
    return Choice(replace(fits[best], misfit=trial.rms), fits, trials, reasons)


def compare(
    laws: Sequence[str | Law], table: Any, by: str = "C", cluster: str | None = None, seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> list[Backtest]:  # fmt: skip
    """Back-test every form on the largest `by`; best first. One that cannot be fitted: a warning.

    Raises:
        FlopwiseError: none can be fitted; the message says why the first cannot.
    """
    out, reasons = [], []
    for i, law in enumerate(laws, 1):
        form = get(law)
        try:
            out.append(backtest(form, table, by=by, cluster=cluster, seed=seed))
        except FlopwiseError as e:
            reasons.append(f"{form.name} was left out: {e}")
        if progress:
            progress(i / len(laws))
    if not out:
        raise FlopwiseError(f"compare: no law can be fitted; {reasons[0] if reasons else 'none was given'}")
    for reason in reasons:
        warnings.warn(reason, stacklevel=2)
    return sorted(out, key=lambda t: t.rms)


def _mapping(table: Any, read: Any) -> Mapping[str, Any]:
    return table if isinstance(table, Mapping) else read(table)

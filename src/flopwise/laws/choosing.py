"""Which form to believe: judged by predicting held-out scale, never by how well it fits what it saw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from flopwise.errors import FlopwiseError
from flopwise.laws.fitting import Fit, fit
from flopwise.laws.law import get


@dataclass(frozen=True)
class Backtest:
    """How a law fitted to the smaller runs predicts the largest ones. Errors are relative, per held-out point."""

    law: str
    held_out: float
    """The value of `by` that was held out."""
    errors: list[float]
    inside: list[bool]
    fit: Fit

    @property
    def rms(self) -> float:
        """Root mean square of the relative errors."""
        return float(np.sqrt(np.mean(np.square(self.errors))))


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
            "trials": [
                {"law": t.law, "held_out": t.held_out, "errors": t.errors, "inside": t.inside, "rms": t.rms}
                for t in self.trials
            ],
        }  # fmt: skip


def backtest(
    law: str, table: Mapping[str, Any], hold_out: str = "largest", by: str = "C", cluster: str | None = None,
    seed: int = 0, target: str | None = None, loss: str = "log_huber", delta: float = 1e-3,
) -> Backtest:  # fmt: skip
    """Fit without the rows at the largest value of `by`, then predict them.

    Raises:
        FlopwiseError: there is no such column, one value only, or too few rows remain.
    """
    if hold_out != "largest":
        raise FlopwiseError(f"backtest: hold_out is {hold_out!r}, must be 'largest'")
    if by not in table:
        raise FlopwiseError(f"backtest: there is no column {by!r} to hold out by; there are {', '.join(map(str, table))[:200]}")
    form = get(law)
    target = target or form.target
    scale = np.asarray(table[by], dtype=float)
    held = scale == scale.max()
    if held.all():
        raise FlopwiseError(f"backtest: all rows have the same {by}; nothing smaller is left to fit")
    columns = {name: np.asarray(table[name]) for name in table}
    small = {name: values[~held] for name, values in columns.items()}
    fitted = fit(law, small, loss=loss, delta=delta, cluster=cluster, seed=seed, target=target)
    predicted = fitted.predict(**{v: columns[v][held].astype(float) for v in form.variables})
    truth = columns[target][held].astype(float)
    inside = (np.atleast_1d(predicted.low) <= truth) & (truth <= np.atleast_1d(predicted.high))
    return Backtest(law, float(scale.max()), (np.atleast_1d(predicted.value) / truth - 1).tolist(), inside.tolist(), fitted)


def choose(
    table: Mapping[str, Any], candidates: Sequence[str], target: str = "loss", cluster: str | None = None,
    by: str = "N", seed: int = 0,
) -> Choice:  # fmt: skip
    """Choose among forms by back-testing on the largest `by`, then fit the chosen one to everything.

    A form with more parameters must predict better by a tenth to displace one with fewer. The chosen fit's
    scatter is raised to the error its back-test made: beyond the ladder it will hardly do better.

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
        raise FlopwiseError(f"choose: no candidate can be fitted; {reasons[0] if reasons else 'none was given'}")
    best = 0
    for i in range(1, len(trials)):
        if trials[i].rms < 0.9 * trials[best].rms:
            best = i
    trial = trials[best]
    reasons.append(f"{trial.law} predicts the largest {by} best: {trial.rms:.2%} root mean square error")
    reasons += [f"{t.law}: {t.rms:.2%}" for i, t in enumerate(trials) if i != best]
    chosen = replace(fits[best], scatter=max(fits[best].scatter, trial.rms))
    return Choice(chosen, fits, trials, reasons)


def compare(laws: Sequence[str], table: Mapping[str, Any], by: str = "C", cluster: str | None = None, seed: int = 0) -> list[Backtest]:
    """Back-test every form on the largest `by`; best first. Forms that cannot be fitted are left out."""
    out = []
    for law in laws:
        try:
            out.append(backtest(law, table, by=by, cluster=cluster, seed=seed))
        except FlopwiseError:
            continue
    if not out:
        raise FlopwiseError(f"compare: none of {', '.join(laws)} can be fitted to this table")
    return sorted(out, key=lambda t: t.rms)

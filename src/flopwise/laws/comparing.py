"""Which law to believe: judged by predicting held-out scale, never by how well it fits what it saw."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from flopwise.errors import FlopwiseError
from flopwise.laws.backtesting import Backtest, backtest
from flopwise.laws.fitting import fit
from flopwise.laws.law import Law, get, own
from flopwise.laws.result import Fit, Prediction

SIMPLER = 0.9
"""A form with more parameters must bring the error below this share of the simpler one's to displace it."""


@dataclass(frozen=True)
class Choice:
    """The chosen fit, on all data, with every candidate's trial."""

    fit: Fit
    fits: list[Fit]
    trials: list[Backtest]
    reasons: list[str]

    def among(self, allowed: Callable[[Fit], bool]) -> Choice | None:
        """The choice among those of its fits that are allowed, nothing fitted anew; None if there is none."""
        kept = [i for i, made in enumerate(self.fits) if allowed(made)]
        if not kept:
            return None
        by = self.trials[0].by
        return _chosen([self.fits[i] for i in kept], [self.trials[i] for i in kept], [], by)

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {
            "chosen": self.fit.law, "reasons": self.reasons, "fits": [f.to_dict() for f in self.fits],
            "trials": [t.to_dict() for t in self.trials],
        }  # fmt: skip


class Comparison(list[Backtest]):
    """Back-tests of several laws on one table, best first.

    `weights`: of an average of their predictions that errs least on held-out rows (stacking, Breiman 1996),
    by law; `verdict`: which law wins, or that none does.
    """

    weights: dict[str, float]
    verdict: str
    wins: bool
    """Whether one law is clearly better than the next."""

    def predict(self, fits: Sequence[Fit], level: float = 0.95, **variables: Any) -> Prediction:
        """The laws' weighted average at new values; the interval spans those of every law with weight.

        `fits`: of these laws to all the data.
        """
        used = [(self.weights[f.law], f) for f in fits if self.weights.get(f.law, 0.0) > 0.01]
        if not used:
            raise FlopwiseError("predict: none of these fits is of a law that the comparison gives weight")
        w = np.array([v for v, _ in used]) / sum(v for v, _ in used)
        made = [f.predict(level=level, **variables) for _, f in used]
        value = sum(a * np.asarray(p.value) for a, p in zip(w, made, strict=True))
        ends = {
            name: how([getattr(p, name) for p in made], axis=0)
            for name, how in (
                ("low", np.min), ("high", np.max), ("mean_low", np.min), ("mean_high", np.max),
            )
        }  # fmt: skip
        said = tuple(dict.fromkeys(line for p in made for line in p.warnings))
        return Prediction(value, extrapolation=max(p.extrapolation for p in made), warnings=said, **ends)


def choose(
    table: Any, candidates: Sequence[str], target: str = "loss", cluster: str | None = None, by: str = "N",
    seed: int = 0,
) -> Choice:  # fmt: skip
    """Choose among forms by back-testing on the largest `by`, then fit the chosen one to everything.

    `candidates`: names of laws, or formulas as `fit` takes them. A form with more parameters must predict
    better by a tenth to displace one with fewer. The chosen fit carries its back-test's error as `misfit`:
    beyond the ladder it will hardly do better.

    Raises:
        FlopwiseError: no candidate can be fitted.
    """
    from flopwise.records.table import read_table

    table = read_table(table)  # once, for all of them
    trials, fits, reasons = [], [], []
    forms = [own(c, table) if isinstance(c, str) and "=" in c else get(c) for c in _listed(candidates)]
    for form in sorted(forms, key=lambda f: len(f.parameters)):
        try:
            trial = backtest(form, table, "largest_only", by, cluster, seed, target)
            fits.append(fit(form, table, cluster=cluster, seed=seed, target=target, intervals="delta"))
            trials.append(trial)
        except FlopwiseError as e:
            reasons.append(f"{form.name} was left out: {e}")
    if not trials:
        raise FlopwiseError(
            f"choose: no candidate can be fitted; {reasons[0] if reasons else 'none was given'}"
        )
    return _chosen(fits, trials, reasons, by)


def _chosen(fits: list[Fit], trials: list[Backtest], reasons: list[str], by: str) -> Choice:
    """The simplest that none displaces; forms come with fewer parameters first."""
    best = 0
    for i in range(1, len(trials)):
        if trials[i].rms < SIMPLER * trials[best].rms:
            best = i
    trial = trials[best]
    reasons = list(reasons)
    rule = f"a form with more parameters must be better by {1 - SIMPLER:.0%} to displace a simpler one"
    reasons.append(
        f"{trial.law} is chosen: its back-test on the largest {by} errs by {trial.rms:.2%} ({rule})"
    )
    reasons += [f"{t.law}: {t.rms:.2%}" for i, t in enumerate(trials) if i != best]
    return Choice(replace(fits[best], misfit=trial.rms), fits, trials, reasons)


def compare(
    laws: Sequence[str | Law], table: Any, by: str = "C", cluster: str | None = None, seed: int = 0,
    target: str | None = None, progress: Callable[[float], None] | None = None,
) -> Comparison:  # fmt: skip
    """Back-test every form on the largest `by` and on lower thresholds; best first.

    One that cannot be fitted: a warning.

    Raises:
        FlopwiseError: none can be fitted; the message says why the first cannot.
    """
    from flopwise.records.table import read_table

    table = read_table(table)  # once, for all of them
    found, reasons = [], []
    laws = list({str(law) if isinstance(law, str) else law.name: law for law in _listed(laws)}.values())
    for i, law in enumerate(laws, 1):
        name = law if isinstance(law, str) else law.name
        try:
            found.append(backtest(law, table, by=by, cluster=cluster, seed=seed, target=target))
        except FlopwiseError as e:
            reasons.append(f"{name} was left out: {e}")
        if progress:
            progress(i / len(laws))
    if not found:
        raise FlopwiseError(f"compare: no law can be fitted; {reasons[0] if reasons else 'none was given'}")
    for reason in reasons:
        warnings.warn(reason, stacklevel=2)
    out = Comparison(sorted(found, key=lambda t: t.rms))
    out.weights = _stacked(out)
    out.wins, out.verdict = _verdict(out)
    return out


def _listed(laws: Any) -> Sequence[Any]:
    """The laws, if they are a list of names and laws."""
    if (
        isinstance(laws, str)
        or not isinstance(laws, Sequence)
        or not all(isinstance(v, str | Law) for v in laws)
    ):
        raise FlopwiseError(f"laws are {str(laws)[:60]}, must be a list of names, formulas or laws")
    return laws


def _stacked(found: list[Backtest]) -> dict[str, float]:
    """Weights that sum to 1 and make the average of relative errors least, over rows that all laws predicted.

    Every threshold counts by what its best law leaves, however many rows it holds out: one so far below that
    no law reaches says nothing of which to believe.
    """
    from scipy.optimize import nnls

    shared = set.intersection(*({t.threshold for t in b.trials} for b in found))
    rows = []
    for threshold in sorted(shared):
        errors = [next(t.errors for t in b.trials if t.threshold == threshold) for b in found]
        least = min(float(np.sqrt(np.mean(np.square(e)))) for e in errors)
        rows.append(np.stack(errors, axis=1) / np.sqrt(len(errors[0])) / max(least, 1e-9))
    E = np.concatenate(rows)
    E = np.clip(E / max(float(np.abs(E).min(axis=1).max()), 1e-12), -1e6, 1e6)
    # sum w = 1 as a heavy row: min |E w|^2 on the simplex.
    heavy = 1e3 * max(float(np.linalg.norm(E)), 1.0)
    w, _ = nnls(np.vstack([E, np.full(len(found), heavy)]), np.append(np.zeros(len(E)), heavy))
    return {b.law: float(v) for b, v in zip(found, w / w.sum(), strict=True)}


def _verdict(found: list[Backtest]) -> tuple[bool, str]:
    """Whether the first is better than the second by more than the rows' own scatter says."""
    first = found[0]
    if len(found) == 1:
        return (
            True,
            f"{first.law} alone could be fitted; it errs by {first.rms:.2%} on the largest {first.by}",
        )
    second = found[1]
    a, b = (np.square(v.trials[0].errors) for v in (first, second))
    if len(a) <= 2:  # too few to tell; lower thresholds have more to say, each by what the better law leaves
        pairs = [(t, u) for t in first.trials for u in second.trials if t.threshold == u.threshold]
        units = [max(min(t.rms, u.rms), 1e-9) for t, u in pairs]
        a = np.concatenate([np.square(t.errors / unit) for (t, _), unit in zip(pairs, units, strict=True)])
        b = np.concatenate([np.square(u.errors / unit) for (_, u), unit in zip(pairs, units, strict=True)])
    n = len(a)
    gap = float((b - a).mean())
    noise = float((b - a).std(ddof=1) / np.sqrt(n)) if n > 1 else np.inf
    start = f"{first.law} errs by {first.rms:.2%} on the largest {first.by}, {second.law} by {second.rms:.2%}"
    if n > 2 and gap > 2 * noise and first.rms < SIMPLER * second.rms:
        return True, f"{start}: {first.law} wins"
    why = "one or two held-out rows cannot tell" if n <= 2 else "within the scatter of held-out rows"
    return False, f"{start}: no law wins ({why}); average them by their weights, or hold out more"

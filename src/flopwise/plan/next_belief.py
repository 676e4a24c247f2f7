"""From a fit to what is known of its law at candidates and aims (`plan.next_design`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from flopwise.laws.advice import slopes
from flopwise.laws.law import Array
from flopwise.laws.objective import named
from flopwise.laws.uncertainty import invert
from flopwise.plan.next_design import Belief, Knowledge, Noise, Rivalry

if TYPE_CHECKING:
    from flopwise.laws.result import Fit

Columns = dict[str, Array]
DRAWS = 12
"""Parameter sets that a design must be good for, the fit's own first."""
LEAST_NOISE = 1e-4
"""Standard deviation of a run around its law that is assumed at least."""
BEND = 0.002
"""What a form is assumed to err by, a decade away from the aim, for no form is exact: a standard deviation on
the scale of residuals, growing with the square root of decades."""
SEEN = 400
"""Fitted rows that are reckoned with one by one; of more, an even share counts for all."""


@dataclass(frozen=True)
class Evidence:
    """A fit, and which of its rows are of one run [n] (a number each); None: every row is a run of its own.

    `shared`: whether a run yet to be made may give several rows.
    """

    fit: Fit
    groups: Array | None = None
    shared: bool = False

    @property
    def noise(self) -> tuple[float, float]:
        """Variances of a run's noise on the scale of residuals: of each row, and shared by the rows of a run.

        Of few runs the shared part cannot be seen; it is taken to be no less than the other.
        """
        between = float(self.fit.diagnostics.get("noise_between_clusters") or 0.0)
        within = max(float(self.fit.diagnostics.get("noise_within") or self.fit.scatter), LEAST_NOISE)
        clustered = self.shared or self.groups is not None
        return within**2, max(between, within) ** 2 if clustered else between**2

    def noise_of(self, runs: Array) -> Array:
        """Covariance [n, n] of measurements of these runs."""
        within, between = self.noise
        return within * np.eye(len(runs)) + between * (runs[:, None] == runs)

    def information(self, theta: Array) -> Array:
        """Of the fitted runs [k, k] about the parameters, were they `theta`; without the runs, by the
        covariance."""
        fit = self.fit
        if fit.problem is None:
            return np.asarray(np.linalg.pinv(fit.covariance, hermitian=True))
        J = np.nan_to_num(slopes(at(fit, theta), dict(fit.problem.x)))
        within, between = self.noise
        out = J @ J.T / within
        if self.groups is None:
            # Rows of one run, which nobody told apart: they count as so many runs.
            return np.asarray(out * fit.n_clusters / fit.n)
        sums = np.stack([np.bincount(self.groups, row) for row in J])
        size = np.bincount(self.groups)
        return np.asarray(out - (sums * (between / within / (within + size * between))) @ sums.T)

    def spread(self, theta: Array) -> Array:
        """Covariance [k, k] of the parameters, were they `theta`, by the fitted runs and the prior."""
        return invert(self.information(theta) + np.diag(1 / prior(self.fit)))

    def plausible(self, n: int, seed: int) -> Array:
        """Parameters [n, k] as searched that runs and prior leave open: the fit's own, then draws."""
        V = self.spread(self.fit.theta)
        steps = np.random.default_rng(seed).multivariate_normal(
            np.zeros(len(V)), V, size=n - 1, method="eigh", check_valid="ignore"
        )
        return np.concatenate([self.fit.theta[None], within_bounds(self.fit, self.fit.theta + steps)])


def prior(fit: Fit) -> Array:
    """Variance [k] of each searched parameter before any run: starts are two deviations each way."""
    wide = []
    for p in fit.form.parameters:
        low, high = np.log(p.start) if p.log else np.array(p.start)
        wide.append(max((high - low) / 2, 0.5 if p.log else 1e-3))
    return np.square(wide)


def within_bounds(fit: Fit, thetas: Array) -> Array:
    """Parameters as searched, those that are no logarithms held to their bounds."""
    low, high = np.array([(-300.0, 300.0) if p.log else p.bounds for p in fit.form.parameters]).T
    return np.asarray(np.clip(thetas, low, high))


def bends(x: Mapping[str, Array], aims: Mapping[str, Array], bend: float) -> Array:
    """Covariance [n, n] of what a form errs by at rows, when it is right at the aims.

    A random walk away from the middle of the aims along each variable, of `bend` squared a decade.
    """
    n = len(next(iter(x.values())))
    out = np.zeros((n, n))
    for name, values in x.items():
        if (values > 0).all() and (aims[name] > 0).all():
            away = np.log10(values) - np.log10(aims[name]).mean()
            shared = np.minimum(np.abs(away)[:, None], np.abs(away))
            out += bend**2 * np.where(away[:, None] * away > 0, shared, 0.0)
    return out


def belief(
    known: Evidence, rows: Columns, aims: Columns, goal: Array | None = None, bend: float = BEND,
    seed: int = 0,
) -> Belief:  # fmt: skip
    """What a fit knows of candidates and of the law at the aims.

    `rows`, `aims`: columns of the law's variables. `goal` [draws, k]: instead of the law at the aims, a
    quantity that moves by this with the parameters (`plan.next_decision`).
    """
    fit = known.fit
    seen: Columns = {} if fit.problem is None else {v: np.asarray(x) for v, x in fit.problem.x.items()}
    size, m = len(next(iter(seen.values()), np.empty(0))), len(next(iter(rows.values())))
    kept = np.arange(size)[:: max(1, -(-size // SEEN))]
    n = len(kept)
    points = {v: np.concatenate([seen[v][kept], rows[v]]) if n else rows[v] for v in fit.form.variables}
    errs = bends(points, aims, bend)
    noise = known.noise_of(kept if known.groups is None else known.groups[kept])
    if known.groups is None:
        noise = np.eye(n) * known.noise[0] * fit.n / fit.n_clusters
    noise = noise * n / max(size, 1)
    found = []
    for i, theta in enumerate(known.plausible(DRAWS, seed)):
        there = at(fit, theta)
        aim = slopes(there, aims) if goal is None else goal[i][:, None]
        G = np.nan_to_num(np.concatenate([slopes(there, points), aim], axis=1), posinf=0.0, neginf=0.0)
        C = G.T @ (np.diag(prior(fit)) if n else known.spread(theta)) @ G
        C[: n + m, : n + m] += errs
        sides = C[:, :n]
        found.append((C - sides @ np.linalg.solve(sides[:n] + noise, sides.T))[n:, n:])
    covariance = np.array(found)
    return Belief(covariance, covariance.shape[1] - m, Noise(*known.noise))


def knowledge(
    laws: Sequence[Evidence], rows: Columns, aims: Columns, goals: Sequence[Array | None], bend: float,
    seed: int,
) -> Knowledge:  # fmt: skip
    """Of several laws, each as likely as the others."""
    beliefs = [
        belief(known, rows, aims, goal, bend, seed) for known, goal in zip(laws, goals, strict=True)
    ]  # fmt: skip
    rivals = [
        _rivalry(laws[i], laws[j], beliefs[i], beliefs[j], rows, aims, 1 / len(laws) ** 2)
        for i in range(len(laws)) for j in range(i)
        if goals[i] is None
    ]  # fmt: skip
    return Knowledge(tuple(beliefs), (1 / len(laws),) * len(laws), tuple(rivals))


def _rivalry(
    a: Evidence, b: Evidence, of_a: Belief, of_b: Belief, rows: Columns, aims: Columns, chance: float
) -> Rivalry:
    m = len(next(iter(rows.values())))
    return Rivalry(
        apart(a.fit, b.fit, rows), (of_a.covariance[0, :m, :m] + of_b.covariance[0, :m, :m]) / 2,
        Noise(max(of_a.noise.within, of_b.noise.within), max(of_a.noise.between, of_b.noise.between)),
        chance * float(np.square(apart(a.fit, b.fit, aims)).sum()),
    )  # fmt: skip


def apart(a: Fit, b: Fit, x: Columns) -> Array:
    """Difference [n] of two laws' predictions on the scale of residuals."""
    one, two = (f.at(f.theta[None], {v: x[v] for v in f.form.variables})[0] for f in (a, b))
    return np.asarray(np.nan_to_num(one - two))


def at(fit: Fit, theta: Array) -> Fit:
    """The fit with other parameters."""
    return replace(fit, params=named(fit.form, theta))

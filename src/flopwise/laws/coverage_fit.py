"""Fit a form of coverage to counts: the most likely parameters, their covariance, resampled problems."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flopwise.laws.counts import Array, Counts
from flopwise.laws.coverage_forms import Form


@dataclass(frozen=True)
class Fitted:
    """A form at its best parameters z for weighted counts."""

    form: Form
    z: Array
    scores: Array
    """[U, d] gradient of each count's log-likelihood at z."""
    curvature: Array
    """[d, d] negative second derivative of log-likelihood and log-prior."""
    loglik: float
    converged: bool

    @property
    def params(self) -> dict[str, float]:
        """Named parameters."""
        return self.form.params(self.z)

    def covariance(self, weight: Array) -> Array:
        """Robust ("sandwich") covariance [d, d] of z, for counts with weights [U]."""
        spread = (self.scores * weight[:, None]).T @ self.scores
        spread = spread + np.diag([1 / sd**2 for _, sd in self.form.prior])
        inverse = np.linalg.inv(self.curvature)
        return inverse @ spread @ inverse

    def redrawn(self, moved: Array, rng: np.random.Generator) -> Array:
        """Parameters [B, d] on resampled problems, by one Newton step from z.

        Args:
            moved: change of each count's weight in each resample [B, U].
        """
        precision = np.array([1 / sd for _, sd in self.form.prior])
        push = moved @ self.scores + rng.standard_normal((len(moved), len(self.z))) * precision
        low, high = np.array(self.form.bounds).T
        return np.clip(self.z + push @ np.linalg.inv(self.curvature), low, high)


def fit_form(form: Form, units: Counts, weight: Array) -> Fitted:
    """The most likely parameters for counts [U] with weights [U], the weak prior counted in."""
    from scipy.optimize import minimize

    prepared, total = form.prepare(units), float(weight.sum())
    low, high = np.array(form.bounds).T
    mean, sd = np.array(form.prior).T

    def cost(z: Array) -> tuple[float, Array]:
        value, slope = form.loglik(z, prepared)
        away = (z - mean) / sd
        return (away @ away / 2 - weight @ value) / total, (away / sd - weight @ slope) / total

    ends = [
        minimize(
            cost, np.clip(z, low, high), jac=True, method="L-BFGS-B", bounds=form.bounds,
            options={"gtol": 1e-8, "ftol": 1e-15, "maxiter": 300},
        )
        for z in form.starts(units, weight)
    ]  # fmt: skip
    best = min(ends, key=lambda e: float(e.fun))
    z, h = np.clip(best.x, low + 1e-3, high - 1e-3), 1e-4
    bend = np.array([cost(z + h * e)[1] - cost(z - h * e)[1] for e in np.eye(len(z))]) / (2 * h) * total
    values, vectors = np.linalg.eigh((bend + bend.T) / 2)
    # No direction may be flatter than a quarter of what the prior alone makes it: it may bend down far out.
    curvature = (vectors * np.maximum(values, 0.25 / sd.max() ** 2)) @ vectors.T
    value, scores = form.loglik(best.x, prepared)
    slope = cost(best.x)[1]
    free = ~((best.x <= low) & (slope > 0) | (best.x >= high) & (slope < 0))
    converged = bool(np.abs(slope[free]).max(initial=0.0) < 1e-5)
    return Fitted(form, best.x, scores, curvature, float(weight @ value), converged)

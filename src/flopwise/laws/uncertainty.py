"""How sure a fit is: noise between and within runs, the covariance it leaves, and the cluster bootstrap.

Branches of one trunk share its noise, so a ladder has fewer independent pieces of evidence than points. The
noise is split into a part between clusters and a part within (analysis of variance on the linearised law,
Henderson 1953, method 3), and Student's t has the degrees of freedom of the part between: with five trunks,
three of whose freedoms the law uses up, two are left, and intervals are wide because little is known.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from flopwise.laws.law import Array
from flopwise.laws.search import Problem, descend


@dataclass(frozen=True)
class Spread:
    """Covariance of the searched parameters and the scatter of single runs, with their degrees of freedom."""

    covariance: Array
    between: float
    """Standard deviation between clusters, on the law's scale; 0 where none can be seen."""
    within: float
    dof: float
    seen: bool
    """Whether noise between clusters could be told from the law itself."""

    @property
    def scatter(self) -> float:
        """Standard deviation of a new run around the law."""
        return float(np.hypot(self.between, self.within))


def spread(J: Array, r: Array, clusters: Array | None, delta: float) -> Spread:
    """Noise between and within `clusters` [n], from residuals `r` [n] and derivatives `J` [n, k] of a fit."""
    n, k = J.shape
    inverse = _inverse(J)
    rss = float(r @ r)
    pooled = rss / (n - k)
    if clusters is None or len(np.unique(clusters)) == n:
        covariance = pooled * efficiency(delta, np.sqrt(pooled)) * inverse
        return Spread(covariance, 0.0, float(np.sqrt(pooled)), float(n - k), True)
    Z = (clusters[:, None] == np.unique(clusters)).astype(float)
    # Directions in which clusters differ and the law is stiff; those it can follow say nothing of the noise.
    basis = _basis(J)
    u, size, _ = np.linalg.svd(Z - basis @ (basis.T @ Z), full_matrices=False)
    stiff = size**2 > 0.1 * Z.sum(axis=0).max()
    dof_b = int(stiff.sum())
    dof_w = n - basis.shape[1] - dof_b
    between_ss = float(np.square(u[:, stiff].T @ r).sum())
    ms_w = max(rss - between_ss, 0.0) / dof_w if dof_w else 0.0
    if dof_b == 0:
        covariance = pooled * efficiency(delta, np.sqrt(pooled)) * inverse
        return Spread(covariance, 0.0, float(np.sqrt(pooled)), float(n - k), False)
    ms_b = between_ss / dof_b
    # Expected mean square between clusters: within + per * between.
    per = float(np.square(size[stiff]).mean())
    between = max(0.0, (ms_b - ms_w) / per)
    within = ms_w if between else pooled
    carried = inverse @ J.T @ Z
    covariance = within * efficiency(delta, np.sqrt(within)) * inverse + between * carried @ carried.T
    return Spread(covariance, float(np.sqrt(between)), float(np.sqrt(within)), float(dof_b), True)


def efficiency(delta: float, sigma: float) -> float:
    """Variance of a Huber estimate over that of least squares under normal noise, from 1 to pi / 2.

    >>> round(efficiency(1e-9, 1.0), 3), round(efficiency(1.345, 1.0), 3), efficiency(float("inf"), 1.0)
    (1.571, 1.053, 1.0)
    """
    from scipy.special import ndtr

    if sigma == 0 or delta / sigma > 10:
        return 1.0
    c = max(delta / sigma, 1e-6)
    inside = 2 * ndtr(c) - 1
    density = np.exp(-(c**2) / 2) / np.sqrt(2 * np.pi)
    return float((inside - 2 * c * density + 2 * c**2 * ndtr(-c)) / inside**2)


def bootstrap(
    problem: Problem, theta: Array, clusters: Array | None, n: int, seed: int,
    progress: Callable[[float], None] | None = None,
) -> tuple[Array, int]:  # fmt: skip
    """Parameters [m, k] refitted to `n` resamples of whole clusters, and how many did not converge.

    Each starts from the fit `theta`. A resample with too few different points for the law is drawn again;
    refits that did not converge are left out.
    """
    rng = np.random.default_rng(seed)
    labels = np.arange(len(problem.y)) if clusters is None else np.unique(clusters, return_inverse=True)[1]
    members = [np.flatnonzero(labels == g) for g in range(labels.max() + 1)]
    k, out, failed = len(theta), [], 0
    for i in range(n):
        for _ in range(100):
            rows = np.concatenate([members[g] for g in rng.integers(len(members), size=len(members))])
            x = {name: values[rows] for name, values in problem.x.items()}
            if len(np.unique(np.stack(list(x.values())), axis=1).T) >= k:
                break
        end = descend(replace(problem, x=x, y=problem.y[rows]), theta, 300)
        if end.converged:
            out.append(end.theta)
        else:
            failed += 1
        if progress:
            progress((i + 1) / n)
    return np.array(out).reshape(-1, k), failed


def _inverse(J: Array) -> Array:
    """(J'J)^-1 with columns scaled alike; a direction the data do not see gets a huge variance, not none."""
    norms = np.linalg.norm(J, axis=0)
    norms = np.where(norms > 0, norms, 1.0)
    _, s, vt = np.linalg.svd(J / norms, full_matrices=False)
    # A floor of 1e-5 means a variance 1e10 times the best: "not identified", yet sums keep their digits.
    s = np.maximum(s, 1e-5 * s.max())
    return (vt.T / s**2) @ vt / np.outer(norms, norms)


def _basis(A: Array) -> Array:
    """Orthonormal basis of the columns' span."""
    u, s, _ = np.linalg.svd(A / max(float(np.linalg.norm(A, axis=0).max()), 1e-300), full_matrices=False)
    return u[:, s > 1e-8 * max(float(s.max()), 1e-3)]

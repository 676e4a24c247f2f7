"""Other parameter sets that the data allow: the cluster bootstrap, and a Bayesian posterior."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from flopwise.laws.law import Array
from flopwise.laws.objective import Objective
from flopwise.laws.search import descend

AT_ONCE = 1024
"""Bootstrap draws between two reports of progress."""
ELEMENTS = 1 << 22
"""Weights held at a time."""


def bootstrap(
    problem: Objective, theta: Array, lower: Array, upper: Array, clusters: Array | None, n: int, seed: int,
    progress: Callable[[float], None] | None = None,
) -> tuple[Array, int]:  # fmt: skip
    """Parameters [m, k] refitted to `n` resamples of whole clusters, and how many did not converge.

    Each starts from the fit `theta` and is walked down to its own minimum. A resample with too few different
    points for the law is drawn again; refits that did not converge are left out.
    """
    rng = np.random.default_rng(seed)
    size = problem.y.shape[-1]
    labels = np.arange(size) if clusters is None else np.unique(clusters, return_inverse=True)[1]
    G = int(labels.max()) + 1
    places = np.unique(np.stack(list(problem.x.values())), axis=1, return_inverse=True)[1].ravel()
    out, failed = [], 0
    at_once = max(1, min(AT_ONCE, ELEMENTS // size))
    for first in range(0, n, at_once):
        # How often each cluster, then each row, is in a draw: a resample is a set of weights.
        draws = _balanced(rng, G, min(at_once, n - first))
        for _ in range(100):
            poor = np.flatnonzero([len(np.unique(places[w[labels] > 0])) < len(theta) for w in draws])
            if not len(poor):
                break
            draws[poor] = rng.multinomial(G, np.full(G, 1 / G), size=len(poor))
        weights = draws[:, labels].astype(float)
        ends = descend(
            replace(problem, weights=weights), np.tile(theta, (len(weights), 1)), lower, upper, sure=True
        )
        out.append(ends.theta[ends.converged])
        failed += int((~ends.converged).sum())
        if progress:
            progress(min(first + at_once, n) / n)
    return np.concatenate(out), failed


def _balanced(rng: np.random.Generator, clusters: int, draws: int) -> Array:
    """How often each cluster is in each draw [draws, clusters]; all equally often in sum.

    The balanced bootstrap (Davison, Hinkley and Schechtman 1986): the same draws, less noise by chance.
    """
    pool = rng.permutation(np.repeat(np.arange(clusters), draws)).reshape(draws, clusters)
    out = np.zeros((draws, clusters), dtype=np.int64)
    np.add.at(out, (np.arange(draws)[:, None], pool), 1)
    return out


def posterior(
    problem: Objective, theta: Array, covariance: Array, lower: Array, upper: Array, power: Array | float,
    n: int, seed: int, progress: Callable[[float], None] | None = None,
) -> tuple[Array, float]:  # fmt: skip
    """`n` draws from a posterior that is flat within bounds, and the share of proposals accepted.

    The density is exp(-objective / `power`): `power` turns the objective into a likelihood (the variance of
    residuals for squares; 1 for a likelihood). Ensemble sampler with stretch moves (Goodman and Weare 2010),
    which needs no tuning and does not mind how parameters are scaled or trade off; half the walkers move
    together. The first half of the chain is left out.
    """
    rng = np.random.default_rng(seed)
    k = len(theta)
    walkers = max(32, 4 * k) // 2 * 2
    spread = 0.5 * rng.multivariate_normal(np.zeros(k), _tame(covariance), size=walkers, method="eigh")
    state = np.clip(theta + spread, lower, upper)
    rounds = 2 * max(-(-n // walkers), 250)

    def density(at: Array) -> Array:
        outside = ((at < lower) | (at > upper)).any(axis=1)
        return np.where(outside, -np.inf, -problem.cost(np.clip(at, lower, upper)) / power)

    now, kept, accepted = density(state), [], 0
    halves = np.arange(walkers).reshape(2, -1)
    for i in range(rounds):
        for moving, still in (halves, halves[::-1]):
            z = (1 + rng.random(len(moving))) ** 2 / 2  # density of stretches: 1 / sqrt(z) on (1/2, 2)
            partner = state[rng.choice(still, len(moving))]
            ahead = partner + z[:, None] * (state[moving] - partner)
            then = density(ahead)
            take = np.log(rng.random(len(moving))) < (k - 1) * np.log(z) + then - now[moving]
            state[moving[take]], now[moving[take]] = ahead[take], then[take]
            accepted += int(take.sum())
        if i >= rounds // 2:
            kept.append(state.copy())
        if progress:
            progress((i + 1) / rounds)
    drawn = np.concatenate(kept)
    return drawn[rng.choice(len(drawn), n, replace=len(drawn) < n)], accepted / (rounds * walkers)


def _tame(covariance: Array) -> Array:
    """Without the huge variances of directions that the data do not see."""
    deviation = np.sqrt(np.maximum(np.diag(covariance), 1e-300))
    scale = np.minimum(1.0, 2.0 / deviation)
    return covariance * np.outer(scale, scale)

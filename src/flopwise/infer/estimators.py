"""Exact estimators over subsets of n samples, pass@k and best-of-k (`votes` has majority), and intervals.

All take arrays [problems, n]. What a strategy would do with k of the n samples is averaged over all subsets
of size k, so every sample counts and nothing is biased. Problems are the units of every standard error and
interval: samples of one problem are alike.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from flopwise.infer.votes import cast_votes, majority_at_k

__all__ = [
    "best_of_k", "cast_votes", "intervals", "majority_at_k", "mean_interval", "paired", "pass_at_k",
    "pass_at_k_counts", "resampled_means",
]  # fmt: skip

DRAWS = 2000
"""Resamples of problems behind an interval."""


def pass_at_k(correct: np.ndarray, k: int) -> np.ndarray:
    """Chance per problem [problems] that k samples without replacement hold a right one. NaN where k > n.

    >>> pass_at_k(np.array([[1, 0, 0, 0]]), 2).round(9).tolist()
    [0.5]
    """
    correct = np.asarray(correct)
    return pass_at_k_counts(np.full(len(correct), correct.shape[1]), correct.sum(axis=1), k)


def pass_at_k_counts(n: np.ndarray, c: np.ndarray, k: int) -> np.ndarray:
    """The same from the samples n and the right ones c of each problem.

    1 - C(n - c, k) / C(n, k): Chen et al. 2021, arXiv 2107.03374, eq. 1.
    """
    from flopwise.laws.counts import Counts

    return np.where(k > np.asarray(n), np.nan, Counts.of(n, c).pass_at(k))


def best_of_k(correct: np.ndarray, score: np.ndarray, k: int) -> np.ndarray:
    """Chance per problem that the highest-scored of k samples is right. NaN where k > n.

    Ties are broken at random; a sample without a score (NaN) ranks last. The sample at rank r (from the
    worst, 0) is the best of a subset with chance C(r, k - 1) / C(n, k); ties share their chances.

    >>> best_of_k(np.array([[1, 0, 0]]), np.array([[0.9, 0.5, 0.1]]), 2).round(3).tolist()
    [0.667]
    """
    from scipy.special import gammaln

    correct, score = np.asarray(correct, dtype=float), np.asarray(score, dtype=float)
    P, n = correct.shape
    if k > n:
        return np.full(P, np.nan)
    score = np.where(np.isnan(score), -np.inf, score)
    rank = np.arange(k - 1, n)
    chance = np.zeros(n)
    log_ways = gammaln(rank + 1) - gammaln(rank - k + 2)
    chance[k - 1 :] = np.exp(log_ways - log_ways[-1])
    chance /= chance.sum()
    order = np.argsort(score, axis=1, kind="stable")
    ordered, right = np.take_along_axis(score, order, 1), np.take_along_axis(correct, order, 1)
    new_group = np.ones((P, n), dtype=bool)
    new_group[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    group = np.cumsum(new_group.ravel()) - 1
    rate = np.bincount(group, right.ravel()) / np.bincount(group)
    return rate[group].reshape(P, n) @ chance


def mean_interval(values: np.ndarray, level: float = 0.95) -> dict[str, float | None]:
    """Mean over problems [P] with its standard error and interval; None for NaN.

    The interval is Student's t, cut to [0, 1], which `intervals` agrees with but for few or lopsided values;
    where all problems are at 0, or all at 1, it is the exact binomial one.
    """
    values = np.asarray(values, dtype=float)
    if np.isnan(values).any() or not len(values):
        return {"value": None, "low": None, "high": None, "se": None}
    mean = float(values.mean())
    if len(values) < 2:
        return {"value": mean, "low": None, "high": None, "se": None}
    from scipy import stats

    se = float(values.std(ddof=1) / math.sqrt(len(values)))
    low, high = _of_none_or_all(mean, se, len(values), level) or (math.nan, math.nan)
    if math.isnan(low):
        half = float(stats.t.ppf(0.5 + level / 2, len(values) - 1)) * se
        low, high = max(0.0, mean - half), min(1.0, mean + half)
    return {"value": mean, "low": low, "high": high, "se": se}


def resampled_means(values: np.ndarray, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """Means [draws, curves] over problems drawn anew with replacement, of values [curves, problems].

    All curves see the same problems in a draw, so that a difference of columns is a paired one.
    """
    P = values.shape[1]
    rng = np.random.default_rng((seed, P))
    out = np.empty((draws, len(values)))
    step = max(1, (1 << 22) // P)
    for first in range(0, draws, step):
        rows = min(step, draws - first)
        picked = rng.integers(P, size=(rows, P)) + np.arange(rows)[:, None] * P
        counts = np.bincount(picked.ravel(), minlength=rows * P).reshape(rows, P)
        out[first : first + rows] = counts @ values.T / P
    return out


def intervals(
    values: np.ndarray, level: float = 0.95, draws: int = DRAWS, seed: int = 0, shares: bool = True
) -> list[dict[str, float | None]]:
    """Means of curves [curves, problems] with standard errors and intervals, by a bootstrap over problems.

    Quantiles of means over resampled problems, taken as far out as few problems call for (the expanded
    percentile interval of Hesterberg 2015, The American Statistician 69, 371). Where all problems are at 0,
    or all at 1, the exact binomial interval, since none of them having failed does not mean that none can;
    `shares` says that values are in [0, 1]. A curve with NaN has None, and one problem no interval.
    """
    values = np.asarray(values, dtype=float)
    known, P = ~np.isnan(values).any(axis=1), values.shape[1]
    out: list[dict[str, float | None]] = [{"value": None, "low": None, "high": None, "se": None}] * len(
        values
    )
    if not known.any() or not P:
        return out
    drawn = resampled_means(values[known], draws, seed) if P > 1 else np.zeros((1, int(known.sum())))
    for i, means in zip(np.flatnonzero(known), drawn.T, strict=True):
        mean = float(values[i].mean())
        if P < 2:
            out[i] = {"value": mean, "low": None, "high": None, "se": None}
            continue
        se = float(values[i].std(ddof=1) / math.sqrt(P))
        certain = _of_none_or_all(mean, se, P, level) if shares else None
        low, high = certain or percentiles(means, P, level)
        out[i] = {"value": mean, "low": min(low, mean), "high": max(high, mean), "se": se}
    return out


def percentiles(drawn: np.ndarray, P: int, level: float = 0.95) -> tuple[float, float]:
    """Ends of the expanded percentile interval of draws that resampled P problems."""
    from flopwise.laws.quantiles import ndtr, stdtrit

    tail = ndtr(-math.sqrt(P / (P - 1)) * stdtrit(P - 1, 0.5 + level / 2))
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return float(low), float(high)


def _of_none_or_all(mean: float, se: float, P: int, level: float) -> tuple[float, float] | None:
    """Clopper and Pearson's interval (1934) of P failures, or P successes; None for anything between."""
    if se > 0 or mean not in (0.0, 1.0):
        return None
    reach = 1 - (0.5 - level / 2) ** (1 / P)
    return (0.0, reach) if mean == 0 else (1 - reach, 1.0)


def paired(
    before: np.ndarray | None, after: np.ndarray | None, same_problems: bool, level: float = 0.95
) -> dict[str, Any]:
    """Mean difference [after - before] over problems with its standard error and interval.

    Paired where both were judged on the same problems: that takes out what makes problems easy or hard. The
    interval is then a bootstrap over problems, otherwise the normal one of two independent means.
    """
    if before is None or after is None or len(before) < 2 or len(after) < 2:
        return dict.fromkeys(("value", "se", "n", "paired", "low", "high"))
    a, b = np.asarray(before, dtype=float), np.asarray(after, dtype=float)
    if same_problems and len(a) == len(b):
        return {**intervals((b - a)[None], level, shares=False)[0], "n": len(a), "paired": True}
    from flopwise.laws.quantiles import ndtri

    se = math.sqrt(a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b))
    value, half = float(b.mean() - a.mean()), ndtri(0.5 + level / 2) * se
    return {
        "value": value, "se": se, "n": min(len(a), len(b)), "paired": False, "low": value - half,
        "high": value + half,
    }  # fmt: skip

"""Exact estimators over subsets of n samples: pass@k, majority@k, best-of-k; intervals over problems.

All take arrays [problems, n]. What a strategy would do with k of the n samples is averaged over all subsets
of size k, so every sample counts and nothing is biased; the standard error treats problems as the units.
Only majority@k has no closed form: where the subsets are too many to go through, it draws some.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

Votes = tuple[np.ndarray, np.ndarray]
"""One problem's votes: each sample's answer as a number [n], -1 if it abstains; how right each answer is."""


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


def majority_at_k(
    correct: np.ndarray,
    answers: Sequence[Sequence[str | None]],
    k: int,
    draws: int = 200,
    seed: int = 0,
) -> np.ndarray:
    """Chance per problem that the most frequent answer of k samples is right; None abstains. NaN where k > n.

    Ties are broken at random, by expectation. Exact where k <= 2, k = n, or there are at most `draws`
    subsets; otherwise averaged over `draws` random ones, with a standard error of at most
    0.5 / sqrt(draws) per problem and of that over sqrt(problems) in the mean.

    >>> majority_at_k(np.array([[1, 1, 0, 0]]), [["a", "a", "b", None]], 3).round(3).tolist()
    [0.75]
    """
    return majority(
        [cast_votes(a, c) for a, c in zip(answers, np.asarray(correct), strict=True)], k, draws, seed
    )[0]


def cast_votes(answers: Sequence[str | None], correct: np.ndarray) -> Votes:
    """Answers as numbers. How right an answer is: the share of its samples that are marked so."""
    names: dict[str, int] = {}
    codes = np.array([-1 if a is None else names.setdefault(a, len(names)) for a in answers], dtype=np.int64)
    cast = codes >= 0
    counts = np.bincount(codes[cast], minlength=len(names))
    right = np.bincount(codes[cast], np.asarray(correct, dtype=float)[cast], minlength=len(names))
    return codes, right / np.maximum(counts, 1)


def majority(
    votes: Sequence[Votes], k: int, draws: int = 200, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """`majority_at_k` of problems with equally many samples, and the variance due to drawing subsets."""
    n = len(votes[0][0])
    values, variance = np.zeros(len(votes)), np.zeros(len(votes))
    if k > n:
        return np.full(len(votes), np.nan), variance
    if k <= 2:
        # Two votes agree or tie, so each vote counts alike wherever anybody votes.
        for p, (codes, right) in enumerate(votes):
            m = int((codes >= 0).sum())
            if m:
                someone = 1 - math.comb(n - m, k) / math.comb(n, k)
                values[p] = right[codes[codes >= 0]].mean() * someone
        return values, variance
    picks, exact = _subsets(n, k, draws, seed)
    row = np.arange(len(picks))[:, None]
    for p, (codes, right) in enumerate(votes):
        width = len(right) + 1
        counted = np.bincount((row * width + codes[picks] + 1).ravel(), minlength=len(picks) * width)
        counted = counted.reshape(-1, width)[:, 1:]
        if not counted.shape[1]:
            continue
        top = counted.max(axis=1, keepdims=True)
        winners = (counted == top) & (top > 0)
        share = winners @ right / np.maximum(winners.sum(axis=1), 1)
        values[p] = share.mean()
        if not exact:
            variance[p] = share.var(ddof=1) / len(share)
    return values, variance


def _subsets(n: int, k: int, draws: int, seed: int) -> tuple[np.ndarray, bool]:
    """Subsets [rounds, k] of n samples: all of them if at most `draws`, else so many at random."""
    if math.comb(n, k) <= draws:
        return np.array(list(itertools.combinations(range(n), k))), True
    return np.argsort(np.random.default_rng((seed, n)).random((draws, n)), axis=1)[:, :k], False


def mean_interval(values: np.ndarray, level: float = 0.95) -> dict[str, float | None]:
    """Mean over problems with its standard error and interval; None for NaN.

    The interval is Student's t, cut to [0, 1]; where all problems are at 0, or all at 1, it is the exact
    binomial one (Clopper and Pearson 1934), since none of them having failed does not mean that none can.
    """
    values = np.asarray(values, dtype=float)
    if np.isnan(values).any() or not len(values):
        return {"value": None, "low": None, "high": None, "se": None}
    mean = float(values.mean())
    if len(values) < 2:
        return {"value": mean, "low": None, "high": None, "se": None}
    from scipy import stats

    se = float(values.std(ddof=1) / math.sqrt(len(values)))
    if se == 0 and mean in (0.0, 1.0):
        reach = 1 - (0.5 - level / 2) ** (1 / len(values))
        low, high = (0.0, reach) if mean == 0 else (1 - reach, 1.0)
        return {"value": mean, "low": low, "high": high, "se": se}
    half = float(stats.t.ppf(0.5 + level / 2, len(values) - 1)) * se
    return {"value": mean, "low": max(0.0, mean - half), "high": min(1.0, mean + half), "se": se}


def paired(before: np.ndarray | None, after: np.ndarray | None, same_problems: bool) -> dict[str, Any]:
    """Mean difference [after - before] over problems with its standard error.

    Paired where both were judged on the same problems: that takes out what makes problems easy or hard.
    """
    if before is None or after is None or len(before) < 2 or len(after) < 2:
        return {"value": None, "se": None, "n": None, "paired": None}
    a, b = np.asarray(before, dtype=float), np.asarray(after, dtype=float)
    if same_problems and len(a) == len(b):
        d = b - a
        return {"value": d.mean(), "se": d.std(ddof=1) / math.sqrt(len(d)), "n": len(d), "paired": True}
    se = math.sqrt(a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b))
    return {"value": b.mean() - a.mean(), "se": se, "n": min(len(a), len(b)), "paired": False}

"""Exact estimators over subsets of n samples: pass@k, majority@k, best-of-k; intervals over problems.

All take arrays [problems, n]. What a strategy would do with k of the n samples is averaged over all subsets
of size k, so every sample counts and nothing is biased; the standard error treats problems as the units.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flopwise.errors import FlopwiseError


def pass_at_k(correct: np.ndarray, k: int) -> np.ndarray:
    """Chance per problem [problems] that k samples without replacement hold a right one.

    1 - C(n - c, k) / C(n, k): Chen et al. 2021, arXiv 2107.03374, eq. 1. NaN where k > n.

    >>> pass_at_k(np.array([[1, 0, 0, 0]]), 2).tolist()
    [0.5]
    """
    n = correct.shape[1]
    if k > n:
        return np.full(len(correct), np.nan)
    wrong = n - correct.sum(axis=1)
    i = np.arange(k)
    # Product form: no large binomials.
    return 1.0 - np.prod(np.maximum(wrong[:, None] - i, 0) / (n - i), axis=1)


def best_of_k(correct: np.ndarray, score: np.ndarray, k: int) -> np.ndarray:
    """Chance per problem that the highest-scored of k samples is right; ties are broken at random.

    The sample at rank r (from the worst, 0) is the best of a subset with chance C(r, k - 1) / C(n, k);
    a group of ties shares its chances.

    >>> best_of_k(np.array([[1, 0, 0]]), np.array([[0.9, 0.5, 0.1]]), 2).round(3).tolist()
    [0.667]
    """
    n = correct.shape[1]
    if k > n:
        return np.full(len(correct), np.nan)
    chance = np.array([math.comb(r, k - 1) for r in range(n)], dtype=float) / math.comb(n, k)
    out = np.empty(len(correct))
    for p in range(len(correct)):
        order = np.argsort(score[p], kind="stable")
        _, groups = np.unique(score[p][order], return_inverse=True)
        right = correct[p][order].astype(float)
        rate = np.bincount(groups, right) / np.bincount(groups)
        out[p] = (chance * rate[groups]).sum()
    return out


def majority_at_k(correct: np.ndarray, answers: Sequence[Sequence[str | None]], k: int, draws: int = 200, seed: int = 0) -> np.ndarray:
    """Chance per problem that the most frequent answer of k samples is right; None abstains, ties at random.

    Averaged over `draws` random subsets (over the one whole set when k = n).
    """
    n = correct.shape[1]
    if k > n:
        return np.full(len(correct), np.nan)
    rng = np.random.default_rng((seed, k))
    rounds = 1 if k == n else draws
    picks = np.argsort(rng.random((rounds, n)), axis=1)[:, :k]
    out = np.zeros(len(correct))
    for p in range(len(correct)):
        names = {a: i for i, a in enumerate(dict.fromkeys(a for a in answers[p] if a is not None))}
        if not names:
            continue
        codes = np.array([names.get(a, -1) if a is not None else -1 for a in answers[p]])
        right = np.zeros(len(names))
        right[codes[(codes >= 0) & correct[p].astype(bool)]] = 1.0
        drawn = codes[picks]
        votes = (drawn[:, :, None] == np.arange(len(names))).sum(axis=1)
        top = votes.max(axis=1, keepdims=True)
        winners = (votes == top) & (top > 0)
        share = (winners * right).sum(axis=1) / np.maximum(winners.sum(axis=1), 1)
        out[p] = share.mean()
    return out


def mean_interval(values: np.ndarray, level: float = 0.95) -> dict[str, float | None]:
    """Mean over problems with its standard error and interval (Student's t, cut to [0, 1]); None for NaN."""
    values = np.asarray(values, dtype=float)
    if np.isnan(values).any() or not len(values):
        return {"value": None, "low": None, "high": None, "se": None}
    mean = float(values.mean())
    if len(values) < 2:
        return {"value": mean, "low": None, "high": None, "se": None}
    from scipy import stats

    se = float(values.std(ddof=1) / math.sqrt(len(values)))
    half = float(stats.t.ppf(0.5 + level / 2, len(values) - 1)) * se
    return {"value": mean, "low": max(0.0, mean - half), "high": min(1.0, mean + half), "se": se}


def score(samples: Mapping[str, Any], k: Sequence[int] = (1, 2, 4, 8)) -> dict[str, Any]:
    """pass@k, majority@k and best-of-k of a table of judged samples.

    Args:
        samples: columns `problem`, `correct`[, `answer`][, `score`], one row per sample.

    Returns:
        keys `pass_at_k`, and `majority_at_k` and `best_of_n` where the table has answers and scores: each
        maps k to value, low, high, se. A k above the samples of some problem gives None.

    Raises:
        FlopwiseError: a column is missing, or a k is below 1.
    """
    for name in ("problem", "correct"):
        if name not in samples:
            raise FlopwiseError(f"score: there is no column {name!r}; there are {', '.join(map(str, samples))[:200]}")
    if not k or min(k) < 1:
        raise FlopwiseError(f"score: k is {list(k)}, must be 1 or more")
    problem = np.asarray(samples["problem"])
    correct = np.asarray(samples["correct"]).astype(float).astype(bool)
    groups = [np.flatnonzero(problem == p) for p in dict.fromkeys(problem.tolist())]
    answers = samples.get("answer")
    scores = np.asarray(samples["score"], dtype=float) if "score" in samples else None
    out: dict[str, Any] = {"n_problems": len(groups), "n_samples": len(problem), "pass_at_k": {}}
    if answers is not None:
        out["majority_at_k"] = {}
        answers = [None if a is None or a != a or a == "" else str(a) for a in list(answers)]
    if scores is not None:
        out["best_of_n"] = {}
    for size in k:
        rows = {"pass_at_k": [], "majority_at_k": [], "best_of_n": []}  # type: dict[str, list[float]]
        for g in groups:
            one = correct[g][None]
            rows["pass_at_k"].append(pass_at_k(one, size)[0])
            if answers is not None:
                rows["majority_at_k"].append(majority_at_k(one, [[answers[i] for i in g]], size)[0])
            if scores is not None:
                rows["best_of_n"].append(best_of_k(one, scores[g][None], size)[0])
        for name, values in rows.items():
            if name in out:
                out[name][size] = mean_interval(np.array(values))
    return out

"""What k of n samples decide by vote: majority@k exact over all subsets, weighted votes over drawn ones.

Majority@k averages over all subsets of k samples without going through them. Say the winner has v votes. Then
every other answer has v votes or fewer, and of those with v each is the winner as likely as any other. With
each sample drawn at random with chance q, the votes of different answers are independent, so that the chance
of all of it is the coefficient of x^k in a product of one polynomial per answer, over the binomial chance of
drawing k in all; q cancels, and keeps all numbers near 1. Ties are shared by 1 / (t + 1), t the others with v
votes: the integral of y^t from 0 to 1, where y marks them; quadrature is exact there (Gauss and Legendre).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Votes = tuple[np.ndarray, np.ndarray]
"""One problem's votes: each sample's answer as a number [n], -1 if it abstains; how right each answer is."""

DRAWS = 200
"""Subsets drawn of each problem where they are drawn."""
DEAREST, ALL = 2e9, 1e10
"""Products of one problem, and of all, beyond which subsets are drawn: about three and fifteen seconds."""
LARGEST = 600
"""Largest k below n that is exact where n is above 1000: chances of others are too small for a number."""
AT_ONCE = 1 << 18
"""Coefficients held together: few enough for the processor's cache."""
CHANCE, LOG_CHANCE, LOG_ODDS = (
    "the score, a chance", "exp(score), taken as a log-probability", "sigmoid(score), taken as log-odds",
)  # fmt: skip
LEVEL = 1e-9
"""Relative difference up to which sums of weights are level."""


def cast_votes(answers: Sequence[str | None], correct: np.ndarray) -> Votes:
    """Answers as numbers. How right an answer is: the share of its samples that are marked so."""
    names: dict[str, int] = {}
    codes = np.array([-1 if a is None else names.setdefault(a, len(names)) for a in answers], dtype=np.int64)
    cast = codes >= 0
    counts = np.bincount(codes[cast], minlength=len(names))
    right = np.bincount(codes[cast], np.asarray(correct, dtype=float)[cast], minlength=len(names))
    return codes, right / np.maximum(counts, 1)


def majority_at_k(
    correct: np.ndarray, answers: Sequence[Sequence[str | None]], k: int, draws: int = DRAWS, seed: int = 0
) -> np.ndarray:
    """Chance per problem [problems] that the most frequent answer of k samples is right. NaN where k > n.

    None abstains; where all abstain nothing is right. Ties are broken at random, by expectation. Exact, but
    for what `majority` says.

    >>> majority_at_k(np.array([[1, 1, 0, 0]]), [["a", "a", "b", None]], 3).round(3).tolist()
    [0.75]
    """
    return majority_curve(correct, answers, [k], draws, seed)[0]


def majority_curve(
    correct: np.ndarray, answers: Sequence[Sequence[str | None]], ks: Sequence[int], draws: int = DRAWS,
    seed: int = 0,
) -> np.ndarray:  # fmt: skip
    """`majority_at_k` at several k, [sizes, problems], for hardly more than the largest costs."""
    votes = [cast_votes(a, c) for a, c in zip(answers, np.asarray(correct), strict=True)]
    return majority(votes, ks, draws, seed)[0]


def majority(
    votes: Sequence[Votes], ks: Sequence[int], draws: int = DRAWS, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Majority@k of problems with equally many samples n, and the variance due to drawing subsets.

    Both are [sizes, problems]; the variance is 0 where it is exact: up to n = 1000 for all k, unless hundreds
    of answers are each given by several samples, or there are many such problems. There, and for k above 600
    where n is above 1000, `draws` subsets of each problem stand for all.
    """
    n = len(votes[0][0])
    values, variance = np.zeros((len(ks), len(votes))), np.zeros((len(ks), len(votes)))
    ballots = [_Ballot.of(v) for v in votes]
    inner = [k for k in ks if k < n]
    exact = [k for k in inner if n <= 1000 or k <= LARGEST]
    kinds = {b: i for i, b in enumerate(dict.fromkeys(ballots))}
    curves = _exact(list(kinds), n, max(exact)) if exact else {}
    whole = [b.winner() for b in ballots] if n in ks else []
    for i, k in enumerate(ks):
        if k > n:
            values[i] = np.nan
        elif k == n:
            values[i] = whole
        for p, ballot in enumerate(ballots if k < n else ()):
            if k in exact and ballot in curves:
                values[i, p] = curves[ballot][k]
                continue
            codes, right = votes[p]
            picks, all_of_them = subsets(n, k, draws, (seed, p))
            row = np.arange(len(picks))[:, None]
            width = len(right) + 1
            counted = np.bincount((row * width + codes[picks] + 1).ravel(), minlength=len(picks) * width)
            counted = counted.reshape(-1, width)[:, 1:]
            values[i, p], variance[i, p] = _won(counted, right, all_of_them)
    return values, variance


def weighted(
    votes: Sequence[Votes], weights: np.ndarray, ks: Sequence[int], draws: int = DRAWS, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """The same where each sample's vote counts as its weight [problems, n], which is 0 (it abstains) or more.

    With a verifier's scores as weights this is weighted best-of-n (Li et al., arXiv 2206.02336, section 2.2;
    Snell et al., arXiv 2408.03314, section 5.1). Exact where there are at most `draws` subsets of k.
    """
    n = len(votes[0][0])
    values, variance = np.zeros((len(ks), len(votes))), np.zeros((len(ks), len(votes)))
    values[[k > n for k in ks]] = np.nan
    for p, (codes, right) in enumerate(votes):
        width = len(right) + 1
        orders: dict[int, np.ndarray] = {}
        for i, k in enumerate(ks):
            if k > n:
                continue
            picks, all_of_them = subsets(n, k, draws, (seed, p), orders)
            place = (np.arange(len(picks))[:, None] * width + codes[picks] + 1).ravel()
            size = len(picks) * width
            summed = np.bincount(place, weights[p][picks].ravel(), minlength=size).reshape(-1, width)
            values[i, p], variance[i, p] = _won(summed[:, 1:], right, all_of_them)
    return values, variance


def weights_from(scores: np.ndarray, read_as: str | None = None) -> tuple[np.ndarray, str]:
    """Weights [problems, n] for votes from scores of any kind, and in words how they came about.

    Chances, in [0, 1], are weights as they are; log-probabilities, all 0 or less, count as their exponential,
    relative to the largest of the problem; all others are taken as log-odds. A missing score weighs nothing.
    `read_as`: the words of an earlier call, where these scores are a part of those.
    """
    if read_as is None:
        known = scores[~np.isnan(scores)]
        read_as = CHANCE if not len(known) or (known.min() >= 0 and known.max() <= 1) else LOG_ODDS
        read_as = LOG_CHANCE if read_as == LOG_ODDS and known.max() <= 0 else read_as
    if read_as == CHANCE:
        return np.nan_to_num(scores, nan=0.0), read_as
    if read_as == LOG_CHANCE:
        top = np.max(np.where(np.isnan(scores), -np.inf, scores), axis=1, keepdims=True)
        found = np.exp(scores - np.where(np.isfinite(top), top, 0.0))
        return np.nan_to_num(found, nan=0.0), read_as
    return np.nan_to_num(np.exp(-np.logaddexp(0.0, -scores)), nan=0.0), read_as


def subsets(
    n: int, k: int, draws: int, seed: tuple[int, ...], orders: dict[int, np.ndarray] | None = None
) -> tuple[np.ndarray, bool]:
    """Subsets [rounds, k] of n samples: all if at most `draws`, else so many at random; and whether all.

    Random ones begin the same orders at every k; `orders` keeps them between calls with one seed.
    """
    if math.comb(n, k) <= draws:
        return np.array(list(itertools.combinations(range(n), k))), True
    orders = {} if orders is None else orders
    if n not in orders:
        orders[n] = np.argsort(np.random.default_rng((*seed, n)).random((draws, n)), axis=1)
    return orders[n][:, :k], False


def _won(sums: np.ndarray, right: np.ndarray, all_of_them: bool) -> tuple[float, float]:
    """Mean over subsets that a right answer has the largest sum [subsets, answers] above 0; its variance."""
    if not sums.shape[1]:
        return 0.0, 0.0
    top = sums.max(axis=1, keepdims=True)
    winners = (sums > 0) & (sums >= top * (1 - LEVEL))
    share = winners @ right / np.maximum(winners.sum(axis=1), 1)
    return float(share.mean()), 0.0 if all_of_them else float(share.var(ddof=1) / len(share))


@dataclass(frozen=True)
class _Ballot:
    """All that majority depends on: samples that abstain; (votes, how right) of each answer, sorted."""

    silent: int
    answers: tuple[tuple[int, float], ...]

    @classmethod
    def of(cls, votes: Votes) -> _Ballot:
        codes, right = votes
        counts = np.bincount(codes[codes >= 0], minlength=len(right))
        return cls(
            int((codes < 0).sum()), tuple(sorted(zip(counts.tolist(), right.tolist(), strict=True)))
        )  # fmt: skip

    def winner(self) -> float:
        """How right the most frequent answer of all samples is."""
        top = [r for c, r in self.answers if c == self.answers[-1][0]]
        return sum(top) / len(top) if top else 0.0


@dataclass
class _Row:
    """An answer that is right, and what it is up against: others' votes, most first, and who abstains."""

    ballot: _Ballot
    votes: int
    right: float
    others: np.ndarray
    silent: int

    def rivals(self, v: int) -> int:
        """Others with v samples or more."""
        return int((self.others >= v).sum())

    def cost(self, K: int) -> float:
        """Products that it takes, about."""
        v = np.arange(1, min(self.votes, K) + 1)
        rivals = (self.others[None, :] >= v[:, None]).sum(axis=1)
        nodes = np.where(v == 1, 1, np.minimum(rivals, K // v) // 2 + 1)
        return float(((rivals + 1) * (v + 1) * nodes * (K + 1 - v)).sum())


def _rows(ballot: _Ballot) -> list[_Row]:
    """One per number of samples that right answers have."""
    right: dict[int, float] = {}
    for votes, share in ballot.answers:
        if share > 0:
            right[votes] = right.get(votes, 0.0) + share
    counts = np.array([votes for votes, _ in ballot.answers][::-1], dtype=np.int64)
    return [
        _Row(ballot, votes, share, np.delete(counts, int(np.argmax(counts == votes))), ballot.silent)
        for votes, share in right.items()
    ]


def _exact(ballots: list[_Ballot], n: int, K: int) -> dict[_Ballot, np.ndarray]:
    """Majority@k at k = 0 to K, below n, [K + 1] of each ballot; those that are too dear are left out."""
    of = {ballot: _rows(ballot) for ballot in ballots}
    cost = {ballot: sum(row.cost(K) for row in rows) for ballot, rows in of.items()}
    out: dict[_Ballot, np.ndarray] = {}
    spent = 0.0
    for ballot in sorted(ballots, key=lambda b: cost[b]):
        spent += cost[ballot]
        if cost[ballot] > DEAREST or spent > ALL:
            break
        out[ballot] = np.zeros(K + 1)
    rows = [row for ballot in out for row in of[ballot]]
    chance = _binomial(n, K, min(K / n, 0.5))
    for v in range(1, min(K, max((r.votes for r in rows), default=0)) + 1):
        active = sorted((r for r in rows if r.votes >= v), key=lambda r: -r.rivals(v))
        for first, last in _chunks([r.rivals(v) for r in active], v, K):
            part = active[first:last]
            ahead = _others_below(part, chance, v, K)
            for row, coefficients in zip(part, ahead, strict=True):
                out[row.ballot][v:] += row.right * chance[row.votes, v] * coefficients
    for ballot in out:
        out[ballot] = np.clip(out[ballot] / chance[n], 0.0, 1.0)
    return out


def _binomial(n: int, K: int, q: float) -> np.ndarray:
    """Chance [m, k] of drawing k of m samples, for m up to n and k up to K."""
    from scipy.special import gammaln

    logs = gammaln(np.arange(n + 2))  # of (m - 1)!
    m, k = np.arange(n + 1)[:, None], np.arange(K + 1)[None, :]
    rest = np.maximum(m - k, 0)
    ways = logs[m + 1] - logs[k + 1] - logs[rest + 1]
    return np.where(k <= m, np.exp(ways + k * math.log(q) + rest * math.log1p(-q)), 0.0)


def _chunks(rivals: list[int], v: int, K: int) -> list[tuple[int, int]]:
    """Parts of rows, sorted by rivals, that are worked out together."""
    out, first = [], 0
    while first < len(rivals):
        each = _nodes(rivals[first], v, K) * (K + 1)
        last = min(first + max(1, AT_ONCE // each), len(rivals))
        out.append((first, last))
        first = last
    return out


def _nodes(rivals: int, v: int, K: int) -> int:
    """So many make the quadrature exact."""
    return 1 if v == 1 else min(rivals, K // v) // 2 + 1


def _others_below(rows: list[_Row], chance: np.ndarray, v: int, K: int) -> np.ndarray:
    """Coefficients [rows, K + 1 - v]: chance to draw j others, none with more than v votes, ties shared.

    Rows come with most rivals first.
    """
    rivals = np.array([r.rivals(v) for r in rows])
    size = K + 1 - v
    # Answers with fewer than v samples cannot stand in the way: who gives them is as good as silent.
    free = np.array([r.silent + int(r.others[r.others < v].sum()) for r in rows])
    y, weight = np.polynomial.legendre.leggauss(_nodes(int(rivals[0]), v, K))
    y, weight = (y + 1) / 2, weight / 2
    product = np.zeros((len(rows), len(y), size))
    if v == 1:
        product[:, :, 0] = 1.0
        y = np.ones(1)
    else:
        product[:] = chance[free, None, :size]
    for f in range(int(rivals[0])):
        some = int((rivals > f).sum())
        counts = np.array([r.others[f] for r in rows[:some]])
        before = product[:some].copy()
        _times(product[:some], chance[counts, :v])
        if v < size:
            product[:some, :, v:] += chance[counts, v][:, None, None] * y[:, None] * before[:, :, : size - v]
    if v > 1:
        return np.einsum("rms,m->rs", product, weight)
    # With one vote each, as many tie as have voted, so nothing is left to integrate.
    voted = product[:, 0] / np.arange(1, size + 1)
    product[:, 0] = voted
    _times(product, chance[free, :size])
    return product[:, 0]


def _times(product: np.ndarray, factors: np.ndarray) -> None:
    """Multiply polynomials [rows, nodes, size] by others [rows, terms] in place, up to the same degree."""
    rows, nodes, size = product.shape
    before, terms = product.copy(), min(factors.shape[1], size)
    if rows * nodes < terms:  # few long ones: one call each
        for i in range(rows):
            for j in range(nodes):
                product[i, j] = np.convolve(before[i, j], factors[i, :terms])[:size]
        return
    product *= factors[:, 0][:, None, None]
    for s in range(1, terms):
        product[:, :, s:] += factors[:, s][:, None, None] * before[:, :, : size - s]

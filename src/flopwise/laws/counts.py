"""Counts of right samples per problem: pass@k as far as it is measured, and histograms to fit laws to.

Problems may have different numbers of samples, and sampling may have stopped at the r-th right one. Both
leave the likelihood of a chance of success as it is, p^c (1 - p)^(n - c); what changes is the unbiased
estimator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flopwise.errors import FlopwiseError

Array = np.ndarray
EXACT = 2000
"""Samples up to which the histogram of the first m is averaged over all orders."""
LARGEST = 10**9 - 1


@dataclass(frozen=True)
class Counts:
    """Of each of P problems: samples drawn `n` [P], right ones `c` [P], and whether sampling stopped there.

    `stopped` [P]: the last sample was right and sampling ended because of it (Hughes et al. 2024, arXiv
    2412.03556: until the first success or a limit). False where the number of samples was settled beforehand,
    and where the limit came first.
    """

    n: Array
    c: Array
    stopped: Array

    @classmethod
    def of(cls, n: Any, c: Any, stopped: Any = None) -> Counts:
        """Checked counts from anything array-like; one n serves all problems.

        Raises:
            FlopwiseError: not whole numbers, c outside 0 to n, no samples, a stop without a success.
        """
        right = _whole(c, "right samples c")
        drawn = np.broadcast_to(_whole(n, "samples n"), right.shape).copy()
        ended = np.zeros(len(right), bool) if stopped is None else np.asarray(stopped, dtype=bool)
        if ended.shape != right.shape:
            raise FlopwiseError(f"counts: {len(right)} problems, but 'stopped' has shape {ended.shape}")
        for bad, what in (
            (drawn < 1, "needs at least 1 sample"),
            ((right < 0) | (right > drawn), "c must lie between 0 and n"),
            (ended & (right < 1), "sampling cannot have stopped at a right sample where c is 0"),
        ):
            if bad.any():
                i = int(np.argmax(bad))
                raise FlopwiseError(f"counts: problem {i + 1} has n = {drawn[i]}, c = {right[i]}; {what}")
        return cls(drawn, right, ended)

    @classmethod
    def judged(cls, correct: Any) -> Counts:
        """From verdicts [P, n]."""
        verdicts = np.asarray(correct)
        if verdicts.ndim != 2 or not verdicts.shape[1]:
            raise FlopwiseError(f"counts: verdicts have shape {verdicts.shape}, must be [problems, samples]")
        return cls.of(verdicts.shape[1], verdicts.astype(bool).sum(axis=1))

    def __len__(self) -> int:
        return len(self.n)

    def pass_at(self, k: float | Array) -> Array:
        """Unbiased chance [P] that k samples (one number, or one each) hold a right one; NaN where fewer than
        k were drawn in vain.

        1 - C(n - c, k) / C(n, k) (Chen et al. 2021, arXiv 2107.03374, eq. 1). Where sampling stopped at the
        r-th right sample, the others lie in any order among the n - 1 before it, so the same holds for
        n - 1 and c - 1 as long as k < n. From k = n on, a problem that was solved stays solved.
        """
        value = _solved(self.n - self.stopped, self.c - self.stopped, k)
        return np.where((k > self.n) & (self.c == 0), np.nan, value)

    def solved_by(self, k: float) -> Array:
        """`pass_at`, but where too few samples were drawn in vain, what those measured: 0."""
        return np.nan_to_num(self.pass_at(k), nan=0.0)

    def variance(self, k: Any) -> Array:
        """Variance [P] of `pass_at` over samples drawn anew of the same problems; for k above n, that at n.

        By the jackknife over a problem's samples, which is not too low on average (Efron and Stein 1981). At
        k = n it is about 1 for a problem solved once and 0 for others: right for a sum over many problems. So
        that few do not add up to 0, solved ones have what the delta method gives at p = (c + 1/2) / (n + 1)
        where that is larger.
        """
        k = np.minimum(k, self.n)
        n, c = (self.n - self.stopped).astype(float), (self.c - self.stopped).astype(float)
        varied = (c > 0) & (c < n)
        rest, right = np.where(varied, n - 1, 1.0), np.where(varied, c, 1.0)
        at = np.minimum(k, rest)
        change = _solved(rest, right, at) - _solved(rest, right - 1, at)
        jackknife = np.where(varied, rest * right * (n - right) * (change / np.maximum(n, 1.0)) ** 2, 0.0)
        p = (self.c + 0.5) / (self.n + 1)
        delta = (k * (1 - p) ** (k - 1)) ** 2 * p * (1 - p) / self.n
        return np.where(self.c > 0, np.maximum(jackknife, delta), 0.0)

    def rates(self) -> Array:
        """Unbiased pass@1 [P]: c / n; (c - 1) / (n - 1) where sampling stopped at the c-th right one.

        The ratio of sums over problems would be biased where n was chosen by how hard a problem is.
        """
        return self.pass_at(1)

    def first(self, m: int, seed: int = 0) -> tuple[Counts, Array]:
        """The histogram expected of the first m samples, over all orders in which they may have come.

        Above `EXACT` samples one order, drawn at random, stands for all.

        Returns:
            Different counts [U], and the weight of each in every problem [P, U] (rows add up to 1).
        """
        n, c = self.n - self.stopped, self.c - self.stopped
        long = self.n > m
        cut = Counts(
            np.where(long, m, self.n), np.where(long, 0, self.c), np.where(long, False, self.stopped)
        )
        if m > EXACT:
            drawn = np.random.default_rng(seed).hypergeometric(c[long], (n - c)[long], m)
            cut.c[long] = drawn
            return cut.distinct()
        if not long.any():
            return cut.distinct()
        short, rows = cut.distinct()
        right = np.arange(min(m, int(c[long].max())) + 1)
        units = Counts(*(np.concatenate(v) for v in zip(short._columns(), (
            np.full(len(right), m), right, np.zeros(len(right), bool)
        ), strict=True)))  # fmt: skip
        weight = np.zeros((len(self), len(units)))
        weight[~long, : len(short)] = rows[~long]
        weight[np.ix_(long, np.arange(len(short), len(units)))] = _hypergeometric(n[long], c[long], m, right)
        used = weight.any(axis=0)
        return Counts(*(v[used] for v in units._columns())), weight[:, used]

    def _columns(self) -> tuple[Array, Array, Array]:
        return self.n, self.c, self.stopped

    def distinct(self) -> tuple[Counts, Array]:
        """Different counts [U], and which of them each problem has [P, U]."""
        rows, where = np.unique(np.stack(self._columns(), axis=1), axis=0, return_inverse=True)
        different = Counts(rows[:, 0], rows[:, 1], rows[:, 2].astype(bool))
        return different, (where.ravel()[:, None] == np.arange(len(rows))).astype(float)

    def thinned(self, m: int, rng: np.random.Generator) -> Counts:
        """m of each problem's samples, drawn without replacement; needs n >= m, settled beforehand."""
        if (self.n < m).any() or self.stopped.any():
            raise FlopwiseError(
                f"counts: {m} samples asked of each problem; some have fewer, or were stopped"
            )
        return Counts.of(m, rng.hypergeometric(self.c, self.n - self.c, m))


def _solved(n: Array, c: Array, k: Any) -> Array:
    """1 - C(n - c, k) / C(n, k) [P]; 1 where k exceeds the n - c wrong ones."""
    from scipy.special import gammaln

    wrong = np.maximum(n - c, 0).astype(float)
    inside = k <= wrong
    at = np.where(inside, k, 0.0)
    missed = gammaln(wrong + 1) - gammaln(wrong - at + 1) - gammaln(n + 1) + gammaln(n - at + 1)
    return np.where(inside, np.where(c > 0, -np.expm1(missed), 0.0), 1.0)


def _hypergeometric(n: Array, c: Array, m: int, x: Array) -> Array:
    """Chance [P, X] that m of n samples, of which c are right, hold x right ones."""
    from scipy.special import gammaln

    n, c, x = n[:, None], c[:, None], x[None, :]
    possible = (x <= c) & (m - x <= n - c)
    x = np.where(possible, x, 0)
    y = np.where(possible, m - x, 0)

    def ways(total: Array, taken: Array) -> Array:
        return gammaln(total + 1) - gammaln(taken + 1) - gammaln(total - taken + 1)

    return np.where(possible, np.exp(ways(c, x) + ways(n - c, y) - ways(n, np.full_like(n, m))), 0.0)


def _whole(values: Any, what: str) -> Array:
    try:
        given = np.atleast_1d(np.asarray(values, dtype=float))
    except (TypeError, ValueError):
        raise FlopwiseError(f"counts: {what} must be whole numbers") from None
    bad = ~np.isfinite(given) | (given != np.round(given)) | (np.abs(given) > LARGEST)
    if given.ndim != 1 or bad.any():
        shown = f"holds {given[bad][0]:g}" if given.ndim == 1 else f"has shape {given.shape}"
        raise FlopwiseError(f"counts: {what} {shown}; it must be one whole number per problem")
    return given.astype(np.int64)


def check_ks(ks: Sequence[float] | float, largest: float = LARGEST) -> Array:
    """Sample counts to forecast for, as an array of whole numbers from 1."""
    asked = np.atleast_1d(np.asarray(ks, dtype=float))
    bad = ~np.isfinite(asked) | (asked < 1) | (asked != np.round(asked)) | (asked > largest)
    if not asked.size or bad.any():
        shown = f"{asked[bad][0]:g}" if asked.size else "nothing"
        raise FlopwiseError(f"coverage: k is {shown}, must be whole numbers from 1 to {largest:g}")
    return asked

"""Forms of coverage, each fitted to counts by its own likelihood: how chances of success are spread.

Four forms are mixtures: a problem's chance p is drawn from a distribution, its samples are right with chance
p, and the misses M(k) = E (1 - p)^k are what k samples leave unsolved; pass@k = 1 - M(k). What happens for
large k is settled by the density of p near 0 (Schaeffer et al. 2025, arXiv 2502.17578). The fifth, the power
form pass@k = exp(-a k^-b) (Brown et al. 2024, arXiv 2407.21787, section 3), belongs to no distribution of p
exactly, so it is taken as what pass@k is: the distribution of the number of samples to the first success.

All work on unconstrained parameters z; every likelihood comes with its exact gradient. Parameters have weak
normal priors, which settle what few samples leave open and fade as problems are added.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from flopwise.laws.counts import Array, Counts

LOG_RANGE = (-9.0, 12.0)
"""Of the logarithms of a and b."""
SHARE_RANGE = (-9.0, 9.0)
"""Of the logits of shares and of the largest chance."""


class Form:
    """A family of coverage curves in parameters z."""

    name: ClassVar[str]
    formula: ClassVar[str]
    bounds: ClassVar[tuple[tuple[float, float], ...]] = (LOG_RANGE, LOG_RANGE)
    prior: ClassVar[tuple[tuple[float, float], ...]] = ((-1.0, 1.0), (2.0, 2.0))
    """Mean and standard deviation of each z: here a from .05 to 2.7 and b from .14 to 400 (95%)."""

    def prepare(self, units: Counts) -> Any:
        """What `loglik` needs of different counts [U], worked out once."""
        return units

    def starts(self, units: Counts, weight: Array) -> list[Array]:
        """Points z to start from, by moments of the weighted counts."""
        rate = float(np.clip(weight @ (units.c / units.n) / weight.sum(), 1e-6, 0.999))
        return [np.log([0.5, 0.5 * (1 - rate) / rate])]

    def loglik(self, z: Array, prepared: Any) -> tuple[Array, Array]:
        """Log-likelihood [U] of each count, less what z does not change, and its gradient [U, d]."""
        raise NotImplementedError

    def log_missed(self, z: Array, k: Array) -> Array:
        """log (1 - pass@k) [B, K] of parameters [B, d] at k [K]."""
        raise NotImplementedError

    def params(self, z: Array) -> dict[str, float]:
        """Parameters under the names of the formula."""
        return {"a": float(np.exp(z[0])), "b": float(np.exp(z[1]))}

    def z(self, params: dict[str, float]) -> Array:
        """The inverse of `params`."""
        return np.log([params["a"], params["b"]])

    def at(self, params: dict[str, float], k: Any) -> Any:
        """pass@k of named parameters, in the shape of k."""
        ks = np.atleast_1d(np.asarray(k, dtype=float))
        value = -np.expm1(self.log_missed(self.z(params)[None, :], ks.ravel())[0]).reshape(ks.shape)
        return value if np.ndim(k) else float(value[0])


@dataclass(frozen=True)
class _Spans:
    """Each count [U] as weights on the events "first solved after low, by high"; inf is never."""

    low: Array
    high: Array
    share: Array
    """[U, spans]"""


class Power(Form):
    """P(first success within k) = exp(-a k^-b): a Frechet distribution.

    Where all problems have the same n, the likelihood is that of being solved within k, or not, for k = 1,
    2, 4, ..., n: a composite likelihood (Lindsay 1988), whose octaves count alike as in a plot. Where n
    differs, or was decided by the outcomes, not all problems show whether they are solved within k, and the
    likelihood is that of the number of samples to the first success, censored at n. Either is averaged over
    the orders in which the samples may have come.
    """

    name, formula = "power", "pass@k = exp(-a k^-b)"
    bounds = (LOG_RANGE, (-9.0, 3.0))
    prior = ((1.0, 1.5), (-1.0, 1.0))

    def prepare(self, units: Counts) -> _Spans:
        most = int(units.n.max())
        if not units.stopped.any() and (units.n == most).all():
            ks = np.append(2.0 ** np.arange(int(np.ceil(np.log2(most)))), most)
            solved = np.stack([units.solved_by(k) for k in ks], axis=1)
            low, high = np.append(0 * ks, ks), np.append(ks, np.full(len(ks), np.inf))
            return _Spans(low, high, np.concatenate([solved, 1 - solved], axis=1))
        edges = np.unique(np.round(np.append(np.arange(17), 2.0 ** np.arange(4, 60, 0.25))))
        edges = np.append(edges[edges < most], most)
        ends = np.minimum(edges[None, :], units.n[:, None])
        solved = np.stack([np.zeros(len(units)), *(units.solved_by(k) for k in edges[1:])], axis=1)
        row, column = np.nonzero(np.diff(solved, axis=1) > 0)
        events = np.stack([ends[row, column], ends[row, column + 1]], axis=1)
        never = np.stack([units.n, np.full(len(units), np.inf)], axis=1)
        spans, where = np.unique(np.concatenate([events, never]), axis=0, return_inverse=True)
        share = np.zeros((len(units), len(spans)))
        np.add.at(share, (row, where.ravel()[: len(row)]), np.diff(solved, axis=1)[row, column])
        np.add.at(share, (np.arange(len(units)), where.ravel()[len(row) :]), 1 - solved[:, -1])
        return _Spans(spans[:, 0], spans[:, 1], share)

    def starts(self, units: Counts, weight: Array) -> list[Array]:
        return [np.log([4.0, 0.3])]

    def loglik(self, z: Array, prepared: _Spans) -> tuple[Array, Array]:
        a, b = np.exp(z)
        first, never = prepared.low == 0, np.isinf(prepared.high)
        log_low = np.log(np.where(first, 1.0, prepared.low))
        log_high = np.log(np.where(never, 1.0, prepared.high))
        low, high = a * np.exp(-b * log_low), np.where(never, 0.0, a * np.exp(-b * log_high))
        # log (e^-high - e^-low), with e^-low = 0 for a span from 0.
        gap = np.where(first, 1.0, np.maximum(low - high, 1e-300))
        value = -high + np.where(first, 0.0, np.log(-np.expm1(-gap)))
        slope = np.where(first, 0.0, 1 / np.expm1(np.minimum(gap, 700.0)))
        by_a = -high + slope * gap
        by_b = b * (log_high * high + slope * (log_high * high - log_low * low))
        return prepared.share @ value, prepared.share @ np.stack([by_a, by_b], axis=1)

    def log_missed(self, z: Array, k: Array) -> Array:
        a, b = np.exp(z.T)[:, :, None]
        return np.log(-np.expm1(-a * k[None, :] ** -b))


class BetaBinomial(Form):
    """p ~ beta(a, b)."""

    name, formula = "beta_binomial", "pass@k = 1 - B(a, b + k) / B(a, b)"

    def loglik(self, z: Array, prepared: Counts) -> tuple[Array, Array]:
        from scipy.special import betaln, digamma

        a, b = np.exp(z)
        c, missed = prepared.c, prepared.n - prepared.c
        shared = digamma(a + b) - digamma(a + b + prepared.n)
        by_a = a * (digamma(a + c) - digamma(a) + shared)
        by_b = b * (digamma(b + missed) - digamma(b) + shared)
        return betaln(a + c, b + missed) - betaln(a, b), np.stack([by_a, by_b], axis=1)

    def log_missed(self, z: Array, k: Array) -> Array:
        from scipy.special import betaln

        a, b = np.exp(z[:, :2].T)[:, :, None]
        return betaln(a, b + k[None, :]) - betaln(a, b)


class ZeroInflated(BetaBinomial):
    """A share of problems is never solved; the others' p ~ beta(a, b)."""

    name = "zero_inflated"
    formula = "pass@k = (1 - unsolvable) (1 - B(a, b + k) / B(a, b))"
    bounds = (LOG_RANGE, LOG_RANGE, SHARE_RANGE)
    prior = (*Form.prior, (-1.0, 1.7))

    def starts(self, units: Counts, weight: Array) -> list[Array]:
        base = super().starts(units, weight)[0]
        return [np.append(base, share) for share in (-4.0, -0.5)]

    def loglik(self, z: Array, prepared: Counts) -> tuple[Array, Array]:
        inside, slope = super().loglik(z[:2], prepared)
        log_solvable, log_not = -np.logaddexp(0.0, z[2]), -np.logaddexp(0.0, -z[2])
        never = np.where(prepared.c == 0, log_not, -np.inf)
        value = np.logaddexp(log_solvable + inside, never)
        solvable = np.exp(log_solvable + inside - value)
        by_share = (1 - solvable) - np.exp(log_not)
        return value, np.column_stack([slope * solvable[:, None], by_share])

    def log_missed(self, z: Array, k: Array) -> Array:
        inside = super().log_missed(z, k)
        share = z[:, 2:]
        return np.logaddexp(inside - np.logaddexp(0.0, share), -np.logaddexp(0.0, -share))

    def params(self, z: Array) -> dict[str, float]:
        return {**super().params(z), "unsolvable": float(1 / (1 + np.exp(-z[2])))}

    def z(self, params: dict[str, float]) -> Array:
        share = params["unsolvable"]
        return np.append(super().z(params), np.log(share) - np.log1p(-share))


class Quadrature(Form):
    """Mixtures without a closed form: p = scale * q, integrated over the logit of q."""

    bounds: ClassVar[tuple[tuple[float, float], ...]] = (
        (-9.0, 3.0),
        LOG_RANGE,
    )  # a above 20 would make peaks too narrow for the nodes

    def prepare(self, units: Counts) -> tuple[Counts, Nodes]:
        return units, nodes(int(units.n.max()))

    def masses(self, z: Array, at: Nodes) -> tuple[Array, Array]:
        """Logarithms of the masses at the nodes [B, J] under z [B, d], and their gradient [2, B, J]."""
        raise NotImplementedError

    def log_scale(self, z: Array) -> Array:
        """Logarithm of the largest chance [B]."""
        return np.zeros(len(z))

    def loglik(self, z: Array, prepared: tuple[Counts, Nodes]) -> tuple[Array, Array]:
        units, at = prepared
        log_mass, slope = self.masses(z[None, :], at)
        log_scale = self.log_scale(z[None, :])[0]
        log_p = log_scale + at.log_q
        log_miss = at.log_1q if log_scale == 0 else np.log1p(-np.exp(log_p))
        c, missed = units.c[:, None], (units.n - units.c)[:, None]
        joint = log_mass + c * log_p + missed * log_miss
        top = joint.max(axis=1, keepdims=True)
        posterior = np.exp(joint - top)
        total = posterior.sum(axis=1, keepdims=True)
        posterior /= total
        gradient = posterior @ slope[:, 0].T
        if len(z) > 2:
            odds = posterior @ np.exp(log_p - log_miss)
            by_scale = (c[:, 0] - missed[:, 0] * odds) * -np.expm1(log_scale)
            gradient = np.column_stack([gradient, by_scale])
        return (top + np.log(total))[:, 0], gradient

    def log_missed(self, z: Array, k: Array) -> Array:
        at = nodes(100)
        mass = np.exp(self.masses(z, at)[0])
        log_scale = self.log_scale(z)[:, None]
        log_miss = np.where(
            log_scale == 0, at.log_1q, np.log1p(-np.exp(log_scale + at.log_q) * (log_scale < 0))
        )
        missed = [(mass * np.exp(log_miss * each)).sum(axis=1) for each in k]
        return np.log(np.maximum(np.stack(missed, axis=1), 1e-300))


class ScaledBeta(Quadrature):
    """p / largest ~ beta(a, b): no problem is easier than `largest`."""

    name = "scaled_beta"
    formula = "pass@k = 1 - E (1 - largest q)^k, q ~ beta(a, b)"
    bounds = (*Quadrature.bounds, SHARE_RANGE)
    prior = ((-1.0, 1.0), (1.0, 1.0), (0.0, 2.0))

    def starts(self, units: Counts, weight: Array) -> list[Array]:
        best = float(np.clip((units.c / units.n)[weight > 0].max(), 1e-4, 0.98))
        return [np.array([np.log(0.4), 0.0, np.log(m / (1 - m))]) for m in (best, (1 + best) / 2)]

    def log_scale(self, z: Array) -> Array:
        return -np.logaddexp(0.0, -z[:, 2])

    def masses(self, z: Array, at: Nodes) -> tuple[Array, Array]:
        a, b = np.exp(z[:, :2].T)[:, :, None]
        log = a * at.log_q + b * at.log_1q + at.log_weight
        slope = np.stack([a * at.log_q, b * at.log_1q])
        for end, x, side in ((0, a[:, 0], 0), (-1, b[:, 0], 1)):
            # Beyond the nodes the density falls by the same factor each step: a geometric series.
            h = at.step[end]
            log[:, end] -= np.log(-np.expm1(-x * h))
            slope[side, :, end] -= x * h / np.expm1(np.minimum(x * h, 700.0))
        return _normalised(log, slope)

    def params(self, z: Array) -> dict[str, float]:
        return {**super().params(z), "largest": float(1 / (1 + np.exp(-z[2])))}

    def z(self, params: dict[str, float]) -> Array:
        return np.append(super().z(params), np.log(params["largest"]) - np.log1p(-params["largest"]))


class Kumaraswamy(Quadrature):
    """P(p < x) = 1 - (1 - x^a)^b."""

    name = "kumaraswamy"
    formula = "pass@k = 1 - E (1 - p)^k, P(p < x) = 1 - (1 - x^a)^b"

    def masses(self, z: Array, at: Nodes) -> tuple[Array, Array]:
        a, b = np.exp(z.T)[:, :, None]
        log_x = a * at.log_q
        log_rest = np.log(-np.expm1(np.minimum(log_x, -1e-300)))
        log = z[:, :1] + z[:, 1:] + log_x + (b - 1) * log_rest + at.log_1q + at.log_weight
        odds = log_x * np.exp(log_x - log_rest)
        slope = np.stack([1 + log_x - (b - 1) * odds, 1 + b * log_rest])
        tail = b[:, 0] * log_rest[:, 0]  # log (1 - x^a)^b
        inside = np.exp(tail) * b[:, 0]
        left = (-np.expm1(tail), inside * odds[:, 0], -inside * log_rest[:, 0])
        tail = b[:, 0] * log_rest[:, -1]
        right = (np.exp(tail), -np.exp(tail) * b[:, 0] * odds[:, -1], np.exp(tail) * tail)
        for end, (mass, by_a, by_b) in ((0, left), (-1, right)):
            half = np.exp(log[:, end]) / 2
            whole = np.maximum(half + mass, 1e-300)
            slope[:, :, end] = (slope[:, :, end] * half + np.stack([by_a, by_b])) / whole
            log[:, end] = np.log(whole)
        return _normalised(log, slope)


def _normalised(log: Array, slope: Array) -> tuple[Array, Array]:
    top = log.max(axis=1, keepdims=True)
    mass = np.exp(log - top)
    total = mass.sum(axis=1, keepdims=True)
    return log - top - np.log(total), slope - (slope * (mass / total)).sum(axis=2, keepdims=True)


@dataclass(frozen=True)
class Nodes:
    """Nodes [J] of the trapezoid rule over the logit y of q in (0, 1)."""

    log_q: Array
    log_1q: Array
    """log (1 - q)"""
    log_weight: Array
    step: Array


@lru_cache(maxsize=16)
def nodes(n: int) -> Nodes:
    """Nodes that integrate likelihoods of up to n samples against densities smooth in y, from y = -25 to 25.

    Substituting s(y) = 4 y + 2 sqrt(n) atan(e^(y/2)) makes steps of at most a quarter, and of at most a
    standard deviation 1 / sqrt(n q (1 - q)) where a likelihood is a narrow peak.
    """
    root = np.sqrt(n)

    def position(y: Array) -> Array:
        return 4 * y + 2 * root * np.arctan(np.exp(y / 2))

    def density(y: Array) -> Array:
        return 4 + root / (2 * np.cosh(y / 2))

    fine = np.linspace(-25.0, 25.0, 4000)
    start, stop = position(fine[[0, -1]])
    s = np.linspace(start, stop, int(np.ceil(stop - start)) + 1)
    y = np.interp(s, position(fine), fine)
    for _ in range(6):
        y = y - (position(y) - s) / density(y)
    step = (s[1] - s[0]) / density(y)
    return Nodes(-np.logaddexp(0.0, -y), -np.logaddexp(0.0, y), np.log(step), step)


FORMS: dict[str, Form] = {
    form.name: form for form in (Power(), BetaBinomial(), ScaledBeta(), Kumaraswamy(), ZeroInflated())
}
"""The forms of coverage by name."""

"""Forecast coverage: from n samples per problem to pass@k at larger k, by the form that held-out k prefers.

Two forms compete. The power form, pass@k = exp(-a k^-b) (Brown et al. 2024, arXiv 2407.21787, section 3), is
a straight line in log(-log pass@k) against log k. The beta-binomial form lets each problem's chance of
success be drawn from a beta distribution and is fitted to the counts by their likelihood; pass@k is then
1 - B(a, b + k) / B(a, b). Neither wins everywhere, so they are tried on the samples at hand first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flopwise.errors import FlopwiseError

TRIAL = 4
"""Forms are tried by forecasting pass@n from the first n / 4 samples."""


@dataclass(frozen=True)
class Forecast:
    """A forecast of pass@k with its interval over problems.

    `trial`: each form's error when it forecasts pass@n from the first samples; `draws`: the forecast on
    resampled problems, which the interval summarises.
    """

    form: str
    params: dict[str, float]
    n: int
    k: int
    value: float
    low: float
    high: float
    trial: dict[str, float]
    draws: np.ndarray = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it, draws left out."""
        return {name: value for name, value in vars(self).items() if name != "draws"}


def power_curve(counts: np.ndarray, n: int) -> dict[str, float]:
    """a and b of exp(-a k^-b) by least squares on the doubly logarithmic scale, over k = 1, 2, 4, ..., n.

    `counts` [n + 1]: how many problems had 0, 1, ..., n right samples.
    """
    ks = 2 ** np.arange(n.bit_length(), dtype=float)
    ks = ks[ks <= n]
    p = np.clip([_coverage(counts, n, int(k)) for k in ks], 1e-6, 1 - 1e-6)
    slope, start = np.polyfit(np.log(ks), np.log(-np.log(p)), 1)
    return {"a": float(np.exp(start)), "b": float(-slope)}


def beta_binomial(counts: np.ndarray, n: int) -> dict[str, float]:
    """a and b of the beta distribution of success chances, by maximum likelihood of the counts [n + 1]."""
    from scipy.optimize import minimize
    from scipy.special import betaln, digamma

    c = np.flatnonzero(counts)
    weight = counts[c]

    def cost(theta: np.ndarray) -> tuple[float, np.ndarray]:
        a, b = np.exp(theta)
        value = weight @ (betaln(a + c, b + n - c) - betaln(a, b))
        shared = digamma(a + b) - digamma(a + b + n)
        gradient = np.array([
            weight @ (digamma(a + c) - digamma(a) + shared) * a,
            weight @ (digamma(b + n - c) - digamma(b) + shared) * b,
        ])  # fmt: skip
        return -float(value), -gradient

    mean = float(np.clip(weight @ c / (n * weight.sum()), 1e-4, 1 - 1e-4))
    start = np.log([2 * mean, 2 * (1 - mean)])
    best = minimize(
        cost, start, jac=True, method="L-BFGS-B", bounds=[(-12.0, 12.0)] * 2, options={"gtol": 1e-8}
    )
    a, b = np.exp(best.x)
    return {"a": float(a), "b": float(b)}


def _power_at(p: dict[str, float], k: float) -> float:
    return float(np.exp(-p["a"] * k ** -p["b"]))


def _beta_at(p: dict[str, float], k: float) -> float:
    from scipy.special import betaln

    return float(-np.expm1(betaln(p["a"], p["b"] + k) - betaln(p["a"], p["b"])))


Form = tuple[Callable[[np.ndarray, int], dict[str, float]], Callable[[dict[str, float], float], float]]
FORMS: dict[str, Form] = {"power": (power_curve, _power_at), "beta_binomial": (beta_binomial, _beta_at)}


def forecast(correct: np.ndarray, k: int, seed: int = 0, draws: int = 200, level: float = 0.95) -> Forecast:
    """Forecast pass@k from judged samples.

    Args:
        correct: [problems, n] whether each sample is right; use only the samples that the forecast may see.
        k: number of samples to forecast for, usually beyond n.
        draws: bootstrap resamples of the problems behind the interval; the form is chosen anew in each.

    Raises:
        FlopwiseError: fewer than 8 samples or 10 problems, or no sample right at all.
    """
    problems, n = correct.shape
    if n < 8 or problems < 10:
        raise FlopwiseError(
            f"coverage: {problems} problems with {n} samples; a forecast needs 10 problems with 8 samples"
        )
    c, early = correct.sum(axis=1).astype(int), correct[:, : n // TRIAL].sum(axis=1).astype(int)
    if not c.any():
        raise FlopwiseError(f"coverage: none of {correct.size} samples is right; nothing to forecast from")
    rows = np.arange(problems)
    form, params, trial = _choose(c, early, n, rows)
    value = FORMS[form][1](params, k)
    rng = np.random.default_rng(seed)
    redrawn = []
    for _ in range(draws):
        again = rng.integers(0, problems, size=(problems,))
        if c[again].any():
            name, fitted, _ = _choose(c, early, n, again)
            redrawn.append(FORMS[name][1](fitted, k))
    low, high = np.quantile(redrawn, [0.5 - level / 2, 0.5 + level / 2])
    return Forecast(form, params, n, k, value, float(low), float(high), trial, np.array(redrawn))


def _choose(
    c: np.ndarray, early: np.ndarray, n: int, rows: np.ndarray
) -> tuple[str, dict[str, float], dict[str, float]]:
    """The form that forecasts pass@n best from the first samples, fitted to all of them."""
    counts, first = np.bincount(c[rows], minlength=n + 1), np.bincount(early[rows], minlength=n // TRIAL + 1)
    truth = _coverage(counts, n, n)
    trial = {name: abs(at(fit(first, n // TRIAL), n) - truth) for name, (fit, at) in FORMS.items()}
    best = min(trial, key=lambda name: trial[name])
    return best, FORMS[best][0](counts, n), trial


def _coverage(counts: np.ndarray, n: int, k: int) -> float:
    """Unbiased pass@k of a histogram of right samples (Chen et al. 2021, arXiv 2107.03374, eq. 1)."""
    wrong = n - np.arange(n + 1)
    missed = np.prod([np.maximum(wrong - i, 0) / (n - i) for i in range(k)], axis=0)
    return float(1 - counts @ missed / counts.sum())

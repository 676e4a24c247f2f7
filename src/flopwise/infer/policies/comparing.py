"""Curves of accuracy against cost, compared at equal cost and at equal accuracy, with paired intervals.

A curve holds the accuracy and the cost of every problem along a dial from cheap to dear. Between two points
of the dial a policy may mix them by lot, so that curves are straight there. Intervals resample problems;
both curves are read off anew in each resample, since the mean cost moves with the problems.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from flopwise.infer.estimators import percentiles

DRAWS = 1000
CELLS = 1 << 20
"""Numbers held at a time."""


@dataclass(frozen=True)
class Curve:
    """Accuracy and cost [P, T] of a policy along its dial."""

    name: str
    value: np.ndarray
    cost: np.ndarray

    def means(self, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean value and cost [D, T] under weights of problems [D, P]; costs are made to rise."""
        return weight @ self.value, np.maximum.accumulate(weight @ self.cost, axis=1)


def read_off(x: np.ndarray, y: np.ndarray, at: np.ndarray) -> np.ndarray:
    """y [D] where each rising row of x [D, T] reaches `at` [D]; NaN before its start, its last y beyond.

    >>> read_off(np.array([[1.0, 2.0]]), np.array([[0.0, 10.0]]), np.array([1.5])).tolist()
    [5.0]
    """
    rows, last = np.arange(len(x)), x.shape[1] - 1
    right = np.minimum((x < at[:, None] * (1 - 1e-9)).sum(axis=1), last)
    left = np.maximum(right - 1, 0)
    width = x[rows, right] - x[rows, left]
    part = np.where(width > 0, (at - x[rows, left]) / np.where(width > 0, width, 1.0), 1.0)
    found = y[rows, left] + np.clip(part, 0.0, 1.0) * (y[rows, right] - y[rows, left])
    return np.where(at < x[:, 0] * (1 - 1e-9), np.nan, found)


def risen(values: np.ndarray) -> np.ndarray:
    """The rising row nearest to each of values [D, T]: max over i <= t of min over j >= t of mean(i to j).

    >>> risen(np.array([[1.0, 3.0, 2.0]])).tolist()
    [[1.0, 2.5, 2.5]]
    """
    D, T = values.shape
    sums = np.concatenate([np.zeros((D, 1)), np.cumsum(values, axis=1)], axis=1)
    i, j = np.arange(T)[:, None], np.arange(T)[None, :]
    out = np.empty((D, T))
    for first in range(0, D, max(1, CELLS // T**2)):
        rows = slice(first, first + max(1, CELLS // T**2))
        mean = (sums[rows, None, 1:] - sums[rows, :-1, None]) / np.maximum(j - i + 1, 1)
        least = np.minimum.accumulate(np.where(j >= i, mean, np.inf)[:, :, ::-1], axis=2)[:, :, ::-1]
        out[rows] = np.where(i <= j, least, -np.inf).max(axis=1)
    return out


def weights(P: int, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """[1 + draws, P]: all problems alike, then resamples of them (the bootstrap over problems)."""
    drawn = np.random.default_rng(seed).multinomial(P, np.full(P, 1 / P), size=draws)
    return np.concatenate([np.full((1, P), 1 / P), drawn / P])


def compare(
    curve: Curve, base: Curve, budget: float, weight: np.ndarray, level: float = 0.95
) -> dict[str, Any]:
    """A policy against another at a mean cost a problem, and at the accuracy the other reaches with it.

    Returns:
        `accuracy` and `cost` a problem at the budget; `gain` in accuracy over `base` at equal cost (paired);
        `saving`: by which share less is spent for the accuracy that `base` has there, below 0 where more is.
        Each has value, low, high; None where a curve does not reach that far. A low end of a saving is None
        where more than that share of resamples never reaches it.
    """
    P = weight.shape[1]
    value, cost = curve.means(weight)
    base_value, base_cost = base.means(weight)
    at = np.full(len(weight), float(budget))
    reached, wanted = read_off(cost, value, at), read_off(base_cost, base_value, at)
    spent = np.minimum(at, cost[:, -1])
    smooth = risen(value)
    needed = read_off(smooth + 1e-12 * np.arange(value.shape[1]), cost, wanted)
    needed = np.where(
        wanted > smooth[:, -1] + 1e-9, np.inf, np.where(wanted < smooth[:, 0], cost[:, 0], needed)
    )
    ratio = needed / np.minimum(at, base_cost[:, -1])
    ratio[np.isnan(wanted)] = np.nan
    return {
        "name": curve.name, "accuracy": interval(reached, P, level), "cost": float(spent[0]),
        "gain": interval(reached - wanted, P, level), "saving": interval(1 - ratio, P, level),
    }  # fmt: skip


def interval(draws: np.ndarray, P: int, level: float = 0.95) -> dict[str, float | None]:
    """The first as the value, and the ends of the expanded percentile interval of the others, which resampled
    P problems; None where it is not finite."""
    value, rest = draws[0], draws[1:]
    rest = rest[~np.isnan(rest)]
    if np.isnan(value) or not len(rest):
        return {"value": None, "low": None, "high": None}
    # Saving -inf: the accuracy is never reached. Quantiles between such draws and others are not defined.
    ends = percentiles(np.where(np.isinf(rest), -1e300, rest), P, level)
    return {
        name: float(x) if x > -1e100 else None
        for name, x in zip(("value", "low", "high"), (value, *ends), strict=True)
    }

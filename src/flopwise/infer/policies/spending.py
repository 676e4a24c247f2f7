"""Spend a total over prompts: greedy marginal gains on concave hulls, exact wherever curves are concave.

Each group of prompts has options with a cost and a value. Only options on the upper concave hull of a group
can be best at some price, so those above it are walked through in the order of value per cost, all groups
together, until the total is spent. That is the optimum of the linear relaxation, in which a group may mix two
neighbouring options by lot (Dyer 1984 and Zemel 1984, on the multiple-choice knapsack); without mixing it
falls short by less than the step that did not fit. Marginal gains for language models: Damani et al., arXiv
2410.04707.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from flopwise.errors import FlopwiseError

Curve = tuple[np.ndarray, np.ndarray]
"""Costs and values [K] of one group's options."""


@dataclass(frozen=True)
class Spending:
    """What each of G groups gets: option `low`, or with chance `mix` option `high`.

    `value` and `cost` are totals by weight; `bound` is what no choice can exceed; `price` is value per cost
    at the margin. `beneath`: how many options lie under a hull, where they are never chosen, and by how much
    the value of the deepest falls short of it: 0 where all curves are concave.
    """

    low: np.ndarray
    high: np.ndarray
    mix: np.ndarray
    value: float
    cost: float
    bound: float
    price: float
    beneath: tuple[int, float]


def hull(cost: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Places of the options on the upper concave hull, from the cheapest (of those, the best) to the best.

    >>> hull(np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.0, 0.1, 0.6, 0.5])).tolist()
    [0, 2]
    """
    kept: list[int] = []
    for i in np.lexsort((-value, cost)).tolist():
        if kept and value[i] <= value[kept[-1]]:
            continue
        while len(kept) > 1:
            a, b = kept[-2:]
            if (value[b] - value[a]) * (cost[i] - cost[b]) > (value[i] - value[b]) * (cost[b] - cost[a]):
                break
            kept.pop()
        kept.append(i)
    return np.array(kept)


class Frontier:
    """The hulls of G groups' options, and the steps along them in the order of value per cost.

    Args:
        weight: [G] of each group: how many prompts it stands for, or its share of them; 1 by default.
    """

    def __init__(self, curves: Sequence[Curve], weight: np.ndarray | None = None):
        w = np.ones(len(curves)) if weight is None else np.asarray(weight, dtype=float)
        hulls = [hull(*curve) for curve in curves]
        self.lowest = np.array([h[0] for h in hulls])
        self.least = float(sum(wg * c[h[0]] for wg, (c, _), h in zip(w, curves, hulls, strict=True)))
        self.most = float(sum(wg * c[h[-1]] for wg, (c, _), h in zip(w, curves, hulls, strict=True)))
        self.start = float(sum(wg * v[h[0]] for wg, (_, v), h in zip(w, curves, hulls, strict=True)))
        steps = []
        for g, (h, (cost, value)) in enumerate(zip(hulls, curves, strict=True)):
            for a, b in pairwise(h.tolist()):
                extra, gain = float(cost[b] - cost[a]), float(value[b] - value[a])
                steps.append((gain / max(extra, 1e-300), g, b, w[g] * extra, w[g] * gain))
        self.steps = sorted(steps, key=lambda step: (-step[0], step[1]))
        self.beneath = _beneath(curves, hulls)

    def at(self, total: float, mix: bool = False) -> Spending:
        """The best choice of one option for each group within a total cost.

        Args:
            mix: let the group at the margin mix two options, so that the total is met. Without, steps that no
                longer fit are passed over.

        Raises:
            FlopwiseError: the total does not pay for the cheapest option of each.
        """
        if not total >= self.least * (1 - 1e-12):
            raise FlopwiseError(
                f"policy: a total of {total:.4g} does not pay for the cheapest option of each prompt, which "
                f"takes {self.least:.4g}; spend more"
            )
        low, share = self.lowest.copy(), np.zeros(len(self.lowest))
        high, stuck = low.copy(), np.zeros(len(low), dtype=bool)
        left = relaxed = total - self.least
        value = bound = self.start
        price = 0.0
        for slope, g, b, cost, gain in self.steps:
            if relaxed > 0:
                bound += gain * min(1.0, relaxed / cost) if cost > 0 else gain
                price = slope if cost > relaxed else 0.0
                relaxed -= cost
            elif mix:
                break
            if not stuck[g] and cost <= left * (1 + 1e-12):
                low[g] = high[g] = b
                left, value = max(left - cost, 0.0), value + gain
                continue
            if mix and left > 0:
                high[g], share[g] = b, left / cost
                left, value = 0.0, value + share[g] * gain
            stuck[g] = True  # what comes after a step that was passed over is no step of the hull
        return Spending(low, high, share, value, total - left, bound, price, self.beneath)


def spend(
    curves: Sequence[Curve], total: float, weight: np.ndarray | None = None, mix: bool = False
) -> Spending:
    """The best choice of one option for each group within a total cost: see `Frontier`."""
    return Frontier(curves, weight).at(total, mix)


def _beneath(curves: Sequence[Curve], hulls: Sequence[np.ndarray]) -> tuple[int, float]:
    """Options that lie under the hull between its ends, and the largest gap."""
    count, deepest = 0, 0.0
    for (cost, value), h in zip(curves, hulls, strict=True):
        inside = (cost >= cost[h[0]]) & (cost <= cost[h[-1]])
        short = np.interp(cost, cost[h], value[h])[inside] - value[inside]
        count += int((short > 1e-12).sum())
        deepest = max(deepest, float(short.max(initial=0.0)))
    return count, deepest


def spread(
    a: np.ndarray, b: np.ndarray, cost: np.ndarray, total: float, minimum: int = 0, most: int = 10**6
) -> np.ndarray:
    """Samples [P] for each prompt that together solve most, for an answer that can be checked.

    A prompt's chance of success is known as Beta(a, b); its (k + 1)-th sample is the first success with
    chance B(a + 1, b + k) / B(a, b), which falls with k, so that greedy is exact up to the last sample.

    Args:
        a, b: posteriors [P]; see `difficulty.Beta`.
        cost: of a sample of each prompt [P].
        total: to be spent over all.
        minimum, most: samples of each prompt.

    Raises:
        FlopwiseError: the total does not pay for the minimum.
    """
    from scipy.special import betaln

    def gain(k: np.ndarray) -> np.ndarray:
        return np.exp(betaln(a + 1, b + k) - betaln(a, b)) / cost

    def wanted(price: float) -> np.ndarray:
        """Samples whose gains are at least the price: by bisection, since gains fall."""
        low, high = np.full(len(a), minimum), np.full(len(a), most)
        while (low < high).any():
            middle = (low + high + 1) // 2
            worth = gain(middle - 1.0) >= price
            low, high = np.where(worth, middle, low), np.where(worth, high, middle - 1)
        return low

    if minimum * cost.sum() > total * (1 + 1e-12):
        raise FlopwiseError(
            f"policy: a total of {total:.4g} does not pay for {minimum} samples of each prompt, which take "
            f"{minimum * cost.sum():.4g}; spend more"
        )
    ends = gain(np.zeros(len(a))).max(), gain(np.full(len(a), float(most))).min()
    dear, cheap = (float(np.log(max(end, 1e-300))) for end in ends)
    dear, cheap = dear + 1e-9, cheap - 1e-9
    for _ in range(30):
        middle = (dear + cheap) / 2
        if wanted(np.exp(middle)) @ cost > total:
            cheap = middle
        else:
            dear = middle
    k = wanted(np.exp(dear))
    left = total - k @ cost
    # At the margin many prompts may be level; give each one more while it lasts.
    for i in np.argsort(-gain(k.astype(float)), kind="stable"):
        if cost[i] <= left and k[i] < most:
            k[i] += 1
            left -= cost[i]
    return k

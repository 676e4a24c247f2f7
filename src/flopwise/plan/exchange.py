"""Exchange rates: what the same gain in accuracy costs by each of the three laws, measured in one experiment.

From a reference system, a way of spending more is a sequence of measured systems. Between two of them the
cost of an accuracy is read off a straight line, in FLOPs where FLOPs are spent once, in log n for samples;
beyond the last measured one nothing is claimed. Intervals are over problems: all systems are resampled
together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flopwise.plan.systems import System, paired_draws

DRAWS = 500


@dataclass(frozen=True)
class Way:
    """One way to spend more: systems in the order of what they cost, the reference first."""

    law: str
    how: str
    systems: tuple[System, ...]
    per_question: bool
    """Paid again for every question (samples), or once (training)."""

    def costs(self) -> np.ndarray:
        """FLOPs beyond the reference, per question or once."""
        first = self.systems[0]
        if self.per_question:
            return np.array([s.per_question_flops - first.per_question_flops for s in self.systems])
        return np.array([s.one_off_flops - first.one_off_flops for s in self.systems])


def crossing(
    costs: np.ndarray, accuracies: np.ndarray, target: float, log_after: bool = False
) -> float | None:
    """Cost at which a piecewise straight curve first reaches `target`; None if it never does.

    `log_after`: beyond the first segment, straight in the logarithm of the cost.

    >>> crossing(np.array([0.0, 10.0, 20.0]), np.array([0.2, 0.3, 0.5]), 0.4)
    15.0
    """
    for i in range(1, len(costs)):
        a, b = accuracies[i - 1], accuracies[i]
        if b >= target:
            share = 0.0 if a >= target else (target - a) / (b - a)
            if log_after and costs[i - 1] > 0:
                return float(costs[i - 1] * (costs[i] / costs[i - 1]) ** share)
            return float(costs[i - 1] + share * (costs[i] - costs[i - 1]))
    return None


def price(way: Way, gain: float, draws: np.ndarray, level: float = 0.95) -> dict[str, Any]:
    """What `gain` over the reference costs by a way. `draws` [n, systems of the way]: paired bootstrap means.

    An end of the interval is None where a resample in forty never reaches the gain within what was measured.
    """
    costs = way.costs()
    means = np.array([s.accuracy for s in way.systems])
    value = crossing(costs, means, means[0] + gain, way.per_question)
    found = [crossing(costs, row, row[0] + gain, way.per_question) for row in draws]
    sorted_costs = np.sort([np.inf if c is None else c for c in found])
    low, high = (
        float(sorted_costs[min(len(found) - 1, int(q * len(found)))])
        for q in (0.5 - level / 2, 0.5 + level / 2)
    )
    best = int(np.argmax(means))
    note = "" if value is not None else (
        f"not reached: the best measured is {means[best] - means[0]:+.1%} at {costs[best]:.2g} FLOPs"
    )  # fmt: skip
    kind = "per_question" if way.per_question else "one_off"
    other = "one_off" if way.per_question else "per_question"
    return {
        "law": way.law, "how": way.how, f"{kind}_flops": value,
        f"{kind}_low": low if value is not None and np.isfinite(low) else None,
        f"{kind}_high": high if value is not None and np.isfinite(high) else None,
        f"{other}_flops": None, f"{other}_low": None, f"{other}_high": None,
        "reached": value is not None, "note": note,
    }  # fmt: skip


def exchange_rates(ways: Sequence[Way], gains: Sequence[float], seed: int = 0) -> dict[str, Any]:
    """For each gain, what every way asks for it, and where paying once beats paying per question."""
    reference = ways[0].systems[0]
    everything = list({id(s): s for way in ways for s in way.systems}.values())
    place = {id(s): i for i, s in enumerate(everything)}
    draws = paired_draws(everything, DRAWS, seed)
    rates = []
    for gain in gains:
        rows = [price(way, gain, draws[:, [place[id(s)] for s in way.systems]]) for way in ways]
        rates.append({
            "gain": gain, "target": reference.accuracy + gain, "ways": rows, "break_even": break_even(rows),
        })  # fmt: skip
    return {
        "reference": {
            "model": reference.model, "strategy": reference.strategy, "accuracy": reference.accuracy,
            "se": float(draws[:, place[id(reference)]].std(ddof=1)),
        },
        "rates": rates,
    }  # fmt: skip


def break_even(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Numbers of questions above which the cheapest way paid once beats each way paid per question."""
    once = [r for r in rows if r["one_off_flops"]]
    if not once:
        return []
    cheapest = min(once, key=lambda r: r["one_off_flops"])
    return [
        {
            "a": cheapest["how"], "b": r["how"],
            "questions": cheapest["one_off_flops"] / r["per_question_flops"],
        }
        for r in rows if r["per_question_flops"]
    ]  # fmt: skip


def to_dict(way: Way) -> dict[str, Any]:
    """A way as JSON takes it: its points, without the single problems."""
    points = [
        {
            "model": s.model, "strategy": s.strategy, "n": s.n, "accuracy": s.accuracy,
            "one_off_flops": s.one_off_flops, "per_question_flops": s.per_question_flops,
        }
        for s in way.systems
    ]  # fmt: skip
    return {"law": way.law, "how": way.how, "per_question": way.per_question, "points": points}

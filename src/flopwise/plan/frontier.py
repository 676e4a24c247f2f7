"""The plan: where a budget should go under fitted laws, or the least budget that reaches a target.

The budget pays for pretraining, post-training and a lifetime of answers (`plan.setting`); without
post-training, samples and limits it is C = 6 N D + 2 N T (`laws.optimum`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from flopwise.errors import FlopwiseError
from flopwise.plan.budget import Split

if TYPE_CHECKING:
    from pathlib import Path

    from flopwise.laws import Fit
    from flopwise.plan.response import Response
    from flopwise.plan.setting import Setting

__all__ = ["Plan", "Split", "plan"]

WORTH = (4.0, 16.0, 64.0)
"""Numbers of samples whose worth in pretraining is told."""
SPAN = (1e-3, 1e6)
"""Budgets looked through for a target, in times the smallest and largest run that was fitted."""
COST_DRAWS = 60


@dataclass(frozen=True)
class Plan:
    """Where a budget should go: `best` under the first law given, and what the others say.

    With a `target` the budget is the least that reaches it, with its 95% interval (None where an end is not
    reached). `alternatives` are simple rules at the same budget, `sensitivity` the plan with one thing
    changed,
    `marginal` what the next FLOP brings by each law, `exchange` what samples and post-training are worth in
    pretraining, `bill` hours, money and carbon, `predictions` what the plan may be held to, with its
    `neighbours`. `assumed` names what was not stated.
    """

    budget: float
    demand: float
    best: Split
    others: list[Split]
    queries: float = 0.0
    prompt_tokens: float = 0.0
    answer_tokens: float = 0.0
    samples_max: float = 1.0
    target: float | None = None
    budget_interval: tuple[float | None, float | None] | None = None
    limits: dict[str, Any] = field(default_factory=dict)
    alternatives: list[dict[str, Any]] = field(default_factory=list)
    sensitivity: list[dict[str, Any]] = field(default_factory=list)
    marginal: list[dict[str, Any]] = field(default_factory=list)
    exchange: list[dict[str, Any]] = field(default_factory=list)
    bill: dict[str, Any] | None = None
    predictions: list[dict[str, Any]] = field(default_factory=list)
    neighbours: list[dict[str, Any]] = field(default_factory=list)
    assumed: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self)

    def to_json(self, path: str | Path) -> None:
        """Write `to_dict`, atomically; `flopwise verify` reads it."""
        import json
        from pathlib import Path

        from flopwise.records.folder import atomic_write

        atomic_write(Path(path), json.dumps(self.to_dict(), indent=1))


def plan(
    fits: Fit | Sequence[Fit], budget: float | None = None, demand: float = 0.0, seed: int = 0, *,
    queries: float = 0.0, prompt_tokens: float = 0.0, answer_tokens: float = 0.0,
    samples_max: float | None = None, target: float | None = None, target_accuracy: float | None = None,
    memory: float | None = None, latency: float | None = None, data: float | None = None,
    base: tuple[float, float] | None = None, deadline: float | None = None, hardware: str | None = None,
    price: float | None = None, mfu: float | None = None, devices: float | None = None,
    serving_mfu: float | None = None, carbon: float | None = None, bytes_per_weight: float = 2.0,
    train_cost: float = 6.0, answer_cost: float = 2.0, at: Mapping[str, float] | None = None,
) -> Plan:  # fmt: skip
    """Split a budget over size, tokens, post-training and samples for the least loss or the most accuracy.

    Args:
        fits: laws in N and D, and U, post, k as they have them; the first is followed, the others say what it
            costs if they are right. A law that goes on from a loss (`train_to_test`, `task_sigmoid`) is
            chained to those that predict one.
        budget: FLOPs in all; or give a target.
        demand: tokens that are processed at inference over the model's life, once each.
        queries: questions over its life, each with `prompt_tokens` and answers of `answer_tokens`, of which
            up to `samples_max` are drawn (without: as many as were fitted).
        target: value of the metric to be reached for the least budget; `target_accuracy` the same as a share.
        memory: bytes at inference. `latency`: seconds a question. `data`: unique tokens there are. `base`: N
            and D of a model to start from. `deadline`: seconds of training.
        hardware: a profile of `flops.hardware`; `price` of one hour of one device, `mfu` and `serving_mfu`
            the shares of its peak that training and serving reach, `carbon` kg of CO2 per kWh.
        train_cost: FLOPs per parameter and token trained; `answer_cost` per one read or written. At small
            width, measure them (`flops.count`).
        at: N, D, post and k of another point than the best one, whose marginal gains and exchange rates to
        tell.

    Raises:
        FlopwiseError: no fit, laws in other variables or of different metrics, no budget and no target or one
            that is not above 0, a demand or limits that leave nothing, a target that no budget reaches.
    """
    from flopwise.plan.response import responses
    from flopwise.plan.setting import Demand, Limits, Machine, Setting

    laws = responses(list(fits) if isinstance(fits, Sequence) else [fits])
    first = laws[0]
    if budget is None and target is None and target_accuracy is None:
        raise FlopwiseError("plan: give a budget in FLOPs, or a target")
    _numbers(
        {"budget": budget, "memory": memory, "latency": latency, "data": data, "deadline": deadline,
         "train_cost": train_cost, "answer_cost": answer_cost, "bytes_per_weight": bytes_per_weight},
        {"demand": demand, "queries": queries, "prompt_tokens": prompt_tokens,
         "answer_tokens": answer_tokens},
    )  # fmt: skip
    asked = Demand(queries, prompt_tokens, answer_tokens, _samples(laws, samples_max), demand)
    if "k" in first.variables and asked.samples_max > 1 and not queries * answer_tokens > 0:
        raise FlopwiseError(
            f"plan: {first.name} has samples, which are paid with every question; say how many questions "
            "and how long an answer: --queries 1e9 --answer-tokens 500 (or --samples-max 1)"
        )
    any_machine = any(v is not None for v in (hardware, price, mfu, devices, serving_mfu, carbon))
    machine = Machine.of(hardware, price, mfu, devices, serving_mfu, carbon) if any_machine else None
    if base is not None and not (len(base) == 2 and all(np.isfinite(v) and v >= 1 for v in base)):
        raise FlopwiseError(f"plan: base is {base}, must be the N and the D of a model, as N=7e9,D=1e12")
    if data is not None and data < 1:
        raise FlopwiseError(f"plan: data is {data:g}, must be at least one token")
    limits = Limits(memory, latency, data, base, deadline, bytes_per_weight)
    setting = Setting(asked, limits, machine, train_cost, answer_cost)
    if base is not None and not setting.fits(base[0], 1.0):
        raise FlopwiseError(
            f"plan: the model to start from, N = {base[0]:.3g}, does not keep the limits of memory and "
            "latency"
        )
    wanted = _target(first, target, target_accuracy)
    interval = None
    if wanted is not None:
        budget, interval = _least(first, setting, wanted, budget, seed)
    assert budget is not None
    return _made(laws, setting, budget, wanted, interval, seed, at)


def _made(
    laws: list[Response], setting: Setting, budget: float, target: float | None,
    interval: tuple[float | None, float | None] | None, seed: int, at: Mapping[str, float] | None,
) -> Plan:  # fmt: skip
    from flopwise.plan.budget import (
        DRAWS,
        add_regrets,
        corners,
        neighbours,
        predictions,
        sensitivity,
        split,
    )
    from flopwise.plan.marginal import exchange, marginal

    first, asked = laws[0], setting.demand
    draws = first.draws(DRAWS, seed)
    splits = [split(r, setting, budget, seed=seed, params=draws if r is first else None) for r in laws]
    add_regrets(splits, laws, setting, budget)
    best = splits[0]
    machine = setting.machine
    here = best.point if at is None else at
    once = best.train_flops + best.post_flops
    worth = sorted({k for k in (*WORTH, float(best.samples)) if 1 < k <= asked.samples_max})
    return Plan(
        budget, asked.tokens, best, splits[1:], asked.queries, asked.prompt_tokens, asked.answer_tokens,
        asked.samples_max, target, interval,
        setting.limits.given(),
        corners(first, setting, budget) if first.variables & {"post", "k"} else [],
        sensitivity(first, setting, budget, best),
        marginal(first, setting, here, draws=draws),
        exchange(first, setting, here, worth, draws=draws),
        None if machine is None else machine.bill(once, best.inference_flops),
        [predictions(first, setting, best.point)], neighbours(first, setting, budget, best),
        setting.assumed(),
    )  # fmt: skip


def _numbers(positive: dict[str, float | None], zero: dict[str, float]) -> None:
    """Raise unless all are numbers in their range."""
    for name, value in positive.items():
        if value is not None and not (np.isfinite(value) and value > 0):
            what = " FLOPs" if name == "budget" else ""
            raise FlopwiseError(f"plan: {name} is {value:g}{what}, must be a number above 0")
    for name, value in zero.items():
        if not (np.isfinite(value) and value >= 0):
            raise FlopwiseError(f"plan: {name} is {value:g}, must be a number from 0")


def _samples(laws: list[Response], most: float | None) -> float:
    """The most samples a question: as given, or as many as were fitted."""
    if most is None:
        return max([1.0, *(r.ranges["k"][1] for r in laws if "k" in r.ranges)])
    if not (np.isfinite(most) and most >= 1):
        raise FlopwiseError(f"plan: samples_max is {most:g}, must be at least 1")
    return float(np.floor(most))


def _target(first: Response, target: float | None, accuracy: float | None) -> float | None:
    """The target in the metric's own units."""
    if accuracy is None:
        if target is not None and not np.isfinite(target):
            raise FlopwiseError(f"plan: target is {target}, must be a number")
        return target
    if not 0 < accuracy < 1:
        raise FlopwiseError(f"plan: target accuracy is {accuracy:g}, must be a share between 0 and 1")
    if first.rises:
        return accuracy
    if first.metric == "nlp":
        return float(-np.log(accuracy))
    raise FlopwiseError(
        f"plan: {first.name} predicts {first.metric}, not accuracy; give --target-loss, or a law of accuracy"
    )


def _least(
    first: Response, setting: Setting, target: float, most: float | None, seed: int
) -> tuple[float, tuple[float | None, float | None]]:
    """The least budget for a target, with its 95% interval."""
    from flopwise.plan.solve import cheapest, cheapest_draws

    (n0, n1), (d0, d1) = first.ranges["N"], first.ranges["D"]
    fixed = float(setting.answering(setting.limits.base[0] if setting.limits.base else 1.0, 1.0))
    low = SPAN[0] * 6 * n0 * d0
    high = most or SPAN[1] * (6 * n1 * d1 + float(setting.answering(n1, 1.0)))
    goal = target if first.rises else -target
    found = cheapest(first, setting, goal, (max(low, fixed * 1.0001) if fixed < high else low, high))
    if found is None:
        raise FlopwiseError(
            f"plan: {first.name} reaches {first.metric} {target:.4g} with no budget up to {high:.3g} FLOPs "
            "within the limits; lower the target or loosen the limits"
        )
    budget = found[0]
    drawn = np.sort(cheapest_draws(first, setting, goal, budget, first.draws(COST_DRAWS, seed)))
    ends = [float(drawn[min(int(q * len(drawn)), len(drawn) - 1)]) for q in (0.025, 0.975)]
    return budget, (ends[0], ends[1] if np.isfinite(ends[1]) else None)

"""All policies on one set of samples: uniform, adaptive, by difficulty, and both, at equal compute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from flopwise.errors import FlopwiseError
from flopwise.infer.policies.comparing import Curve, compare, weights
from flopwise.infer.policies.difficulty import Difficulty, default_signal
from flopwise.infer.policies.fitted import STEPS, Build, by_posterior, cross_fit, fit
from flopwise.infer.policies.options import (
    VERIFIER,
    Option,
    default_strategies,
    judge_of,
    parallel,
    score_rules,
    stopping,
)
from flopwise.infer.policies.rounds import two_rounds
from flopwise.infer.policies.rules import families
from flopwise.infer.policies.spending import Frontier
from flopwise.infer.policies.walk import Shuffled
from flopwise.infer.samples import Samples
from flopwise.infer.strategies.best_of_n import FREE

LEAST_PROBLEMS, FEW_PROBLEMS = 20, 100
LOOK = 2
"""Samples in the first of two rounds, where difficulty comes from a probe."""
MC_TOLD = 0.001
"""Differences in accuracy from which they are told."""


def policies(
    samples: Samples, budget: float | None = None, each: float | None = None,
    strategies: Sequence[str] | None = None, by: str | None = None, m: int | None = None,
    probe: np.ndarray | None = None, probe_cost: float = 0.0, bins: int = 4, folds: int = 2, repeats: int = 5,
    orders: int | None = None, every: int = 1, level: float = 0.95, seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """What policies reach with a total that uniform spending might use as well.

    Uniform gives all prompts one strategy and number of samples, the best for the total. Adaptive gives all
    one stopping rule. By difficulty, each bin of prompts gets what is best for it. All are chosen on some
    problems and judged on others (cross-fitted), on samples that difficulty was not taken from, and pay for
    what they use: prompts, samples, judges, difficulty (but for the row marked free). Where the verifier both
    chooses and shows difficulty, samples are also spread by each prompt's posterior. Two rounds look at the
    first m samples and take the others at once: see `rounds`.

    Args:
        budget: for all problems together, in the samples' unit; or `each`, as much as so many samples of
            every problem cost; by default half of those there are.
        strategies: as `best_of_n:reward`, `self_consistency`; by default all that need no verifier. Name
            `best_of_n:verifier` where answers can be checked when they are asked for.
        by, m: difficulty from the first m samples by agreement, a judge or the verifier; or from `probe` [P],
            a score of the prompt that costs `probe_cost`.
        bins: of difficulty, at most.
        folds, repeats: of cross-fitting over problems.
        every: stopping rules look after every so many samples (rounds).

    Returns:
        `unit`, `budget`, `problems`, `samples` (evaluated, each), `uniform` (accuracy, cost and option),
        `policies` (see `comparing.compare`, with what the policy does when fitted on all problems), `table`
        (difficulty and what to do), `warnings`, `curves`.

    Raises:
        FlopwiseError: fewer than 20 problems or too few samples, a budget below one sample of each or no
            number, a strategy or judge that the samples do not have.
    """
    if samples.P < LEAST_PROBLEMS:
        raise FlopwiseError(
            f"policy: {samples.P} problems, one half is to learn from the other; need {LEAST_PROBLEMS}"
        )
    strategies = list(strategies or default_strategies(samples))
    if probe is None:
        by = by or default_signal(samples)
        m = max(1, min(4, samples.n // 8)) if m is None else m
        held, rest = samples.split(m)
        difficulty = Difficulty.of(held, by)
    else:
        held, rest, difficulty = None, samples, Difficulty.probe(probe, probe_cost)
    fixed = [o for s in strategies for o in parallel(rest, s)]
    judges = [j for s in strategies if (j := judge_of(s)) not in (None, "verifier")]
    shuffled = Shuffled(rest, orders, seed)
    plain = stopping(rest, families(strategies, rest.n), every=every, shuffled=shuffled)
    known: dict[bytes, list[Option]] = {}

    def stops(train: np.ndarray) -> list[Option]:
        if train.tobytes() not in known:
            rules = [r for j in judges if j is not None for r in score_rules(rest, j, train)]
            known[train.tobytes()] = plain + stopping(rest, rules, every=every, shuffled=shuffled)
        return known[train.tobytes()]

    budget = _budget(rest, strategies, budget, each)
    mean = budget / rest.P
    builds: dict[str, tuple[Build, Difficulty | None]] = {
        "uniform": (lambda train: fixed, None),
        "adaptive": (stops, None),
        "by difficulty": (lambda train: fixed, difficulty),
        "by difficulty, free": (lambda train: fixed, replace(difficulty, cost=np.zeros(rest.P))),
        "both": (lambda train: [*fixed, *stops(train)], difficulty),
    }
    everyone = np.arange(rest.P)
    options = {name: list(build(everyone)) for name, (build, _) in builds.items()}
    builds = {name: how for name, how in builds.items() if options[name]}
    if mean < min(o.cost.mean() for o in fixed):
        raise FlopwiseError(
            f"policy: {budget:.4g} {samples.unit} for {rest.P} problems is less than one sample of each "
            f"costs ({rest.P * min(o.cost.mean() for o in fixed):.4g}); spend more"
        )
    budgets = _grid(options, mean)
    curves = {}
    for name, (build, hard) in builds.items():
        value, cost = cross_fit(build, rest.P, budgets, hard, bins, folds, repeats, seed)
        curves[name] = Curve(name, value, cost)
    if held is not None and difficulty.by == "verifier" and strategies == [VERIFIER]:
        value, cost = by_posterior(held, rest, budgets, difficulty.cost, folds, repeats, seed)
        curves["by posterior"] = Curve("by posterior", value, cost)
    looked = two_rounds(shuffled, strategies, difficulty.m or LOOK)
    if looked is not None:
        rounds, look = looked
        value, cost = cross_fit(
            lambda train: rounds, rest.P, budgets, look, bins, folds, repeats, seed, shuffled.orders
        )
        curves["two rounds"] = Curve("two rounds", value, cost)
    weight = weights(rest.P, seed=seed)
    found = {n: compare(c, curves["uniform"], mean, weight, level) for n, c in curves.items()}
    for name, (_, hard) in builds.items():
        found[name]["does"] = _does(options[name], everyone, mean, hard, bins)
    if looked is not None:
        does = _does(rounds, np.arange(len(look.ease)), mean, look, bins)
        found["two rounds"] |= {"does": does, "look": {"by": look.by, "m": look.m}}
        for row in does:
            row["problems"] = row["problems"] / shuffled.orders
    base = found.pop("uniform")
    adaptive = options.get("adaptive", [])
    return {
        "unit": samples.unit, "budget": budget, "problems": rest.P, "samples": rest.n, "level": level,
        "strategies": strategies,
        "difficulty": {"by": difficulty.by, "m": difficulty.m, "cost": float(difficulty.cost.mean())},
        "uniform": {key: base[key] for key in ("accuracy", "cost", "does")},
        "policies": list(found.values()), "table": found["by difficulty"]["does"],
        "warnings": _warnings(rest, judges, adaptive, _beneath(options["uniform"], difficulty, bins)),
        "curves": [{"name": n, "points": _points(budgets, curve)} for n, curve in curves.items()],
    }  # fmt: skip


def _warnings(
    samples: Samples, judges: Sequence[str | None], adaptive: Sequence[Option], beneath: tuple[int, float]
) -> list[str]:
    found = []
    if free := [str(j) for j in judges if j not in samples.score_flops and j not in FREE]:
        found.append(f"what {', '.join(free)} costs is not known and not counted")
    mc = max((float(np.sqrt(o.mc.sum())) / samples.P for o in adaptive), default=0.0)
    if mc > MC_TOLD:
        found.append(f"random orders add up to {mc:.1%} (one standard error) to an adaptive accuracy")
    if beneath[1] > MC_TOLD:
        found.append(
            f"curves are not concave: {beneath[0]} numbers of samples lie under the hull of their bin, by up "
            f"to {beneath[1]:.1%}, and are never chosen"
        )
    if samples.P < FEW_PROBLEMS:
        found.append(f"{samples.P} problems, of which half are learned from, are few to choose a policy by")
    return found


def _points(budgets: np.ndarray, curve: Curve) -> list[dict[str, float]]:
    rows = zip(budgets, curve.cost.mean(axis=0), curve.value.mean(axis=0), strict=True)
    return [{"budget": float(b), "cost": float(c), "accuracy": float(v)} for b, c, v in rows]


def _budget(samples: Samples, strategies: Sequence[str], budget: float | None, each: float | None) -> float:
    if budget is not None and each is not None:
        raise FlopwiseError(
            "policy: give the total, or how many samples of each problem it pays for, not both"
        )
    if budget is None:
        dearest = [judge_of(s) for s in strategies]
        costs = [
            samples.cost(max(1, samples.n // 2) if each is None else each, judge).sum() for judge in dearest
        ]
        budget = float(max(costs))
    if not 0 < budget < np.inf:
        raise FlopwiseError(f"policy: the budget is {budget:g}, must be above 0")
    return budget


def _grid(options: dict[str, list[Option]], mean: float) -> np.ndarray:
    """Mean costs from the cheapest option to the dearest, the one asked for among them."""
    costs = [float(o.cost.mean()) for made in options.values() for o in made]
    return np.unique(np.append(np.geomspace(min(costs), max(max(costs), mean), STEPS), mean))


def _does(
    options: Sequence[Option], rows: np.ndarray, mean: float, difficulty: Difficulty | None, bins: int
) -> list[dict[str, Any]]:
    """What each kind of prompt gets at a mean cost, by a policy fitted on all problems, hardest first."""
    policy = fit(options, rows, np.array([mean]), difficulty, bins)[0]
    ease = np.zeros(len(rows)) if difficulty is None else difficulty.ease
    kind = np.searchsorted(policy.edges, ease, side="right")
    edges = [None, *policy.edges.tolist(), None]
    out = []
    for g, k in enumerate(policy.kinds):
        inside = kind == g
        parts = [(k.low, 1 - k.mix)] + ([(k.high, k.mix)] if k.mix > 0 else [])

        def average(field: str, parts: list[tuple[int, float]] = parts, inside: np.ndarray = inside) -> float:
            return float(sum(share * getattr(options[i], field)[inside].mean() for i, share in parts))

        out.append({
            "from": edges[g], "to": edges[g + 1], "problems": int(inside.sum()),
            "do": [{"option": options[i].name, "share": share} for i, share in parts],
            "samples": average("samples"), "cost": average("cost"), "accuracy": average("value"),
        })  # fmt: skip
    return out


def _beneath(options: Sequence[Option], difficulty: Difficulty, bins: int) -> tuple[int, float]:
    """Numbers of samples that lie under the hull of their strategy and bin: what no price picks."""
    kind = np.searchsorted(difficulty.bins(np.arange(len(difficulty.ease)), bins), difficulty.ease, "right")
    by_strategy: dict[str, list[Option]] = {}
    for option in options:
        by_strategy.setdefault(option.name.rpartition(" x")[0], []).append(option)
    curves = [
        (
            np.array([o.cost[kind == g].mean() for o in made]),
            np.array([o.value[kind == g].mean() for o in made]),
        )
        for made in by_strategy.values()
        for g in np.unique(kind)
    ]
    return Frontier(curves).beneath

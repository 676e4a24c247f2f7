"""Policies fitted on some problems and judged on others: which option a prompt gets, at each mean cost.

A policy says what to do with prompts of each kind at a mean cost b; kinds are all prompts alike, or bins of
difficulty. It is fitted by spending b on the training problems (`spending.Frontier`, with mixing, so that
exactly b is spent there), and judged on the other problems by what it costs and brings there. Over folds
every problem is judged once by a policy that never saw it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from flopwise.infer.policies.difficulty import Beta, Difficulty
from flopwise.infer.policies.options import Option
from flopwise.infer.policies.spending import Frontier, spread
from flopwise.infer.samples import Samples
from flopwise.laws.counts import Counts

STEPS = 32
"""Mean costs at which policies are fitted."""


@dataclass(frozen=True)
class Kind:
    """What the prompts of one kind get: option `low`, or with chance `mix` option `high`."""

    low: int
    high: int
    mix: float


@dataclass(frozen=True)
class Policy:
    """Fitted to training problems: edges of difficulty (none: all alike), and what each kind gets.

    `spent` is the mean cost on the training problems, what difficulty took included.
    """

    edges: np.ndarray
    kinds: tuple[Kind, ...]
    spent: float

    def apply(
        self, options: Sequence[Option], difficulty: Difficulty | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Value and cost [P] of every problem."""
        P = len(options[0].value)
        ease = np.zeros(P) if difficulty is None else difficulty.ease
        kind = np.searchsorted(self.edges, ease, side="right")
        value = np.zeros(P)
        cost = np.zeros(P) if difficulty is None else difficulty.cost.copy()
        for g, k in enumerate(self.kinds):
            rows = kind == g
            for place, share in ((k.low, 1 - k.mix), (k.high, k.mix)):
                value[rows] += share * options[place].value[rows]
                cost[rows] += share * options[place].cost[rows]
        return value, cost


def fit(
    options: Sequence[Option], train: np.ndarray, budgets: np.ndarray, difficulty: Difficulty | None = None,
    bins: int = 4,
) -> list[Policy]:  # fmt: skip
    """A policy for each mean cost [T]; costs outside of what the options can take are brought to its ends.

    Args:
        train: places of the problems to learn from.
        difficulty: bins of it get options of their own, and pay for it; without, all prompts get the same.
    """
    edges = np.zeros(0) if difficulty is None else difficulty.bins(train, bins)
    ease = np.zeros(len(options[0].value)) if difficulty is None else difficulty.ease
    kind = np.searchsorted(edges, ease[train], side="right")
    groups = [train[kind == g] for g in range(len(edges) + 1)]
    known = 0.0 if difficulty is None else float(difficulty.cost[train].mean())
    costs, values = (np.stack([getattr(o, name) for o in options]) for name in ("cost", "value"))
    curves = [(costs[:, rows].mean(axis=1), values[:, rows].mean(axis=1)) for rows in groups]
    weight = np.array([len(rows) / len(train) for rows in groups])
    frontier = Frontier(curves, weight)
    found = []
    for budget in budgets:
        made = frontier.at(float(np.clip(budget - known, frontier.least, frontier.most)), mix=True)
        kinds = tuple(
            Kind(int(a), int(b), float(x)) for a, b, x in zip(made.low, made.high, made.mix, strict=True)
        )
        found.append(Policy(edges, kinds, made.cost + known))
    return found


Build = Callable[[np.ndarray], Sequence[Option]]
"""Options [P problems], learned from the problems at some places where anything in them is learned."""


def cross_fit(
    build: Build, P: int, budgets: np.ndarray, difficulty: Difficulty | None = None, bins: int = 4,
    folds: int = 2, repeats: int = 5, seed: int = 0, orders: int = 1,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Value and cost [P, T] of each problem under policies fitted without its fold; mean over repeats.

    Args:
        orders: rows that each problem has in options and difficulty, one after another; they share its fold.
    """
    R, T = P * orders, len(budgets)
    value, cost = np.zeros((R, T)), np.zeros((R, T))
    for folded in _folds(P, folds, repeats, seed):
        fold = np.repeat(folded, orders)
        for f in range(folds):
            train, rows = np.flatnonzero(fold != f), fold == f
            options = build(train)
            for t, policy in enumerate(fit(options, train, budgets, difficulty, bins)):
                v, c = policy.apply(options, difficulty)
                value[rows, t] += v[rows] / repeats
                cost[rows, t] += c[rows] / repeats
    return value.reshape(P, orders, T).mean(axis=1), cost.reshape(P, orders, T).mean(axis=1)


def by_posterior(
    held: Samples, rest: Samples, budgets: np.ndarray, known: np.ndarray, folds: int = 2, repeats: int = 5,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Value and cost [P, T] where answers can be checked: samples spread by each prompt's posterior.

    The prior of chances comes from the other folds' held-out samples, and the posterior from the prompt's
    own; a fold's mean cost is what it may spend, at least one sample of each.

    Args:
        held: samples that difficulty is taken from; `rest`: those that are evaluated.
        known: what difficulty cost [P].
    """
    counts = Counts.judged(rest.correct)
    each = rest.decode_flops.mean(axis=1)
    right = held.correct.sum(axis=1)
    value, cost = np.zeros((rest.P, len(budgets))), np.zeros((rest.P, len(budgets)))
    for fold in _folds(rest.P, folds, repeats, seed):
        for f in range(folds):
            rows = np.flatnonzero(fold == f)
            a, b = Beta.fit(held.correct[fold != f]).posterior(right[rows], held.n)
            before = known[rows] + rest.prefill_flops[rows]
            for t, budget in enumerate(budgets):
                total = max(budget * len(rows) - before.sum(), each[rows].sum())
                k = spread(a, b, each[rows], total, 1, rest.n)
                solved = Counts(counts.n[rows], counts.c[rows], counts.stopped[rows]).pass_at(k)
                value[rows, t] += solved / repeats
                cost[rows, t] += (before + k * each[rows]) / repeats
    return value, cost


def _folds(P: int, folds: int, repeats: int, seed: int) -> Iterator[np.ndarray]:
    """Which fold each problem is in [P], for each repeat."""
    for repeat in range(repeats):
        yield np.random.default_rng((seed, repeat)).permutation(P) % folds

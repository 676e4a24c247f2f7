"""What could be done with a prompt, each option with its accuracy and cost on every problem.

An option is a strategy with a number of samples, or a stopping rule with its setting and a cap. All of them
come from one set of samples: parallel ones exactly, over all subsets; `accept` in closed form; other rules by
walking through many random orders.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from flopwise.errors import FlopwiseError
from flopwise.infer.estimators import best_of_k, pass_at_k
from flopwise.infer.policies.rules import Accept, Rule, ScoreValue
from flopwise.infer.policies.walk import Shuffled
from flopwise.infer.samples import Samples
from flopwise.infer.votes import majority_curve

VERIFIER = "best_of_n:verifier"


@dataclass(frozen=True)
class Option:
    """One thing to do, for each of P problems: chance to be right, mean cost, mean number of samples.

    `mc` [P] is the variance of `value` that comes of random orders or subsets.
    """

    name: str
    value: np.ndarray
    cost: np.ndarray
    samples: np.ndarray
    mc: np.ndarray

    def take(self, rows: np.ndarray) -> Option:
        """Of some problems."""
        return replace(
            self, value=self.value[rows], cost=self.cost[rows], samples=self.samples[rows], mc=self.mc[rows]
        )


def sizes(n: int) -> list[int]:
    """1, 2, 3, 4, 6, 8, 12, 16, ... and n: samples that options are worked out for.

    >>> sizes(20)
    [1, 2, 3, 4, 6, 8, 12, 16, 20]
    """
    powers = [1 << i for i in range(n.bit_length())]
    return sorted({k for p in powers for k in (p, 3 * p) if k <= n} | {n})


def judge_of(strategy: str) -> str | None:
    """The judge a strategy pays for: None for votes and for `greedy`."""
    name, _, by = strategy.partition(":")
    return by or "verifier" if name in ("best_of_n", "weighted") else None


def default_strategies(samples: Samples) -> list[str]:
    """What can be done with such samples where answers cannot be checked; with nothing else, the verifier."""
    found = ["self_consistency"] if any(a is not None for row in samples.answers for a in row) else []
    return found + [f"best_of_n:{name}" for name in samples.scores] or [VERIFIER]


def parallel(samples: Samples, strategy: str, ks: Sequence[int] | None = None) -> list[Option]:
    """A strategy at each number of samples.

    Args:
        strategy: `greedy` (where samples have it), `self_consistency`, `best_of_n:JUDGE`, or another that
            `strategies.make` knows and that can be replayed.

    Raises:
        FlopwiseError: there is none of that name, it cannot be replayed, or the samples lack what it needs.
    """
    P, zero = samples.P, np.zeros(samples.P)
    if strategy == "greedy":
        if samples.greedy is None:
            raise FlopwiseError("greedy: the samples have no greedy answers; take another strategy")
        cost = samples.cost(1) if samples.greedy_flops is None else samples.greedy_flops
        return [Option("greedy", samples.greedy.astype(float), np.asarray(cost, float), np.ones(P), zero)]
    judge = judge_of(strategy)
    ks = sizes(samples.n) if ks is None else list(ks)
    found = []
    for k, value in zip(ks, _values(samples, strategy, ks), strict=True):
        found.append(Option(f"{strategy} x{k}", value, samples.cost(k, judge), np.full(P, float(k)), zero))
    return found


def _values(samples: Samples, strategy: str, ks: Sequence[int]) -> Iterable[np.ndarray]:
    """Chance [P] to be right with each number of samples."""
    if strategy == "self_consistency":
        return majority_curve(samples.correct, samples.answers, ks)
    if strategy == VERIFIER:
        return [pass_at_k(samples.correct, k) for k in ks]
    if strategy.startswith("best_of_n:"):
        score = samples.score(strategy.partition(":")[2])
        return [best_of_k(samples.correct, score, k) for k in ks]
    from flopwise.infer.strategies import Choosing, make

    made = make(strategy)
    if not isinstance(made, Choosing):
        raise FlopwiseError(
            f"policy: {strategy} writes for itself, so that it cannot be replayed from samples"
        )
    return [made.replay(samples, k) for k in ks]


def stopping(
    samples: Samples, rules: Sequence[Rule], caps: Sequence[int] | None = None, orders: int | None = None,
    every: int = 1, seed: int = 0, shuffled: Shuffled | None = None,
) -> list[Option]:  # fmt: skip
    """Each rule at each cap, the most samples it may take.

    Args:
        orders: random ones of each problem's samples; see `walk.Shuffled`, which may be given instead.
        every: samples come in rounds of so many, and the rule looks after each round.
    """
    caps = [k for k in sizes(samples.n) if k > 1] or [1] if caps is None else list(caps)
    out: list[Option] = []
    families: dict[Hashable, list[Rule]] = {}
    for rule in rules:
        if isinstance(rule, Accept) and every == 1:
            out += accepting(samples, rule, caps)
        else:
            families.setdefault(rule.family, []).append(rule)
    if families:
        shuffled = shuffled or Shuffled(samples, orders, seed)
        for group in families.values():
            out += _walk(samples, shuffled, group, caps, every)
    return out


def _walk(
    samples: Samples, shuffled: Shuffled, rules: list[Rule], caps: list[int], every: int
) -> list[Option]:
    """Rules of one family, through the same orders."""
    made = [(rule, cap) for rule in rules for cap in caps]
    value, cost, taken, mc = (np.zeros((len(made), samples.P)) for _ in range(4))
    waits = (np.arange(1, samples.n + 1) % every) != 0
    judge = rules[0].judge
    for rows, walk in shuffled.chunks(judge):
        at, orders = np.arange(len(walk.cost)), len(walk.cost) // len(rows)
        right = walk.votes.right if rules[0].choice == "votes" else walk.right_of_best(judge or "verifier")
        evidence = np.where(waits, -np.inf, rules[0].evidence(walk))
        highest = np.maximum.accumulate(evidence, axis=1)
        ends = [(highest < rule.bar).sum(axis=1) for rule in rules]
        for place, (end, cap) in enumerate((end, cap) for end in ends for cap in caps):
            last = np.minimum(end, cap - 1)
            each = right[at, last].reshape(-1, orders)
            value[place, rows], mc[place, rows] = each.mean(axis=1), each.var(axis=1) / orders
            cost[place, rows] = walk.spent[at, last].reshape(-1, orders).mean(axis=1)
            taken[place, rows] = last.reshape(-1, orders).mean(axis=1) + 1
    cost += samples.prefill_flops
    return [
        Option(f"{rule.name} up to {cap}", value[i], cost[i], taken[i], mc[i])
        for i, (rule, cap) in enumerate(made)
    ]


def accepting(samples: Samples, rule: Accept, caps: Sequence[int]) -> list[Option]:
    """`accept` exactly, over all orders.

    With m of n samples below the threshold, the first acceptable one comes within `cap` samples with chance
    1 - C(m, cap) / C(n, cap), and it is any of them alike; else the answer is the best of `cap` from below.
    The number of samples is on average sum over t < cap of C(m, t) / C(n, t), which is
    (n + 1 - (n + 1 - cap) C(m, cap) / C(n, cap)) / (n - m + 1).
    """
    from flopwise.laws.counts import Counts

    score = np.nan_to_num(samples.score(rule.by), nan=-np.inf)
    accepted = score >= rule.dial
    good, n = accepted.sum(axis=1), samples.n
    counts = Counts.of(n, good)
    pays = samples.decode_flops + samples.score_flops.get(rule.by, 0.0)
    precision, dear = ((x * accepted).sum(axis=1) / np.maximum(good, 1) for x in (samples.correct, pays))
    cheap = (pays * ~accepted).sum(axis=1) / np.maximum(n - good, 1)
    below = samples.correct & ~accepted
    some = bool(below.any())
    by = "" if rule.by == "verifier" else f" at {rule.dial:.3g}"
    out = []
    for cap in caps:
        found = counts.pass_at(cap)
        taken = (n + 1 - (n + 1 - cap) * (1 - found)) / (good + 1)
        value = found * precision + (best_of_k(below, score, cap) if some else 0.0)
        cost = samples.prefill_flops + found * dear + (taken - found) * cheap
        name = f"accept:{rule.by}{by} up to {cap}"
        out.append(Option(name, value, cost, taken, np.zeros(samples.P)))
    return out


def score_rules(samples: Samples, judge: str, train: np.ndarray) -> list[Rule]:
    """Rules by a learned score, over a range of settings: what scores are worth is learned from the problems
    at places `train` alone."""
    scores = samples.score(judge)
    fitted = ScoreValue.fit(scores[train], samples.correct[train], judge)
    known = scores[train][np.isfinite(scores[train])]
    ends = np.unique(np.quantile(known, (0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)))
    prices = (0.2, 0.1, 0.05, 0.03, 0.02, 0.01, 0.005, 0.002)
    return [replace(fitted, dial=p) for p in prices] + [Accept(float(end), judge) for end in ends]

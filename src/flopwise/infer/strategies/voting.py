"""Weighted votes for answers, and a strategy's accuracy over random subsets where no closed form is known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flopwise.infer.samples import Samples
from flopwise.infer.strategies.base import Candidate, Choice, Choosing, one_of_the_best
from flopwise.infer.votes import subsets

DRAWS = 64
"""Subsets of each problem: their part of the mean's standard error is below 0.5 / sqrt(DRAWS * problems)."""


def vote(
    candidates: Sequence[Candidate],
    weights: Sequence[float],
    rng: np.random.Generator,
    threshold: float = 0.0,
) -> Choice:
    """The answer with most weight, drawn where several are level; the first of its heaviest samples.

    Abstains where nobody answers, all weight is 0, or the winner has less than `threshold` of all weight.
    """
    votes: dict[str, float] = {}
    for c, weight in zip(candidates, weights, strict=True):
        if c.answer is not None and weight > 0:
            votes[c.answer] = votes.get(c.answer, 0.0) + weight
    plain = len(set(weights)) <= 1
    scores = [] if plain else [float(w) for w in weights]
    if not votes:
        return Choice(None, scores=scores)
    ranked = dict(sorted(votes.items(), key=lambda item: -item[1]))
    place, tied = one_of_the_best(list(ranked.values()), rng)
    winner = list(ranked)[place]
    if ranked[winner] < threshold * float(np.nansum(weights)):
        return Choice(None, ranked, scores, tied)
    behind = [i for i, c in enumerate(candidates) if c.answer == winner and weights[i] > 0]
    return Choice(max(behind, key=lambda i: (weights[i], -i)), ranked, scores, tied)


def replayed(strategy: Choosing, samples: Samples, k: int, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """Share [P] of random subsets of k samples, or of all where they are not more, in which the strategy
    chooses a right one. NaN where k > n."""
    if k > samples.n:
        return np.full(samples.P, np.nan)
    rng = np.random.default_rng((seed, samples.n, k))
    values = np.zeros(samples.P)
    for p in range(samples.P):
        seen, (picks, _) = candidates_of(samples, p), subsets(samples.n, k, draws, (seed, p))
        for pick in picks:
            index = strategy.choose([seen[i] for i in pick], rng).index
            values[p] += (index is not None and bool(samples.correct[p, pick[index]])) / len(picks)
    return values


def candidates_of(samples: Samples, p: int) -> list[Candidate]:
    """The samples of one problem as strategies see them."""
    texts = samples.texts[p] if samples.texts is not None else [""] * samples.n
    return [
        Candidate(
            texts[i], samples.answers[p][i], float(samples.logprob[p, i]), int(samples.tokens[p, i]),
            bool(samples.correct[p, i]), {name: float(s[p, i]) for name, s in samples.scores.items()},
        )
        for i in range(samples.n)
    ]  # fmt: skip

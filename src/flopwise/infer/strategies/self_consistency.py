"""Majority vote over answers (Wang et al., arXiv 2203.11171, section 2): needs no judge at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flopwise.infer.strategies.base import Candidate, Choice, one_of_the_best


@dataclass(frozen=True)
class SelfConsistency:
    """Takes the most frequent answer; who has none abstains, ties are drawn."""

    temperature: float | None = None

    def choose(self, candidates: Sequence[Candidate], rng: np.random.Generator) -> Choice:
        """The first sample that gives the winning answer."""
        votes = Counter(c.answer for c in candidates if c.answer is not None)
        if not votes:
            return Choice(None)
        ranked = dict(votes.most_common())
        place, tied = one_of_the_best(list(ranked.values()), rng)
        winner = list(ranked)[place]
        index = next(i for i, c in enumerate(candidates) if c.answer == winner)
        return Choice(index, votes=ranked, tied=tied)

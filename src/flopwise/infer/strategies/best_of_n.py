"""The highest-scored of n samples, by a verifier, a reward model or the model's own log-probability.

With a verifier this is coverage, the most that any choice among the samples can reach. A learned judge is
over-optimised as n grows (Gao et al., arXiv 2210.10760); log-probability is free and often a poor judge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flopwise.errors import FlopwiseError
from flopwise.infer.strategies.base import Candidate, Choice, one_of_the_best

JUDGES = {"verifier": "correct", "reward": "reward", "logprob": "logprob"}
"""Which field of a candidate each judge goes by."""


@dataclass(frozen=True)
class BestOfN:
    """Takes the candidate that `by` puts first; ties are drawn.

    Raises:
        FlopwiseError: an unknown judge, or one whose word the candidates lack.
    """

    by: str = "verifier"
    temperature: float | None = None

    def __post_init__(self) -> None:
        if self.by not in JUDGES:
            raise FlopwiseError(f"best_of_n: by is {self.by[:40]!r}, must be one of {', '.join(JUDGES)}")

    def choose(self, candidates: Sequence[Candidate], rng: np.random.Generator) -> Choice:
        """The best sample."""
        found = [getattr(c, JUDGES[self.by]) for c in candidates]
        if any(value is None for value in found):
            raise FlopwiseError(
                f"best_of_n: the samples have no {JUDGES[self.by]} to go by; choose another judge"
            )
        scores = [float(value) for value in found]
        index, tied = one_of_the_best(scores, rng)
        return Choice(index, scores=scores, tied=tied)

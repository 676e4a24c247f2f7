"""Majority vote over answers (Wang et al., arXiv 2203.11171, section 2): needs no judge at all.

`weight: logprob` or `logprob_mean` lets each sample vote with the probability that the model gives it, or
with its geometric mean per token: the paper's weighted sums (table 1), the second of them normalised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from flopwise.errors import FlopwiseError
from flopwise.infer.estimators import majority_at_k
from flopwise.infer.samples import Samples
from flopwise.infer.strategies.base import Candidate, Choice, Named
from flopwise.infer.strategies.voting import replayed, vote

WEIGHTS = ("none", "logprob", "logprob_mean")


@dataclass(frozen=True)
class SelfConsistency(Named):
    """Takes the most frequent answer; a sample without one has no vote, ties are drawn.

    Args:
        threshold: the least share of all samples, or of all weight, that the winner must have; below it the
            strategy abstains, which counts as wrong and may be worth it where a wrong answer costs more.
        weight: none (a vote each), logprob or logprob_mean.

    Raises:
        FlopwiseError: a setting out of range.
    """

    kind: ClassVar[str] = "self_consistency"
    temperature: ClassVar[float | None] = None
    judge: ClassVar[str | None] = None
    threshold: float = 0.0
    weight: str = "none"

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise FlopwiseError(f"self_consistency: threshold is {self.threshold:g}, must be from 0 to 1")
        if self.weight not in WEIGHTS:
            raise FlopwiseError(
                f"self_consistency: weight is {self.weight[:40]!r}, must be one of {', '.join(WEIGHTS)}"
            )

    def choose(self, candidates: Sequence[Candidate], rng: np.random.Generator) -> Choice:
        """The likeliest sample of those that give the winning answer."""
        if self.weight == "none":
            weights = [1.0] * len(candidates)
        else:
            logprobs = np.array([c.score(self.weight) for c in candidates], dtype=float)
            weights = np.exp(logprobs - np.nanmax(logprobs, initial=-np.inf)).tolist()
        return vote(candidates, weights, rng, self.threshold)

    def replay(self, samples: Samples, k: int) -> np.ndarray:
        """Exact for plain votes; with weights or a threshold over random subsets."""
        if self.weight == "none" and self.threshold == 0:
            return majority_at_k(samples.correct, samples.answers, k)
        return replayed(self, samples, k)

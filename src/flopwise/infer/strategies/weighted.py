"""Weighted vote: answers are summed up, each sample counting as much as a judge trusts it.

Also called weighted best-of-n (Li et al., arXiv 2206.02336, section 3.2, "voting verifier"; Snell et al.,
arXiv 2408.03314, section 5.1): several samples that agree may beat the one that the judge likes most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from flopwise.infer.samples import Samples
from flopwise.infer.strategies.base import Candidate, Choice, Named, scores_of
from flopwise.infer.strategies.best_of_n import FREE, SHORT, check_judge
from flopwise.infer.strategies.voting import vote
from flopwise.infer.votes import cast_votes, weighted

LOG_ODDS = ("reward", "process_min", "process_last", "probe")
LOG_CHANCE = ("process_product", "logprob", "logprob_mean")


@dataclass(frozen=True)
class Weighted(Named):
    """Takes the answer with the largest sum of chances to be right, as judge `by` gives them.

    Log-odds become chances by the logistic function; logs of chances (a product of steps, log-probability)
    are exponentiated relative to the best sample; the verifier's and a judge's word is taken as it is.

    Raises:
        FlopwiseError: an unknown judge, or one whose word the candidates lack.
    """

    kind: ClassVar[str] = "weighted"
    temperature: ClassVar[float | None] = None
    by: str = "reward"

    def __post_init__(self) -> None:
        object.__setattr__(self, "by", SHORT.get(self.by, self.by))
        check_judge(self.by, "weighted")

    @property
    def judge(self) -> str | None:
        """The learned judge, if it goes by one."""
        return None if self.by in FREE else self.by

    def choose(self, candidates: Sequence[Candidate], rng: np.random.Generator) -> Choice:
        """The heaviest sample of those that give the winning answer."""
        return vote(candidates, chances(scores_of(candidates, self.by, "weighted"), self.by).tolist(), rng)

    def replay(self, samples: Samples, k: int) -> np.ndarray:
        """Over random subsets (`votes.DRAWS`), or all where these are not many."""
        votes = [cast_votes(a, c) for a, c in zip(samples.answers, samples.correct, strict=True)]
        weights = np.stack([chances(row, self.by) for row in samples.score(self.by)])
        return weighted(votes, weights, [k])[0][0]


def chances(scores: Sequence[float] | np.ndarray, judge: str) -> np.ndarray:
    """Scores as weights of at least 0; a missing one weighs nothing.

    >>> chances([0.0, -1000.0, float("nan")], "reward").tolist()
    [0.5, 0.0, 0.0]
    """
    values = np.asarray(scores, dtype=float)
    if judge in LOG_ODDS:
        values = np.exp(-np.logaddexp(0.0, -values))
    elif judge in LOG_CHANCE:
        values = np.exp(values - np.nanmax(values, initial=-np.inf))
    return np.nan_to_num(values, nan=0.0)

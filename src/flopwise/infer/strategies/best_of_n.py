"""The highest-scored of n samples, by a verifier, a learned judge or the model's own log-probability.

With a verifier this is coverage, the most that any choice among the samples can reach. A learned judge is
over-optimised as n grows (Gao et al., arXiv 2210.10760); log-probability is free and often a poor judge. A
process reward model's word on a whole answer is the least, the last or the product of what it thinks after
each step (Lightman et al., arXiv 2305.20050; Snell et al., arXiv 2408.03314, appendix E).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from flopwise.errors import FlopwiseError
from flopwise.infer.estimators import best_of_k, pass_at_k
from flopwise.infer.samples import Samples
from flopwise.infer.strategies.base import Candidate, Choice, Named, one_of_the_best, scores_of

FREE = ("verifier", "logprob", "logprob_mean")
"""Judges that take no model beside the one that answers."""
JUDGES = (*FREE, "reward", "process_min", "process_last", "process_product", "probe", "judge")
SHORT = {"process": "process_last"}
"""The last step's value sums up best in Snell et al. (arXiv 2408.03314, appendix E)."""


def check_judge(by: str, who: str, judges: Sequence[str] = JUDGES) -> None:
    """Raises FlopwiseError for a judge that is not known."""
    if by not in judges:
        raise FlopwiseError(f"{who}: by is {by[:40]!r}, must be one of {', '.join(judges)}")


@dataclass(frozen=True)
class BestOfN(Named):
    """Takes the candidate that `by` puts first; ties are drawn.

    Raises:
        FlopwiseError: an unknown judge, or one whose word the candidates lack.
    """

    kind: ClassVar[str] = "best_of_n"
    temperature: ClassVar[float | None] = None
    by: str = "verifier"

    def __post_init__(self) -> None:
        object.__setattr__(self, "by", SHORT.get(self.by, self.by))
        check_judge(self.by, "best_of_n")

    @property
    def judge(self) -> str | None:
        """The learned judge, if it goes by one."""
        return None if self.by in FREE else self.by

    def choose(self, candidates: Sequence[Candidate], rng: np.random.Generator) -> Choice:
        """The best sample."""
        scores = scores_of(candidates, self.by, "best_of_n")
        index, tied = one_of_the_best(scores, rng)
        return Choice(index, scores=scores, tied=tied)

    def replay(self, samples: Samples, k: int) -> np.ndarray:
        """Exact over all subsets."""
        if self.by == "verifier":
            return pass_at_k(samples.correct, k)
        return best_of_k(samples.correct, samples.score(self.by), k)

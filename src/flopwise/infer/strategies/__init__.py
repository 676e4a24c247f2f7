"""Ways to turn the samples of one prompt into one answer, one file each."""

from __future__ import annotations

from flopwise.errors import FlopwiseError
from flopwise.infer.strategies.base import Candidate, Choice, Strategy
from flopwise.infer.strategies.best_of_n import JUDGES, BestOfN
from flopwise.infer.strategies.greedy import Greedy
from flopwise.infer.strategies.self_consistency import SelfConsistency

__all__ = [
    "JUDGES", "NAMES", "BestOfN", "Candidate", "Choice", "Greedy", "SelfConsistency", "Strategy", "make",
]  # fmt: skip

NAMES = ("greedy", "self_consistency", "best_of_n")


def make(name: str, by: str = "verifier") -> Strategy:
    """A strategy by name; `by` is the judge of best_of_n.

    Raises:
        FlopwiseError: there is none of that name.
    """
    if name == "greedy":
        return Greedy()
    if name == "self_consistency":
        return SelfConsistency()
    if name == "best_of_n":
        return BestOfN(by)
    raise FlopwiseError(f"strategy is {name[:40]!r}, must be one of {', '.join(NAMES)}")

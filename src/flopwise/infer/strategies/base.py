"""What a strategy sees of each sample, and what it decides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Candidate:
    """One sample of a prompt, with what there is to judge it by."""

    text: str
    answer: str | None
    """In canonical form, so that equal answers are one vote; None abstains."""
    logprob: float
    """Of the whole completion under the model, in nats."""
    correct: bool | None = None
    """The verifier's word; None where there is no verifier."""
    reward: float | None = None
    """The reward model's score; None where there is no such model."""


@dataclass(frozen=True)
class Choice:
    """A decision and how it came about."""

    index: int | None
    """The chosen sample; None where all abstain."""
    votes: dict[str, int] = field(default_factory=dict)
    """By answer, most first."""
    scores: list[float] = field(default_factory=list)
    """By sample."""
    tied: int = 1
    """How many answers or samples were level at the top; one of them was drawn."""


class Strategy(Protocol):
    """Decides between the samples of one prompt. The curves over n come from `infer.estimators`."""

    @property
    def temperature(self) -> float | None:
        """The one it needs, or None where it is the user's choice."""
        ...

    def choose(self, candidates: Sequence[Candidate], rng: np.random.Generator) -> Choice:
        """Pick one of at least one candidate."""
        ...


def one_of_the_best(scores: Sequence[float], rng: np.random.Generator) -> tuple[int, int]:
    """Place of the highest score, drawn evenly where several are level, and how many are.

    >>> one_of_the_best([1.0, 3.0, 2.0], np.random.default_rng(0))
    (1, 1)
    """
    best = np.flatnonzero(np.asarray(scores) == max(scores))
    return int(rng.choice(best)), len(best)

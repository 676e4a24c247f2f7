"""One sample of the most likely tokens: the yardstick that every other strategy has to beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flopwise.infer.strategies.base import Candidate, Choice


@dataclass(frozen=True)
class Greedy:
    """Takes the first candidate; sampled at temperature 0 there is no other."""

    temperature: float | None = 0.0

    def choose(self, candidates: Sequence[Candidate], rng: np.random.Generator) -> Choice:
        """The first, answer or not."""
        return Choice(0)

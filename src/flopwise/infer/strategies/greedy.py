"""One sample of the most likely tokens: the yardstick that every other strategy has to beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from flopwise.errors import FlopwiseError
from flopwise.infer.samples import Samples
from flopwise.infer.strategies.base import Candidate, Choice, Named


@dataclass(frozen=True)
class Greedy(Named):
    """Takes the first candidate; sampled at temperature 0 there is no other."""

    kind: ClassVar[str] = "greedy"
    temperature: ClassVar[float | None] = 0.0
    judge: ClassVar[str | None] = None

    def choose(self, candidates: Sequence[Candidate], rng: np.random.Generator) -> Choice:
        """The first, answer or not."""
        return Choice(0)

    def replay(self, samples: Samples, k: int) -> np.ndarray:
        """Whether the greedy answer is right, whatever k."""
        if samples.greedy is None:
            raise FlopwiseError("greedy: these samples hold no greedy answers; sample again with greedy")
        return samples.greedy.astype(float)

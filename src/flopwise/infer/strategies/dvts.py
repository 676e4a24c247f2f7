"""Diverse verifier tree search (Beeching et al., 2024, "Scaling test-time compute with open models").

A beam of n is split into n/M trees that do not compete: in each the best of M steps goes on in M ways. Where
one beam would fill with copies of what its judge likes most, the trees stay different.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from flopwise.infer.strategies.beam import Beam, beam
from flopwise.infer.tree import Search, Tree

if TYPE_CHECKING:
    from flopwise.infer.room import Room


@dataclass(frozen=True)
class Dvts(Beam):
    """Diverse verifier tree search; `width` is M, 4 in the source."""

    kind: ClassVar[str] = "dvts"

    def search(self, room: Room, tree: Tree, n: int, rng: np.random.Generator) -> Sequence[Search]:
        """One narrow beam for each subtree, the last with what is left of n."""
        return [beam(tree, min(self.width, n - at), self.width) for at in range(0, n, self.width)]

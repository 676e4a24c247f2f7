"""Beam search that values a step by what comes of it (Snell et al., arXiv 2408.03314, section 5.2).

From each step k more are written at temperature 0, and the value of where they lead is the step's. With k = 0
this is beam search. n beams cost n (k + 1) samples, so a budget of n buys n / (k + 1) beams.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from flopwise.infer.strategies.beam import beam
from flopwise.infer.strategies.searching import Searching
from flopwise.infer.tree import Search, Tree

if TYPE_CHECKING:
    from flopwise.infer.room import Room


@dataclass(frozen=True)
class Lookahead(Searching):
    """Beam search with lookahead.

    Args:
        width: ways in which each kept step goes on.
        ahead: steps k that are written to value one; fewer where the budget does not allow them.
    """

    kind: ClassVar[str] = "lookahead"
    width: int = 4
    ahead: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least("width")
        self.at_least("ahead", 0)

    def search(self, room: Room, tree: Tree, n: int, rng: np.random.Generator) -> Sequence[Search]:
        """One beam of n / (k + 1)."""
        ahead = min(self.ahead, n - 1)
        return [beam(tree, n // (ahead + 1), self.width, ahead)]

"""Reward-balanced search (REBASE: Wu et al., arXiv 2408.00724, section 3.2).

n first steps are written. Each round the places left are shared out among the open steps by the softmax of
their values over a temperature, so good steps go on in many ways and poor ones in few or none; every answer
that ends takes a place away, so n answers cost about the tokens of n samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from flopwise.infer.strategies.searching import Searching
from flopwise.infer.tree import Search, Tree

if TYPE_CHECKING:
    from flopwise.infer.room import Room


@dataclass(frozen=True)
class Rebase(Searching):
    """Reward-balanced search.

    Args:
        heat: temperature of the softmax of values in [0, 1]; 0.2 in the authors' settings.
    """

    kind: ClassVar[str] = "rebase"
    heat: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least("heat", 1e-6)

    def search(self, room: Room, tree: Tree, n: int, rng: np.random.Generator) -> Sequence[Search]:
        """One tree of n places."""
        return [self._rounds(tree, n)]

    def _rounds(self, tree: Tree, places: int) -> Search:
        chosen = [tree.root] * places
        while chosen:
            children = yield from tree.grow(chosen)
            opened = sorted((c for c in children if c.state == "open"), key=lambda c: c.rank)
            places -= len(children) - len(opened)
            counts = shares([c.value for c in opened], places, self.heat)
            chosen = [node for node, count in zip(opened, counts, strict=True) for _ in range(count)]


def shares(values: Sequence[float], places: int, heat: float) -> list[int]:
    """Places for each of some values, best first: the softmax's part of what is left, rounded up, so that all
    are given and the last may get none (as the authors' program does; the paper's equation rounds).

    >>> shares([0.9, 0.5, 0.1], 8, 0.2)
    [7, 1, 0]
    """
    weights = np.exp((np.asarray(values) - max(values, default=0.0)) / heat)
    counts = []
    for i, weight in enumerate(weights):
        # A grain less, so that a share that is whole but for rounding is not rounded up.
        counts.append(max(0, ceil(places * weight / weights[i:].sum() - 1e-9)))
        places -= counts[-1]
    return counts

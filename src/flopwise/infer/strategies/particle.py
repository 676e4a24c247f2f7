"""Particle filtering over steps (Puri et al., arXiv 2502.01618, section 3).

n particles each write a step; then n are drawn anew among them, with chances in proportion to the softmax of
their values' log-odds. Steps that look poor may survive, so a judge that is wrong early is not final, as it
is in a beam. Particles that have ended are drawn like others and write no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from flopwise.infer.strategies.searching import Searching
from flopwise.infer.tree import Node, Search, Tree

if TYPE_CHECKING:
    from flopwise.infer.room import Room

SURE = 1e-6
"""Values are kept so far from 0 and 1, where log-odds have no end."""


@dataclass(frozen=True)
class Particle(Searching):
    """Particle filtering; the final answer is the best-valued particle's.

    Args:
        heat: what log-odds are divided by before the softmax; 1 in the paper.
    """

    kind: ClassVar[str] = "particle"
    final: str = "best"
    heat: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least("heat", 1e-6)

    def search(self, room: Room, tree: Tree, n: int, rng: np.random.Generator) -> Sequence[Search]:
        """n particles."""
        return [self._rounds(tree, n, rng)]

    def _rounds(self, tree: Tree, n: int, rng: np.random.Generator) -> Search:
        particles = [tree.root] * n
        while True:
            places = [i for i, p in enumerate(particles) if p.state == "open"]
            moved = yield from tree.grow([particles[i] for i in places], keep=False)
            for i, node in zip(places, moved, strict=True):
                particles[i] = node
            if all(p.state != "open" for p in particles):
                tree.answers += particles
                return
            particles = resampled(particles, self.heat, rng)


def resampled(particles: Sequence[Node], heat: float, rng: np.random.Generator) -> list[Node]:
    """As many, drawn with replacement in proportion to the softmax of log-odds (multinomial)."""
    chances = weights([p.value for p in particles], heat)
    return [particles[i] for i in sorted(rng.choice(len(particles), len(particles), p=chances).tolist())]


def weights(values: Sequence[float], heat: float) -> np.ndarray:
    """Chances of being drawn.

    >>> weights([0.5, 0.8], 1.0).round(3).tolist()
    [0.2, 0.8]
    """
    clear = np.clip(values, SURE, 1 - SURE)
    log_odds = (np.log(clear) - np.log1p(-clear)) / heat
    chances = np.exp(log_odds - log_odds.max())
    return chances / chances.sum()

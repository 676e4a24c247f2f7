"""Parallel times sequential: chains of revisions side by side (Snell et al., arXiv 2408.03314, section 6.2).

n answers are C chains of n/C; the best ratio depends on how hard a problem is. The answer is chosen in two
steps, as in the paper: the best-valued of each chain, then the weighted vote among these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from flopwise.infer.strategies.base import Candidate, Choice
from flopwise.infer.strategies.revise import Revise, chain
from flopwise.infer.strategies.searching import decide
from flopwise.infer.tree import Search, Tree

if TYPE_CHECKING:
    from flopwise.infer.room import Room


@dataclass(frozen=True)
class Mixed(Revise):
    """Chains of revisions.

    Args:
        chains: C; 0: about as many as each is long.
    """

    kind: ClassVar[str] = "mixed"
    chains: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least("chains", 0)

    def search(self, room: Room, tree: Tree, n: int, rng: np.random.Generator) -> Sequence[Search]:
        """The chains, the first ones longer by one where n does not even out."""
        count = min(self.chains or isqrt(n), n)
        each, more = divmod(n, count)
        judged, most = self.by != "none", room.max_tokens
        return [chain(room, tree, each + (i < more), self.window, judged, most) for i in range(count)]

    def choose(self, tree: Tree, candidates: Sequence[Candidate], rng: np.random.Generator) -> Choice:
        """Within chains by value, between them by `final`."""
        if self.by == "none":
            return super().choose(tree, candidates, rng)
        by_chain: dict[int, list[int]] = {}
        for i, answer in enumerate(tree.answers):
            by_chain.setdefault(tree.path(answer)[0].id, []).append(i)
        kept = []
        for places in by_chain.values():
            best = decide([candidates[i] for i in places], "best", rng).index
            kept.append(places[0 if best is None else best])
        choice = decide([candidates[i] for i in kept], self.final, rng)
        scores = [c.scores.get("value", float("nan")) for c in candidates]
        return Choice(None if choice.index is None else kept[choice.index], choice.votes, scores, choice.tied)

"""Beam search over steps against their values (Snell et al., arXiv 2408.03314, section 5.2).

n first steps are written; of those still open the best n/M are kept, and each goes on in M ways, until all
have come to an end. Every answer that ends takes its place out of the beam, so n answers cost about the
tokens of n samples. Steps that are written alike are one, so that a beam does not fill with copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from flopwise.infer.strategies.searching import Searching
from flopwise.infer.tree import Frontier, Grown, Node, Search, Tree, spread

if TYPE_CHECKING:
    from flopwise.infer.room import Room


@dataclass(frozen=True)
class Beam(Searching):
    """Beam search.

    Args:
        width: ways M in which each kept step goes on; 4 in the paper.
    """

    kind: ClassVar[str] = "beam"
    width: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least("width")

    def search(self, room: Room, tree: Tree, n: int, rng: np.random.Generator) -> Sequence[Search]:
        """One beam of n."""
        return [beam(tree, n, self.width)]


def beam(tree: Tree, n: int, width: int, ahead: int = 0) -> Search:
    """A beam of n, the n/width best of which go on; `ahead` steps are written to value each (`lookahead`)."""
    live, chosen = n, [tree.root]
    while chosen:
        children = yield from tree.grow(spread(chosen, live), judged=not ahead, keep=False)
        if ahead:
            children = yield from look_ahead(tree, children, ahead)
        tree.answers += (ended := [c for c in children if c.state != "open"])
        live -= len(ended)
        frontier = Frontier(children)
        chosen = frontier.take(-(-live // width)) if live else []


def look_ahead(tree: Tree, nodes: Sequence[Node], steps: int) -> Grown:
    """Nodes with the values of what comes of them in so many likeliest steps."""
    ends = {n.id: n for n in nodes}
    for _ in range(steps):
        begun = [i for i, end in ends.items() if end.state == "open"]
        grown = yield from tree.grow(
            [ends[i] for i in begun], judged=False, keep=False, note="looks ahead", temperature=0.0
        )
        ends |= dict(zip(begun, grown, strict=True))
    valued = yield from tree.judge(list(ends.values()))
    return [tree.value(n, end.value) for n, end in zip(nodes, valued, strict=True)]

"""Monte Carlo tree search over steps with learned values (ReST-MCTS*, arXiv 2406.03816; 2405.00451).

Descend from the root to a node that was never gone on from, each time to the child with the largest score,
write `width` steps there, and count each one's value as a visit of all nodes above it; Q is the mean of a
node's visits. Scores are UCT, Q + c sqrt(ln N / n) (Kocsis and Szepesvari, 2006), or PUCT, Q + c P sqrt(N) /
(1 + n) (Silver et al., 2017), with P the model's probability of the step among its siblings.

The first of the n samples is written whole: it says how long an answer is, so that the tree may grow until
the tokens of n are spent; the last of them finish the best open nodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import exp, log, sqrt
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from flopwise.infer.strategies.searching import Searching, check_name
from flopwise.infer.tree import Node, Search, Tree, distinct

if TYPE_CHECKING:
    from flopwise.infer.room import Room

RULES = ("uct", "puct")


@dataclass(frozen=True)
class Mcts(Searching):
    """Monte Carlo tree search.

    Args:
        width: steps written where a node is gone on from; less than n.
        explore: c of the score.
        rule: uct or puct.
    """

    kind: ClassVar[str] = "mcts"
    width: int = 4
    explore: float = 0.5
    rule: str = "uct"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least("width")
        self.at_least("explore", 0.0)
        check_name(self.kind, "rule", self.rule, RULES)

    def search(self, room: Room, tree: Tree, n: int, rng: np.random.Generator) -> Sequence[Search]:
        """One tree."""
        return [self._rounds(tree, n)]

    def _rounds(self, tree: Tree, n: int) -> Search:
        [first] = yield from tree.grow([tree.root], whole=True, kind="sample")
        if n == 1:
            return
        visited = Visits(self.explore, self.rule)
        width, steps = min(self.width, n - 1), 0
        length = float(len(first.tokens))
        while True:
            leaf = visited.leaf(tree.root)
            if leaf is None:
                return
            grown = tree.written - len(first.tokens)
            finish = max(length - len(leaf.tokens), 1.0)
            if steps and tree.written + width * grown / steps + finish > n * length:
                break
            children = yield from tree.grow([leaf], width)
            steps += width
            visited.add(leaf, distinct(children))
            length = tree.full_length if tree.full_length == tree.full_length else length
        # The tree stops while there is enough left to finish a node that it found; perhaps for more than one.
        for node in sorted(visited.open(), key=lambda node: node.rank):
            if tree.written + max(length - len(node.tokens), 1.0) > n * length:
                return
            yield from tree.grow([node], whole=True)


@dataclass
class Visits:
    """How often each node of a tree was visited, and the sum of what was found there."""

    explore: float
    rule: str
    counts: dict[int, int] = field(default_factory=dict)
    sums: dict[int, float] = field(default_factory=dict)
    below: dict[int, list[Node]] = field(default_factory=dict)
    above: dict[int, Node] = field(default_factory=dict)
    closed: set[int] = field(default_factory=set)
    """Nodes below which nothing is open."""

    def add(self, leaf: Node, children: list[Node]) -> None:
        """Each child's value, told to all above it."""
        self.below[leaf.id] = children
        for child in children:
            self.above[child.id] = leaf
            node: Node | None = child
            while node is not None:
                self.counts[node.id] = self.counts.get(node.id, 0) + 1
                self.sums[node.id] = self.sums.get(node.id, 0.0) + child.value
                node = self.above.get(node.id)
        self.closed |= {c.id for c in children if c.state != "open"}
        up: Node | None = leaf
        while up is not None and all(c.id in self.closed for c in self.below[up.id]):
            self.closed.add(up.id)
            up = self.above.get(up.id)

    def leaf(self, root: Node) -> Node | None:
        """The node to go on from; None where all is closed."""
        if root.id in self.closed:
            return None
        node = root
        while node.id in self.below:
            siblings = self.below[node.id]
            scores = {c.id: self.score(node, c, siblings) for c in siblings if c.id not in self.closed}
            node = max((c for c in siblings if c.id in scores), key=lambda c: scores[c.id])
        return node

    def score(self, parent: Node, child: Node, siblings: Sequence[Node]) -> float:
        """UCT or PUCT of a child."""
        n, N = self.counts[child.id], self.counts[parent.id]
        mean = self.sums[child.id] / n
        if self.rule == "uct":
            return mean + self.explore * sqrt(log(N) / n)
        top = max(s.logprob for s in siblings)
        prior = exp(child.logprob - top) / sum(exp(s.logprob - top) for s in siblings)
        prior = prior if prior == prior else 1 / len(siblings)  # a server may not tell probabilities
        return mean + self.explore * prior * sqrt(N) / (1 + n)

    def open(self) -> list[Node]:
        """Nodes that nothing was written after yet."""
        return [
            c for each in self.below.values() for c in each if c.state == "open" and c.id not in self.below
        ]

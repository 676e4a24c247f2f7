"""What all searches share: trees in a room, values by a judge, the choice among the answers they came to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from flopwise.errors import FlopwiseError, one_line
from flopwise.infer.scorers import NAMES, need
from flopwise.infer.strategies.base import Candidate, Choice, Named, Outcome, one_of_the_best
from flopwise.infer.strategies.voting import vote
from flopwise.infer.tree import Hands, Search, Tree, drive

if TYPE_CHECKING:
    from flopwise.infer.room import Room

VALUERS = (*NAMES, "checker")
"""Who may value a step: a scorer in the room, or the task's own checker, which knows what is wrong."""
VALUE = "value"
"""Score of an answer that a search came to: how good it looked to whoever valued its steps, in [0, 1]."""
FINAL = ("weighted", "best", "vote", "last")
"""How one is chosen: the answer whose samples' values sum to most; the best-valued sample; the most frequent
answer; the last sample."""


@dataclass(frozen=True)
class Growing(Named):
    """Grows a tree of texts for each problem and chooses among the answers in it.

    Args:
        step: tokens of a step at most, if nothing closes it before.

    Raises:
        FlopwiseError: a setting out of range.
    """

    kind: ClassVar[str] = ""
    valuer: ClassVar[str] = "checker"
    step: int = 64

    def __post_init__(self) -> None:
        self.at_least("step")

    @property
    def judges(self) -> tuple[str, ...]:
        """The scorer that values texts, if one is needed."""
        by = getattr(self, "by", self.valuer)
        return (by,) if by in NAMES else ()

    def at_least(self, name: str, least: float = 1) -> None:
        """Raises FlopwiseError for a number below the least."""
        value = getattr(self, name)
        if not least <= value < float("inf"):
            raise FlopwiseError(f"{self.kind}: {name} is {value:g}, must be at least {least:g}")

    def run(self, room: Room, problems: list[int], n: int, seed: int) -> list[Outcome]:
        """Answer the room's problems at these places, each with a budget of n full-length samples.

        Raises:
            FlopwiseError: n below 1, a judge that is not in the room, or a task that lacks what is needed.
        """
        if n < 1:
            raise FlopwiseError(f"{self.kind}: n is {n}, must be at least 1")
        if getattr(room.engine, "chat", False):
            raise FlopwiseError(
                f"{self.kind}: a server's chat cannot go on from what was written; ask it in style plain or "
                "few_shot, or take a strategy that chooses among samples"
            )
        for name in self.judges:
            need(room.scorers, name, self.kind)
        self.check(room)
        trees = [Tree(p, self.most_written(room, n)) for p in problems]
        rngs = [np.random.default_rng((abs(seed), room.keys[p])) for p in problems]
        searches = [s for tree, rng in zip(trees, rngs, strict=True) for s in self.search(room, tree, n, rng)]
        hands = Hands(room, seed, getattr(self, "by", self.valuer), self.step)
        with room_for(room, self.most_tokens(room, n)):
            drive(searches, hands.write, hands.judge)
        return [self._outcome(room, tree, rng) for tree, rng in zip(trees, rngs, strict=True)]

    def check(self, room: Room) -> None:
        """Raises FlopwiseError where the room or its task lacks what the strategy needs."""

    def most_tokens(self, room: Room, n: int) -> int:
        """Of one text, with all that stands before its answer."""
        return room.max_tokens

    def most_written(self, room: Room, n: int) -> float:
        """Tokens for a problem: what n samples could take at most."""
        return n * room.max_tokens

    def search(self, room: Room, tree: Tree, n: int, rng: np.random.Generator) -> Sequence[Search]:
        """Searches that grow one problem's tree side by side."""
        raise NotImplementedError

    def choose(self, tree: Tree, candidates: Sequence[Candidate], rng: np.random.Generator) -> Choice:
        """The last answer."""
        return decide(candidates, "last", rng)

    def _outcome(self, room: Room, tree: Tree, rng: np.random.Generator) -> Outcome:
        places = [(tree.problem, a.tokens[a.start :]) for a in tree.answers]
        candidates = room.candidates(places, [a.logprob for a in tree.answers])
        for i, a in enumerate(tree.answers):
            values = tuple(n.value for n in tree.path(a) if n.value == n.value)
            if values:
                candidates[i] = replace(candidates[i], scores={VALUE: values[-1]}, steps=values)
        choice = self.choose(tree, candidates, rng)
        return room.outcome(tree.problem, candidates, choice, tree.trace(room.text, choice))


@dataclass(frozen=True)
class Searching(Growing):
    """A search guided by values.

    Args:
        by: who values steps: process (a process reward model), reward, probe, judge, or checker.
        final: how the answer is chosen, one of `FINAL`.
    """

    valuers: ClassVar[tuple[str, ...]] = VALUERS
    by: str = "process"
    final: str = "weighted"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_name(self.kind, "by", self.by, self.valuers)
        check_name(self.kind, "final", self.final, FINAL)

    def choose(self, tree: Tree, candidates: Sequence[Candidate], rng: np.random.Generator) -> Choice:
        """By `final`."""
        return decide(candidates, self.final, rng)


@contextmanager
def room_for(room: Room, tokens: int) -> Iterator[None]:
    """Let texts in a room be so long for a while: what stands before an answer is no part of its length."""
    before, room.max_tokens = room.max_tokens, tokens
    try:
        yield
    finally:
        room.max_tokens = before


def decide(candidates: Sequence[Candidate], final: str, rng: np.random.Generator) -> Choice:
    """Choose among answers by their values; abstains where none answers, and votes where none has a value."""
    values = [c.scores.get(VALUE, float("nan")) for c in candidates]
    if np.isnan(values).all():
        values = []
    answering = [i for i, c in enumerate(candidates) if c.answer is not None]
    if not answering:
        return Choice(None, scores=values)
    if final == "last":
        return Choice(answering[-1], scores=values)
    if final == "best":
        place, tied = one_of_the_best([values[i] if values else 0.0 for i in answering], rng)
        return Choice(answering[place], scores=values, tied=tied)
    if final == "weighted":
        weights = np.nan_to_num(values or np.zeros(len(candidates)), nan=0.0).tolist()
        if any(weights[i] > 0 for i in answering):
            return vote(candidates, weights, rng)
    return vote(candidates, [1.0] * len(candidates), rng)


def check_name(who: str, what: str, name: str, known: Sequence[str]) -> None:
    """Raises FlopwiseError for a name that is not known."""
    if name not in known:
        raise FlopwiseError(f"{who}: {what} is {one_line(name, 40)!r}, must be one of {', '.join(known)}")

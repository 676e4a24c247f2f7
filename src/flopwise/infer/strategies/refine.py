"""Self-refinement: an answer is criticised and written again (Madaan et al., Self-Refine, arXiv 2303.17651).

The critic is a process reward model or the task's checker, which name the first wrong step, so that only what
comes after it is written again (the earliest error, as in ProcessBench, arXiv 2412.06559); or the model
itself, in words, as in the paper.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from flopwise.infer.steps import step_ends
from flopwise.infer.strategies.searching import Searching
from flopwise.infer.tree import Judge, Node, Search, Tree, Write

if TYPE_CHECKING:
    from flopwise.infer.room import Room

CRITIQUE = "\n\nFeedback on this solution, step by step:\n"
REFINED = "\n\nThe solution, improved by this feedback:\n"


@dataclass(frozen=True)
class Refine(Searching):
    """Answers criticised and written again while the tokens of n samples last; the answer is the last.

    Args:
        by: the critic: process, checker, or self.
        threshold: the value below which a step is wrong to a process reward model.
    """

    kind: ClassVar[str] = "refine"
    valuers: ClassVar[tuple[str, ...]] = ("process", "checker", "self")
    final: str = "last"
    threshold: float = 0.5

    def most_tokens(self, room: Room, n: int) -> int:
        """An answer, the feedback on it, and the next."""
        asks = sum(len(room.tokenizer.encode(text)) for text in (CRITIQUE, REFINED))
        return room.max_tokens * 3 + asks if self.by == "self" else room.max_tokens

    def search(self, room: Room, tree: Tree, n: int, rng: np.random.Generator) -> Sequence[Search]:
        """One answer after the other."""
        if self.by == "self":
            return [self._in_words(room, tree, n, room.max_tokens)]
        return [self._from_first_error(room, tree, n)]

    def _from_first_error(self, room: Room, tree: Tree, n: int) -> Search:
        [answer] = yield from tree.grow([tree.root], whole=True, judged=False, kind="sample")
        length = len(answer.tokens)
        while True:
            values = yield from self._values(room, answer)
            tree.value(answer, min(values, default=0.0))
            wrong = next((i for i, value in enumerate(values) if value < self.threshold), None)
            if wrong is None:
                tree.note(answer, "no step looks wrong")
                return
            ends = step_ends(room.task, answer.tokens, room.tokenizer, answer.state == "done")
            kept = answer.tokens[: ends[wrong - 1] + 1] if wrong else ()
            if tree.written + length - len(kept) > n * length:
                return
            node = tree.put(answer, kept, "cut", f"step {wrong + 1} looks wrong")
            [answer] = yield from tree.grow([node], whole=True, judged=False, kind="revise")

    def _values(self, room: Room, answer: Node) -> Generator[Write | Judge, Any, list[float]]:
        """Of each step of an answer."""
        if self.by == "process":
            [values] = yield Judge((answer,), each=True)
            return list(values)
        text = room.text(answer.tokens)
        return [float(step.ok) for step in room.task.steps(text, room.problems[answer.problem])]

    def _in_words(self, room: Room, tree: Tree, n: int, most: int) -> Search:
        node = tree.root
        for turn in range((n + 1) // 2):
            [answer] = yield from tree.grow(
                [node], whole=True, limit=most, judged=False, kind="revise" if turn else "sample"
            )
            if answer.state == "cut" or 2 * turn + 3 > n:
                return
            text = room.text(answer.tokens[answer.start :]) + CRITIQUE
            ids = room.tokenizer.encode(text)
            asked = tree.put(answer, ids, "extend", "is asked for feedback", start=len(ids))
            [said] = yield from tree.grow(
                [asked], whole=True, limit=most, judged=False, keep=False, kind="score", note="feedback"
            )
            ids = room.tokenizer.encode(text + room.text(said.tokens[said.start :]) + REFINED)
            node = tree.put(said, ids, "extend", "is asked to improve", start=len(ids))

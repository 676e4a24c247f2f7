"""Sequential revision: each answer has those before it in view (Snell et al., arXiv 2408.03314, section 6).

A task whose traces can be gone on from (`Task.think_on`) is: the answer's end is taken back and the model
tries again. Any other is asked once more, after its last answers (four in the paper). A model must have
learned to revise for this to help; others repeat themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from flopwise.infer.strategies.searching import VALUERS, Searching
from flopwise.infer.tree import Node, Search, Tree

if TYPE_CHECKING:
    from flopwise.infer.room import Room

AGAIN = "\n\nThis may be wrong. The same problem, solved again:\n\n"
"""After an answer within a chat, where the question cannot be asked anew."""


@dataclass(frozen=True)
class Revise(Searching):
    """A chain of n answers.

    Args:
        by: who values answers; none: nobody does, they vote.
        window: the last answers that are in view.
    """

    kind: ClassVar[str] = "revise"
    valuers: ClassVar[tuple[str, ...]] = (*VALUERS, "none")
    window: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least("window")

    def most_tokens(self, room: Room, n: int) -> int:
        """Answers in view, what asks for the next, and the next; or one trace that was gone on from."""
        asks = max(len(room.tokenizer.encode(again(room, p))) for p in range(len(room.problems)))
        return max(n * room.max_tokens, (self.window + 1) * (room.max_tokens + asks))

    def search(self, room: Room, tree: Tree, n: int, rng: np.random.Generator) -> Sequence[Search]:
        """One chain."""
        return [chain(room, tree, n, self.window, self.by != "none", room.max_tokens)]


def chain(room: Room, tree: Tree, turns: int, window: int, judged: bool, most: int) -> Search:
    """Answers of up to `most` tokens, each after those before it."""
    node, seen = tree.root, list[str]()
    for turn in range(turns):
        [answer] = yield from tree.grow(
            [node], whole=True, limit=most, judged=judged, kind="revise" if turn else "sample"
        )
        if turn + 1 < turns and answer.state == "done":
            node = next_turn(room, tree, answer, seen, window)
        else:
            return


def next_turn(room: Room, tree: Tree, answer: Node, seen: list[str], window: int) -> Node:
    """What the next answer is written after; `seen` are the answers so far, which this one joins."""
    text = room.text(answer.tokens[answer.start :])
    forced = room.task.think_on(text)
    if forced is not None:
        return tree.put(answer, room.tokenizer.encode(forced), "extend", "tries again")
    seen.append(text + again(room, tree.problem))
    ids = room.tokenizer.encode("".join(seen[-window:]))
    return tree.put(answer, ids, "extend", "is asked again", start=len(ids))


def again(room: Room, problem: int) -> str:
    """What asks for another answer."""
    if room.asked.style == "chat":
        return AGAIN
    return "\n\n" + room.task.prompt_for(room.problems[problem])

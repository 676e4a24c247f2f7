"""Thinking budgets: a trace is forced longer, or cut with an early answer (s1, arXiv 2501.19393).

Where a model would end before its budget is spent, the end is taken back and a continuation put in its place
("Wait" in Muennighoff et al., by the task here: `Task.think_on`); where it has not ended when the budget is
spent, the answer is opened for it (`Task.answer_now`). A task that has neither cannot be budgeted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from flopwise.errors import FlopwiseError
from flopwise.infer.strategies.searching import Growing, check_name
from flopwise.infer.tree import Node, Search, Tree

if TYPE_CHECKING:
    from flopwise.infer.room import Room

AT = ("end", "step")
MOST_ANSWERING = 4
"""Times that an answer is opened for a model which goes on thinking instead."""


@dataclass(frozen=True)
class Budget(Growing):
    """One trace with n times `tokens` of thinking; the answer is its last.

    Args:
        tokens: thinking tokens for each of n, an answer that is opened not among them; 0: as many as the
            model's own first answer took, so that n = 1 is one plain sample.
        at: end, to force where the model would end; step, also where it would end a step.
        answer: tokens of an answer that was opened for the model.
    """

    kind: ClassVar[str] = "budget"
    tokens: int = 0
    at: str = "end"
    answer: int = 24

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least("tokens", 0)
        self.at_least("answer")
        check_name(self.kind, "at", self.at, AT)

    def check(self, room: Room) -> None:
        """Raises FlopwiseError where the task says nothing of continuations or early answers."""
        task = room.task
        lacks = [
            what
            for what, has in (("continuation", task.continuation), ("early answer", task.early_answer))
            if has is None
        ]
        if lacks:
            raise FlopwiseError(
                f"budget: task {task.name} has no {' and no '.join(lacks)}; take a task that has, as chain "
                "or countdown, or spend on samples with best_of_n"
            )

    def most_tokens(self, room: Room, n: int) -> int:
        """All of the budget, what is put in to force it, and the answer."""
        return 2 * n * (self.tokens or room.max_tokens) + MOST_ANSWERING * self.answer

    def most_written(self, room: Room, n: int) -> float:
        """The budget is kept as the trace is written."""
        return float("inf")

    def search(self, room: Room, tree: Tree, n: int, rng: np.random.Generator) -> Sequence[Search]:
        """One trace."""
        return [self._trace(room, tree, n, room.max_tokens)]

    def _trace(self, room: Room, tree: Tree, n: int, most: int) -> Search:
        left, node, last = n * self.tokens, tree.root, 0
        if not self.tokens:
            # The model's own answer is the unit.
            [node] = yield from tree.grow(
                [node], whole=True, limit=most, judged=False, keep=False, kind="sample"
            )
            left, last = (n - 1) * len(node.tokens), len(node.tokens)
        most = self._most_thinking(room, tree.problem)
        while (left := min(left, most - len(node.tokens))) > 0 and node.state != "cut":
            if node.state == "done" or (self.at == "step" and node.id):
                forced = room.task.think_on(room.text(node.tokens))
                if node.state == "done" and (forced is None or (not self.tokens and last > left)):
                    break  # no more that would come to its end
                if forced is not None:
                    node = tree.put(node, room.tokenizer.encode(forced), "extend", "thinks on")
            [grown] = yield from tree.grow(
                [node], whole=self.at == "end", limit=left, judged=False, keep=False
            )
            last = len(grown.tokens) - len(node.tokens)
            left, node = left - last, grown
        if node.state == "done":
            tree.answers.append(node)
        else:
            yield from self._answer(room, tree, node)

    def _most_thinking(self, room: Room, problem: int) -> int:
        """Tokens of a trace after which there is room in the model's context to answer."""
        if room.cfg is None:
            return room.max_tokens
        return room.cfg.max_seq_len - len(room.asked.ids[problem]) - MOST_ANSWERING // 2 * self.answer

    def _answer(self, room: Room, tree: Tree, node: Node) -> Search:
        """Open the answer, more than once if need be, and close what was written."""
        task, end = room.task, room.asked.stop[0]
        for _ in range(MOST_ANSWERING):
            text = task.answer_now(room.text(node.tokens))
            if text is None:
                break
            ids = room.tokenizer.encode(text)
            if task.answer(text) is not None:
                tree.answers.append(tree.put(node, [*ids, end], "cut", "answers now", state="done"))
                return
            node = tree.put(node, ids, "cut", "answers now")
            [node] = yield from tree.grow([node], limit=self.answer, judged=False, keep=False)
            if node.state == "done":
                tree.answers.append(node)
                return
        tree.answers.append(node)

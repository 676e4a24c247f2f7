"""Trees of steps: searches over what a model may write, many side by side, one engine call a round for all.

A search is a generator: it asks for texts to be gone on from (`Write`) and for values (`Judge`), so that it
reads as one problem's algorithm and runs as a batch. Nothing a search gets depends on who runs beside it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from math import nan
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from flopwise.infer.strategies.base import Choice, Kind, TraceStep

if TYPE_CHECKING:
    from flopwise.infer.room import Room, Row


State = Literal["open", "done", "cut"]
Place = tuple[int, tuple[int, ...]]
"""A problem, and the token ids written for it so far."""


@dataclass(frozen=True)
class Node:
    """What has been written so far for a problem.

    `tokens` and `logprob` are of the whole, the latter in nats; `value` says how good it looks, NaN before it
    was judged. A node is open, done (the completion came to its end) or cut (no room to go on). Its answer
    are the tokens from `start` on.
    """

    problem: int
    tokens: tuple[int, ...] = ()
    logprob: float = 0.0
    value: float = nan
    state: State = "open"
    id: int = 0
    parent: int | None = None
    start: int = 0

    @property
    def rank(self) -> tuple[float, float, tuple[int, ...]]:
        """To sort by, best first: value, then log-probability (where known), then text."""
        value, logprob = (v if v == v else 0.0 for v in (self.value, self.logprob))
        return (-value, -logprob, self.tokens)


@dataclass(frozen=True)
class Piece:
    """What was written in one go after the node at place `parent` of those asked for: new tokens with a final
    stop token if one was drawn, their log-probability in nats, whether the completion has `ended`, and
    whether it is `full`, so that nothing may follow; `paid` are the tokens that were drawn for it, if they
    are not its own."""

    parent: int
    tokens: tuple[int, ...]
    logprob: float
    ended: bool
    full: bool = False
    paid: int | None = None


@dataclass(frozen=True)
class Write:
    """Asks for n ways to go on from each node, to the end of a step or (`whole`) of the completion, with at
    most `limit` new tokens each and `left` for all that is asked for the problem; answered with `Piece`s,
    node-major."""

    nodes: tuple[Node, ...]
    n: int = 1
    whole: bool = False
    temperature: float | None = None
    limit: int | None = None
    left: float = float("inf")


@dataclass(frozen=True)
class Judge:
    """Asks how good nodes look; answered with their values, or with `each` of their steps' values."""

    nodes: tuple[Node, ...]
    each: bool = False


Search = Generator["Write | Judge", Any, None]
"""What a strategy does for one problem, or for one of several branches that grow side by side."""
Grown = Generator["Write | Judge", Any, list[Node]]


class Tree:
    """All nodes of one problem, in the order in which they came; node 0 is the bare prompt.

    Args:
        most: tokens that may be written in all; what is then open is cut.
    """

    def __init__(self, problem: int, most: float = float("inf")):
        self.problem, self.most = problem, most
        self.nodes = [Node(problem)]
        self.kinds: list[Kind] = ["sample"]
        self.notes: list[str] = [""]
        self.answers: list[Node] = []
        """Nodes that a choice is made among, open ones never."""
        self.written = 0
        """Tokens so far."""

    @property
    def root(self) -> Node:
        """The bare prompt."""
        return self.nodes[0]

    @property
    def full_length(self) -> float:
        """Mean tokens of whole answers so far, from the root on; NaN before there is one."""
        lengths = [len(a.tokens) - a.start for a in self.answers if a.state == "done"]
        return float(np.mean(lengths)) if lengths else nan

    def add(self, node: Node, parent: Node, kind: Kind = "step", note: str = "") -> Node:
        """Put a node under another; returns it with its id."""
        placed = replace(node, id=len(self.nodes), parent=parent.id)
        self.nodes.append(placed)
        self.kinds.append(kind)
        self.notes.append(note)
        return placed

    def put(
        self, parent: Node, tokens: Sequence[int], kind: Kind, note: str = "", start: int = 0,
        state: State = "open",
    ) -> Node:  # fmt: skip
        """A text that nobody wrote, to go on from or to answer with: a forced continuation, a critic's word,
        a cut. Its log-probability is not known."""
        node = Node(self.problem, tuple(tokens), nan, state=state, start=start)
        return self.add(node, parent, kind, note)

    def note(self, node: Node, text: str) -> None:
        """What the trace says of a node."""
        self.notes[node.id] = text

    def grow(
        self, nodes: Sequence[Node], n: int = 1, kind: Kind = "step", judged: bool = True, keep: bool = True,
        note: str = "", **how: Any,
    ) -> Grown:  # fmt: skip
        """Children of nodes, node-major; those that are not open become answers, unless `keep` is off.

        `how` are settings of `Write`.
        """
        if not nodes:
            return []
        pieces: list[Piece] = yield Write(tuple(nodes), n, left=self.most - self.written, **how)
        children = []
        for row in pieces:
            node = nodes[row.parent]
            state: State = "done" if row.ended else "open"
            if not row.ended and (how.get("whole") or row.full):
                state = "cut"
            child = replace(
                node, tokens=node.tokens + row.tokens, logprob=node.logprob + row.logprob,
                value=nan, state=state,
            )  # fmt: skip
            self.written += len(row.tokens) if row.paid is None else row.paid
            children.append(self.add(child, node, kind, note))
        if self.written >= self.most:
            children = [c if c.state == "done" else self.cut(c) for c in children]
        if judged:
            children = yield from self.judge(children)
        if keep:
            self.answers += [c for c in children if c.state != "open"]
        return children

    def cut(self, node: Node) -> Node:
        """The node, that nothing may follow."""
        self.nodes[node.id] = replace(node, state="cut")
        return self.nodes[node.id]

    def judge(self, nodes: Sequence[Node]) -> Grown:
        """The nodes with their values; those that were cut are worth 0 and cost nothing."""
        asked = [n for n in nodes if n.state != "cut"]
        values = (yield Judge(tuple(asked))) if asked else []
        found = dict(zip((n.id for n in asked), map(float, values), strict=True))
        return [self.value(n, found.get(n.id, 0.0)) for n in nodes]

    def value(self, node: Node, value: float) -> Node:
        """The node with a value."""
        self.nodes[node.id] = replace(node, value=value)
        return self.nodes[node.id]

    def path(self, node: Node) -> list[Node]:
        """From the first step to the node."""
        found = [self.nodes[node.id]]
        while found[-1].parent:
            found.append(self.nodes[found[-1].parent])
        return found[::-1] if node.id else []

    def trace(self, text: Callable[[Sequence[int]], str], choice: Choice) -> list[TraceStep]:
        """All nodes as they were written, the votes for answers, and the decision."""
        steps = []
        for node, kind, note in zip(self.nodes[1:], self.kinds[1:], self.notes[1:], strict=True):
            above = self.nodes[node.parent or 0].tokens
            same = next((i for i, (a, b) in enumerate(zip(above, node.tokens, strict=False)) if a != b), None)
            new = node.tokens[len(above) if same is None else same :]
            value = None if np.isnan(node.value) else node.value
            note = note or ("unfinished" if node.state == "cut" else "")
            steps.append(TraceStep(node.id, node.parent or None, kind, text(new), value, note))
        for answer, weight in choice.votes.items():
            steps.append(TraceStep(len(steps) + 1, None, "vote", answer, weight))
        chosen = None if choice.index is None else self.answers[choice.index].id
        level = f"{choice.tied} were level, one was drawn" if choice.tied > 1 else ""
        note = "abstains" if chosen is None else level
        steps.append(TraceStep(len(steps) + 1, chosen, "stop", "", None, note))
        return steps


class Frontier:
    """Open nodes, the best of which are gone on from. A beam forgets the others; a tree keeps them open and
    may come back (best-first search)."""

    def __init__(self, nodes: Sequence[Node], keep: bool = False):
        self.nodes: list[Node] = []
        self.keep = keep
        self.add(nodes)

    def take(self, width: int) -> list[Node]:
        """The `width` best nodes."""
        self.nodes.sort(key=lambda n: n.rank)
        taken, rest = self.nodes[:width], self.nodes[width:]
        self.nodes = rest if self.keep else []
        return taken

    def add(self, nodes: Sequence[Node]) -> None:
        """More nodes; of those written alike one."""
        self.nodes += distinct([n for n in nodes if n.state == "open"])


def distinct(nodes: Sequence[Node]) -> list[Node]:
    """The first of those that say the same."""
    found: dict[tuple[int, ...], Node] = {}
    for node in nodes:
        found.setdefault(node.tokens, node)
    return list(found.values())


def spread(nodes: Sequence[Node], total: int) -> list[Node]:
    """Nodes repeated so that they are `total`, the first ones once more than the last where it does not even
    out.

    >>> [n.id for n in spread([Node(0, id=1), Node(0, id=2)], 3)]
    [1, 1, 2]
    """
    each, more = divmod(total, len(nodes))
    return [node for i, node in enumerate(nodes) for _ in range(each + (i < more))]


class Hands:
    """Writes and judges for searches in a room.

    Args:
        by: who values a node: a scorer in the room, or `checker` (the task's own).
        step: tokens of a step at most.
    """

    def __init__(self, room: Room, seed: int, by: str, step: int):
        self.room, self.seed, self.by, self.step = room, seed, by, step
        self.known: dict[Place, float] = {}
        self.rest: dict[tuple[float | None, Place], list[Row]] = {}

    def write(self, asked: Sequence[Write], round_: int) -> list[list[Piece]]:
        """Pieces for each request; requests of one kind are sampled together."""
        out: list[list[Piece]] = [[] for _ in asked]
        kinds: dict[tuple[bool, int, float | None, int], list[int]] = {}
        rows_of = Counter(node.problem for a in asked for node in a.nodes for _ in range(a.n))
        for i, a in enumerate(asked):
            limit = min(a.limit or self.room.max_tokens, self.room.max_tokens if a.whole else self.step)
            share = max(1.0, a.left / rows_of[a.nodes[0].problem])
            if share < limit:  # to a power of 2, so that problems near their end are still sampled together
                limit = 1 << int(share).bit_length() - 1
            kinds.setdefault((a.whole, limit, a.temperature, a.n), []).append(i)
        for (whole, limit, temperature, n), places in kinds.items():
            nodes = [(node.problem, node.tokens) for i in places for node in asked[i].nodes]
            rows = iter(self._sample(nodes, n, limit, whole, round_, temperature))
            for i in places:
                for at, node in enumerate(asked[i].nodes):
                    out[i] += [self._piece(at, node, *next(rows)) for _ in range(n)]
        return out

    def _piece(self, at: int, node: Node, row: Row, paid: int) -> Piece:
        most = self.room.max_tokens
        if self.room.cfg is not None:
            most = min(most, self.room.cfg.max_seq_len - len(self.room.asked.ids[node.problem]))
        full = not row.tokens or len(node.tokens) + len(row.tokens) >= most
        return Piece(at, row.tokens, row.logprob, row.ended, full, paid)

    def _sample(
        self, nodes: list[Place], n: int, limit: int, whole: bool, round_: int, temperature: float | None
    ) -> list[tuple[Row, int]]:
        """Rows and the tokens paid for each."""
        room, seed = self.room, self.seed * 1_000_003 + round_
        if not whole and room.cfg is None:
            return self._steps_of_server([node for node in nodes for _ in range(n)], limit, seed, temperature)
        stop = room.asked.stop if whole else [*room.asked.stop, *room.step_ends]
        rows = room.sample(nodes, n, limit, stop, seed, temperature)
        return [(row, len(row.tokens)) for row in rows]

    def _steps_of_server(
        self, nodes: list[Place], limit: int, seed: int, temperature: float | None
    ) -> list[tuple[Row, int]]:
        """A server leaves out the text it stopped at, so a longer piece is cut into steps here; what comes
        after the first is kept for whoever goes on from it, as it is a sample like any other."""
        found: list[tuple[Row, int]] = []
        kept = [rest.pop(0) if (rest := self.rest.get((temperature, node))) else None for node in nodes]
        new = [node for node, row in zip(nodes, kept, strict=True) if row is None]
        rows = iter(self.room.sample(new, 1, limit, self.room.asked.stop, seed, temperature) if new else ())
        ends = set(self.room.step_ends)
        for (problem, before), old in zip(nodes, kept, strict=True):
            row = next(rows) if old is None else old
            paid = len(row.tokens) if old is None else 0
            at = next((i for i, token in enumerate(row.tokens[:-1]) if token in ends), None)
            if at is not None:
                # Log-probabilities are told for a whole row alone.
                step = replace(row, tokens=row.tokens[: at + 1], logprob=nan, finished=True, ended=False)
                after = replace(row, tokens=row.tokens[at + 1 :], logprob=nan)
                place = (problem, before + step.tokens)
                self.rest.setdefault((temperature, place), []).append(after)
                row = step
            found.append((row, paid))
        return found

    def judge(self, asked: Sequence[Judge]) -> list[list[Any]]:
        """Values in [0, 1] for each request, of the nodes or of all their steps; a text is valued once."""
        places = [[(n.problem, n.tokens[n.start :]) for n in a.nodes] for a in asked]
        plain = [node for a, nodes in zip(asked, places, strict=True) if not a.each for node in nodes]
        new = [node for node in dict.fromkeys(plain) if node not in self.known]
        # What is left of six digits depends on who was judged beside it.
        values = self.room.values(new, self.by).round(6).tolist()
        self.known |= dict(zip(new, values, strict=True))
        steps = [i for i, a in enumerate(asked) if a.each]
        by = [f"{self.by}_last" if self.by == "process" else self.by]
        found = iter(
            self.room.candidates([node for i in steps for node in places[i]], scores=by) if steps else ()
        )
        return [
            [next(found).steps if a.each else self.known[node] for node in nodes]
            for a, nodes in zip(asked, places, strict=True)
        ]


def drive(
    searches: Sequence[Search], write: Callable[[Sequence[Write], int], list[list[Piece]]],
    judge: Callable[[Sequence[Judge]], list[list[Any]]],
) -> None:  # fmt: skip
    """Answer what searches ask until all have come to their end.

    Values go before texts, so that all searches that write in a round do so together.
    """
    waiting = [(s, a) for s in searches if (a := next(s, None)) is not None]
    round_ = 0
    while waiting:
        # All judges before any writer.
        turn = Judge if any(isinstance(a, Judge) for _, a in waiting) else Write
        asked: list[Any] = [a for _, a in waiting if isinstance(a, turn)]
        answers = iter(judge(asked) if turn is Judge else write(asked, round_))
        round_ += turn is Write
        still: list[tuple[Search, Write | Judge]] = []
        for search, question in waiting:
            if not isinstance(question, turn):
                still.append((search, question))
                continue
            try:
                still.append((search, search.send(next(answers))))
            except StopIteration:
                continue
        waiting = still

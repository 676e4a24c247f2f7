"""A family as lines to read: some members one by one, siblings alike as one line with counts and ranges."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from flopwise.errors import FlopwiseError
from flopwise.records.family import Family, Member, Sort, gained
from flopwise.records.record import RunRecord


@dataclass(frozen=True)
class Group:
    """Siblings that are not shown one by one.

    `kinds` counts them by kind and method, or by kind alone where there are several, the most frequent first.
    Ranges are (least, most) of what is known, None where nothing is; `gain` is of `metric`, in its own units.
    `below` hang under them; `total_flops` is what all of these spent together.
    """

    kinds: tuple[tuple[str, int], ...]
    count: int
    below: int
    total_flops: float
    own: tuple[float, float] | None
    lineage: tuple[float, float] | None
    gain: tuple[float, float] | None
    metric: str | None


@dataclass(frozen=True)
class Line:
    """One line: a member or a group, `depth` steps below its root; whether it is the last of its siblings."""

    depth: int
    last: bool
    member: Member | None = None
    group: Group | None = None


@dataclass(frozen=True)
class View:
    """What of a family is shown, and how.

    Args:
        root: only this member (name, id or start of an id) and what hangs under it.
        depth: steps below a root that are shown.
        sort: order of siblings, and of what is shown first where not all is.
        kind: only members of this kind or method, and what they hang under.
        top: siblings of a kind and method shown one by one; None: the first ones of the whole family, so many
            that the outline has about `lines` lines.
    """

    root: str | None = None
    depth: int | None = None
    sort: Sort = "compute"
    kind: str | None = None
    top: int | None = None
    lines: int = 120


def kind_of(record: RunRecord) -> str:
    """Kind and method in words."""
    return record.kind if record.method in ("", record.kind) else f"{record.kind}: {record.method}"


def outline(family: Family, view: View) -> list[Line]:
    """The lines of a family, parents before children.

    Raises:
        FlopwiseError: no such root or kind; a depth or number below 0.
    """
    for name, value in (("depth", view.depth), ("top", view.top)):
        if value is not None and value < 0:
            raise FlopwiseError(f"{name} is {value}, must be at least 0")
    drawing = _Drawing(family, view)
    if view.top is not None:
        return list(drawing.lines(drawing.first_of_each_kind(view.top)))
    ranked = drawing.ranked()
    shown: list[Line] = []
    if len(ranked) <= view.lines:
        shown = list(drawing.lines(set(ranked)))
        if len(shown) <= view.lines:
            return shown
    least, most = 1, min(len(ranked), view.lines)  # every member is a line
    while most - least > 1:  # more members never make fewer lines, near enough
        half = (least + most) // 2
        lines = list(drawing.lines(set(ranked[:half])))
        if len(lines) <= view.lines:
            least, shown = half, lines
        else:
            most = half
    return shown or list(drawing.lines(set(ranked[:least])))


class _Drawing:
    """What a view takes of a family: the members that count, their children in order, sums below each."""

    def __init__(self, family: Family, view: View):
        self.family, self.view = family, view
        roots = family.roots if view.root is None else [family.find(view.root)]
        wanted = _wanted(family, roots, view.kind)
        self.order = family.order(view.sort)
        self.roots = sorted((r for r in roots if r in wanted), key=self.order)
        members = [m for m in family.below(roots) if m.id in wanted]
        self.children = {
            m.id: sorted((c for c in m.children if c in wanted), key=self.order) for m in members
        }
        self.preorder = [m.id for m in members]
        self.below: dict[str, tuple[int, float]] = {}
        for m in reversed(members):
            parts = [self.below[c] for c in self.children[m.id]]
            spent = (m.own_flops or 0.0) + sum(flops for _, flops in parts)
            self.below[m.id] = 1 + sum(size for size, _ in parts), spent

    def _open(self, depth: int) -> bool:
        return self.view.depth is None or depth <= self.view.depth

    def ranked(self) -> list[str]:
        """Members from the first to be shown to the last; none before what it hangs under.

        First the roots, in their order. Then by compute: those under which the largest share of their root's
        family was spent; by gain: those that are or lead to the largest ones; by name: level by level.
        """
        worth = self._worth()
        heap = [((-math.inf, i), 0, r, r) for i, r in enumerate(self.roots)]
        out = []
        while heap:
            _, depth, run, root = heapq.heappop(heap)
            out.append(run)
            if self._open(depth + 1):
                for place, child in enumerate(self.children[run]):
                    share = worth[child] / worth[root] if self.view.sort == "compute" else worth[child]
                    key = (depth + 1.0, place) if self.view.sort == "name" else (-share, place)
                    heapq.heappush(heap, (key, depth + 1, child, root))
        return out

    def _worth(self) -> dict[str, float]:
        """By member: what was spent on it and below it; or the largest gain there."""
        worth: dict[str, float] = {}
        for run in reversed(self.preorder):
            gain = self.family.members[run].gain
            if self.view.sort == "gain":
                own = gained(gain) if gain else -math.inf
                worth[run] = max([own, *(worth[c] for c in self.children[run])])
            else:
                worth[run] = self.below[run][1] or 1.0
        return worth

    def first_of_each_kind(self, top: int) -> set[str]:
        """The roots, and of all siblings of a kind and method the first `top`."""
        chosen, todo = set(self.roots), [(r, 0) for r in self.roots]
        while todo:
            run, depth = todo.pop()
            seen: Counter[str] = Counter()
            for child in self.children[run] if self._open(depth + 1) else ():
                kind = kind_of(self.family.members[child].record)
                seen[kind] += 1
                if seen[kind] <= top:
                    chosen.add(child)
                    todo.append((child, depth + 1))
        return chosen

    def lines(self, chosen: set[str]) -> Iterator[Line]:
        """The chosen members, the others as groups."""
        todo = self._siblings(self.roots, 0, chosen)[::-1]
        while todo:
            line = todo.pop()
            yield line
            if line.member is not None:
                todo += self._siblings(self.children[line.member.id], line.depth + 1, chosen)[::-1]

    def _siblings(self, runs: list[str], depth: int, chosen: set[str]) -> list[Line]:
        """Lines of siblings: where some are chosen the rest of each kind is a group, else all are one."""
        lines: list[Line] = []
        by_kind: dict[str, list[str]] = {}
        for run in runs:
            if run in chosen:
                lines.append(Line(depth, False, self.family.members[run]))
            else:
                by_kind.setdefault(kind_of(self.family.members[run].record), []).append(run)
        apart = bool(lines) and self._open(depth)
        together = [[run for runs in by_kind.values() for run in runs]] if by_kind else []
        for hidden in by_kind.values() if apart else together:
            if len(hidden) == 1 and not self.children[hidden[0]] and self._open(depth) and chosen:
                lines.append(Line(depth, False, self.family.members[hidden[0]]))  # no longer than "1 more"
            else:
                lines.append(Line(depth, False, group=self._group(hidden)))
        if lines:
            lines[-1] = Line(depth, True, lines[-1].member, lines[-1].group)
        return lines

    def _group(self, runs: list[str]) -> Group:
        members = [self.family.members[r] for r in runs]
        gains = [m.gain for m in members if m.gain is not None]
        metrics = Counter(g.metric for g in gains)
        metric = max(metrics, key=lambda name: (metrics[name], name)) if metrics else None
        gain = _range([gained(g) for g in gains if g.metric == metric])
        if gain and metric == "loss":
            gain = -gain[1], -gain[0]
        kinds = Counter(kind_of(m.record) for m in members)
        if len(kinds) > 1:
            kinds = Counter(m.record.kind for m in members)
        return Group(
            tuple(kinds.most_common()),
            len(runs), sum(self.below[r][0] for r in runs) - len(runs), sum(self.below[r][1] for r in runs),
            own=_range([m.own_flops for m in members]), lineage=_range([m.lineage_flops for m in members]),
            gain=gain, metric=metric,
        )  # fmt: skip


def _wanted(family: Family, roots: list[str], kind: str | None) -> set[str]:
    """Members that are shown or counted: all, or those of a kind and what they hang under."""
    members = family.below(roots)
    if kind is None:
        return {m.id for m in members}
    wanted: set[str] = set()
    for m in members:
        if kind in (m.record.kind, m.record.method, kind_of(m.record)):
            run: str | None = m.id
            while run is not None and run not in wanted:
                wanted.add(run)
                run = None if run in roots else family.members[run].parent
    if not wanted:
        there = sorted({m.record.kind for m in members})
        raise FlopwiseError(f"no model of kind {kind!r:.40}; there are {', '.join(there) or 'no models'}")
    return wanted


def _range(values: list[float | None]) -> tuple[float, float] | None:
    known = [v for v in values if v is not None and math.isfinite(v)]
    return (min(known), max(known)) if known else None

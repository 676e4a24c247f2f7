"""A family as lines to read: some members one by one, siblings alike as one line with counts and ranges."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from flopwise.errors import FlopwiseError
from flopwise.records.family import Family, Member, Sort, gained

STEPS_DOWN = (50, 20, 10, 5, 3, 2, 1, 0)
"""Siblings of a kind that are shown one by one, tried in turn until the outline is short enough."""


@dataclass(frozen=True)
class Group:
    """Siblings that are not shown one by one.

    `kind` and `method` are what they have in common (empty: all that lies deeper than the outline goes).
    Ranges are (least, most) of what is known; None where nothing is. `below` are those that hang under them.
    """

    kind: str
    method: str
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
        sort: order of siblings.
        kind: only members of this kind or method, and what they hang under.
        top: siblings of a kind shown one by one; None: as many as fit into `lines`.
    """

    root: str | None = None
    depth: int | None = None
    sort: Sort = "compute"
    kind: str | None = None
    top: int | None = None
    lines: int = 200


def outline(family: Family, view: View) -> list[Line]:
    """The lines of a family, parents before children.

    Raises:
        FlopwiseError: no such root or kind; a depth or number below 0.
    """
    for name, value in (("depth", view.depth), ("top", view.top)):
        if value is not None and value < 0:
            raise FlopwiseError(f"{name} is {value}, must be at least 0")
    roots = family.roots if view.root is None else [family.find(view.root)]
    wanted = _wanted(family, roots, view.kind)
    order = family.order(view.sort)
    children = {
        m.id: sorted((c for c in m.children if c in wanted), key=order)
        for m in family.below(roots) if m.id in wanted
    }  # fmt: skip
    roots = sorted((r for r in roots if r in wanted), key=order)
    if view.top is not None:
        return list(_lines(family, children, roots, view, view.top))
    shown: list[Line] = []
    for top in (len(family.members), *STEPS_DOWN):
        shown = []
        for line in _lines(family, children, roots, view, top):
            shown.append(line)
            if len(shown) > view.lines and top:
                break
        else:
            return shown
    return shown


def _wanted(family: Family, roots: list[str], kind: str | None) -> set[str]:
    """Members that are shown or counted: all, or those of a kind and what they hang under."""
    members = family.below(roots)
    if kind is None:
        return {m.id for m in members}
    wanted: set[str] = set()
    for m in members:
        if kind in (m.record.kind, m.record.method):
            run: str | None = m.id
            while run is not None and run not in wanted:
                wanted.add(run)
                run = None if run in roots else family.members[run].parent
    if not wanted:
        there = sorted({m.record.kind for m in members})
        raise FlopwiseError(f"no model of kind {kind!r:.40}; there are {', '.join(there) or 'no models'}")
    return wanted


def _lines(
    family: Family, children: dict[str, list[str]], roots: list[str], view: View, top: int
) -> Iterator[Line]:
    todo = _siblings(family, children, roots, 0, view, top)[::-1]
    while todo:
        line = todo.pop()
        yield line
        if line.member is not None and children[line.member.id]:
            todo += _siblings(family, children, children[line.member.id], line.depth + 1, view, top)[::-1]


def _siblings(
    family: Family, children: dict[str, list[str]], runs: list[str], depth: int, view: View, top: int
) -> list[Line]:
    """Lines of siblings: of each kind the first `top`, the rest of it as a group; roots always one by one."""
    if view.depth is not None and depth > view.depth:
        return [Line(depth, True, group=_group(family, children, runs, "", ""))]
    seen: dict[tuple[str, str], int] = {}
    rest: dict[tuple[str, str], list[str]] = {}
    lines: list[Line] = []
    for run in runs:
        record = family.members[run].record
        alike = record.kind, record.method
        seen[alike] = seen.get(alike, 0) + 1
        if (depth == 0 and view.top is None) or seen[alike] <= top:
            lines.append(Line(depth, False, family.members[run]))
        else:
            rest.setdefault(alike, []).append(run)
    for alike, hidden in rest.items():
        if len(hidden) == 1 and top:  # a line for one is no shorter than the one
            lines.append(Line(depth, False, family.members[hidden[0]]))
        else:
            lines.append(Line(depth, False, group=_group(family, children, hidden, *alike)))
    if lines:
        end = lines[-1]
        lines[-1] = Line(depth, True, end.member, end.group)
    return lines


def _group(family: Family, children: dict[str, list[str]], runs: list[str], kind: str, method: str) -> Group:
    members = [family.members[r] for r in runs]
    # All there is below them was selected as they were, so that what is counted is what could be shown.
    todo, below, total = list(runs), -len(runs), 0.0
    while todo:
        run = todo.pop()
        below, total = below + 1, total + (family.members[run].own_flops or 0.0)
        todo += children[run]
    gains = [m.gain for m in members if m.gain is not None]
    metrics = [g.metric for g in gains]
    metric = max(set(metrics), key=lambda name: (metrics.count(name), name)) if metrics else None
    return Group(
        kind, method, len(runs), below, total,
        own=_range([m.own_flops for m in members]), lineage=_range([m.lineage_flops for m in members]),
        gain=_range([gained(g) for g in gains if g.metric == metric]), metric=metric,
    )  # fmt: skip


def _range(values: list[float | None]) -> tuple[float, float] | None:
    known = [v for v in values if v is not None and math.isfinite(v)]
    return (min(known), max(known)) if known else None

"""The family of a folder of runs: what was made from what, what that cost, and what each model gained."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from flopwise.errors import FlopwiseError
from flopwise.records.record import Metric, RunRecord

NOT_MODELS = ("data", "fit", "plan", "sample", "evaluate")
"""Kinds that make no model and nothing that a model is made of."""
STARTS = ("init", "model", "samples")
"""Roles that a run hangs under: the model whose weights it starts from, or that it sampled from."""
SAMPLED = ("greedy", "pass_at_1", "pass_at_16")
"""Metrics of a sample run that gains are taken in, the one that counts first."""
MEASURED = ("val_accuracy", "loss")
"""Metrics of a model's own record that gains are taken in where it was not sampled."""

Sort = Literal["compute", "gain", "name"]


@dataclass(frozen=True)
class Gain:
    """A metric of a model less that of the one it was made from, on the same problems of the same task.

    `se` treats the two as independent, which overstates it where both answer the same problems, until they
    are compared problem by problem (`paired`).
    """

    task: str
    metric: str
    value: float
    se: float | None
    n: int | None
    paired: bool = False


@dataclass
class Member:
    """A run of the family.

    `roles` are the parents beside the one it hangs under, by role; `total_flops` and `size` are those of the
    run and of all that hangs under it. `own_flops` is None where nothing of it is known.
    """

    record: RunRecord
    parent: str | None = None
    roles: dict[str, str] = field(default_factory=dict)
    children: list[str] = field(default_factory=list)
    gains: list[Gain] = field(default_factory=list)
    size: int = 1
    total_flops: float = 0.0

    @property
    def id(self) -> str:
        """The run's id."""
        return self.record.id

    @property
    def name(self) -> str:
        """What it is called."""
        return self.record.name or self.record.id

    @property
    def own_flops(self) -> float | None:
        """What the run itself spent; None where that was not recorded."""
        spend = self.record.spend
        known = self.record.status == "done" and (spend.total_flops or not spend.at_least)
        return spend.total_flops if known else None

    @property
    def lineage_flops(self) -> float | None:
        """What it and all its ancestors spent, each counted once, as far as it is known."""
        return self.record.lineage_spend.total_flops if self.record.status == "done" else None

    @property
    def at_least(self) -> bool:
        """Whether some ancestor spent more than is counted."""
        return self.record.lineage_spend.at_least

    @property
    def gain(self) -> Gain | None:
        """The gain that counts: in greedy accuracy where both were sampled."""
        return self.gains[0] if self.gains else None


@dataclass(frozen=True)
class Base:
    """A model that others were made from: its lineage's compute, and that of all of them together.

    Every run is counted once, however many ways lead to it, and a teacher's derivatives are its students too.
    `flops` is None where unknown, unless an estimate was given: then it is `assumed`. `multiple` is
    `derived_flops` over it; with `at_least`, a derivative spent more than is counted.
    """

    id: str
    name: str
    flops: float | None
    assumed: bool
    unknown: str | None
    derived: int
    derived_flops: float
    at_least: bool

    @property
    def multiple(self) -> float | None:
        """The derivatives' compute as a multiple of the base's."""
        return self.derived_flops / self.flops if self.flops else None


class Family:
    """The models among `records`, each under what it was made from.

    Args:
        records: of one folder; data, evaluations, fits and plans are read but are no members.
        base_flops: an estimate for bases whose own compute is not known.

    Raises:
        FlopwiseError: an estimate that is no positive number.
    """

    def __init__(self, records: Iterable[RunRecord], base_flops: float | None = None):
        if base_flops is not None and not 0 < base_flops < math.inf:
            raise FlopwiseError(f"base FLOPs are {base_flops}, must be a number above 0, as in 1e21")
        known = {r.id: r for r in records}
        self.members = {i: Member(r) for i, r in known.items() if r.kind not in NOT_MODELS}
        self.samples = _samples(known.values())
        for member in self.members.values():
            member.parent = self._start(member.record)
            others = [(role, p) for role, p in member.record.roles.items() if p != member.parent]
            member.roles = {role: p for role, p in others if p in known}
        self.roots = self._hang()
        for member in reversed(self._preorder(self.roots)):  # children before their parents
            member.size = 1 + sum(self.members[c].size for c in member.children)
            below = sum(self.members[c].total_flops for c in member.children)
            member.total_flops = (member.own_flops or 0.0) + below
            if member.parent is not None:
                member.gains = self._gains(member.record, self.members[member.parent].record)
        self.names = {i: r.name or i for i, r in known.items()}
        self.bases = self._bases(base_flops)

    def find(self, run: str) -> str:
        """A member's id by its name, id, or unambiguous start of an id.

        Raises:
            FlopwiseError: there is none, or several.
        """
        if run in self.members:
            return run
        members = self.members.values()
        found = [m.id for m in members if m.record.name == run] or [
            m.id for m in members if run and m.id.startswith(run)
        ]
        if len(found) != 1:
            what = f"matches {len(found)} models" if found else "matches no model"
            raise FlopwiseError(f"root {run!r:.80} {what} of the family; see `flopwise runs` for ids")
        return found[0]

    def below(self, roots: Iterable[str]) -> list[Member]:
        """The members from `roots` down, parents before children."""
        return self._preorder(list(roots))

    def order(self, sort: Sort) -> Callable[[str], tuple[Any, ...]]:
        """Key to sort siblings by: most compute first, most gain first, or by name."""

        def key(run: str) -> tuple[Any, ...]:
            member = self.members[run]
            if sort == "name":
                return (member.name, run)
            gain = member.gain
            worth = member.total_flops if sort == "compute" else gained(gain) if gain else -math.inf
            return (-worth, member.name, run)

        return key

    def _start(self, record: RunRecord) -> str | None:
        """What a run hangs under."""
        by_role = [record.roles.get(role) for role in STARTS]
        wanted = [record.extra.get("sampled_from"), *by_role, *record.roles.values(), *record.parents]
        return next((p for p in wanted if isinstance(p, str) and p in self.members and p != record.id), None)

    def _hang(self) -> list[str]:
        """Hang every member under its parent; the roots. A circle, which no honest record makes, is cut."""
        roots = [i for i, m in self.members.items() if m.parent is None]
        for i, member in self.members.items():
            if member.parent is not None:
                self.members[member.parent].children.append(i)
        seen = {m.id for m in self._preorder(roots)}
        for i, member in self.members.items():
            if i not in seen:
                if member.parent is not None:
                    self.members[member.parent].children.remove(i)
                member.parent = None
                roots.append(i)
                seen |= {m.id for m in self._preorder([i])}
        return roots

    def _preorder(self, roots: list[str]) -> list[Member]:
        out, todo = [], roots[::-1]
        while todo:
            member = self.members[todo.pop()]
            out.append(member)
            todo += reversed(member.children)
        return out

    def _gains(self, record: RunRecord, start: RunRecord) -> list[Gain]:
        """In tasks that both were sampled on; else in what both measured themselves on the same data."""
        before, after = self.samples.get(start.id, {}), self.samples.get(record.id, {})
        gains = [
            gain
            for place, sampled in after.items()
            if place in before
            for gain in _differences(SAMPLED, before[place], sampled, place[0])
        ]
        if gains or record.roles.get("data") is None or record.roles["data"] != start.roles.get("data"):
            return gains
        return list(_differences(MEASURED, start, record, (record.data or {}).get("corpus") or "held out"))

    def _bases(self, base_flops: float | None) -> list[Base]:
        made: dict[str, list[str]] = {}
        for i, member in self.members.items():
            for parent in member.record.parents:
                made.setdefault(parent, []).append(i)
        bases = []
        for i, member in self.members.items():
            record = member.record
            if record.kind not in ("pretrain", "base") or record.method == "trunk" or i not in made:
                continue
            found = [self.members[d].record for d in _reached(i, made)]
            # More pretraining is a larger base, not a derivative.
            found = [r for r in found if r.kind != "pretrain" or record.kind == "base"]
            if not found:
                continue
            lineage, spent = record.lineage_spend, [r.spend for r in found]
            flops = None if lineage.at_least or not lineage.total_flops else lineage.total_flops
            bases.append(
                Base(
                    i, member.name, base_flops if flops is None else flops,
                    assumed=flops is None and base_flops is not None,
                    unknown=lineage.unknown if flops is None else None,
                    derived=len(found), derived_flops=sum(s.total_flops for s in spent),
                    at_least=any(s.at_least for s in spent) or any(r.status != "done" for r in found),
                )
            )  # fmt: skip
        return sorted(bases, key=lambda b: (-b.derived_flops, b.id))


def gained(gain: Gain) -> float:
    """How much better: a loss that fell is a gain."""
    return -gain.value if gain.metric == "loss" else gain.value


def _reached(start: str, made: dict[str, list[str]]) -> list[str]:
    """All that was made of a run, directly or not, each once."""
    seen, todo = {start}, [start]
    while todo:
        for child in made.get(todo.pop(), ()):
            if child not in seen:
                seen.add(child)
                todo.append(child)
    return sorted(seen - {start})


Place = tuple[str, str]
"""A task, and the run that holds its problems."""


def _samples(records: Iterable[RunRecord]) -> dict[str, dict[Place, RunRecord]]:
    """The finished sample runs of each model, by where they were taken: that with most metrics if several."""
    found: dict[str, dict[Place, RunRecord]] = {}
    for r in records:
        model = r.roles.get("model")
        if r.kind in ("sample", "evaluate") and r.status == "done" and model:
            task = str((r.data or {}).get("corpus") or "task")
            places = found.setdefault(model, {})
            place = (task, r.roles.get("data", ""))
            if place not in places or len(r.metrics) >= len(places[place].metrics):
                places[place] = r
    return found


def _differences(names: Iterable[str], before: RunRecord, after: RunRecord, task: str) -> Iterator[Gain]:
    for name in names:
        a, b = before.metrics.get(name), after.metrics.get(name)
        if a is None or b is None or a.n != b.n or not (_number(a.value) and _number(b.value)):
            continue
        assert a.value is not None and b.value is not None
        yield Gain(task, name, b.value - a.value, _apart(a, b), b.n)


def _apart(a: Metric, b: Metric) -> float | None:
    """Standard error of a difference of independent measurements."""
    if not (_number(a.se) and _number(b.se)):
        return None
    return math.hypot(a.se or 0.0, b.se or 0.0)


def _number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)

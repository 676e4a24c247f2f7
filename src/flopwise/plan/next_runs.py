"""Which runs to do next: those that, within a budget, narrow a prediction most, or make the plan better."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from flopwise.errors import FlopwiseError
from flopwise.laws.law import Array
from flopwise.plan.next_belief import BEND, Columns, Evidence, apart, knowledge
from flopwise.plan.next_candidates import Candidates, from_grid, from_table
from flopwise.plan.next_decision import Regret, aim_of, regret, steer
from flopwise.plan.next_design import Belief, Option, choose

if TYPE_CHECKING:
    from flopwise.laws.result import Fit

BEYOND = 10.0
"""Without an aim, the law is to be known at this many times the compute of the largest run."""
FAR = 100.0
"""Times beyond the runs from which on a prediction is flagged."""
RANGE = (0.1, 0.9)
"""Quantiles over draws that tell how sure an expected interval is."""
CHANGED = 0.02
"""Share of an interval below which the runs are said to add next to nothing."""


@dataclass(frozen=True)
class Narrowing:
    """Half-width of a law's 95% interval at the aim now and after the runs, on the scale of residuals
    (relative where that is the logarithm); `low`, `high`: 80% range of what it may be after them."""

    law: str
    before: float
    after: float
    low: float
    high: float


@dataclass(frozen=True)
class NextRuns:
    """The runs to do next.

    `runs`: in the order of choice, each with the law's variables, `cost` in FLOPs, its `row` in the table of
    candidates (from 1) and, where a run gives several, `rows` up to where it is to be trained. `narrowing`:
    by law, at the aim (root mean square of several). `others`: half-width after simpler choices at the same
    budget. `between`: how far two laws are apart at the aim, and the chance to take one for the other now (1)
    and after the runs. `regret`: of the plan, for goal "plan".
    """

    goal: str
    budget: float
    spent: float
    aim: dict[str, list[float]]
    runs: list[dict[str, Any]]
    narrowing: list[Narrowing]
    others: dict[str, float]
    between: list[dict[str, Any]] = field(default_factory=list)
    regret: Regret | None = None
    relative: bool = True
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self)


def next_runs(
    fits: Fit | Sequence[Fit], budget: float, *, goal: str = "prediction",
    at: Mapping[str, Any] | None = None, candidates: Any = None,
    grid: Mapping[str, tuple[float, float, int]] | None = None, cost: str | None = None,
    cluster: str | None = None, groups: Sequence[Any] | None = None,
    plan_budget: float | None = None, demand: float = 0.0, bend: float = BEND, seed: int = 0,
) -> NextRuns:  # fmt: skip
    """Choose runs within a budget by optimal experimental design (`plan.next_design`).

    Args:
        fits: one law, or several that may be right; made from a table in the same session they carry its
            runs, read from a file only their covariance.
        budget: FLOPs of all runs together.
        goal: "prediction" narrows the law's interval at `at`; "plan" lowers the expected regret of the split
            between N and D at `plan_budget` FLOPs (with a lifetime `demand` of tokens at inference).
        at: the law's variables where it is to be known, numbers or lists; else 10 times the largest compute.
        candidates: table of runs that could be made (anything `read_table` takes); `grid` else.
        grid: by variable from, to, number of values.
        cost: column of the candidates with FLOPs; C, or 6 N D, without.
        cluster: column of the candidates whose rows are one run, which may be stopped at any of them.
        groups: of each fitted row the run it is of, where rows of one run share noise.
        bend: what the forms are assumed to err by a decade away from the aim, on the scale of residuals.

    Raises:
        FlopwiseError: no fit, a law of counts, laws of different targets, a budget that affords no candidate.
    """
    fits = list(fits) if isinstance(fits, Sequence) else [fits]
    _check(fits, budget, goal, bend)
    if goal == "plan":
        if plan_budget is None:
            raise FlopwiseError("next: goal plan needs the plan's own budget in FLOPs (--plan-budget)")
        aims = _of_plan(fits, plan_budget, demand)
    else:
        aims = aims_of(fits, at)
    found = (
        from_grid(fits, budget, aims, grid) if candidates is None
        else from_table(fits, candidates, cost, cluster)
    )  # fmt: skip
    options = found.options(budget)
    if not options:
        least = f"; the cheapest costs {found.cost.min():.3g}" if len(found.cost) else ""
        raise FlopwiseError(f"next: {budget:.3g} FLOPs afford none of the candidates{least}")
    labels = (
        None if groups is None else np.unique(np.asarray(groups).astype(str), return_inverse=True)[1].ravel()
    )
    laws = [Evidence(f, labels, found.shared) for f in fits]
    goals: list[Array | None] = [None] * len(fits)
    if goal == "plan":
        assert plan_budget is not None
        goals = [steer(known, plan_budget, demand, seed) for known in laws]
    start = knowledge(laws, found.x, aims, goals, bend, seed)
    chosen = choose(start, options, budget)
    worth = None
    if goal == "plan":
        assert plan_budget is not None
        worth = regret(laws[0], found.x, chosen, plan_budget, demand, bend, seed)
        start = knowledge(laws, found.x, aims, [None] * len(fits), bend, seed)
    after = start.given(chosen)
    narrowing = [
        _narrowing(f, now, then, len(chosen))
        for f, now, then in zip(fits, start.beliefs, after.beliefs, strict=True)
    ]
    others = {
        name: _narrowing(fits[0], start.beliefs[0], start.beliefs[0].given(picked), len(picked)).after
        for name, picked in _simpler(found, options, budget).items()
    }
    between = [
        {"laws": [fits[i].law, fits[j].law], "apart": float(np.abs(apart(fits[i], fits[j], aims)).max()),
         "confused": float(np.exp(-then.distance / 8))}
        for (i, j), then in zip(
            ((i, j) for i in range(len(fits)) for j in range(i)), after.rivalries, strict=True
        )
    ]  # fmt: skip
    return NextRuns(
        goal, budget, sum(o.cost for o in chosen), {n: v.tolist() for n, v in aims.items()},
        [_run(found, o) for o in chosen], narrowing, others, between, worth, fits[0].scale == "log",
        _notes(fits, aims, narrowing, chosen, bend),
    )  # fmt: skip


def _check(fits: list[Fit], budget: float, goal: str, bend: float) -> None:
    if not fits:
        raise FlopwiseError("next: no fit given; make one with: flopwise fit TABLE --out fit.json")
    if goal not in ("prediction", "plan"):
        raise FlopwiseError(f"next: goal is {goal!r:.40}, must be prediction or plan")
    if not (math.isfinite(budget) and budget > 0):
        raise FlopwiseError(f"next: budget is {budget} FLOPs, must be above 0")
    if not (math.isfinite(bend) and bend >= 0):
        raise FlopwiseError(f"next: bend is {bend}, must be a number from 0")
    for f in fits:
        if f.form.from_counts:
            raise FlopwiseError(f"next: {f.law} is a law of counts; next needs one that is fitted to values")
    if len({f.scale for f in fits}) > 1:
        raise FlopwiseError(
            "next: one law is fitted on the logarithm and another is not; fit all by one loss"
        )
    if len({f.form.target for f in fits}) > 1:
        raise FlopwiseError(
            f"next: laws of different metrics ({', '.join(f'{f.law}: {f.form.target}' for f in fits)}); "
            "give laws of one"
        )


def aims_of(fits: list[Fit], at: Mapping[str, Any] | None) -> Columns:
    """Where the laws are to be known."""
    names = list(dict.fromkeys(v for f in fits for v in f.form.variables))
    if at:
        for name in names:
            if name not in at:
                raise FlopwiseError(f"next: the aim names {', '.join(at)}; {name} is missing")
        try:
            columns = np.broadcast_arrays(*(np.atleast_1d(np.asarray(at[n], dtype=float)) for n in names))
        except (TypeError, ValueError):
            raise FlopwiseError(f"next: aim {str(dict(at))[:80]} is no numbers of one length") from None
        for f in fits:
            f._variables({n: v for n, v in zip(names, columns, strict=True) if n in f.form.variables})
        return dict(zip(names, columns, strict=True))
    if set(names) == {"N", "D"}:
        N, D = fits[0].ranges["N"], fits[0].ranges["D"]
        support = fits[0].support.get("C") or [0.0, 6 * N[1] * D[1]]
        ratio = float(np.sqrt(np.prod(np.divide(D, N))))
        size = float(np.sqrt(BEYOND * support[1] / 6 / ratio))
        return {"N": np.array([size]), "D": np.array([ratio * size])}
    if len(names) == 1:
        return {names[0]: np.array([BEYOND * fits[0].ranges[names[0]][1]])}
    raise FlopwiseError(f"next: say where the law is to be known: --at {','.join(f'{n}=..' for n in names)}")


def _of_plan(fits: list[Fit], budget: float, demand: float) -> Columns:
    for f in fits:
        if f.form.variables != ("N", "D"):
            raise FlopwiseError(
                f"next: {f.law} is a law in {', '.join(f.form.variables)}; goal plan needs laws in N and D"
            )
    if not (math.isfinite(budget) and budget > 6 + 2 * demand):
        raise FlopwiseError(f"next: the plan's budget is {budget} FLOPs, must be above {6 + 2 * demand:.3g}")
    return aim_of(fits[0], budget, demand)


def _narrowing(fit: Fit, now: Belief, then: Belief, added: int) -> Narrowing:
    """Student's t knows of the added runs too."""
    from flopwise.laws.quantiles import stdtrit

    sides = [fit.t(0.95), float(stdtrit(fit.dof + added, 0.975))]
    before, after = (t * np.sqrt(b.spread / b.aims) for t, b in zip(sides, (now, then), strict=True))
    first, last = (float(np.exp(np.log(np.maximum(v, 1e-300)).mean())) for v in (before, after))
    low, high = (float(v) for v in np.quantile(after / before, RANGE) * first)
    return Narrowing(fit.law, first, last, min(low, last), max(high, last))


def _simpler(found: Candidates, options: list[Option], budget: float) -> dict[str, list[Option]]:
    """What one might do without a design: the largest run affordable and so on; an even share of all runs."""
    whole = {o.group: o for o in sorted(options, key=lambda o: len(o.rows))}
    ordered = sorted(whole.values(), key=lambda o: o.cost)
    largest: list[Option] = []
    for o in reversed(ordered):
        if sum(p.cost for p in largest) + o.cost <= budget:
            largest.append(o)
    spread: list[Option] = []
    for step in range(1, len(ordered) + 1):
        part = ordered[::step]
        if sum(o.cost for o in part) <= budget:
            spread = part
            break
    return {name: picked for name, picked in (("largest", largest), ("even", spread)) if picked}


def _run(found: Candidates, option: Option) -> dict[str, Any]:
    last = option.rows[-1]
    out: dict[str, Any] = {name: float(values[last]) for name, values in found.x.items()}
    out["cost"] = option.cost
    if found.from_table[last] >= 0:
        out["row"] = int(found.from_table[last]) + 1
    if len(option.rows) > 1:
        out["rows"] = [int(found.from_table[r]) + 1 for r in option.rows]
    return out


def _notes(
    fits: list[Fit], aims: Columns, narrowing: list[Narrowing], chosen: list[Option], bend: float
) -> list[str]:
    out = []
    if any(f.problem is None for f in fits):
        out.append(
            "a fit's file holds no runs: its covariance stands for them, as if parameters were as fitted; "
            "give the table instead to reckon with other parameters too"
        )
    beyond = max(f._beyond({n: aims[n] for n in f.form.variables}) for f in fits)
    if beyond > FAR:
        out.append(
            f"the aim is {beyond:.3g} times beyond the runs: intervals do not know whether the form still "
            f"holds there; plan a run in between"
        )
    if not chosen or all(n.after > (1 - CHANGED) * n.before for n in narrowing):
        out.append("no affordable run adds more than next to nothing: keep the budget, or give more")
    if bend:
        out.append(f"assumed: forms err by {bend:g} a decade away from the aim (--bend)")
    return out

"""`flopwise next`: which runs to do next, and which running ones may be stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flopwise.cli.shared import Bar, commas, number, pairs
from flopwise.cli.tables import Cluster, Json, Map, Seed, Sql, Where, console, heard, table_of
from flopwise.errors import FlopwiseError

if TYPE_CHECKING:
    from flopwise.laws import Fit
    from flopwise.plan.next_runs import NextRuns
    from flopwise.plan.stopping import Stopping

What = Annotated[
    str,
    typer.Argument(
        metavar="FIT_OR_TABLE", help="A file of `flopwise fit --out`, or the table of runs done so far."
    ),
]
At = Annotated[
    list[str] | None,
    typer.Option("--at", help="Where the law is to be known: N=7B,D=1.4T; may be repeated."),
]
Law = Annotated[
    str | None,
    typer.Option("--law", help="With a table: a law, or several with a comma between, all as likely."),
]
USUAL = ("chinchilla", "coupled", "kaplan")
"""Laws in N and D that are tried for a table whose user named none."""


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("next")(next_)


def next_(
    what: What,
    budget: Annotated[str | None, typer.Option("--budget", help="FLOPs of all runs together.")] = None,
    goal: Annotated[
        str, typer.Option("--goal", help="prediction: narrow its interval; plan: lower its expected regret.")
    ] = "prediction",
    at: At = None,
    candidates: Annotated[
        str | None, typer.Option("--candidates", help="Table of runs that could be made.")
    ] = None,
    grid: Annotated[
        str | None, typer.Option("--grid", help="Runs that could be made: N=1e7:1e9:8,D=1B:20B:6.")
    ] = None,
    cost: Annotated[
        str | None, typer.Option("--cost", help="The candidates' column of FLOPs; C or 6ND without.")
    ] = None,
    law: Law = None,
    plan_budget: Annotated[
        str | None, typer.Option("--plan-budget", help="With --goal plan: FLOPs that are to be split.")
    ] = None,
    demand: Annotated[
        str, typer.Option("--demand", help="With --goal plan: tokens at inference, as 2T.")
    ] = "0",
    bend: Annotated[
        float | None, typer.Option("--bend", help="What forms may err by, a decade away from the aim.")
    ] = None,
    running: Annotated[
        str | None, typer.Option("--running", help="Table of partial runs: which of them may be stopped?")
    ] = None,
    until: Annotated[
        str | None, typer.Option("--until", help="With --running: where runs end, as D=20B, or a column.")
    ] = None,
    within: Annotated[
        str | None,
        typer.Option("--best-within", help="With --running: only the best run of each N,D.. counts."),
    ] = None,
    mapping: Map = None, where: Where = None, sql: Sql = None, cluster: Cluster = None, seed: Seed = 0,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Which runs to do next: those that narrow a prediction, or better a plan, most for a budget.

    With --running instead of a budget: which unfinished runs can no longer change the prediction.
    """
    if (budget is None) == (running is None):
        raise FlopwiseError("next: give --budget, for which runs to do, or --running, for which to stop")
    flops = None if budget is None else number(budget, "--budget in FLOPs")
    asked: dict[str, Any] = {
        "goal": goal, "at": _at(at), "grid": _grid(grid), "cost": cost,
        "plan_budget": None if plan_budget is None else number(plan_budget, "--plan-budget in FLOPs"),
        "demand": 0.0 if demand == "0" else number(demand, "--demand in tokens"),
    }  # fmt: skip
    bar = Bar("next", quiet=as_json)
    with heard():
        fits, groups = _fits(what, law, mapping, where, sql, cluster, seed)
        bar(0.5)
        if running is not None:
            _stopping(fits, running, until, within, cluster, asked["at"], bend, as_json)
            return
        from flopwise.plan.next_belief import BEND
        from flopwise.plan.next_runs import next_runs

        assert flops is not None
        made = next_runs(
            fits, flops, **asked, seed=seed, groups=groups,
            candidates=None if candidates is None else table_of(candidates, None, None, None, None)[0],
            cluster=cluster if candidates is not None else None, bend=BEND if bend is None else bend,
        )  # fmt: skip
    bar.close()
    if as_json:
        typer.echo(json.dumps(made.to_dict(), indent=1))
    else:
        _show(made)


def _fits(
    what: str, law: str | None, mapping: list[str] | None, where: str | None, sql: str | None,
    cluster: str | None, seed: int,
) -> tuple[list[Fit], Any]:  # fmt: skip
    """Fits of a file or to a table, and of each fitted row its run."""
    from flopwise.laws import Fit, fit

    if _is_fit(what):
        if law or mapping or where or sql:
            raise FlopwiseError(
                f"next: {what} is a fit; --law, --map, --where and --sql go with a table of runs"
            )
        return [Fit.from_json(what)], None
    columns, cluster = table_of(what, mapping, where, sql, cluster)
    names = [n.strip() for n in commas(law)] if law else []
    if not names:
        names = _usual(columns, cluster, seed)
    fits = [fit(n, columns, cluster=cluster, seed=seed, intervals="delta") for n in names]
    whole = cluster is not None and all(f.n == len(columns[cluster]) for f in fits)
    return fits, columns[cluster] if cluster is not None and whole else None


def _is_fit(what: str) -> bool:
    """Whether a file is a fit; a table may be JSON too."""
    if not what.endswith(".json"):
        return False
    try:
        found = json.loads(Path(what).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and {"law", "covariance"} <= set(found)


def _usual(columns: dict[str, Any], cluster: str | None, seed: int) -> list[str]:
    """The law for a table whose user named none: of N and D the simplest that predicts the largest runs."""
    from flopwise.laws import choose

    if {"N", "D", "loss"} <= set(columns):
        try:
            return [choose(columns, USUAL, cluster=cluster, by="C", seed=seed).fit.law]
        except FlopwiseError:
            return [USUAL[0]]
    for variable, name in (("C", "power"), ("x", "m2")):
        if {variable, "loss"} <= set(columns):
            return [name]
    shown = ", ".join(list(columns)[:12])
    raise FlopwiseError(f"next: no law is known for the columns {shown[:120]}; name one with --law")


def _at(texts: list[str] | None) -> dict[str, list[float]] | None:
    """Aims as columns."""
    if not texts:
        return None
    out: dict[str, list[float]] = {}
    for text in texts:
        found = {name: number(v, name) for name, v in pairs([text], "N=7B,D=1.4T").items()}
        if out and set(found) != set(out):
            raise FlopwiseError(f"--at {text[:60]!r}: every aim must name {', '.join(out)}")
        for name, value in found.items():
            out.setdefault(name, []).append(value)
    return out


def _grid(text: str | None) -> dict[str, tuple[float, float, int]] | None:
    if text is None:
        return None
    out = {}
    for name, span in pairs([text], "N=1e7:1e9:8").items():
        ends = span.split(":")
        if len(ends) not in (2, 3) or not (len(ends) < 3 or (ends[2].isdigit() and 1 <= int(ends[2]) <= 100)):
            raise FlopwiseError(f"--grid {name}={span[:40]}: must be from:to:number, as N=1e7:1e9:8")
        low, high = number(ends[0], name), number(ends[1], name)
        if low > high:
            raise FlopwiseError(f"--grid {name}={span[:40]}: from {low:g} is above to {high:g}")
        out[name] = (low, high, int(ends[2]) if len(ends) > 2 else 8)
    return out


def _stopping(
    fits: list[Fit], running: str, until: str | None, within: str | None, cluster: str | None,
    at: dict[str, list[float]] | None, bend: float | None, as_json: bool,
) -> None:  # fmt: skip
    from flopwise.plan.next_belief import BEND
    from flopwise.plan.stopping import stopping

    partial, _ = table_of(running, None, None, None, None)
    name, sign, value = (until or "").partition("=")
    made = stopping(
        fits[0], partial, run=cluster or "run", along=name or None,
        until=number(value, name) if sign else None,
        best_within=None if within is None else [n.strip() for n in commas(within)], at=at,
        bend=BEND if bend is None else bend,
    )  # fmt: skip
    if as_json:
        typer.echo(json.dumps(made.to_dict(), indent=1))
        return
    _show_stopping(made)


def _show(made: NextRuns) -> None:
    from rich.table import Table

    screen = console()
    if made.runs:
        names = [n for n in made.runs[0] if n not in ("cost", "row", "rows")]
        place = ["row"] if "row" in made.runs[0] else []
        table = Table("run", *names, "FLOPs", *place, box=None, pad_edge=False)
        for i, run in enumerate(made.runs, 1):
            table.add_row(
                str(i), *(f"{run[n]:.4g}" for n in names), f"{run['cost']:.3g}",
                *(str(run[key]) for key in place),
            )  # fmt: skip
        screen.print(table)
    unit = "{:.2%}" if made.relative else "{:.3g}"
    aim = "; ".join(
        ", ".join(f"{n} = {v:.4g}" for n, v in zip(made.aim, where, strict=True))
        for where in zip(*made.aim.values(), strict=True)
    )
    screen.print(f"{len(made.runs)} runs, {made.spent:.3g} of {made.budget:.3g} FLOPs; to know {aim}:")
    for n in made.narrowing:
        before, after, low, high = (unit.format(v) for v in (n.before, n.after, n.low, n.high))
        screen.print(f"{n.law}: 95% interval from ±{before} to about ±{after} (80%: {low} to {high})")
    if made.others:
        told = ", ".join(f"{name} ±{unit.format(v)}" for name, v in made.others.items())
        screen.print(f"the same FLOPs on the largest affordable runs, or an even share of all: {told}")
    for pair in made.between:
        screen.print(
            f"{' and '.join(pair['laws'])} are {unit.format(pair['apart'])} apart there; the runs leave a "
            f"chance of at most {pair['confused']:.0%} to take one for the other"
        )
    if made.regret:
        r = made.regret
        screen.print(
            f"the plan is expected to give away {r.before:.3%} of the loss now, {r.after:.3%} after the runs "
            f"(80%: {r.low:.3%} to {r.high:.3%}); it gets no worse in {r.better:.0%} of draws"
        )
    for note in made.notes:
        screen.print(f"mind: {note}")


def _show_stopping(made: Stopping) -> None:
    from rich.table import Table

    screen = console()
    table = Table(
        "run", "so far", "ends at", "final", "80% from", "to", "moves the aim by", "verdict", "why",
        box=None, pad_edge=False,
    )  # fmt: skip
    for r in made.runs:
        table.add_row(
            r.run, f"{r.reached:.4g}", f"{r.until:.4g}", f"{r.final:.4g}", f"{r.low:.4g}", f"{r.high:.4g}",
            f"{r.moves:.1%} of the interval", "stop" if r.stop else "go on", r.why,
        )  # fmt: skip
    screen.print(table)
    screen.print(f"stopping saves {made.saved:.3g} of {made.left:.3g} FLOPs that are left to spend")
    for note in made.notes:
        screen.print(f"mind: {note}")

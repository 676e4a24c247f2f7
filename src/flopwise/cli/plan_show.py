"""A plan in the terminal: the split, a small chart, what else was thought of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from flopwise.plan.frontier import Plan, Split

WIDTH = 48
"""Columns of the chart."""
MARKS = (("pretraining", "█"), ("post-training", "▓"), ("answers", "░"))


def show(made: Plan) -> None:
    """Print a plan."""
    from rich.console import Console

    console = Console(highlight=False)
    best = made.best
    if made.target is not None:
        told = f"{best.metric} {made.target:.4g} takes {made.budget:.3g} FLOPs at least"
        if made.budget_interval:
            low, high = (f"{v:.3g}" if v is not None else "no end found" for v in made.budget_interval)
            told += f" (95% {low} to {high})"
        typer.echo(told)
    for split in (best, *made.others):
        _split(split)
    for line in chart(best):
        typer.echo(line)
    for law, loss in best.regret.items():
        unit = "nats per token" if best.metric == "loss" else f"of {best.metric}"
        typer.echo(
            f"If {law} is right instead, this split gives away {loss if loss > 1e-9 else 0:.2g} {unit}."
        )
    for limit in best.binding:
        typer.echo(f"limit: {limit}")
    _alternatives(console, made)
    _marginal(made)
    _exchange(made)
    _sensitivity(console, made)
    _bill(made)
    for warning in dict.fromkeys(w for s in (best, *made.others) for w in s.warnings):
        typer.echo(f"mind: {warning}")
    if made.assumed:
        typer.echo(f"assumed: {'; '.join(made.assumed)}")


def _split(s: Split) -> None:
    tuned = f", post-training {s.post:.3g} tokens" if s.post_flops or "post_flops" in s.intervals else ""
    asked = ""
    if "samples" in s.intervals:
        asked = f", {s.samples} samples ({_span(s.intervals['samples'])})"
    shown = "accuracy" if s.loss is None else "loss"
    value = s.accuracy if s.loss is None else s.loss
    assert value is not None  # one of the two is there
    spent = f"{s.train_flops:.3g} FLOPs to train"
    spent += f", {s.post_flops:.3g} to post-train" if tuned else ""
    typer.echo(
        f"{s.law}: N {s.N:.3g} ({_span(s.intervals['N'])}), D {s.D:.3g} ({_span(s.intervals['D'])}), "
        f"{s.D / s.N:.3g} tokens a parameter{tuned}{asked}\n"
        f"    {shown} {value:.4g} ({_span(s.intervals[shown])}), {spent}, "
        f"{s.inference_flops:.3g} to answer; {s.extrapolation:.3g} times beyond the runs that were fitted"
    )


def chart(s: Split) -> list[str]:
    """The shares of a budget as a bar and in percent.

    >>> from types import SimpleNamespace as Any
    >>> chart(Any(train_flops=3.0, post_flops=0.0, inference_flops=1.0))[1]
    '  █ pretraining 75%   ░ answers 25%'
    """
    parts = (s.train_flops, s.post_flops, s.inference_flops)
    total = sum(parts)
    if total <= 0:
        return []
    bar = "".join(mark * round(WIDTH * part / total) for part, (_, mark) in zip(parts, MARKS, strict=True))
    words = [
        f"{mark} {name} {part / total:.0%}" for part, (name, mark) in zip(parts, MARKS, strict=True) if part
    ]
    return [f"  {bar}", "  " + "   ".join(words)]


def _alternatives(console: Console, made: Plan) -> None:
    from flopwise.report.format import count

    if not made.alternatives:
        return
    table = _table("the same budget", "N", "D", "post", "samples", made.best.metric, "")
    rows: list[dict[str, Any]] = [
        {"how": "this plan", "affordable": True, **made.best.point, "value": made.best.value},
        *made.alternatives,
    ]
    known = [r["value"] for r in rows if r["affordable"]]
    top = max(known)
    for r in rows:
        if not r["affordable"]:
            table.add_row(r["how"], "not affordable", "", "", "", "", "")
            continue
        size = round(10 * r["value"] / top) if top > 0 else 0
        table.add_row(
            r["how"], count(r["N"]), count(r["D"]), count(r["post"]), f"{r['k']:.0f}",
            f"{r['value']:.3g}", "▇" * size,
        )  # fmt: skip
    console.print(table)


def _marginal(made: Plan) -> None:
    if len(made.marginal) < 3:
        return
    typer.echo(f"One percent more of the budget would bring, in {made.best.metric}:")
    for row in made.marginal:
        ratio = row["per_percent"] / row["per_flop"] if row["per_flop"] else 0.0
        span = f" ({row['low'] * ratio:.2g} to {row['high'] * ratio:.2g})" if ratio else ""
        typer.echo(f"    {row['law']}, {row['how']}: {row['per_percent']:.2g}{span}")


def _exchange(made: Plan) -> None:
    for row in made.exchange:
        x = row["pretraining"]
        if x["value"] is None:
            typer.echo(f"{row['of']} here: no amount of pretraining is worth as much by this law.")
            continue
        low, high = (f"{v:.2g}" if v is not None else "no end" for v in (x["low"], x["high"]))
        typer.echo(f"{row['of']} here = {x['value']:.2g}x pretraining, 95% interval {low} to {high}")


def _sensitivity(console: Console, made: Plan) -> None:
    from flopwise.report.format import count

    if not made.sensitivity or (len(made.alternatives) == 0 and not made.limits):
        return
    table = _table("what would change it", "N", "D", "tuned", "samples", made.best.metric, "")
    for r in made.sensitivity:
        if not r["affordable"]:
            table.add_row(r["if"], "nothing is affordable", "", "", "", "", "")
            continue
        table.add_row(
            r["if"], count(r["N"]), count(r["D"]), f"{r['post_share']:.0%}", f"{r['k']:.0f}",
            f"{r['value']:.3g}", "changes" if r["changes"] else "",
        )  # fmt: skip
    console.print(table)


def _bill(made: Plan) -> None:
    b = made.bill
    if b is None:
        return
    money = (
        f", {b['money']:,.0f} in money at {b['price_per_hour']:g} an hour" if b["money"] is not None else ""
    )
    typer.echo(
        f"On {b['hardware']}: {b['training_device_hours']:,.0f} device hours to train "
        f"({b['training_days']:,.1f} days on {b['devices']:g}), {b['serving_device_hours']:,.0f} to answer; "
        f"{b['energy_kwh']:,.0f} kWh, {b['carbon_kg']:,.0f} kg of CO2{money}"
    )


def _table(*columns: str) -> Any:
    from rich.table import Table

    table = Table(*columns, box=None, pad_edge=False)
    table.columns[0].no_wrap = True
    return table


def _span(ends: tuple[float, float]) -> str:
    return f"{ends[0]:.3g} to {ends[1]:.3g}"

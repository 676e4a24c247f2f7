"""Answers and comparisons of strategies, printed for people."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from flopwise.infer.assess import Assessment
    from flopwise.infer.compare import Comparison, Point
    from flopwise.infer.solving import Answer
    from flopwise.infer.strategies import TraceStep

MOST_STEPS = 200
"""Of a trace on the screen; JSON carries all of it."""


def show_answer(answer: Answer, trace: bool = False) -> None:
    """One prompt's answer, its steps, how it was chosen; with `trace` all that was done."""
    choice, n = answer.choice, len(answer.candidates)
    verdict = "right" if answer.correct else "wrong"
    given = f"{printable(answer.answer)}  {verdict}" if answer.answer else f"no answer from {n} sample(s)"
    typer.echo(f"{answer.prompt}  {given}")
    for step in answer.steps:
        mark = "right" if step.ok else "wrong"
        typer.echo(f"    {mark}  {printable(step.text)}" + (f"  ({printable(step.why)})" if step.why else ""))
    if choice.votes:
        shown = ", ".join(f"{printable(a)} {weight:.4g}" for a, weight in list(choice.votes.items())[:5])
        more = f", {len(choice.votes) - 5} more" if len(choice.votes) > 5 else ""
        silent = sum(c.answer is None for c in answer.candidates)
        typer.echo(f"    votes of {n}: {shown}{more}; {silent} abstain")
    if choice.scores and choice.index is not None:
        typer.echo(
            f"    sample {choice.index + 1} of {n} scored {choice.scores[choice.index]:.4g}, "
            f"the lowest {min(choice.scores):.4g}"
        )
    if choice.tied > 1:
        typer.echo(f"    {choice.tied} were level; one was drawn")
    if trace:
        _show_trace(answer.trace)
    total = sum(answer.flops.values())
    cost = f"; {total:.3g} FLOPs, {parts(answer.flops)}" if total else ""
    typer.echo(f"    {answer.tokens} tokens written{cost}")


def _show_trace(trace: list[TraceStep]) -> None:
    """As a tree: what came of what is indented under it."""
    below: dict[int | None, list[TraceStep]] = defaultdict(list)
    for step in trace:
        below[step.parent].append(step)
    todo, shown = [(step, 0) for step in reversed(below[None])], 0
    while todo and shown < MOST_STEPS:
        step, depth = todo.pop()
        value = "" if step.value is None or step.value != step.value else f" {step.value:.4g}"
        note = f"  ({printable(step.note)})" if step.note else ""
        line = f"    {'  ' * min(depth, 20)}{step.kind}{value}  {printable(step.text)}{note}"
        typer.echo(line.rstrip())
        todo += [(child, depth + 1) for child in reversed(below[step.id])]
        shown += 1
    if len(trace) > shown:
        typer.echo(f"    ... {len(trace) - shown} more steps; --json has all of them")


def show_comparison(result: Assessment) -> None:
    """A line per strategy and budget, the best at equal cost, and where the problems are from."""
    found, unit = result.comparison, result.comparison.unit
    typer.echo(f"{result.model} on {found.samples.P} problems of {printable(result.task)}, {result.style}")
    width = max(len(c.name) for c in found.curves)
    first = found.curves[0].name
    against = f"minus {first}" if len(found.curves) > 1 else ""
    costs = f"{unit:>9}{'tokens':>9}{'seconds':>9}"
    typer.echo(f"  {'strategy':<{width}} {'n':>4}  {'accuracy (95%)':<22}{costs}  {against}")
    for c in found.curves:
        for p in c.points:
            name = f"{'*' if p.frontier else ' '} {c.name:<{width}}"
            typer.echo(f"{name} {p.n:>4}  {_accuracy(p):<22}{_costs(p)}  {_difference(p)}".rstrip())
    typer.echo(f"* nothing that costs fewer {unit} a question is as accurate; prefill and judges are counted")
    if len(found.curves) > 1:
        _show_equal(found)
    for c in found.curves:
        silent = c.points[-1].abstained
        if silent:
            typer.echo(f"{c.name} gives no answer to {silent:.1%} of problems at n={c.points[-1].n}")
    typer.echo(f"problems: {printable(result.problems_from)}; temperature {result.temperature:g}")
    if result.maybe_seen:
        typer.echo(
            "flopwise: these problems were generated and may have been in the model's training; "
            "name held-out ones with --data",
            err=True,
        )


def _show_equal(found: Comparison) -> None:
    typer.echo(f"best at no more {found.unit} than {found.curves[0].name}:")
    for row in found.at_equal_cost():
        best = row["by"][row["best"]]
        typer.echo(f"  {row['cost']:9.3g}  {row['best']} n={best['n']}  {best['value']:.3f}")


def _accuracy(p: Point) -> str:
    return f"{p.value:.3f}" + ("" if p.low is None else f" ({p.low:.3f} to {p.high:.3f})")


def _costs(p: Point) -> str:
    seconds = "" if p.seconds is None else f"{p.seconds:.3g}"
    cost = "" if p.flops is None else f"{p.flops:.3g}"
    return f"{cost:>9}{p.tokens:>9.4g}{seconds:>9}"


def _difference(p: Point) -> str:
    d = p.difference
    if d is None:
        return ""
    # Rounded before it is written: -0.0 is 0.
    value, low, high = (round(d[key] or 0.0, 3) + 0.0 for key in ("value", "low", "high"))
    return f"{value:+.3f} ({low:+.3f} to {high:+.3f})"


def parts(flops: dict[str, float]) -> str:
    """FLOPs by purpose."""
    return f"{flops['prefill']:.2g} prefill + {flops['decode']:.2g} decode + {flops['score']:.2g} scoring"


def printable(text: str) -> str:
    """Text of a model or a path without what could steer a terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)

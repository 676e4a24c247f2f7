"""`flopwise score`: what k of anybody's samples are worth, what their judge is, what more would bring."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from flopwise.cli.shared import number, read
from flopwise.cli.tables import Seed, Where, heard
from flopwise.errors import FlopwiseError

TITLES = {"pass_at_k": "pass@k", "majority_at_k": "majority@k"}
SHOWN = 4
"""Reasons for a form that are printed; JSON has all."""


def register(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command("score")(score)


def score(
    samples: Annotated[
        Path,
        typer.Argument(help="CSV, JSON lines or Parquet: problem, correct[, answer][, score][, tokens]."),
    ],
    k: Annotated[str, typer.Option("--k", help="Sample counts, as 1,2,4,8.")] = "1,2,4,8",
    forecast: Annotated[
        str | None,
        typer.Option("--forecast", help="Sample counts to forecast every strategy for, as 1000,10k."),
    ] = None,
    mapping: Annotated[
        list[str] | None,
        typer.Option("--map", help="Where columns have other names: score=prm_score,problem=id"),
    ] = None,
    where: Where = None,
    seed: Seed = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """pass@k, majority@k and best-of-n@k of judged samples, exact over subsets, with intervals.

    Several judges go into columns score_NAME. Of each it also says how well it ranks the samples of a
    problem, whether its scores are true chances, and where best-of-n by it turns over. With --forecast a law
    is fitted to every strategy's curve, chosen by held-out k.

    Example: flopwise score samples.csv --k 1,4,16 --forecast 1000
    """
    from flopwise.infer.scoring import score as run

    try:
        sizes = [int(part) for part in k.split(",")]
    except ValueError:
        raise FlopwiseError(f"score: --k is {k[:60]!r}, must be whole numbers, as 1,2,4,8") from None
    ahead = [round(number(part, "--forecast")) for part in forecast.split(",")] if forecast else []
    with heard():
        table = read(samples, mapping, where)
        result = run(table, sizes, ahead, seed)
    if as_json:
        typer.echo(json.dumps(result, indent=1))
        return
    _show(result)


def _show(result: dict[str, Any]) -> None:
    typer.echo(f"{result['n_samples']} samples of {result['n_problems']} problems; value (95% over problems)")
    curves = {title: result[key] for key, title in TITLES.items() if key in result}
    for name, entry in result.get("scores", {}).items():
        by = "" if name == "score" else f" {name.removeprefix('score_')}"
        curves[f"best of n{by}"] = entry["best_of_n"]
        if "weighted_at_k" in entry:
            curves[f"weighted{by}"] = entry["weighted_at_k"]
    width = max(map(len, curves))
    for title, entries in curves.items():
        for size, entry in entries.items():
            typer.echo(f"{title:<{width}}{size:>7}  {_entry(entry)}")
    for name, entries in result.get("differences", {}).items():
        if entries:
            size, entry = list(entries.items())[-1]
            if entry["low"] is not None:
                span = f"({entry['low']:+.3f} to {entry['high']:+.3f}, paired over problems)"
                typer.echo(f"{name.replace('_', ' ')}, k = {size}: {entry['value']:+.3f} {span}")
    for name, entry in result.get("scores", {}).items():
        _quality(name, entry["quality"], entry.get("weights"))
    if "thinking" in result:
        found = result["thinking"]
        typer.echo(f"thinking: {found.get('verdict') or found['reason']}")
    for name, found in result.get("forecast", {}).items():
        _forecast(name, found)


def _entry(entry: dict[str, Any]) -> str:
    if entry["value"] is None:
        return f"none: {entry.get('reason', 'not a number')}"
    span = f" ({entry['low']:.3f} to {entry['high']:.3f})" if entry["low"] is not None else " (one problem)"
    drawn = f"  subsets drawn, error {entry['mc_se']:.4f}" if entry.get("mc_se") else ""
    return f"{entry['value']:.3f}{span}{drawn}"


def _quality(name: str, found: dict[str, Any], weights: str | None) -> None:
    within, pooled = found["auc_within"], found["auc_pooled"]
    if within["value"] is None:
        ranked = "no problem has right and wrong samples"
    else:
        span = f" ({within['low']:.3f} to {within['high']:.3f})" if within["low"] is not None else ""
        ranked = f"AUC within problems {within['value']:.3f}{span}, over {found['problems']} problems"
    typer.echo(f"{name}: {ranked}" + ("" if pooled is None else f"; pooled {pooled:.3f}"))
    meant = found["calibration"]
    if "brier" in meant:
        typer.echo(
            f"  as {meant['read_as']}: Brier {meant['brier']:.3f} ({meant['brier_of_the_share']:.3f} for the "
            f"share right), calibration error {meant['calibration_error']:.3f} "
            f"({meant['error_by_chance']:.3f} by chance), temperature {meant['temperature']:.3g}"
        )
    else:
        typer.echo(f"  calibration: {meant['read_as']}")
    turned = found["overoptimisation"]
    typer.echo(f"  best of n {turned['verdict']}")
    if "law" in turned:
        best, law = turned["peak"], turned["law"]
        ends = f"alpha {law['alpha']['value']:.3f}, beta {law['beta']['value']:.3f}"
        at = f", its peak at n = {law['peak_n']:.3g}" if law.get("peak_n") else ""
        typer.echo(f"  best n {best['n']} ({best['low']} to {best['high']}); {law['name']}: {ends}{at}")
    if weights:
        typer.echo(f"  a vote weighs {weights}")


def _forecast(name: str, found: dict[str, Any]) -> None:
    if "reason" in found:
        typer.echo(f"forecast of {name}: none, {found['reason']}")
        return
    typer.echo(f"forecast of {name} from {found['n']} samples by {found['form']}: {found['formula']}")
    for p in found["points"]:
        costs = "".join(f", {cost:.3g} {unit}" for unit, cost in p["costs"].items())
        what = "measured" if p["measured"] else "forecast"
        typer.echo(f"{p['k']:>11}  {p['value']:.3f} ({p['low']:.3f} to {p['high']:.3f})  {what}{costs}")
    for line in found["why"][:SHOWN]:
        typer.echo(f"  {line}")
    for line in found["warnings"]:
        typer.echo(f"  mind: {line}")

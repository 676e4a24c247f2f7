"""`flopwise plan`: where a budget should go, from fits or from a folder of runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from flopwise.cli.shared import number
from flopwise.errors import FlopwiseError

What = Annotated[
    list[str], typer.Argument(metavar="FIT...", help="Fits (JSON), or one folder of runs with a plan in it.")
]
Budget = Annotated[str, typer.Option("--budget", help="FLOPs to spend in all, as 1e21 or 5 PF-days.")]
Demand = Annotated[
    str,
    typer.Option("--demand", help="With fits: tokens to be processed at inference over its life, as 2T."),
]
Questions = Annotated[str | None, typer.Option("--questions", help="With runs: questions to be answered.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("plan")(plan)


def plan(
    what: What, budget: Budget, demand: Demand = "0", questions: Questions = None, as_json: Json = False
) -> None:
    """Where the next FLOP should go.

    From fits of laws in N and D: the size and the tokens that give the lowest loss for a budget that also
    pays for the demand at inference. From a folder of runs (flopwise demo): which model to make and how to
    ask it, over pretraining, post-training and samples at test time.
    """
    flops = number(budget, "--budget in FLOPs")
    tokens = number(demand, "--demand in tokens") if demand != "0" else 0.0
    asked = number(questions, "--questions") if questions is not None else None
    folders = [w for w in what if Path(w).is_dir()]
    if folders and len(what) > 1:
        raise FlopwiseError(
            f"plan: give fits, or one folder of runs; {folders[0]} is a folder among {len(what)} arguments"
        )
    if folders:
        _from_runs(Path(folders[0]), flops, asked, as_json)
    elif asked is not None:
        raise FlopwiseError("plan: --questions goes with a folder of runs; for fits give --demand in tokens")
    else:
        _from_fits(what, flops, tokens, as_json)


def _from_fits(paths: list[str], budget: float, demand: float, as_json: bool) -> None:
    from flopwise.laws import Fit
    from flopwise.plan.frontier import plan as make

    made = make([Fit.from_json(p) for p in paths], budget, demand)
    if as_json:
        typer.echo(json.dumps(made.to_dict(), indent=1))
        return
    for s in (made.best, *made.others):
        typer.echo(
            f"{s.law}: N {s.N:.3g} ({_span(s.intervals['N'])}), D {s.D:.3g} ({_span(s.intervals['D'])}), "
            f"{s.D / s.N:.3g} tokens a parameter\n"
            f"    loss {s.loss:.4g} ({_span(s.intervals['loss'])}), {s.train_flops:.3g} FLOPs to train, "
            f"{s.inference_flops:.3g} to answer; {s.extrapolation:.3g} times beyond the runs that were fitted"
        )
    for law, loss in made.best.regret.items():
        typer.echo(f"If {law} is right instead, this split gives away {loss:.2g} nats per token.")
    for warning in dict.fromkeys(w for s in (made.best, *made.others) for w in s.warnings):
        typer.echo(f"mind: {warning}")


def _from_runs(folder: Path, budget: float, questions: float | None, as_json: bool) -> None:
    from flopwise.plan.step import Evidence
    from flopwise.records.folder import RunFolder
    from flopwise.records.store import RunStore

    plans = [r for r in RunStore(folder).records() if r.kind == "plan" and r.status == "done"]
    if not plans:
        raise FlopwiseError(
            f"plan: there is no finished plan step in {folder}; finish its experiment first (flopwise run)"
        )
    step = RunFolder(folder / plans[-1].id)
    made = Evidence.read(step).plan(budget, step.spec["questions"] if questions is None else questions)
    if as_json:
        typer.echo(json.dumps(made, indent=1))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    for reason in made["reasons"]:
        console.print(escape(reason))
    columns = ("model", "strategy", "n", "accuracy", "95%", "to make", "a question", "in all")
    table = Table(*columns, box=None, pad_edge=False)
    for o in made["options"]:
        mark = "*" if o["origin"] == "predicted" else ""
        table.add_row(
            escape(o["model"]), o["strategy"], str(o["n"]), f"{o['accuracy']:.1%}{mark}",
            f"{o['low']:.0%}-{o['high']:.0%}", f"{o['one_off_flops']:.1e}",
            f"{o['per_question_flops']:.1e}", f"{o['total_flops']:.1e}",
        )  # fmt: skip
    console.print(table)
    console.print("In FLOPs; * predicted by a fitted law, all others measured.")
    again = Table("questions", "answers can be checked", "they cannot", box=None, pad_edge=False)
    for row in made["by_questions"]:
        again.add_row(
            f"{row['questions']:.0e}", *(_short(row[kind]) for kind in ("checkable", "uncheckable"))
        )
    console.print(again)


def _short(option: dict[str, Any] | None) -> str:
    from rich.markup import escape

    return (
        "not affordable"
        if option is None
        else escape(f"{option['model']}, {option['strategy']} x{option['n']}: {option['accuracy']:.1%}")
    )


def _span(ends: tuple[float, float]) -> str:
    return f"{ends[0]:.3g} to {ends[1]:.3g}"

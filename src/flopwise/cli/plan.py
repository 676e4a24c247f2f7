"""`flopwise plan`: where a budget should go, from fits or from a folder of runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flopwise.cli.shared import number, pairs
from flopwise.errors import FlopwiseError

if TYPE_CHECKING:
    from flopwise.laws import Fit

What = Annotated[
    list[str], typer.Argument(metavar="FIT...", help="Fits (JSON), or one folder of runs with a plan in it.")
]
Budget = Annotated[str | None, typer.Option("--budget", help="FLOPs to spend in all, as 1e21 or 5 PF-days.")]
Demand = Annotated[
    str,
    typer.Option("--demand", help="With fits: tokens to be processed at inference over its life, as 2T."),
]
Questions = Annotated[str | None, typer.Option("--questions", help="With runs: questions to be answered.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_ASKED, _LIMITS, _MACHINE = "Demand", "Limits", "Hardware"


def _option(name: str, text: str, panel: str) -> Any:
    return typer.Option(name, help=text, rich_help_panel=panel)


Queries = Annotated[
    str | None,
    _option("--queries", "Questions over the model's life, each with a prompt and samples.", _ASKED),
]
Prompt = Annotated[str | None, _option("--prompt-tokens", "Tokens of a question.", _ASKED)]
Answer = Annotated[str | None, _option("--answer-tokens", "Tokens of one answer.", _ASKED)]
Most = Annotated[
    str | None, _option("--samples-max", "Most samples a question; else as many as fitted.", _ASKED)
]
Accuracy = Annotated[
    str | None, _option("--target-accuracy", "Find the least budget for this share of right answers.", _ASKED)
]
Loss = Annotated[str | None, _option("--target-loss", "Find the least budget for this loss.", _ASKED)]
Memory = Annotated[str | None, _option("--memory", "At inference, as 16GB.", _LIMITS)]
Latency = Annotated[str | None, _option("--latency", "To answer a question, as 2s.", _LIMITS)]
Data = Annotated[
    str | None, _option("--data", "Unique tokens there are, as 100B; more is repetition.", _LIMITS)
]
Base = Annotated[str | None, _option("--base", "Start from this model: N=7B,D=1T.", _LIMITS)]
Deadline = Annotated[str | None, _option("--deadline", "For all training, as 30d.", _LIMITS)]
Hardware = Annotated[str | None, _option("--hardware", "a100, h100, h200, b200, mi300x, l40s.", _MACHINE)]
Price = Annotated[float | None, _option("--price", "Of one device for one hour, in your money.", _MACHINE)]
Mfu = Annotated[float | None, _option("--mfu", "Share of the peak that training reaches.", _MACHINE)]
Serving = Annotated[
    float | None, _option("--serving-mfu", "Share of the peak that serving reaches.", _MACHINE)
]
Devices = Annotated[float | None, _option("--devices", "How many train at once.", _MACHINE)]
Carbon = Annotated[float | None, _option("--carbon", "kg of CO2 for a kWh.", _MACHINE)]
TrainCost = Annotated[
    float,
    _option("--train-cost", "FLOPs per parameter and token trained; measure it at small width.", _MACHINE),
]
AnswerCost = Annotated[float, _option("--answer-cost", "FLOPs per parameter and token answered.", _MACHINE)]
At = Annotated[
    str | None,
    typer.Option(
        "--at", help="Tell marginal gains and exchange rates at N=1B,D=20B,post=1B,k=4, not at the best."
    ),
]
Joint = Annotated[
    bool, typer.Option("--joint", help="With runs: fit joint laws to all sampled models, and plan by these.")
]
Methods = Annotated[
    str | None, typer.Option("--methods", help="With --joint: kinds of post-training to count, as sft,rl.")
]
Out = Annotated[Path | None, typer.Option("--out", help="Keep the plan in this file, for `flopwise verify`.")]
_SECONDS = {"": 1.0, "s": 1.0, "ms": 1e-3, "min": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_BYTES = {"": 1.0, "b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12,
          "kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30, "tib": 2.0**40}  # fmt: skip


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("plan")(plan)


def plan(
    what: What, budget: Budget = None, demand: Demand = "0", questions: Questions = None,
    queries: Queries = None, prompt_tokens: Prompt = None, answer_tokens: Answer = None,
    samples_max: Most = None, target_accuracy: Accuracy = None, target_loss: Loss = None,
    memory: Memory = None, latency: Latency = None, data: Data = None, base: Base = None,
    deadline: Deadline = None, hardware: Hardware = None, price: Price = None, mfu: Mfu = None,
    serving_mfu: Serving = None, devices: Devices = None, carbon: Carbon = None,
    train_cost: TrainCost = 6.0, answer_cost: AnswerCost = 2.0, joint: Joint = False,
    methods: Methods = None, at: At = None, out: Out = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Where the next FLOP should go.

    From fits of laws in N and D (and post-training and samples, where a law knows them): the split that is
    best for a budget that also pays for the demand at inference, or the least budget for a target. From a
    folder of runs (flopwise demo): which model to make and how to ask it, over pretraining, post-training and
    samples at test time.
    """
    folders = [w for w in what if Path(w).is_dir()]
    if folders and len(what) > 1:
        raise FlopwiseError(
            f"plan: give fits, or one folder of runs; {folders[0]} is a folder among {len(what)} arguments"
        )
    if out and (out.is_dir() or not out.absolute().parent.is_dir()):
        raise FlopwiseError(f"plan: --out {out} cannot be written: give a file in a folder that exists")
    flops = None if budget is None else number(budget, "--budget in FLOPs")
    if folders and not joint:
        if flops is None:
            raise FlopwiseError("plan: a folder of runs needs --budget, in FLOPs")
        asked = number(questions, "--questions") if questions is not None else None
        _from_runs(Path(folders[0]), flops, asked, as_json)
        return
    if questions is not None:
        raise FlopwiseError(
            "plan: --questions goes with a folder of runs; for fits give --demand in tokens, or --queries"
        )
    given: dict[str, Any] = {
        "demand": number(demand, "--demand in tokens") if demand != "0" else 0.0,
        "target": None if target_loss is None else number(target_loss, "--target-loss"),
        "target_accuracy": None if target_accuracy is None else number(target_accuracy, "--target-accuracy"),
        "memory": _measure(memory, _BYTES, "--memory", "16GB"),
        "latency": _measure(latency, _SECONDS, "--latency", "2s"),
        "deadline": _measure(deadline, _SECONDS, "--deadline", "30d"),
        "data": None if data is None else number(data, "--data in tokens"),
        "samples_max": None if samples_max is None else number(samples_max, "--samples-max"),
        "base": _base(base), "hardware": hardware, "price": price, "mfu": mfu, "serving_mfu": serving_mfu,
        "devices": devices, "carbon": carbon, "train_cost": train_cost, "answer_cost": answer_cost,
    }  # fmt: skip
    for name, text in (
        ("queries", queries), ("prompt_tokens", prompt_tokens), ("answer_tokens", answer_tokens)
    ):  # fmt: skip
        given[name] = 0.0 if text is None else number(text, f"--{name.replace('_', '-')}")
    if at is not None:
        given["at"] = {name: number(v, name) for name, v in pairs([at], "N=7B").items()}
    fits, reasons = _joint(folders[0], methods) if folders else (_read(what), [])
    _from_fits(fits, flops, given, out, as_json, reasons)


def _read(paths: list[str]) -> list[Fit]:
    from flopwise.laws import Fit

    return [Fit.from_json(p) for p in paths]


def _joint(folder: str, methods: str | None) -> tuple[list[Fit], list[str]]:
    """Joint laws fitted to all sampled models of a folder, the chosen one first, and why it was."""
    from flopwise.laws.law import get
    from flopwise.plan.joint_law import choose, observations

    kept = [m.strip() for m in methods.split(",")] if methods else None
    chosen = choose(observations(folder, kept), by="N")
    same = [f for f in chosen.others if get(f.law).target == chosen.fit.form.target]
    return [chosen.fit, *same], chosen.reasons


def _measure(text: str | None, units: dict[str, float], name: str, example: str) -> float | None:
    """A time in seconds or a size in bytes, as people write them."""
    import re

    if text is None:
        return None
    parts = re.fullmatch(r"\s*([0-9.]+(?:e[+-]?[0-9]+)?)\s*([a-z]*)\s*", text.casefold())
    try:
        value = float(parts[1]) * units[parts[2]] if parts else 0.0
    except (ValueError, KeyError):
        value = 0.0
    if not 0 < value < float("inf"):
        raise FlopwiseError(f"plan: {name} is {text[:40]!r}, must be as {example}")
    return value


def _base(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    found = {name: number(v, name) for name, v in pairs([text], "N=7B").items()}
    if set(found) != {"N", "D"}:
        raise FlopwiseError(f"plan: --base is {text[:60]!r}, must be as N=7B,D=1T")
    return found["N"], found["D"]


def _from_fits(
    fits: list[Fit], budget: float | None, given: dict[str, Any], out: Path | None, as_json: bool,
    reasons: list[str],
) -> None:  # fmt: skip
    from flopwise.plan.frontier import plan as make

    made = make(fits, budget, **given)
    if out:
        made.to_json(out)
    if as_json:
        typer.echo(json.dumps(made.to_dict() | ({"chosen_because": reasons} if reasons else {}), indent=1))
        return
    from flopwise.cli.plan_show import show

    for reason in reasons:
        typer.echo(reason)
    show(made)


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

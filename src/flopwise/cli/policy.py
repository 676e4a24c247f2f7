"""`flopwise policy`: when to stop, and how to split a total over prompts, from anybody's judged samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flopwise.cli.shared import number
from flopwise.cli.tables import Json, Map, Seed, Sql, Where, console, heard, table_of
from flopwise.errors import FlopwiseError

if TYPE_CHECKING:
    import numpy as np

    from flopwise.infer.samples import Samples

FILE = "samples.npz"
SAMPLES_HELP = (
    "Samples (.npz) or the folder of a run that holds some, or a table with a row per sample: problem, "
    "correct, and answer, score, tokens, flops where there are any."
)
BUDGET_HELP = (
    "For all problems together, in FLOPs or what the table counts; or 16x: what 16 samples of each cost."
)
STRATEGY_HELP = (
    "What may be done, by commas: self_consistency, best_of_n:JUDGE, greedy; best_of_n:verifier where "
    "answers can be checked when they are asked for. By default all that need no verifier."
)
DIFFICULTY_HELP = (
    "What shows how hard a prompt is: agreement, a judge or verifier, of how many samples: agreement:4."
)
PROBE_HELP = "Column with a score of the prompt itself, higher for easier; takes the place of --difficulty."

Source = Annotated[str, typer.Argument(metavar="SAMPLES", help=SAMPLES_HELP)]
Budget = Annotated[str | None, typer.Option("--budget", help=BUDGET_HELP)]
Strategy = Annotated[str | None, typer.Option("--strategy", "-s", help=STRATEGY_HELP)]
Hard = Annotated[str | None, typer.Option("--difficulty", help=DIFFICULTY_HELP)]
Bins = Annotated[int, typer.Option("--bins", min=1, max=20, help="Of difficulty, at most.")]
Every = Annotated[int, typer.Option("--round", min=1, help="Samples taken between two looks at stopping.")]
Count = Annotated[
    int | None, typer.Option("-n", min=2, help="Take the first so many samples of each problem.")
]
Probe = Annotated[str | None, typer.Option("--probe", help=PROBE_HELP)]
ProbeCost = Annotated[float, typer.Option("--probe-cost", min=0, help="Of one prompt, in the budget's unit.")]


def register(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command("policy")(policy)


def policy(
    samples: Source, budget: Budget = None, strategy: Strategy = None, difficulty: Hard = None,
    bins: Bins = 4, every: Every = 1, n: Count = None, probe: Probe = None, probe_cost: ProbeCost = 0.0,
    mapping: Map = None, where: Where = None, sql: Sql = None, seed: Seed = 0, as_json: Json = False,
) -> None:  # fmt: skip
    """When to stop sampling, and how to split a total over prompts: at equal compute.

    Compares uniform spending with rules that stop early, with a choice by difficulty, and with both. Each is
    chosen on one half of the problems and judged on the other, on samples that difficulty was not taken from.
    Prompts, judges and difficulty are paid for. Prints accuracy, the gain over uniform spending at equal
    compute, what is saved at equal accuracy, and what to do with prompts of each difficulty.

    Example: flopwise policy samples.csv --budget 8x --strategy self_consistency
    """
    from flopwise.infer.policies import policies
    from flopwise.infer.policies.difficulty import parse

    given, scores = read_samples(samples, n, mapping, where, sql, probe)
    by, m = (None, None) if difficulty is None else parse(difficulty)
    if probe is not None and difficulty is not None:
        raise FlopwiseError("policy: give --difficulty or --probe, not both")
    total, each = (None, None) if budget is None else _budget(budget)
    strategies = None if strategy is None else [s.strip() for s in strategy.split(",") if s.strip()]
    with heard():
        made = policies(
            given, total, each, strategies, by, m, scores, probe_cost, bins, every=every, seed=seed
        )
    if as_json:
        typer.echo(json.dumps(made, indent=1))
    else:
        _show(made)


def read_samples(
    source: str,
    n: int | None,
    mapping: list[str] | None,
    where: str | None,
    sql: str | None,
    probe: str | None,
) -> tuple[Samples, np.ndarray | None]:
    """Samples from a file, a run or a table, and a probe's score of each problem [P] where asked for."""
    import numpy as np

    from flopwise.infer.samples import Samples

    path = Path(source) / FILE if (Path(source) / FILE).is_file() else Path(source)
    if path.suffix == ".npz" and path.is_file():
        if probe or mapping or where or sql:
            raise FlopwiseError(
                "policy: --probe, --map, --where and --sql go with a table, not with samples (.npz)"
            )
        loaded = Samples.load(path)
        if n is None or n == loaded.n:
            return loaded, None
        return loaded.split(n)[0], None
    table, _ = table_of(source, mapping, where, sql, None)
    found = Samples.from_table(table, n)
    if probe is None:
        return found, None
    from flopwise.records.table import numbers, require

    require(table, probe, "policy")
    names = [str(value) for value in np.asarray(table["problem"]).tolist()]
    first = {name: row for row, name in reversed(list(enumerate(names)))}
    return found, numbers(table, probe, "policy")[[first[name] for name in found.problems]]


def _budget(text: str) -> tuple[float | None, float | None]:
    """(total, None), or (None, samples of each) where it ends with x."""
    if text.strip().lower().endswith("x"):
        return None, number(text.strip()[:-1], "--budget")
    return number(text, "--budget"), None


def _show(made: dict[str, Any]) -> None:
    from rich.table import Table

    out, unit, level = console(), made["unit"], f"{made['level']:.0%}"
    out.print(
        f"{made['problems']} problems, {made['samples']} samples of each evaluated; budget "
        f"{made['budget']:.4g} {unit}, {made['budget'] / made['problems']:.4g} a problem; "
        f"from {', '.join(made['strategies'])}"
    )
    hard = made["difficulty"]
    of = f" of {hard['m']} other samples" if hard["m"] else ""
    out.print(f"difficulty: {hard['by']}{of}, {hard['cost']:.4g} {unit} a problem")
    table = Table("", "accuracy", level, unit, "gain", level, "saves", level, box=None, pad_edge=False)
    for row in ({"name": "uniform", **made["uniform"]}, *made["policies"]):
        gain = _percent(row["gain"], "+") if "gain" in row else ("", "")
        saving = _percent(row["saving"], "", "never") if "saving" in row else ("", "")
        table.add_row(row["name"], *_percent(row["accuracy"]), f"{row['cost']:.4g}", *gain, *saving)
    out.print(table)
    out.print(
        "gain: in accuracy at equal compute; saves: compute at uniform's accuracy; both paired by problem"
    )
    out.print(f"uniform: {_do(made['uniform']['does'][0])}")
    for row in made["policies"]:
        if len(row.get("does", ())) == 1:
            out.print(f"{row['name']}: {_do(row['does'][0])}")
    out.print(f"by difficulty, hardest first, at this budget ({hard['by']}; fitted on all problems):")
    out.print(_what(made["table"]))
    for row in made["policies"]:
        if look := row.get("look"):
            out.print(f"two rounds, by {look['by']} of the first {look['m']}, samples in all:")
            out.print(_what(row["does"]))
    for warning in made["warnings"]:
        out.print(f"mind: {warning}")


def _what(rows: list[dict[str, Any]]) -> Any:
    """Kinds of prompts and what to do with each."""
    from rich.table import Table

    what = Table("from", "to", "problems", "what to do", "samples", "accuracy", box=None, pad_edge=False)
    for row in rows:
        ends = ["" if row[end] is None else f"{row[end]:.3g}" for end in ("from", "to")]
        many = f"{row['problems']:.0f}"
        what.add_row(*ends, many, _do(row), f"{row['samples']:.1f}", f"{row['accuracy']:.1%}")
    return what


def _percent(ends: dict[str, float | None], sign: str = "", none: str = "") -> tuple[str, str]:
    """A share and its interval."""
    if ends["value"] is None:
        return none or "none", ""
    low, high = ("-" if ends[k] is None else f"{ends[k]:{sign}.1%}" for k in ("low", "high"))
    return f"{ends['value']:{sign}.1%}", f"{low} to {high}"


def _do(row: dict[str, Any]) -> str:
    """What is done with prompts of a kind, as `beta:0.95 up to 16 (62%), ... (38%)`."""
    parts = [part for part in row["do"] if part["share"] >= 0.005]
    return (
        parts[0]["option"]
        if len(parts) == 1
        else ", ".join(f"{p['option']} ({p['share']:.0%})" for p in parts)
    )

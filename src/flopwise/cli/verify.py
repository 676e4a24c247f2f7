"""`flopwise verify`: what a plan predicted beside what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flopwise.cli.experiments import Set, Workers
from flopwise.cli.experiments import run_recipe as run_steps
from flopwise.cli.shared import pairs
from flopwise.cli.tables import Json, console, heard
from flopwise.errors import FlopwiseError

if TYPE_CHECKING:
    from flopwise.plan.verify import Check, Verification

What = Annotated[
    str,
    typer.Argument(
        metavar="PLAN_OR_RUNS", help="A file of `flopwise plan --out`, or a finished experiment's folder."
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("verify")(verify)


def verify(
    what: What,
    runs: Annotated[str | None, typer.Option("--runs", help="Table or folder of measured runs.")] = None,
    mapping: Annotated[
        list[str] | None, typer.Option("--map", help="Which column is which variable: N=n_params,loss=val")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", help="Make the runs: a ladder recipe, at the plan's sizes and tokens."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="With --recipe: folder for the runs.")] = None,
    fit: Annotated[
        Path | None,
        typer.Option("--fit", help="The law, to predict anew where a run is not quite at the plan's place."),
    ] = None,
    within: Annotated[
        float, typer.Option("--within", help="Share that a run's variables may differ by.")
    ] = 0.02,
    changes: Set = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="With --recipe: show the runs, then stop.")
    ] = False,
    workers: Workers = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Hold a plan to its word: predicted against measured, at its recommendation and at two neighbours.

    Records come from --runs, or are made with --recipe. The folder of an experiment alone shows the checks
    that its own steps made.
    """
    from flopwise.plan import verify as home

    if runs and recipe:
        raise FlopwiseError("verify: give --runs, for runs that were made, or --recipe, to make them")
    if recipe and fit is None:
        raise FlopwiseError(
            "verify: --recipe makes the nearest size that a ladder has; --fit FIT is needed to predict there"
        )
    if not (runs or recipe):
        if not Path(what).is_dir():
            home.read_plan(what)  # what is wrong with it comes first
            raise FlopwiseError(
                f"verify: {what} is a plan: give --runs TABLE, or --recipe RECIPE --out DIR to make the runs"
            )
        made = home.from_runs(what)
    else:
        from flopwise.laws import Fit
        from flopwise.records.table import read_table

        plan = home.read_plan(what)
        law = None if fit is None else Fit.from_json(fit)
        source = runs
        if recipe:
            source = _made(plan, recipe, out or Path("verified"), changes or [], dry_run, workers, as_json)
            if source is None:
                return
        with heard():
            table = read_table(source, pairs(mapping or ()), held_out=True)
            made = home.verify(plan, table, law, within)
    if as_json:
        typer.echo(json.dumps(made.to_dict(), indent=1))
    else:
        _show(made)


def _made(
    plan: list[Check], recipe: str, out: Path, changes: list[str], dry_run: bool, workers: int | None,
    quiet: bool,
) -> str | None:  # fmt: skip
    """Make the runs; the folder they are in, or None where they were only shown."""
    from flopwise.launch import run
    from flopwise.launch.recipe import LadderRecipe, load
    from flopwise.plan.verify import run_recipe

    checked = load(recipe, changes)
    if not isinstance(checked, LadderRecipe):
        raise FlopwiseError(f"verify: {recipe} is no ladder recipe (kind: ladder), which measures the loss")
    content = run_recipe(plan, checked)
    if dry_run or not quiet:
        run_steps(content, out, [], dry_run, workers, quiet)
        if dry_run:
            return None
    else:
        summary = run(content, out, [], workers, quiet=True)
        if summary.failed:
            name, reason = next(iter(summary.failed.items()))
            raise FlopwiseError(f"verify: {len(summary.failed)} steps failed, first {name}: {reason}")
    return str(out)


def _show(made: Verification) -> None:
    from rich.table import Table

    screen = console()
    table = Table("", "at", "predicted", "from", "to", "measured", "off by", "", box=None, pad_edge=False)
    for c in made.checks:
        table.add_row(
            c.role, f"{c.what}: " + ", ".join(f"{n} {v:.4g}" for n, v in c.at.items()),
            *(f"{v:.4g}" for v in (c.predicted, c.low, c.high)),
            "" if c.measured is None else f"{c.measured:.4g}",
            "" if c.relative_error is None else f"{c.relative_error:+.2%}",
            {True: "inside", False: "outside", None: "not measured"}[c.inside],
        )  # fmt: skip
    screen.print(table)
    for c in made.checks:
        if c.note:
            screen.print(f"{c.role}: {c.note}")
    screen.print(made.verdict)
    for note in made.notes:
        screen.print(f"mind: {note}")

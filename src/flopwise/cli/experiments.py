"""`flopwise demo` and `flopwise run`: an experiment from a recipe to its report."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from flopwise.errors import FlopwiseError, one_line

Out = Annotated[Path, typer.Option("--out", help="Folder for runs and the report.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="Change a key of the recipe: ladder.depth=3")]
Dry = Annotated[
    bool, typer.Option("--dry-run", help="Show what would run and what it would cost, then stop.")
]
Workers = Annotated[
    int | None, typer.Option("--workers", min=0, max=256, help="Worker processes (0: this one).")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("demo")(demo)
    app.command("run")(run)


def demo(
    out: Out = Path("demo"),
    changes: Set = None,
    dry_run: Dry = False,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """The three scaling laws on a laptop, end to end, in about ten minutes."""
    run_recipe("demo", out, changes or [], dry_run, workers, as_json)


def run(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a shipped one.")],
    out: Out = Path("runs"), changes: Set = None, dry_run: Dry = False, workers: Workers = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Run an experiment; what is already done is not done again."""
    run_recipe(recipe, out, changes or [], dry_run, workers, as_json)


def run_recipe(
    recipe: str | Mapping[str, Any], out: Path, changes: list[str], dry_run: bool, workers: int | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Say what a recipe will cost, run it, say what came out and where the report lies."""
    from flopwise.cli.pretrain import show
    from flopwise.launch import run as run_steps
    from flopwise.launch.expand import expand
    from flopwise.launch.preview import rungs
    from flopwise.launch.recipe import LadderRecipe, load
    from flopwise.launch.scheduler import finished
    from flopwise.records.store import RunStore

    checked = load(recipe, changes)
    steps = expand(checked)
    done = finished(steps, RunStore(out))
    n_workers = checked.workers if workers is None else workers
    if not as_json:
        ladder = isinstance(checked, LadderRecipe)
        if isinstance(checked, LadderRecipe):
            show(checked, steps, everything=dry_run)
        _announce(checked.title or checked.name, steps, done, n_workers, out, dry_run and not ladder)
    if dry_run:
        if as_json:
            rows = [{**_row(s), "done": s.name in done} for s in steps]
            if isinstance(checked, LadderRecipe):
                told: Any = {"steps": rows, "rungs": [r.to_dict() for r in rungs(steps, measured=True)]}
            typer.echo(json.dumps(told if isinstance(checked, LadderRecipe) else rows, indent=1))
        return
    start = time.monotonic()
    summary = run_steps(recipe, out, changes, workers, quiet=as_json)
    if as_json:
        typer.echo(json.dumps(vars(summary), indent=1))
    else:
        typer.echo(
            f"{len(summary.done)} steps run, {len(summary.cached)} found done, {len(summary.failed)} failed, "
            f"{time.monotonic() - start:.0f} s"
        )
        _headline(out)
    if summary.failed:
        first, reason = next(iter(summary.failed.items()))
        raise FlopwiseError(
            f"{len(summary.failed)} steps failed or were left out, first {first}: {reason}; "
            "the same command tries them again"
        )


def _headline(out: Path) -> None:
    """What the report says first, and where it lies."""
    from flopwise.launch import REPORT_FILE

    try:
        results = json.loads((out / "results.json").read_bytes())
        top, note = results["headline"], results["data"].get("note")
        ladder = results.get("kind") in ("ladder", "posttrain")
    except (OSError, ValueError, KeyError):
        return
    asked = "" if ladder else "Where the next FLOP should go: "
    lines = [f"{asked}{top['answer']}." if top.get("answer") else None, top.get("expects")]
    lines += [f"Mind: {note}"] if note else []
    for finding in top.get("findings", []):
        law = finding["name"] if ladder else f"Law {finding['law']}"
        lines.append(f"{law}: {finding['text']}")
    typer.echo("\n".join(one_line(line, 400) for line in lines if line))
    typer.echo(f"The report: {out / REPORT_FILE}")


def _row(step: Any) -> dict[str, Any]:
    """What a plan says of a step."""
    return {
        "name": step.name, "kind": step.kind, "method": step.method, "n_params_non_embedding": step.n_params,
        "tokens": step.tokens, "flops": step.flops, "flops_6nd": step.flops_6nd,
        "seconds": round(step.seconds, 1),
    }  # fmt: skip


def _announce(
    title: str, steps: list[Any], done: set[str], workers: int, out: Path, every_step: bool
) -> None:
    """What will be done and what it will cost, before anything is."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    table = Table(
        "step" if every_step else "kind", "steps", "FLOPs", "6ND", "s on one core", box=None, pad_edge=False,
        title=Text(one_line(title)), title_justify="left",
    )  # fmt: skip
    groups: dict[str, list[Any]] = {}
    for step in steps:
        groups.setdefault(step.name if every_step else step.kind, []).append(step)
    for name, group in groups.items():
        simple = sum(s.flops_6nd or 0.0 for s in group)
        table.add_row(
            name, str(len(group)), f"{sum(s.flops for s in group):.2e}", f"{simple:.2e}" if simple else "",
            f"{sum(s.seconds for s in group):.0f}",
        )  # fmt: skip
    console.print(table)
    left = [s for s in steps if s.name not in done]
    minutes = sum(s.seconds for s in left) / 60 / max(1, workers)
    found = f"{len(done)} of them done already; the others take " if done else ""
    cost = f"{sum(s.flops for s in left):.2e} FLOPs and "
    time_left = "less than a minute" if minutes < 1 else f"about {minutes:.0f} minutes"
    todo = f"{found}{cost}{time_left} with {max(1, workers)} worker(s)" if left else "all done already"
    console.print(
        f"{len(steps)} steps, {todo}; "
        f"runs are kept in {one_line(out)}, finished ones are never paid for twice",
        markup=False, highlight=False,
    )  # fmt: skip

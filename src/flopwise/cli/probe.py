"""`flopwise probe`: a judge made of the model's own states."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flopwise.cli.shared import settle

if TYPE_CHECKING:
    from flopwise.infer.probe import Probe

EVAL_PROBLEMS = 500
"""As many as `flopwise eval` asks by default."""


def probe(
    model: Annotated[str, typer.Argument(help="A Hugging Face folder, a run's folder, or RUNS/NAME.")],
    out: Annotated[
        Path, typer.Option("-o", "--out", help="Folder for the probe: --probe of solve and eval.")
    ],
    task: Annotated[
        str | None, typer.Option("--task", help="Which problems; by default those of the model's data.")
    ] = None,
    problems: Annotated[int, typer.Option("--problems", help="Problems to fit it to.")] = 300,
    n: Annotated[int, typer.Option("-n", help="Answers to each.")] = 8,
    temperature: Annotated[float, typer.Option("--temperature", help="Of sampling.")] = 1.0,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", help="Limit of a completion.")] = None,
    style: Annotated[str, typer.Option("--style", help="As in eval: plain, few_shot, chat.")] = "plain",
    shots: Annotated[int, typer.Option("--shots", help="Worked problems before each in few_shot.")] = 4,
    seed: Annotated[int, typer.Option("--seed", help="Of problems and samples.")] = 0,
    runs: Annotated[
        Path | None, typer.Option("--runs", help="Folder of runs in which MODEL is a name.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Fit a linear probe: from the model's state after an answer to the chance that it is right.

    It is fitted to new problems and refuses to judge those. How well it ranks answers to one problem is
    measured on a fifth that are no part of the fit.
    """
    settle()
    made = make(
        model, task, problems, n, seed, temperature=temperature, max_tokens=max_tokens, style=style,
        shots=shots, runs=runs,
    )  # fmt: skip
    made.save(out)
    about = made.about
    if as_json:
        typer.echo(json.dumps(about, indent=1))
        return
    typer.echo(f"probe of {about['problems']} problems x {n} answers, {about['right']:.1%} of them right")
    within = about["auc_within"]
    if within is None:
        typer.echo("no held-out problem has right and wrong answers, so how well it ranks is not known")
    else:
        error = "" if about["auc_within_se"] is None else f" (standard error {about['auc_within_se']:.3f})"
        typer.echo(
            f"area under the curve {within:.3f}{error} within {about['auc_problems']} held-out problems; "
            f"{about['auc_pooled']:.3f} over all answers, which also counts knowing what is easy"
        )
    typer.echo(f"use it: flopwise eval {model} --probe {out} --strategy best_of_n:probe,weighted:probe")


def make(model: str, task: str | None, problems: int, n: int, seed: int, **setting: Any) -> Probe:
    """A probe of a model, fitted to newly generated problems."""
    from flopwise.data.prepare import PreparedData
    from flopwise.data.tasks import task as task_of
    from flopwise.infer.opening import open_model, open_room
    from flopwise.infer.probe import fit_probe
    from flopwise.infer.resolve import find_model
    from flopwise.infer.solving import DEFAULT_TASK, UNSEEN_SEED, own_task, settings, task_name
    from flopwise.infer.store import model_hash

    how = settings(setting)
    found = find_model(model, how.runs)
    exercise = task_of(task or own_task(found) or DEFAULT_TASK)
    if found.data is not None and task_name(found.data) == exercise.name:
        kept = PreparedData(found.data).problems("test")
    else:
        kept = exercise.generate(EVAL_PROBLEMS, UNSEEN_SEED)
    # What eval asks by default is left for it.
    asked = exercise.generate(problems, UNSEEN_SEED + 1 + seed, exclude={p.key for p in kept})
    room = open_room(open_model(found.folder, how), exercise, asked, how)
    made = fit_probe(room, n, seed)
    made.about["model"] = model_hash(found.folder)
    return made

"""`flopwise sft`, `distill`, `reward`, `prefer`, `rl`, `synthesize`: one method on one model, no recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from flopwise.cli.experiments import Dry, Json, Workers, run_recipe
from flopwise.errors import FlopwiseError

GROUPS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "sft": ("sft", ("sft",), "Fine-tune a model on texts, pairs or chats, whole or by low-rank adapters."),
    "distill": ("distill-on-policy", ("distill",), "Train a student on what a teacher says."),
    "prefer": ("dpo", ("preference",), "Learn from preferences: pairs, or thumbs up and down."),
    "reward": ("reward-samples", ("reward",), "Train a model that scores answers or their steps."),
    "rl": ("grpo", ("rl",), "Reinforce by a verifier, a reward model, a judge, or a sum of them."),
    "synthesize": ("verified-samples", ("synthesize",), "Make training data with a model and a verifier."),
}
"""Per command: the method it takes by default, kinds of methods it offers, its help."""


TAUGHT = {"samples": ("verified-samples", "init"), "logits": ("teacher-logits", "teacher")}
"""What a student reads that a teacher has to make first: by which method, and as what that reads it."""


class _Command(TyperCommand):
    """A command whose help lists its methods. The registry costs more to load than all the rest of `--help`,
    so it is read when this help is asked for."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from flopwise.posttrain.settings import METHODS

        default, kinds, about = GROUPS[str(self.name)]
        lines = [f"{m.name}: {m.about}" for m in METHODS.values() if m.kind in kinds]
        self.help = "\n\n".join([about, f"Methods (default {default}):", *lines])
        super().format_help(ctx, formatter)


def register(app: typer.Typer) -> None:
    """Add the commands of this file, one for each group of methods."""
    for command, (default, kinds, about) in GROUPS.items():
        app.command(command, cls=_Command, help=about)(_command(command, default, kinds))


Data = Annotated[
    list[str] | None,
    typer.Argument(metavar="[DATA]", help="Rows in any of TRL's formats: a file, folder or hub dataset."),
]
Task = Annotated[str | None, typer.Option("--task", help="Verifiable task, as countdown (`flopwise tasks`).")]
Steps = Annotated[int | None, typer.Option("--steps", min=1, help="Updates.")]
Batch = Annotated[int | None, typer.Option("--batch-size", min=1, help="Rows of an update.")]
Lora = Annotated[int | None, typer.Option("--lora", min=1, help="Train adapters of this rank alone.")]
Roles = Annotated[
    list[str] | None,
    typer.Option("--from", help="A model or run that the method reads, as teacher=runs/big; repeatable."),
]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="A setting of the method, as beta=0.2; repeatable.")
]
Seeds = Annotated[list[int] | None, typer.Option("--seed", min=0, help="Repeatable: one run with each.")]


def _command(command: str, default: str, kinds: tuple[str, ...]) -> Any:
    def run(
        model: Annotated[
            str, typer.Argument(help="Where to start: a Hugging Face folder, a run, or a name `get` knows.")
        ],
        data: Data = None,
        method: Annotated[str, typer.Option("--method", help="One of the methods above.")] = default,
        task: Task = None, steps: Steps = None, batch_size: Batch = None, lora: Lora = None,
        backend: Annotated[str | None, typer.Option("--backend", help="trl: TRL trains (extra trl).")] = None,
        roles: Roles = None, changes: Settings = None, seeds: Seeds = None,
        out: Annotated[Path, typer.Option("--out", help="Folder for runs and the report.")] = Path("runs"),
        dry_run: Dry = False, workers: Workers = None, as_json: Json = False,
    ) -> None:  # fmt: skip
        given = {"backend": backend, "steps": steps, "batch_size": batch_size}
        settings: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
        settings |= {"lora": {"rank": lora}} if lora else {}
        _change(settings, changes or [])
        recipe = _recipe(command, method, kinds, model, data or [], task, roles or [], settings, seeds or [0])
        run_recipe(recipe, out, [], dry_run, workers, as_json)

    run.__name__ = command
    return run


def _recipe(
    command: str, method: str, kinds: tuple[str, ...], model: str, data: list[str], task: str | None,
    roles: list[str], settings: dict[str, Any], seeds: list[int],
) -> dict[str, Any]:  # fmt: skip
    """The recipe that a command stands for."""
    from flopwise.posttrain import settings as registry

    found = registry.method(method)
    if found.kind not in kinds:
        others = [m.name for m in registry.METHODS.values() if m.kind in kinds]
        raise FlopwiseError(f"{command}: method {method} is of another kind; there are {', '.join(others)}")
    if len(data) > 1:
        raise FlopwiseError(f"{command}: one dataset, not {len(data)}; a pattern takes several files")
    if not data and task is None:
        raise FlopwiseError(
            f"{command}: give DATA (rows of your own) or --task (see `flopwise tasks`), or both"
        )
    bases: dict[str, Any] = {"base": {"model": model}}
    known = {r.rstrip("*"): r.endswith("*") for r in found.roles}
    start = "init" if "init" in known else next(r for r, needed in found.roles.items() if needed)
    taught = next(
        (r for r in TAUGHT if found.kind == "distill" and r in known and "teacher" not in known), None
    )
    entry: dict[str, Any] = {"method": method, start: "base", **settings}
    runs: dict[str, Any] = {method: entry}
    for text in roles:
        role, sign, other = text.partition("=")
        if sign and role == "teacher" and taught:
            by, reads = TAUGHT[taught]
            runs = {taught: {"method": by, reads: "teacher"}, **runs}
            entry[taught] = taught
        elif not sign or role not in known or role == start:
            offered = ", ".join(r for r in [*known, *(["teacher"] if taught else [])] if r != start) or "none"
            raise FlopwiseError(
                f"{command}: --from {text[:60]!r} must be ROLE=RUN; roles of {method}: {offered}"
            )
        name = role if role not in bases else f"{role}{sum(b.startswith(role) for b in bases) + 1}"
        bases[name] = {"model": other}
        if role in known:
            entry[role] = [*entry.get(role, []), name]
    content: dict[str, Any] = {
        "kind": "posttrain", "name": command, "title": f"{command}: {method}", "seeds": seeds, "bases": bases,
        "runs": runs,
    }  # fmt: skip
    if task is not None:
        content["data"] = {"task": task}
    if data:
        content["datasets"] = {"rows": {"path": data[0]}}
        entry["data"] = "rows"
    return content


def _change(settings: dict[str, Any], changes: list[str]) -> None:
    from flopwise.launch.recipe import _override

    for text in changes:
        if (name := text.partition("=")[0]) in ("method", "init", "data"):
            raise FlopwiseError(f"--set {text[:60]!r}: {name} is no setting; it has an argument of its own")
        _override(settings, text)

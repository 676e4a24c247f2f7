"""`flopwise pretrain`: a model, or a few sizes and budgets, without a recipe; and a ladder's preview."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flopwise.cli.experiments import Dry, Json, Out, Set, Workers, run_recipe
from flopwise.cli.shared import number
from flopwise.errors import FlopwiseError, one_line

if TYPE_CHECKING:
    from flopwise.launch.preview import Rung
    from flopwise.launch.recipe import LadderRecipe
    from flopwise.launch.steps import Step


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("pretrain")(pretrain)


def pretrain(
    sources: Annotated[
        list[str], typer.Argument(metavar="SOURCE...", help="Shipped corpora (`get --list`) or own files.")
    ],
    width: Annotated[
        list[int] | None, typer.Option("--width", "-w", help="Model width; may be repeated.")
    ] = None,
    tokens: Annotated[
        list[str] | None, typer.Option("--tokens", "-t", help="Token budget, as 2M; may be repeated.")
    ] = None,
    depth: Annotated[int, typer.Option("--depth", min=1, help="Layers.")] = 2,
    tokenizer: Annotated[
        str, typer.Option("--tokenizer", help="byte, bpe:SIZE, or hub:FOLDER_OR_ID.")
    ] = "bpe:512",
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    out: Out = Path("runs"), changes: Set = None, dry_run: Dry = False, workers: Workers = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Pretrain models of some sizes on some tokens, each branch of a size's trunk cooled down and measured.

    Several budgets of one width share a trunk. Everything a ladder recipe can change, `--set` can:
    `--set ladder.optimiser=adamw --set ladder.model.expansion=8 --set train.processes=2`.
    """
    from flopwise.data.corpora import NAMES
    from flopwise.data.media import MEDIA

    budgets = [int(number(text, "D")) for text in tokens or ["1M"]]
    kind, _, rest = tokenizer.partition(":")
    content: dict[str, Any] = {
        "kind": "ladder", "name": "pretrain", "title": "Pretraining", "seed": seed,
        "data": {
            "sources": [{"corpus": s} if s in (*NAMES, *MEDIA) else {"path": s} for s in sources],
            "tokenizer": {"kind": kind}
            | ({"path": rest} if kind == "hub" else {"vocab_size": _size(rest)} if rest else {}),
        },
        "ladder": {"widths": width or [64], "depth": depth, "budgets": budgets},
    }  # fmt: skip
    run_recipe(content, out, changes or [], dry_run, workers, as_json)


def _size(text: str) -> int:
    if not text.isdigit():
        raise FlopwiseError(f"--tokenizer: vocabulary {text!r:.40} must be a whole number, as in bpe:4096")
    return int(text)


def show(recipe: LadderRecipe, steps: list[Step], everything: bool) -> None:
    """The rungs with their parameters, FLOPs, time and memory; `everything`: grid and rules as well."""
    from rich.console import Console
    from rich.table import Table

    from flopwise.launch.preview import grid, rungs
    from flopwise.laws.plotting.figure import short

    found = rungs(steps, measured=everything)
    console = Console()
    table = Table(
        "rung", "params", "active", "body", "tables", "tokens", "FLOPs", "6ND", "min", "GB",
        box=None, pad_edge=False, header_style="bold",
    )  # fmt: skip
    table.columns[0].no_wrap = True
    for column in table.columns[1:]:
        column.justify = "right"
    for rung in found:
        row = rung.to_dict()
        counts = [short(row[f"n_params_{k}"], 4) for k in ("total", "active", "non_embedding", "embedding")]
        memory = "" if rung.memory_bytes is None else f"{rung.memory_bytes / 2**30:.2f}"
        budgets = ", ".join(short(tokens, 3) for tokens in rung.budgets)
        table.add_row(
            one_line(_label(rung, len(recipe.names) > 1)), *counts, budgets,
            *(f"{flops:.1e}".replace("e+", "e") for flops in (rung.flops, rung.flops_6nd)),
            f"{rung.seconds / 60:.1f}", memory,
        )  # fmt: skip
    console.print(table)
    console.print(
        "params: all, active: those a token uses, body: without the tables of tokens; FLOPs as executed, and "
        "6 N D; minutes on one core; memory of one process",
        style="dim", highlight=False,
    )  # fmt: skip
    total, separate = sum(r.flops for r in found), sum(r.separate_flops for r in found)
    if separate > total * 1.001:
        console.print(
            f"Branched trunks: {total:.2e} FLOPs; a run of its own for every budget: {separate:.2e}, "
            f"{separate / total:.2f} times as much",
            highlight=False,
        )  # fmt: skip
    if everything:
        console.print("\n" + "\n".join(grid(found)) + "\n", highlight=False, markup=False)
        _rules(recipe, console)


def _label(rung: Rung, variants: bool) -> str:
    name = f"{rung.variant} " if variants or rung.variant == "tuning" else ""
    return f"{name}w{rung.width} s{rung.seed}" + (" (held out)" if rung.held_out else "")


def _rules(recipe: LadderRecipe, console: Any) -> None:
    from rich.table import Table

    from flopwise.launch.ladders import LadderExpansion
    from flopwise.pretrain.rules import describe

    table = Table("setting", "rule", "formula", "source", box=None, pad_edge=False, header_style="bold")
    plan = next(iter(LadderExpansion(recipe).plans.values()))
    for row in describe(plan.ladder.rule_set):
        table.add_row(*(one_line(str(row[k])) for k in ("what", "rule", "formula", "source")))
    console.print(table)

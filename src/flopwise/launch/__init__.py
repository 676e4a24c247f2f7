"""Where steps run: recipes, their expansion into steps, the scheduler over worker processes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flopwise.launch.scheduler import Summary

__all__ = ["run"]


def run(
    recipe: str | Path, out: str | Path = "runs", overrides: list[str] | None = None, workers: int | None = None,
    quiet: bool = False,
) -> Summary:  # fmt: skip
    """Run a recipe's steps that are not yet done; returns what was done, skipped, and failed.

    Raises:
        FlopwiseError: the recipe is wrong, or another process runs in the same folder.
    """
    from flopwise.launch.expand import expand
    from flopwise.launch.progress import Display
    from flopwise.launch.recipe import load
    from flopwise.launch.scheduler import run_steps
    from flopwise.records.store import RunStore

    checked = load(recipe, overrides or [])
    steps = expand(checked)
    with Display(steps, quiet=quiet) as display:
        return run_steps(steps, RunStore(out), workers=checked.workers if workers is None else workers, display=display)

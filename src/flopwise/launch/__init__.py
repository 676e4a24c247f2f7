"""Where steps run: recipes, their expansion into steps, the scheduler over worker processes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flopwise.launch.scheduler import Summary

__all__ = ["run"]


REPORT_FILE = "report.html"


def run(
    recipe: str | Path | Mapping[str, Any], out: str | Path = "runs", overrides: list[str] | None = None,
    workers: int | None = None, quiet: bool = False,
) -> Summary:  # fmt: skip
    """Run a recipe's steps that are not yet done, then write its report into `out`.

    Returns:
        What was done, found done, and failed; the report says plainly what a failed step leaves open.

    Raises:
        FlopwiseError: the recipe is wrong, or another process runs in the same folder.
    """
    from flopwise.launch.expand import expand
    from flopwise.launch.preview import check
    from flopwise.launch.progress import Display
    from flopwise.launch.recipe import load
    from flopwise.launch.scheduler import run_steps
    from flopwise.records.store import RunStore
    from flopwise.report import build

    checked = load(recipe, overrides or [])
    steps = expand(checked)
    check(steps)
    n_workers = checked.workers if workers is None else workers
    with Display(steps, quiet=quiet, workers=n_workers) as display:
        summary = run_steps(steps, RunStore(out), workers=n_workers, display=display)
    if summary.done or summary.cached:
        build(Path(out), Path(out) / REPORT_FILE)
    return summary

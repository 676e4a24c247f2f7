"""`flopwise eval`: strategies compared on a model's own held-out problems, or on problems of any task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flopwise.data.tasks import Task
from flopwise.data.tasks import task as task_of
from flopwise.errors import FlopwiseError
from flopwise.infer.compare import Comparison, compare
from flopwise.infer.opening import check_scorers, open_model, open_room
from flopwise.infer.resolve import find_model
from flopwise.infer.solving import DEFAULT_TASK, UNSEEN_SEED, check_size, settings, task_name
from flopwise.infer.strategies import make_all


@dataclass(frozen=True)
class Assessment:
    """A comparison and what it is about.

    `maybe_seen`: the problems were generated, and the model's training may have held some of them.
    """

    comparison: Comparison
    model: str
    task: str
    style: str
    problems_from: str
    maybe_seen: bool
    temperature: float
    max_tokens: int

    def about(self) -> dict[str, Any]:
        """All but the comparison, as JSON takes it."""
        return {name: value for name, value in vars(self).items() if name != "comparison"}

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return self.comparison.to_dict() | self.about()


def assess(
    model: str | Path,
    strategy: str = "greedy",
    n: int = 16,
    n_problems: int = 500,
    data: str | Path | None = None,
    task: str | None = None,
    seed: int = 0,
    on_progress: Callable[[float], None] | None = None,
    **setting: Any,
) -> Assessment:
    """Compare strategies on held-out problems.

    Args:
        strategy: one or several by commas, as `flopwise strategies` lists them; differences are to the first.
        n: the largest budget; 1, 2, 4, ... are measured on the way.
        data: the data run (its folder, or its name) whose test problems are asked; by default that of the
            run the model came from, if it is of the task. Without any, problems are generated, and
            `maybe_seen` is true.
        task: what is asked; by default the task of the data, or countdown.
        setting: as `infer.solving.solve` takes it.

    Raises:
        FlopwiseError: what is named is not there or does not fit.
    """
    how, strategies = settings(setting), make_all(strategy)
    check_scorers(strategies, how)
    if n_problems < 2:
        raise FlopwiseError(f"eval: {n_problems} problems asked for, an interval takes at least 2")
    check_size(n_problems, n, "problems")
    named = None if task is None else task_of(task)
    found = find_model(model, how.runs) if how.endpoint is None else None
    folder = None if found is None else found.data
    folder = folder if data is None else _data_folder(data, how.runs)
    own = None if folder is None else task_name(folder)
    if data is not None and (own is None or task not in (None, own)):
        raise FlopwiseError(
            f"eval: {folder} holds problems of {own or 'no task'}, not of {task or DEFAULT_TASK}; "
            "give other data, or leave --data out"
        )
    exercise: Task[Any] = named or task_of(own or DEFAULT_TASK)
    if folder is not None and exercise.name == own:
        from flopwise.data.prepare import PreparedData

        problems = PreparedData(folder).problems("test")
        if n_problems > len(problems):
            raise FlopwiseError(
                f"eval: {n_problems} problems asked for, {folder} has {len(problems)}; ask for fewer"
            )
        problems = problems[:n_problems]
    else:
        folder = None
        problems = exercise.generate(n_problems, UNSEEN_SEED)
    opened = open_model(model if found is None else found.folder, how, strategies)
    room = open_room(opened, exercise, problems, how)
    comparison = compare(room, strategies, n, seed, on_progress)
    source = f"test split of {folder}" if folder else f"generated with seed {UNSEEN_SEED}"
    return Assessment(
        comparison, opened.name, exercise.name, room.asked.style, source, folder is None, room.temperature,
        room.max_tokens,
    )  # fmt: skip


def _data_folder(data: str | Path, runs: str | Path | None) -> Path:
    """A data folder itself, or a run by name."""
    from flopwise.data.prepare import ABOUT_FILE
    from flopwise.records.store import RunStore

    path = Path(data)
    if (path / ABOUT_FILE).is_file():
        return path
    if runs is None and not path.parent.is_dir():
        raise FlopwiseError(f"data {str(data)[:120]!r} is no data run's folder; give one, or RUNS/NAME")
    return (
        RunStore(runs).folder(str(data)) if runs is not None else RunStore(path.parent).folder(path.name)
    ).path

"""Several steps in one call, where that is faster: many small models at once (`train.ensemble`).

The scheduler offers a worker the ready steps of a gang; the worker says how many it keeps and runs these
together. A step is then finished, failed or resumed on its own, as it would be alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from flopwise.errors import DamagedFile, one_line
from flopwise.launch import worker
from flopwise.launch.steps import Step
from flopwise.records.folder import RunFolder

LIMIT = 8
"""Members of a group at most: what is saved per member no longer grows, what a kill can cost does."""

PROGRESS_EVERY_S = 0.2


@dataclass(frozen=True)
class Job:
    """What a worker is handed: a task for each step by its name, and how to run several together."""

    tasks: dict[str, dict[str, Any]]
    run_group: str | None = None
    group_size: str | None = None


class Tell(Protocol):
    """How a worker reports of the step `name`: "progress" (share done), "note" (text), "done" (None, or why
    it failed), and "keeps": names of the steps of its job that it will run, the others are for others."""

    def __call__(self, what: str, name: str, value: Any) -> None: ...


def serve(job: Job, tell: Tell) -> None:
    """Run a job's steps, together where there are several."""
    shown: dict[str, float] = {}

    def progress(name: str, fraction: float) -> None:
        now = time.monotonic()
        if now - shown.get(name, 0.0) > PROGRESS_EVERY_S:
            shown[name] = now
            tell("progress", name, fraction)

    def alone(name: str) -> None:
        reason = worker.run_one(
            job.tasks[name], lambda f: progress(name, f), lambda text: tell("note", name, text)
        )
        tell("done", name, reason)

    names = list(job.tasks)
    if len(names) > 1:
        names = names[: _size(job, tell)]
        tell("keeps", names[0], names)
    if len(names) > 1:
        names = _together(job, names, progress, tell)
    for name in names:
        alone(name)


def _size(job: Job, tell: Tell) -> int:
    """How many of the steps are best run together."""
    if job.group_size is None:
        return len(job.tasks)
    name, task = next(iter(job.tasks.items()))
    try:
        wanted = worker.find(job.group_size)(RunFolder(Path(task["path"])).spec, len(job.tasks))
    except Exception as e:  # the steps can still be run one by one
        tell("note", name, f"run alone, because how many to run together is not known ({one_line(e, 200)})")
        return 1
    return max(1, min(int(wanted), len(job.tasks)))


def _together(
    job: Job, names: Sequence[str], progress: Callable[[str, float], None], tell: Tell
) -> list[str]:
    """Run the steps in one call; returns the names of those that are to be run alone after all."""
    left = list(names)
    try:
        folders = [RunFolder(Path(job.tasks[name]["path"])) for name in names]
        for folder in folders:
            folder.sweep()
        parents = [worker.open_parents(f, job.tasks[n]) for f, n in zip(folders, names, strict=True)]
        worker.reset_peak()
        assert job.run_group is not None
        ends = worker.find(job.run_group)(folders, parents, lambda i, f: progress(names[i], f))
        for index, error in ends:
            name = names[index]
            if isinstance(error, DamagedFile) and error.path.parent == folders[index].path:
                continue  # its own training state: alone it sets that aside and starts over
            left.remove(name)
            tell("done", name, error and worker.record_failure(error, job.tasks[name]))
    except Exception as e:  # a member's defect must not take the others down
        tell("note", names[0], f"its group of {len(names)} goes on one by one ({one_line(e, 200)})")
    return left


def offer(step: Step, mates: Sequence[Step], free: int, others: int, limit: int) -> list[Step]:
    """Which ready steps of a gang to hand to one worker together with `step`, which goes first.

    `free` workers wait for work, and `others` ready steps belong to no gang or another. Workers that those
    cannot occupy get an even share of the gang; more than `limit` are split evenly too.

    >>> steps = [Step(name, "k", "m", "m:f", gang="g") for name in "abcdefghi"]
    >>> [len(offer(steps[0], steps[1:n], free, others, 8)) for n, free, others in
    ...  ((4, 1, 0), (4, 2, 0), (4, 2, 1), (3, 2, 0), (9, 1, 0), (1, 1, 0))]
    [4, 2, 4, 2, 5, 1]
    """
    n = 1 + len(mates)
    sharers = max(1, free - others)
    groups = max(-(-n // limit), min(sharers, n))
    return [step, *mates[: -(-n // groups) - 1]]

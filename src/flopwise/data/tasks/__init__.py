"""Verifiable tasks by name: problems that a program can judge, for training, feedback and tests."""

from __future__ import annotations

from typing import Any

from flopwise.data.tasks import searches, spoken, stories
from flopwise.data.tasks.base import SHOTS, STYLES, Demonstration, Item, Passage, Problem, Step, Task
from flopwise.data.tasks.chain import Chain
from flopwise.data.tasks.worked import Bases, Multiplication, Sorting
from flopwise.errors import FlopwiseError, one_line

__all__ = [
    "SHOTS", "STYLES", "TASKS", "Demonstration", "Item", "Passage", "Problem", "Step", "Task",
    "is_task", "task",
]  # fmt: skip

TASKS: dict[str, Task[Any]] = {
    t.name: t
    for t in (*searches.TASKS, Chain(), Multiplication(), Sorting(), Bases(), *spoken.TASKS, *stories.TASKS)
}


def task(name: str) -> Task[Any]:
    """The task of that name.

    Raises:
        FlopwiseError: there is none.
    """
    if name in TASKS:
        return TASKS[name]
    raise FlopwiseError(f"task is {one_line(name, 60)!r}, must be one of {', '.join(TASKS)}")


def is_task(name: str) -> bool:
    """Whether there is a task of that name."""
    return name in TASKS

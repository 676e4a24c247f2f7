"""Verifiable tasks by name: problems that a program can judge, for training, feedback and tests."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from flopwise.data.tasks import gym, searches, spoken, stories, table
from flopwise.data.tasks.base import SHOTS, STYLES, Demonstration, Item, Passage, Problem, Step, Task
from flopwise.data.tasks.chain import Chain
from flopwise.data.tasks.worked import Bases, Multiplication, Sorting
from flopwise.errors import FlopwiseError, one_line

__all__ = [
    "NAMES", "SHOTS", "STYLES", "TASKS", "Demonstration", "Item", "Passage", "Problem", "Step", "Task",
    "is_task", "task",
]  # fmt: skip

_ALL: tuple[Task[Any], ...] = (
    *searches.TASKS, Chain(), Multiplication(), Sorting(), Bases(), *spoken.TASKS, *stories.TASKS,
)  # fmt: skip
TASKS: dict[str, Task[Any]] = {t.name: t for t in _ALL}
VARIANTS: dict[str, Callable[[str], Task[Any]]] = {"chain": Chain, "countdown": searches.SearchedCountdown}
"""Tasks with settings in their names, as `chain:checks=0.8` (`data.tasks.named`)."""
NAMES = f"{', '.join(TASKS)}, {' or '.join(f'{v}:OPTION=NUMBER' for v in VARIANTS)}, table:FILE or gym:NAME"
"""What a task may be called, in words."""


@lru_cache(maxsize=64)
def task(name: str) -> Task[Any]:
    """The task of that name: one of `TASKS`, one of `VARIANTS` with its options, `table:FILE`
    (`data.tasks.table`) or `gym:NAME` (`data.tasks.gym`).

    Raises:
        FlopwiseError: there is none.
    """
    if name in TASKS:
        return TASKS[name]
    if name.startswith(table.PREFIX):
        return table.Table(name)
    if name.partition(":")[0] in VARIANTS:
        return VARIANTS[name.partition(":")[0]](name)
    if gym.is_name(name):
        return gym.Gym(name.removeprefix(gym.PREFIX))
    raise FlopwiseError(f"task is {one_line(name, 60)!r}, must be one of {NAMES}")


def is_task(name: str) -> bool:
    """Whether `task` knows the name; no file is opened."""
    if name.partition(":")[0] in VARIANTS:
        try:
            return bool(task(name))
        except FlopwiseError:
            return False
    return name in TASKS or table.is_name(name) or gym.is_name(name)

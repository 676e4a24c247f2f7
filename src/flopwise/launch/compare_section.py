"""The section `compare` of a post-training recipe: strategies at test time, on one model and one task.

Each entry is a step that answers held-out problems with every strategy at several budgets and sets them
beside each other at equal FLOPs (`infer.compare`); laws may then be asked about them (`infer.testtime_laws`).
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from flopwise.data.tasks import STYLES
from flopwise.errors import FlopwiseError
from flopwise.launch.basics import Count, Section, one_of
from flopwise.launch.ladder_sections import Name
from flopwise.launch.sections import Task

SCORER_ROLES = ("reward", "process")
"""Runs that score answers for strategies, by role; a strategy says which it goes by."""


class CompareSection(Section):
    """Strategies on one model: each answers the same `problems`, with budgets of 1, 2, 4, ..., n samples.

    `model` is a run or a base; `reward` and `process` are runs of outcome and process reward models. `task`
    is another one than the recipe's, asked in `style`, with `shots` worked problems before few_shot ones.
    """

    name: Name
    model: Name
    reward: Name | None = None
    process: Name | None = None
    task: Task | None = None
    strategies: Annotated[list[str], Field(min_length=1)]
    n: Annotated[int, Field(ge=1, le=4096)] = 64
    problems: Annotated[int, Field(ge=10)] = 200
    max_tokens: Count = 64
    temperature: float = Field(default=1.0, gt=0)
    style: Annotated[str, one_of(STYLES)] = "plain"
    shots: Count = 4
    precision: Literal["float32", "bfloat16", "int8", "int4"] = "float32"
    """Of the weights while sampling; bfloat16 is faster where the processor has it, and slower elsewhere."""

    @field_validator("strategies")
    @classmethod
    def _strategies_exist(cls, strategies: list[str]) -> list[str]:
        from flopwise.infer.strategies import make

        try:
            names = [make(text).name for text in strategies]
        except FlopwiseError as e:
            raise ValueError(str(e)) from None
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"{min(twice)} is named twice; once is enough")
        return strategies

    @model_validator(mode="after")
    def _scorers_are_there(self) -> CompareSection:
        for text, scorer in self.needs:
            if scorer not in SCORER_ROLES:
                raise ValueError(f"strategy {text} goes by {scorer}, which no run of a recipe makes")
            if getattr(self, scorer) is None:
                raise ValueError(f"strategy {text} goes by {scorer}, so name the run: {scorer}: RUN")
        return self

    @property
    def needs(self) -> list[tuple[str, str]]:
        """Strategies with the scorers that they go by."""
        from flopwise.infer.scorers import scorer_of
        from flopwise.infer.strategies import make

        found = []
        for text in self.strategies:
            strategy: Any = make(text)
            judges = getattr(strategy, "judges", None)
            judges = judges if judges is not None else [strategy.judge] if strategy.judge else []
            found += [(text, scorer_of(judge)) for judge in judges]
        return found

    @property
    def scorers(self) -> dict[str, str]:
        """Runs by role."""
        given = {role: getattr(self, role) for role in SCORER_ROLES}
        return {role: run for role, run in given.items() if run is not None}

    @property
    def task_step(self) -> str | None:
        """The step that prepares the problems of another task; None: the recipe's own data."""
        if self.task is None:
            return None
        return (
            f"data-{re.sub('[^a-z0-9]+', '-', self.task.lower()).strip('-')}-{self.problems}-for-{self.model}"
        )

    def spec(self) -> dict[str, Any]:
        """What the step is asked to do; that problems are asked as they stand goes without saying."""
        left = {"name", "model", "reward", "process", "task"}
        if self.style == "plain":
            left |= {"style", "shots"}
        return {"split": "test", **self.model_dump(exclude=left)}

"""A step: one run to be made, what it needs, what it should cost."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Step:
    """One run of an experiment.

    `parents` maps roles to the names of steps it is made from (its ancestors, whose spend it inherits);
    `references` to steps it reads without descending from them (a scorer, a run whose spend is matched);
    `after` names steps that must merely be finished first. `run` is "module:function", called in a worker as
    `run(folder, {role: RunFolder}, progress)`. `flops` and `seconds` (one core) are estimates.

    Steps of one `gang` that are ready together may be run in one call, where that is faster (`launch.gang`):
    `run_group` is "module:function" of a generator `(folders, parents of each, progress(index, fraction))`
    that yields (index, None) when a folder has its record and (index, error) when it has failed; what it
    leaves is run by `run`. `group_size` is "module:function" of how many to run together, given the spec of
    one and how many there are.
    """

    name: str
    kind: str
    method: str
    run: str
    spec: dict[str, Any] = field(default_factory=dict)
    parents: dict[str, str] = field(default_factory=dict)
    references: dict[str, str] = field(default_factory=dict)
    after: tuple[str, ...] = ()
    seed: int = 0
    flops: float = 0.0
    seconds: float = 1.0
    n_params: int | None = None
    tokens: int | None = None
    flops_6nd: float | None = None
    gang: str | None = None
    run_group: str | None = None
    group_size: str | None = None

    @property
    def needs(self) -> set[str]:
        """Names of all steps that must be finished first."""
        return {*self.parents.values(), *self.references.values(), *self.after}

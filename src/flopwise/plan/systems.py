"""Systems: ways to answer questions that were measured, each with what it cost to make and costs to ask.

A system is a model, a strategy and a number of samples. All systems of one experiment were measured on the
same held-out problems, so they are compared problem by problem.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from flopwise.errors import FlopwiseError

if TYPE_CHECKING:
    from pathlib import Path

    from flopwise.records.folder import RunFolder
    from flopwise.records.record import RunRecord

CHECKABLE = "verifier"
"""The strategy that needs a verifier when the question is answered; all others can do without."""


@dataclass(frozen=True)
class System:
    """A model, a strategy, n samples; what it was measured to do and to cost.

    `values` [problems] are chances to answer each held-out problem; `one_off_flops` is what making it took,
    ancestors and the reward model it needs included; `per_question_flops` is prefill, decoding and scoring.
    """

    model: str
    run: str
    strategy: str
    n: int
    values: np.ndarray = field(repr=False)
    one_off_flops: float
    per_question_flops: float

    @property
    def accuracy(self) -> float:
        """Mean over problems."""
        return float(self.values.mean())

    @property
    def checkable(self) -> bool:
        """Whether answers must be checkable by a verifier as they are given."""
        return self.strategy == CHECKABLE

    def total_flops(self, questions: float) -> float:
        """What making it and answering so many questions takes."""
        return self.one_off_flops + questions * self.per_question_flops


@dataclass(frozen=True)
class Measured:
    """One sampled model: its record, the sample run's record, curves and judged samples."""

    name: str
    record: RunRecord
    sampled: RunRecord
    curves: dict[str, list[dict[str, Any]]]
    arrays: dict[str, np.ndarray] = field(repr=False)

    @classmethod
    def read(cls, folder: RunFolder, model: RunFolder) -> Measured:
        """From the folder of a sample run and that of the model it sampled."""
        curves = json.loads((folder.path / "curves.json").read_bytes())
        with np.load(folder.path / "samples.npz", allow_pickle=False) as z:
            arrays = {name: z[name] for name in z.files}
        record = model.record()
        return cls(record.name or record.id, record, folder.record(), curves, arrays)

    def systems(self, one_off: float, scorer: float | None) -> list[System]:
        """Every strategy at every number of samples.

        `one_off`: FLOPs of the model's lineage; `scorer`: the same with the reward model's, None without one.
        """
        found = []
        for strategy, points in self.curves.items():
            rows = (
                self.arrays["greedy"][None].astype(float)
                if strategy == "greedy"
                else self.arrays[f"curve_{strategy}"]
            )
            cost = scorer if strategy == "reward_model" else one_off
            if cost is None:
                continue
            found += [
                System(self.name, self.record.id, strategy, point["n"], values, cost, point["flops"])
                for point, values in zip(points, rows, strict=True)
                # One sample is one sample, whoever would have chosen among more.
                if point["n"] > 1 or strategy in ("greedy", "majority")
            ]
        return found


def lineage_flops(root: Path, runs: Iterable[str]) -> float:
    """FLOPs of runs and all their ancestors, each counted once."""
    from flopwise.records.folder import lineage_spend

    return lineage_spend(root, runs).total_flops


def paired_draws(systems: list[System], n: int, seed: int) -> np.ndarray:
    """Bootstrap means [n, systems] over problems, the same resampled problems for every system.

    Raises:
        FlopwiseError: systems were measured on different numbers of problems.
    """
    sizes = {len(s.values) for s in systems}
    if len(sizes) != 1:
        raise FlopwiseError(
            f"plan: systems were measured on {sorted(sizes)} problems; measure all on the same ones"
        )
    size = sizes.pop()
    weights = np.random.default_rng(seed).multinomial(size, np.full(size, 1 / size), size=n) / size
    return weights @ np.stack([s.values for s in systems], axis=1)

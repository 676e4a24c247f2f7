"""The split of a budget between a model's size, its training and its answers, under a fitted law.

C = 6 N D + 2 N T, with a lifetime demand of T tokens at inference (`laws.optimum`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from flopwise.errors import FlopwiseError

if TYPE_CHECKING:
    from flopwise.laws import Fit


@dataclass(frozen=True)
class Split:
    """The best split under one law, with 95% intervals from the fit's draws.

    `loss` is that of a single run; `regret` is the loss that following this split costs if each of the other
    laws is the true one.
    """

    law: str
    N: float
    D: float
    loss: float
    intervals: dict[str, tuple[float, float]]
    train_flops: float
    inference_flops: float
    extrapolation: float
    regret: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Plan:
    """Where a budget should go: `best` under the first fit given, and what the others say."""

    budget: float
    demand: float
    best: Split
    others: list[Split]

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self)


def plan(fits: Fit | Sequence[Fit], budget: float, demand: float = 0.0, seed: int = 0) -> Plan:
    """Split `budget` FLOPs between size and tokens for a lifetime of `demand` tokens at inference.

    Args:
        fits: laws in N and D; the first is followed, the others say what it costs if they are right.

    Raises:
        FlopwiseError: no fit, a law in other variables, a budget not above 0 or that inference eats up.
    """
    fits = list(fits) if isinstance(fits, Sequence) else [fits]
    if not fits:
        raise FlopwiseError(
            "plan: no fit given; make one with: flopwise fit TABLE --law chinchilla --out fit.json"
        )
    if not (np.isfinite(budget) and budget > 0) or not (np.isfinite(demand) and demand >= 0):
        raise FlopwiseError(
            f"plan: budget is {budget} FLOPs and demand {demand} tokens; a budget above 0 is needed"
        )
    for f in fits:
        if f.form.variables != ("N", "D"):
            raise FlopwiseError(
                f"plan: {f.law} is a law in {', '.join(f.form.variables)}; plans need one in N and D"
            )
    if 2 * demand >= budget:
        raise FlopwiseError(
            f"plan: {demand:.3g} tokens at inference leave nothing of {budget:.3g} FLOPs "
            "even for one parameter"
        )
    splits = [_split(f, budget, demand, seed) for f in fits]
    for split in splits:
        for f, other in zip(fits, splits, strict=True):
            if other is not split:
                split.regret[f.law] = float(f.predict(N=split.N, D=split.D).value - other.loss)
    return Plan(budget, demand, splits[0], splits[1:])


def _split(fit: Fit, budget: float, demand: float, seed: int) -> Split:
    best = fit.optimal(budget, demand=demand, seed=seed)
    beyond = fit.predict(N=best.N, D=best.D).extrapolation
    warnings = list(fit.warnings)
    if beyond > 10:
        warnings.append(f"{beyond:.0f}x beyond the largest run fitted: verify with a run in between")
    return Split(
        fit.law, best.N, best.D, float(best.loss), best.intervals, 6 * best.N * best.D, 2 * best.N * demand,
        float(beyond), {}, warnings,
    )  # fmt: skip

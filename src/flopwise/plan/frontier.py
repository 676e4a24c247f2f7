"""The split of a budget between a model's size, its training and its answers, under a fitted law.

C = 6 N D + 2 N T: training at 6 FLOPs per parameter and token, and a lifetime demand of T tokens at inference
at 2 (Sardana et al., arXiv 2401.00448, eq. 1). With T = 0 it is Hoffmann et al.'s compute-optimal frontier.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from flopwise.errors import FlopwiseError

if TYPE_CHECKING:
    from flopwise.laws import Fit, Law

DRAWS = 400
GRID = 2001


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


def optimum(
    law: Law, params: Mapping[str, Any], budget: float, demand: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """N, D and loss where a law's loss is least at C = 6 N D + 2 N T, for a parameter set or arrays of them.

    A grid of 2,001 sizes from one parameter to those that leave no training, refined by a parabola in log N.
    """
    p = {name: np.atleast_1d(np.asarray(v, dtype=float))[:, None] for name, v in params.items()}
    # At least one token of training for the largest model.
    log_n = np.linspace(0.0, np.log(budget / (6 + 2 * demand)), GRID)

    def loss(logs: np.ndarray) -> np.ndarray:
        N = np.exp(logs)
        D = np.maximum((budget - 2 * N * demand) / (6 * N), 1e-300)
        with np.errstate(all="ignore"):
            return np.where(np.isfinite(v := law.function(p, {"N": N, "D": D})), v, np.inf)

    values = loss(np.broadcast_to(log_n, (len(next(iter(p.values()))), GRID)))
    i = np.clip(values.argmin(axis=1), 1, GRID - 2)
    rows = np.arange(len(i))
    below, at, above = (values[rows, i + d] for d in (-1, 0, 1))
    with np.errstate(all="ignore"):
        shift = 0.5 * (below - above) / (below - 2 * at + above)
    shift = np.where(np.isfinite(shift), np.clip(shift, -1, 1), 0.0)
    best = log_n[i] + shift * (log_n[1] - log_n[0])
    N = np.exp(best)
    return N, (budget - 2 * N * demand) / (6 * N), loss(best[:, None])[:, 0]


def plan(fits: Fit | Sequence[Fit], budget: float, demand: float = 0.0, seed: int = 0) -> Plan:
    """Split `budget` FLOPs between size and tokens for a lifetime of `demand` tokens at inference.

    Args:
        fits: laws in N and D; the first is followed, the others say what it costs if they are right.

    Raises:
        FlopwiseError: no fit, a law in other variables, a budget not above 0 or that inference eats up.
    """
    from flopwise.laws import get

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
        if get(f.law).variables != ("N", "D"):
            raise FlopwiseError(
                f"plan: {f.law} is a law in {', '.join(get(f.law).variables)}; plans need one in N and D"
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
    from flopwise.laws import get

    law = get(fit.law)
    N, D, _ = (float(v[0]) for v in optimum(law, fit.params, budget, demand))
    sets = fit.draws(DRAWS, seed)
    Ns, Ds, _ = optimum(law, {name: np.array([s[name] for s in sets]) for name in fit.params}, budget, demand)
    at = fit.predict(N=N, D=D)
    intervals = {"N": _interval(Ns), "D": _interval(Ds), "loss": (float(at.low), float(at.high))}
    warnings = list(fit.warnings)
    if at.extrapolation > 10:
        warnings.append(
            f"{at.extrapolation:.0f}x beyond the largest run fitted: verify with a run in between"
        )
    return Split(
        fit.law, N, D, float(at.value), intervals, 6 * N * D, 2 * N * demand,
        float(at.extrapolation), {}, warnings,
    )  # fmt: skip


def _interval(draws: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)

"""Where a law in N and D is least for a budget that pays for training and for a lifetime of answers.

C = 6 N D + 2 N T: training at 6 FLOPs per parameter and token, and a demand of T tokens at inference at 2
(Sardana et al., arXiv 2401.00448, eq. 1). With T = 0 it is Hoffmann et al.'s compute-optimal frontier.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from flopwise.laws.law import Law

GRID = 2001
REFINED = 3
"""Parabolas, each an eighth as wide as the one before."""
CLOSED: dict[str, Callable[[Mapping[str, np.ndarray]], tuple[np.ndarray, ...]]] = {
    "chinchilla": lambda p: (p["A"], p["B"], p["alpha"], p["beta"]),
    # M^eta C^-eta = 6^-eta N^-2eta: the factors 6^-eta cancel.
    "overtraining": lambda p: (p["a"], p["b"], 2 * p["eta"], 2 * p["eta"]),
}
"""Laws that are E + A / N^alpha + B / D^beta: A, B (to a common factor), alpha, beta of their parameters."""
CLOSED_PARAMETERS = {"chinchilla": ("A", "B", "alpha", "beta"), "overtraining": ("a", "b", "eta")}


def optimum(
    law: Law, params: Mapping[str, Any], budget: float, demand: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """N, D and loss where a law's loss is least at C = 6 N D + 2 N T, for a parameter set or arrays of them.

    In closed form for a law of additive powers and no demand (Hoffmann et al. 2022, eq. 4); else a grid of
    2,001 sizes from one parameter to those that leave no training, refined by parabolas in log N.
    """
    if demand == 0 and law.name in CLOSED and set(CLOSED_PARAMETERS[law.name]) <= set(params):
        named = {name: np.atleast_1d(np.asarray(v, dtype=float)) for name, v in params.items()}
        A, B, alpha, beta = CLOSED[law.name](named)
        with np.errstate(all="ignore"):
            log_g = (np.log(alpha * A) - np.log(beta * B)) / (alpha + beta)
            N = np.exp(log_g + beta / (alpha + beta) * np.log(budget / 6))
        D = budget / 6 / N
        if np.isfinite(N).all() and (N >= 1).all() and (D >= 1).all():
            return N, D, law(named, {"N": N, "D": D})
    # One row of sizes for each parameter set.
    p: Any = {name: np.atleast_1d(np.asarray(v, dtype=float))[:, None] for name, v in params.items()}
    # At least one token of training for the largest model.
    log_n = np.linspace(0.0, np.log(budget / (6 + 2 * demand)), GRID)

    def loss(logs: np.ndarray) -> np.ndarray:
        N = np.exp(logs)
        D = np.maximum((budget - 2 * N * demand) / (6 * N), 1e-300)
        with np.errstate(all="ignore"):
            return np.where(np.isfinite(v := law(p, {"N": N, "D": D})), v, np.inf)

    values = loss(np.broadcast_to(log_n, (len(next(iter(p.values()))), GRID)))
    i = np.clip(values.argmin(axis=1), 1, GRID - 2)
    rows = np.arange(len(i))
    best, step = log_n[i], float(log_n[1] - log_n[0])
    below, at, above = (values[rows, i + d] for d in (-1, 0, 1))
    for _ in range(REFINED):
        with np.errstate(all="ignore"):
            shift = 0.5 * (below - above) / (below - 2 * at + above)
        best = best + step * np.where(np.isfinite(shift), np.clip(shift, -1, 1), 0.0)
        step /= 8
        below, at, above = (loss((best + d * step)[:, None])[:, 0] for d in (-1, 0, 1))
    N = np.exp(best)
    return N, (budget - 2 * N * demand) / (6 * N), loss(best[:, None])[:, 0]

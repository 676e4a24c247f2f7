"""Where a law in N and D is least for a budget that pays for training and for a lifetime of answers.

C = 6 N D + 2 N T: training at 6 FLOPs per parameter and token, and a demand of T tokens at inference at 2
(Sardana et al., arXiv 2401.00448, eq. 1). With T = 0 it is Hoffmann et al.'s compute-optimal frontier.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from flopwise.laws.law import Law

GRID = 2001


def optimum(
    law: Law, params: Mapping[str, Any], budget: float, demand: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """N, D and loss where a law's loss is least at C = 6 N D + 2 N T, for a parameter set or arrays of them.

    A grid of 2,001 sizes from one parameter to those that leave no training, refined by a parabola in log N.
    """
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
    below, at, above = (values[rows, i + d] for d in (-1, 0, 1))
    with np.errstate(all="ignore"):
        shift = 0.5 * (below - above) / (below - 2 * at + above)
    shift = np.where(np.isfinite(shift), np.clip(shift, -1, 1), 0.0)
    best = log_n[i] + shift * (log_n[1] - log_n[0])
    N = np.exp(best)
    return N, (budget - 2 * N * demand) / (6 * N), loss(best[:, None])[:, 0]

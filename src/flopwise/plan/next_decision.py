"""What more runs are worth to a plan: the regret of the split it chooses, before and after them.

The plan takes the size N and the tokens D that give the least loss under C = 6 N D + 2 N T by the fit. If the
law's parameters are others, it loses something. To second order that is half the curvature of the loss along
the budget times the squared error of log N, so the runs to make are those that pin down log N of the optimum
(`steer`). How much regret is left is then counted without that approximation, by draws: the truth is drawn,
the runs are drawn from it, the estimate moves by the linearised update, and the plan is made again
(`regret`): the knowledge gradient (Frazier, Powell and Dayanik 2009) for a whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from flopwise.laws.advice import slopes
from flopwise.laws.law import Array
from flopwise.laws.objective import named
from flopwise.laws.optimum import optimum
from flopwise.plan.next_belief import DRAWS, Columns, Evidence, bends, within_bounds
from flopwise.plan.next_design import Option

if TYPE_CHECKING:
    from flopwise.laws.result import Fit

TRUTHS = 300
"""Draws that an expected regret is the mean of."""
STEP, SIDE = 1e-3, 0.1
"""Of differences: in a searched parameter, and in log N along the budget."""


@dataclass(frozen=True)
class Regret:
    """Expected loss given away by the plan, relative to the loss.

    `low`, `high`: its 80% range after the runs; `better`: share of draws in which the plan gets no worse.
    """

    before: float
    after: float
    low: float
    high: float
    better: float


def steer(known: Evidence, budget: float, demand: float, seed: int) -> Array:
    """How the optimum's log N moves with the searched parameters [draws, k], times the root of half the
    relative loss's curvature there: the square of a step along it is regret."""
    fit = known.fit
    k = len(fit.theta)
    out = []
    for theta in known.plausible(DRAWS, seed):
        steps = np.concatenate([theta + STEP * np.eye(k), theta - STEP * np.eye(k), theta[None]])
        sizes = np.log(optimum(fit.form, _params(fit, steps), budget, demand)[0])
        moves = (sizes[:k] - sizes[k : 2 * k]) / (2 * STEP)
        around = np.exp(sizes[-1] + SIDE * np.array([-1.0, 0.0, 1.0]))
        loss = _along(fit, theta[None], around[None], budget, demand)[0]
        curvature = (loss[0] - 2 * loss[1] + loss[2]) / SIDE**2 / loss[1]
        out.append(np.nan_to_num(moves) * np.sqrt(max(float(np.nan_to_num(curvature)), 0.0) / 2))
    return np.array(out)


def regret(
    known: Evidence,
    rows: Columns,
    chosen: Sequence[Option],
    budget: float,
    demand: float,
    bend: float,
    seed: int,
) -> Regret:
    """Of the plan as it is, and of the plan after the chosen runs."""
    fit, rng = known.fit, np.random.default_rng(seed + 1)
    theta, V = fit.theta, known.spread(fit.theta)
    steps = rng.multivariate_normal(np.zeros(len(V)), V, size=TRUTHS, method="eigh", check_valid="ignore")
    truths = within_bounds(fit, theta + steps)
    later = np.tile(theta, (TRUTHS, 1))
    if chosen:
        taken = np.array([r for o in chosen for r in o.rows])
        x = {v: rows[v][taken] for v in fit.form.variables}
        J = np.nan_to_num(slopes(fit, x))
        runs = np.repeat(np.arange(len(chosen)), [len(o.rows) for o in chosen])
        noise = known.noise_of(runs) + bends(x, aim_of(fit, budget, demand), bend)
        gain = V @ J @ np.linalg.inv(J.T @ V @ J + noise)
        errors = rng.multivariate_normal(
            np.zeros(len(noise)), noise, size=TRUTHS, method="eigh", check_valid="ignore"
        )
        later = within_bounds(fit, theta + ((truths - theta) @ J + errors) @ gain.T)
    least = optimum(fit.form, _params(fit, truths), budget, demand)[2]
    now = np.tile(optimum(fit.form, _params(fit, theta[None]), budget, demand)[0], TRUTHS)
    then = optimum(fit.form, _params(fit, later), budget, demand)[0]
    lost = [
        _along(fit, truths, sizes[:, None], budget, demand)[:, 0] / least - 1 for sizes in (now, then)
    ]  # fmt: skip
    before, after = (np.maximum(np.nan_to_num(v, nan=0.0, posinf=1e3), 0.0) for v in lost)
    ends = np.quantile(after, [0.1, 0.9])
    return Regret(
        float(before.mean()), float(after.mean()), float(ends[0]), float(ends[1]),
        float((after <= before + 1e-12).mean()),
    )  # fmt: skip


def aim_of(fit: Fit, budget: float, demand: float) -> Columns:
    """N and D of the plan by the fit."""
    N, D, _ = optimum(fit.form, fit.params, budget, demand)
    return {"N": N, "D": D}


def _params(fit: Fit, thetas: Array) -> dict[str, Array]:
    return {name: v[:, 0] for name, v in named(fit.form, thetas).items()}


def _along(fit: Fit, thetas: Array, sizes: Array, budget: float, demand: float) -> Array:
    """Loss [b, n] at sizes [b, n] that use up the budget."""
    D = np.maximum((budget - 2 * sizes * demand) / (6 * sizes), 1.0)
    with np.errstate(all="ignore"):
        return np.asarray(fit.form(named(fit.form, thetas), {"N": sizes, "D": D}))

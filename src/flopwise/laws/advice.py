"""Which run would tell most: the next point for a fit, by what it would do to a prediction beyond the
data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from flopwise.laws.objective import STEP

if TYPE_CHECKING:
    from flopwise.laws.result import Fit

BEYOND = 10.0
"""The prediction that is to be narrowed lies this many times beyond the largest run, in compute."""
REACH = 3.0
"""Candidates reach this many times beyond the largest N and D; below the smallest the form may bend."""
WIDE = 0.1
"""Half-width of the 95% interval at `BEYOND`, relative, from which on a law is not to be planned by."""
POINTS = 13


@dataclass(frozen=True)
class NextRun:
    """A run worth making. `before` and `after`: half-width of the 95% interval of the law's value at `aim`.

    They are relative on a log scale, plain otherwise. Linearised: what is expected, not promised.
    """

    run: dict[str, float]
    cost: float
    """Its compute over that of the largest run so far (its variable's value, for a law of one)."""
    aim: dict[str, float]
    before: float
    after: float


def next_run(fit: Fit, beyond: float = BEYOND) -> NextRun | None:
    """The run, no costlier than the largest so far, that narrows a prediction `beyond` times its compute
    most.

    From the covariance, as a rank-one update by one more independent run (c-optimal design). None for a law
    in other variables than N and D, or one alone; or where nothing is gained.
    """
    names = fit.form.variables
    if fit.form.from_counts or (names != ("N", "D") and len(names) != 1) or not set(names) <= set(fit.ranges):
        return None
    axes = []
    for name in names:
        low, high = fit.ranges[name]
        if low <= 0:
            return None
        axes.append(np.geomspace(low, high * (REACH if len(names) > 1 else 1.0), POINTS))
    points = np.array(list(product(*axes)))
    x = {name: points[:, i] for i, name in enumerate(names)}
    if len(names) == 2:
        top = _largest(fit)
        cost = 6 * x["N"] * x["D"] / top
        ratio = np.sqrt(np.prod(np.divide(fit.ranges["D"], fit.ranges["N"])))
        N = np.sqrt(beyond * top / 6 / ratio)
        aim = {"N": float(N), "D": float(ratio * N)}
    else:
        (name,) = names
        cost = x[name] / fit.ranges[name][1]
        aim = {name: beyond * fit.ranges[name][1]}
    kept = cost <= 1.0 + 1e-9
    x, cost = {name: v[kept] for name, v in x.items()}, cost[kept]
    V, noise = fit.covariance, max(fit.scatter, 1e-12)
    J, a = slopes(fit, x), slopes(fit, {n: np.array([v]) for n, v in aim.items()})[:, 0]
    VJ = V @ J
    now = float(a @ V @ a)
    saved = (a @ VJ) ** 2 / (noise**2 + np.einsum("kn,kn->n", J, VJ))
    if not np.isfinite(saved).any() or now <= 0:
        return None
    i = int(np.nanargmax(saved))
    after = max(now - float(saved[i]), 0.0)
    t = fit.t(0.95)
    if saved[i] < 0.05 * now:
        return None
    return NextRun(
        {name: float(v[i]) for name, v in x.items()}, float(cost[i]), aim, t * float(np.sqrt(now)),
        t * float(np.sqrt(after)),
    )  # fmt: skip


def missing_runs(x: Mapping[str, np.ndarray], count: int) -> str:
    """In words, `count` runs that would fill the widest gaps of a table that is too small, variable by
    variable.

    Candidates combine the values there are, and a third and three times of them; none costs more than three
    times the largest run. Each is the one farthest from all others in logarithms.

    >>> missing_runs({"N": np.array([1e7, 1e8]), "D": np.array([1e9, 1e9])}, 1)
    'a run, say N = 3.33e+06, D = 3.33e+08'
    """
    names = [n for n, v in x.items() if (v > 0).all()]
    if len(names) != len(x):
        return "runs" if count > 1 else "a run"
    axes = [
        np.unique(np.concatenate([np.unique(x[n])[[0, -1]] * f for f in (1 / REACH, 1.0, REACH)]))
        for n in names
    ]
    there = np.log(np.stack([x[n] for n in names], axis=1))
    options = np.log(np.array(list(product(*axes))))
    options = options[options.sum(axis=1) <= there.sum(axis=1).max() + np.log(REACH) + 1e-9]
    chosen = []
    for _ in range(min(count, 3)):
        gaps = np.linalg.norm(options[:, None] - there[None], axis=2).min(axis=1)
        best = options[int(np.argmax(np.round(gaps, 6)))]
        chosen.append(", ".join(f"{n} = {v:.3g}" for n, v in zip(names, np.exp(best), strict=True)))
        there = np.vstack([there, best])
    more = f" and {count - 3} more" if count > 3 else ""
    return f"{'a run' if count == 1 else f'{count} runs'}, say {' and '.join(chosen)}{more}"


def verdict(fit: Fit, advice: NextRun | None) -> str:
    """Whether to trust the fit, in one line: what it is good for, or why not."""
    serious = list(fit.diagnostics.get("serious", ()))
    wide = advice is not None and advice.before > _too_wide(fit)
    if advice is not None and wide:
        known = f"{advice.before:.0%}" if fit.scale == "log" else f"{advice.before:.2g}"
        serious.append(f"{BEYOND:g} times beyond the data it is known to no better than {known}")
    if serious:
        return f"not to be planned by: {'; '.join(serious)}"
    if fit.status != "converged":
        return f"not to be planned by: the fit ended with {fit.status}"
    if advice is None:
        return "holds for what was fitted; back-test it before you believe it beyond (flopwise backtest)"
    known = f"{advice.before:.1%}" if fit.scale == "log" else f"{advice.before:.3g}"
    return (
        f"holds for what was fitted; if the form does, {BEYOND:g} times beyond it is known to within "
        f"{known}. "
        f"Whether the form does: flopwise backtest"
    )


def _too_wide(fit: Fit) -> float:
    """Half-width from which on a law is not to be planned by: relative, or half of what the data span."""
    if fit.scale == "log" or fit.problem is None:
        return WIDE if fit.scale == "log" else np.inf
    return 0.5 * float(np.ptp(fit.problem.y))


def _largest(fit: Fit) -> float:
    """C = 6 N D of the largest run that was fitted."""
    if fit.problem is not None:
        return float((6 * fit.problem.x["N"] * fit.problem.x["D"]).max())
    support = fit.diagnostics.get("support", {}).get("C")
    return float(support[1]) if support else 6 * fit.ranges["N"][1] * fit.ranges["D"][1]


def slopes(fit: Fit, x: dict[str, np.ndarray]) -> np.ndarray:
    """Derivatives [k, n] of the law by its searched parameters, on the scale of residuals."""
    steps = STEP * np.eye(len(fit.theta))
    return np.asarray((fit.at(fit.theta + steps, x) - fit.at(fit.theta - steps, x)) / (2 * STEP))

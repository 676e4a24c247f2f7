"""Where descents begin: a grid over the nonlinear parameters, the linear ones solved for at each point.

Variable projection (Golub and Pereyra 1973): given the exponents, a law of terms is a linear problem, so only
the exponents are searched. Positive factors are kept positive by trying every set of terms, which for the few
terms of a scaling law is exact. Laws with more than three nonlinear parameters get points that fill their
space evenly instead of a grid.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np

from flopwise.laws.law import Array, Law, Parameter
from flopwise.laws.objective import Objective, named, searched
from flopwise.laws.search import Minima, descend, solve
from flopwise.laws.uncertainty import robust_scale

GRID = {0: 1, 1: 25, 2: 9, 3: 7}
"""Points in each direction, by the number of nonlinear parameters."""
SCREEN = 4096
"""Rows that starts are screened and roughly walked down on."""
TURN = 1.345
"""Where a robust loss turns linear, in standard deviations: 95% efficient for normal noise (Huber 1981)."""
WILD = 20.0
"""Times that limit beyond which a row would lead a descent in squares astray."""
ROUGH = 6
"""Starts that are walked down, roughly, after all have been screened."""
_BELOW, _ABOVE, _ABOVE_UNIT = 12.0, 7.0, 35.0
"""How far outside its starting range (e to this power) an unbounded positive parameter may go, up farther if
it is in a variable's units: a floor of zero is a finding, not a place to get lost in."""
_EMPTY = 0.01
"""Share of the whole that an empty term starts with: at zero it would have no slope to leave by."""


def minimise(problem: Objective, n_starts: int, seed: int) -> Minima:
    """Minima, best first: starts are screened, the best walked down roughly, the last few to the end."""
    whole, problem = problem, problem.thinned(SCREEN)
    lower, upper = bounds(whole)
    starts = np.clip(begin(problem, n_starts, seed), lower, upper)
    order = np.argsort(problem.cost(starts), kind="stable")[
        : max(ROUGH, n_starts // 8 if crowded(problem) else 0)
    ]
    # Rough descents in squares: the valley is the same, and it is smoother.
    smooth = replace(problem, delta=np.inf)
    rough = descend(smooth, starts[order], lower, upper, limit=8 if problem.law.linear else 40, newton=False)
    few = rough.theta[_distinct(rough)[:4]]
    if problem.delta < np.inf:
        few = np.concatenate([few, *_robust(problem, starts[order], lower, upper)])
    if len(calm := _calm(problem)) < problem.y.shape[-1]:
        quiet = problem.only(calm)
        again = np.clip(begin(quiet, n_starts, seed), lower, upper)
        again = again[np.argsort(quiet.cost(again), kind="stable")[:ROUGH]]
        ends = descend(quiet, again, lower, upper, limit=25, newton=False)
        few = np.concatenate([few, ends.theta[_distinct(ends)[:3]]])
    ends = descend(whole, few, lower, upper)
    return ends.take(np.argsort(ends.cost, kind="stable"))


def _robust(problem: Objective, starts: Array, lower: Array, upper: Array) -> list[Array]:
    """Where rough descents end that a bad row cannot lead astray, as it does squares.

    Only where they are needed: where a row is far outside, or the linear parameters were not projected out.
    """
    r = problem.residuals(starts[:1])[0]
    limit = max(problem.delta, TURN * robust_scale(r, 0))
    wild = np.abs(r).max() > WILD * limit
    out = []
    if wild:
        ends = descend(replace(problem, delta=limit), starts, lower, upper, limit=20, newton=False)
        out.append(ends.theta[_distinct(ends)[:3]])
    if crowded(problem) or not problem.law.linear:
        direct = descend(problem, starts, lower, upper, limit=40, newton=False)
        out.append(direct.theta[_distinct(direct)[:4]])
    return out


def _calm(problem: Objective) -> Array:
    """Rows whose target is of the usual size: one a thousand times smaller would rule a linear solve."""
    if problem.scale == "nll":
        return np.arange(problem.y.shape[-1])
    y = problem.observed if problem.observed.ndim == 1 else problem.observed.mean(axis=0)
    away = np.abs(y - np.median(y))
    calm = np.flatnonzero(away <= 8 * 1.4826 * np.median(away))
    return calm if len(calm) > len(problem.law.names) else np.arange(len(y))


def crowded(problem: Objective) -> bool:
    """Whether the nonlinear parameters are too many for a grid."""
    return len(problem.law.names) - len(problem.law.linear if problem.scale != "nll" else ()) > 3


def begin(problem: Objective, n: int, seed: int) -> Array:
    """Starting points [m, k] as searched; `n` of them where the nonlinear parameters are too many for a
    grid."""
    law = problem.law
    solved = law.linear if problem.scale != "nll" else ()
    searched_for = [p for p in law.parameters if p.name not in solved]
    ranges = [_searched_range(p, problem) for p in searched_for]
    if len(ranges) <= 3:
        points = np.array(list(product(*(_inside(a, b, GRID[len(ranges)]) for a, b in ranges))))
    else:
        low, high = np.array(ranges).T
        # Every further dimension beyond four takes twice as many.
        points = low + (high - low) * _even(n * 2 ** min(len(ranges) - 4, 4), len(ranges), seed)
    middle = {p.name: (p.start[0] * p.start[1]) ** 0.5 if p.log else sum(p.start) / 2 for p in law.parameters}
    theta = np.tile(searched(law, middle), (len(points), 1))
    columns = [law.names.index(p.name) for p in searched_for]
    theta[:, columns] = points.reshape(len(points), len(columns))
    return _solve_linear(problem, theta, solved) if solved else theta


def bounds(problem: Objective) -> tuple[Array, Array]:
    """Of the parameters as searched."""
    pairs = np.array([_bounds(p, problem) for p in problem.law.parameters])
    return pairs[:, 0], pairs[:, 1]


def start_range(p: Parameter, problem: Objective) -> tuple[float, float]:
    """The range starts are drawn from, in the parameter's units."""
    a, b = p.start
    if p.unit:
        values = problem.x[p.unit]
        middle = float(np.exp(np.log(values[values > 0]).mean()))
        return a * middle, b * middle
    return a, b


def _searched_range(p: Parameter, problem: Objective) -> tuple[float, float]:
    a, b = start_range(p, problem)
    return (float(np.log(a)), float(np.log(b))) if p.log else (a, b)


def _bounds(p: Parameter, problem: Objective) -> tuple[float, float]:
    if not p.log:
        return p.bounds
    low, high = _searched_range(p, problem)
    if p.name in problem.law.linear:
        # A factor's size is set by its term, which no starting range knows: only what is no number is out.
        low, high = -300.0 + _BELOW, 300.0 - _ABOVE_UNIT
    above = _ABOVE_UNIT if p.unit or p.name in problem.law.linear else _ABOVE
    return (
        float(np.log(p.bounds[0])) if p.bounds[0] > 0 else low - _BELOW,
        float(np.log(p.bounds[1])) if p.bounds[1] < np.inf else high + above,
    )


def _inside(a: float, b: float, n: int) -> Array:
    return np.linspace(a, b, n) if n > 1 else np.array([(a + b) / 2])


def _even(n: int, dimensions: int, seed: int) -> Array:
    """n points that fill the unit cube: multiples of powers of the golden ratio's cousin (Roberts 2018,
    R_d)."""
    phi = 2.0
    for _ in range(60):
        phi = (1 + phi) ** (1 / (dimensions + 1))
    step = phi ** -np.arange(1.0, dimensions + 1)
    shift = np.random.default_rng(seed).random(dimensions)
    return (shift + np.outer(np.arange(1, n + 1), step)) % 1.0


def _solve_linear(problem: Objective, theta: Array, solved: tuple[str, ...]) -> Array:
    """Fill in the linear parameters by least squares on relative errors (on plain ones where those count)."""
    law = problem.law
    y = problem.y if problem.y.ndim == 1 else problem.y.mean(axis=0)
    tape = law.tape(0, "terms")
    parts = tape.run(tape.bind(problem.x), named(law, theta))
    shape = (len(theta), len(y))
    unit = np.abs(y) + 1e-300 if problem.scale == "log" else np.ones_like(y)
    X = np.stack([np.broadcast_to(part, shape) for part in parts[:-1]], axis=-1) / unit[:, None]
    target = (y - np.broadcast_to(parts[-1], shape)) / unit
    kept = np.isfinite(X).all(axis=(1, 2)) & np.isfinite(target).all(axis=1)
    if not kept.any():
        return theta
    X, target, theta = X[kept], target[kept], theta[kept]
    norms = np.maximum(np.linalg.norm(X, axis=1), 1e-300)
    positive = np.array([law.parameters[law.names.index(p)].log for p in solved])
    factors = _positive_least_squares(X / norms[:, None, :], target, positive)
    least = _EMPTY * np.linalg.norm(target, axis=1, keepdims=True) / np.sqrt(len(solved))
    factors = np.where(positive & (factors < least), least, factors) / norms
    for i, p in enumerate(solved):
        theta[:, law.names.index(p)] = (
            np.log(np.maximum(factors[:, i], 1e-300)) if positive[i] else factors[:, i]
        )
    return theta


def _positive_least_squares(X: Array, y: Array, positive: Array) -> Array:
    """Least squares for b problems [b, n, q] at once, factors of `positive` terms not below zero.

    The best of all sets of terms whose solution is positive: exact, for 2^q small solves.
    """
    b, _, q = X.shape
    G = np.matmul(X.transpose(0, 2, 1), X)
    g = np.matmul(X.transpose(0, 2, 1), y[:, :, None])[:, :, 0]
    best, gain = np.zeros((b, q)), np.zeros(b)
    may_leave = np.flatnonzero(positive)[:6]
    for left_out in product((False, True), repeat=len(may_leave)):
        active = np.ones(q, bool)
        active[may_leave[np.array(left_out, bool)]] = False
        if not active.any():
            continue
        A = G[:, active][:, :, active] + 1e-12 * np.eye(int(active.sum()))
        s = solve(A, g[:, active])
        good = (s[:, positive[active]] >= 0).all(axis=1)
        saved = (s * g[:, active]).sum(axis=1)  # reduction of the sum of squares
        better = good & (saved > gain)
        gain[better] = saved[better]
        full = np.zeros((b, q))
        full[:, active] = s
        best[better] = full[better]
    return best


def _distinct(minima: Minima) -> Array:
    """Rows, best first, without those that ended where a better one did."""
    out: list[int] = []
    for i in np.argsort(minima.cost, kind="stable"):
        if not any(np.allclose(minima.theta[i], minima.theta[j], atol=0.1) for j in out):
            out.append(int(i))
    return np.array(out)


__all__ = ["Law", "begin", "bounds", "minimise", "start_range"]

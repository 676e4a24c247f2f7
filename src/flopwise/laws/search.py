"""The minimum of a law's misfit over its parameters: many rough starts, few descents, one converged end.

Positive parameters are searched as logarithms. A step solves the damped normal equations (Levenberg and
Marquardt); far from the end with Huber weights, which cannot overshoot, near it with the true Hessian,
without which a loss that is nearly absolute deviations creeps. Parameters at a bound with the slope outwards
stay there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from flopwise.laws.law import Array, Law, Parameter

STEP = 1e-5
"""Of central differences, in logarithms of parameters: errors of 1e-10 of the derivative."""
NO_VALUE = 1e100
"""A residual where the law has no value: beyond all others, with a square that is still a number."""
_BELOW, _ABOVE = 12.0, 35.0
"""How far outside its starting range (e to this power) an unbounded positive parameter may go: a floor of
zero is a finding, not a place to get lost in."""


@dataclass(frozen=True)
class Problem:
    """A law with the data it is fitted to, and the loss."""

    law: Law
    x: Mapping[str, Array]
    y: Array
    delta: float
    """Where the Huber loss turns from squares to absolute values; infinity for squares alone."""
    scale: str
    """On which residuals are taken: "log" or "plain"."""

    def residuals(self, theta: Array) -> Array:
        """Prediction minus observation on the scale [n]; NO_VALUE where the law has none."""
        with np.errstate(all="ignore"):
            out = on_scale(self.scale, evaluate(self.law, theta, self.x)) - on_scale(self.scale, self.y)
        return np.clip(np.where(np.isfinite(out), out, NO_VALUE), -NO_VALUE, NO_VALUE)

    def cost(self, r: Array) -> float:
        """Sum over points of the Huber loss."""
        size = np.minimum(np.abs(r), self.delta)
        return float((size * (np.abs(r) - size / 2)).sum())

    def jacobian(self, theta: Array) -> Array:
        """Derivative [n, k] of the residuals."""
        return differences(self.residuals, theta)

    def bounds(self) -> tuple[Array, Array]:
        """Of the searched parameters."""
        pairs = np.array([_bounds(p, self.x) for p in self.law.parameters])
        return pairs[:, 0], pairs[:, 1]


@dataclass(frozen=True)
class Minimum:
    """Where a descent ended. `decrease`: what a further Newton step promises, relative to the cost."""

    theta: Array
    cost: float
    gradient: float
    decrease: float
    steps: int
    at_bound: tuple[bool, ...]

    @property
    def converged(self) -> bool:
        """Whether nothing more is to be gained."""
        return self.decrease < 1e-9


def minimise(problem: Problem, n_starts: int, seed: int) -> list[Minimum]:
    """Up to four minima, best first: random starts are screened, the best walked down, the last finished."""
    lower, upper = problem.bounds()
    starts = [np.clip(s, lower, upper) for s in _starts(problem, n_starts, seed)]
    starts.sort(key=lambda theta: problem.cost(problem.residuals(theta)))
    # Rough descents in squares: the valley is the same, and it is smoother.
    smooth = replace(problem, delta=np.inf)
    rough = sorted(
        (descend(smooth, s, 25, newton=False) for s in starts[: max(8, n_starts // 16)]), key=lambda m: m.cost
    )
    ends = [descend(problem, m.theta, 300) for m in _distinct(rough)[:4]]
    return sorted(ends, key=lambda m: m.cost)


def descend(problem: Problem, theta: Array, limit: int, newton: bool = True) -> Minimum:
    """Walk down from `theta`, at most `limit` steps."""
    lower, upper = problem.bounds()
    r = problem.residuals(theta)
    cost, damping, steps, true = problem.cost(r), 1e-3, 0, False
    decrease, gradient, stuck = np.inf, np.zeros_like(theta), np.zeros(len(theta), bool)
    while steps < limit:
        steps += 1
        J = problem.jacobian(theta)
        pull = np.clip(r, -problem.delta, problem.delta)
        gradient = J.T @ pull
        stuck = ((theta <= lower) & (gradient > 0)) | ((theta >= upper) & (gradient < 0))
        free = ~stuck
        weights = np.minimum(1.0, problem.delta / np.maximum(np.abs(r), 1e-300))
        safe = (J.T * weights) @ J
        H = _hessian(problem, theta, J, pull, r) if true else safe
        scale = np.maximum(np.diag(safe), 1e-12 * np.diag(safe).max() + 1e-300)
        moved = False
        while damping < 1e12:
            step = _solve(H + damping * np.diag(scale), gradient, free)
            if step is not None:
                ahead = np.clip(theta - step, lower, upper)
                r_ahead = problem.residuals(ahead)
                cost_ahead = problem.cost(r_ahead)
                if cost_ahead < cost:
                    moved = True
                    break
            damping = max(damping * 8, 1e-10)
        promised = float(gradient[free] @ _newton(H, gradient, free, scale))
        decrease = max(promised, 0.0) / max(cost, 1e-25 * len(r))
        if not moved:
            if newton and not true:
                true, damping = True, 1e-6
                continue
            break
        gain = (cost - cost_ahead) / max(cost, 1e-300)
        theta, r, cost = ahead, r_ahead, cost_ahead
        damping = max(damping / 10, 1e-14)
        if gain < 1e-3 and newton and not true:
            true, damping = True, max(damping, 1e-6)
        elif gain < (1e-15 if newton else 1e-6):
            break
    if cost < 1e-24 * len(r):
        decrease = 0.0  # an exact fit: what is left is rounding
    return Minimum(
        theta, cost, float(np.abs(gradient[~stuck]).max(initial=0.0)), decrease, steps, tuple(stuck.tolist())
    )


def _hessian(problem: Problem, theta: Array, J: Array, pull: Array, r: Array) -> Array:
    """Of the cost: curvature of the loss, and of the law where residuals pull."""
    inside = (np.abs(r) < problem.delta).astype(float)
    k, h = len(theta), 1e-4
    steps = h * np.eye(k)

    def both_ways(step: Array) -> float:
        return float(pull @ (problem.residuals(theta + step) - 2 * r + problem.residuals(theta - step)))

    own = np.array([both_ways(e) for e in steps])
    bend = np.diag(own)
    for i in range(k):
        for j in range(i):
            bend[i, j] = bend[j, i] = (both_ways(steps[i] + steps[j]) - own[i] - own[j]) / 2
    return (J.T * inside) @ J + bend / h**2


def _solve(H: Array, gradient: Array, free: Array) -> Array | None:
    """The step downhill among free parameters; None where H is not positive there."""
    step = np.zeros_like(gradient)
    try:
        L = np.linalg.cholesky(H[np.ix_(free, free)])
    except np.linalg.LinAlgError:
        return None
    step[free] = np.linalg.solve(L.T, np.linalg.solve(L, gradient[free]))
    return step


def _newton(H: Array, gradient: Array, free: Array, scale: Array) -> Array:
    """The Newton step, directions without curvature left out."""
    d = 1 / np.sqrt(scale[free])
    values, vectors = np.linalg.eigh(H[np.ix_(free, free)] * np.outer(d, d))
    kept = values > 1e-13
    along = (vectors.T @ (gradient[free] * d))[kept] / values[kept]
    return vectors[:, kept] @ along * d


def _distinct(minima: list[Minimum]) -> list[Minimum]:
    """Without those that ended where a better one did."""
    out: list[Minimum] = []
    for m in minima:
        if not any(np.allclose(m.theta, o.theta, atol=1e-2) for o in out):
            out.append(m)
    return out


def _starts(problem: Problem, n: int, seed: int) -> Iterable[Array]:
    """Random nonlinear parameters; linear ones by non-negative least squares on relative errors."""
    from scipy.optimize import nnls

    law, x, y = problem.law, problem.x, problem.y
    rng = np.random.default_rng(seed)
    ranges = {p.name: _start(p, x) for p in law.parameters}
    for _ in range(n):
        params = {}
        for p in law.parameters:
            a, b = ranges[p.name]
            params[p.name] = (
                float(np.exp(rng.uniform(np.log(a), np.log(b)))) if p.log else float(rng.uniform(a, b))
            )
        if law.terms is not None:
            with np.errstate(all="ignore"):
                X = law.terms(params, x) / y[:, None]
            if not np.isfinite(X).all():
                continue
            norms = np.maximum(np.linalg.norm(X, axis=0), 1e-300)
            solved, _ = nnls(X / norms, np.ones(len(y)))
            # An empty term starts at a hundredth of the whole: at zero it would have no slope to leave by.
            share = np.maximum(solved, 0.01 * np.sqrt(len(y)))
            params |= {name: float(v) for name, v in zip(law.linear, share / norms, strict=True)}
        yield pack(law, params)


def _start(p: Parameter, x: Mapping[str, Array]) -> tuple[float, float]:
    """The range starts are drawn from, in the parameter's units."""
    a, b = p.start
    if p.unit:
        values = x[p.unit]
        middle = float(np.exp(np.log(values[values > 0]).mean()))
        return a * middle, b * middle
    return a, b


def _bounds(p: Parameter, x: Mapping[str, Array]) -> tuple[float, float]:
    if not p.log:
        return p.bounds
    low, high = np.log(_start(p, x))
    return (
        float(np.log(p.bounds[0])) if p.bounds[0] > 0 else low - _BELOW,
        float(np.log(p.bounds[1])) if p.bounds[1] < np.inf else high + _ABOVE,
    )


def differences(function, theta: Array, h: float = STEP) -> Array:  # type: ignore[no-untyped-def]
    """Derivative of an array by the searched parameters, last axis (central differences)."""
    steps = h * np.eye(len(theta))
    return np.stack([(function(theta + e) - function(theta - e)) / (2 * h) for e in steps], axis=-1)


def on_scale(scale: str, values: Array) -> Array:
    """Values or their logarithms."""
    return np.log(values) if scale == "log" else values


def evaluate(law: Law, theta: Array, x: Mapping[str, Array]) -> Array:
    """The law at searched parameters."""
    return law.function(unpack(law, theta), x)


def pack(law: Law, params: Mapping[str, float]) -> Array:
    """Parameters as searched."""
    return np.array(
        [np.log(max(params[p.name], 1e-300)) if p.log else params[p.name] for p in law.parameters]
    )


def unpack(law: Law, theta: Array) -> dict[str, float]:
    """Parameters by name."""
    return {
        p.name: float(np.exp(min(v, 700.0))) if p.log else float(v)
        for p, v in zip(law.parameters, theta, strict=True)
    }

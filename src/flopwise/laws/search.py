"""The minimum of an objective: a descent for many members at once.

A step solves the damped normal equations (Levenberg and Marquardt), scaled so that parameters weigh alike.
Far from the end they have Huber weights, which cannot overshoot; near it the true second derivative, without
which a loss that is nearly absolute deviations creeps. It ends when the gradient is exhausted: when no step,
however damped, makes the cost smaller. Parameters at a bound with the slope outwards stay there.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from flopwise.laws.law import Array
from flopwise.laws.objective import Objective

NOTHING = 1e-13
"""Share of the cost below which a promised decrease is lost in rounding."""
ENOUGH = 1e-12
"""Share of the cost that a Newton step gained last: the next would gain about its square."""
ELEMENTS = 1 << 13
"""Residuals computed together, members times rows: few enough that their derivatives fit the processor's
cache, enough that the time goes into arithmetic. A member that ends makes room for the next."""


@dataclass(frozen=True)
class Minima:
    """Where b descents ended: `theta` [b, k], `cost` [b].

    `decrease`: what a further Newton step promises, relative to the cost [b]; `gradient`: its largest entry
    among free parameters [b]; `stuck`: parameters at a bound [b, k].
    """

    theta: Array
    cost: Array
    gradient: Array
    decrease: Array
    steps: Array
    stuck: Array

    @property
    def converged(self) -> Array:
        """Whether nothing more is to be gained [b]."""
        return self.decrease < 1e-9

    def take(self, rows: Array) -> Minima:
        """Of these members."""
        return Minima(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


def descend(
    problem: Objective, theta: Array, lower: Array, upper: Array, limit: int = 300, newton: bool = True,
    fixed: Array | None = None, sure: bool = False,
) -> Minima:  # fmt: skip
    """Walk down from `theta` [b, k] within bounds [k], at most `limit` steps.

    `fixed` [k] or [b, k]: parameters that stay. `sure`: the start is near the end, so that the true curvature
    is used at once.
    """
    _keep_memory()
    return _Descent(problem, theta, lower, upper, limit, newton, fixed, sure).run()


@cache
def _keep_memory() -> None:
    """Have glibc keep freed arrays of up to 16 MB for the next step instead of returning them to the system.

    It raises that limit to the size of what it has last seen freed; untouched, this takes no memory.
    """
    np.empty(2**24, np.uint8)


class _Descent:
    """The state of one batch on its way down."""

    def __init__(
        self, problem: Objective, theta: Array, lower: Array, upper: Array, limit: int, newton: bool,
        fixed: Array | None, sure: bool,
    ):  # fmt: skip
        b, k = theta.shape
        self.problem, self.limit, self.newton = problem, limit, newton
        self.lower, self.upper = lower, upper
        self.eye = np.eye(k)
        self.theta = np.clip(theta, lower, upper)
        self.fixed = np.broadcast_to(np.zeros(k, bool) if fixed is None else fixed, (b, k))
        self.cost = problem.cost(self.theta)
        self.damping = np.full(b, 1e-5)
        self.true = np.full(b, sure)
        self.steps = np.zeros(b, int)
        self.gradient = np.zeros((b, k))
        self.stuck = np.zeros((b, k), bool)
        self.decrease = np.full(b, np.inf)

    def run(self) -> Minima:
        """Until every member is at its end."""
        waiting = np.arange(len(self.theta))
        going = waiting[:0]
        n = self.problem.y.shape[-1]
        while len(going) or len(waiting):
            room = max(1, ELEMENTS // n) - len(going)
            going, waiting = np.concatenate([going, waiting[:room]]), waiting[room:]
            going = self._step(going)
            going = going[self.steps[going] < self.limit]
        exact = (self.problem.scale != "nll") & (self.cost < 1e-24 * n * self.problem.unit)
        self.decrease[exact] = 0.0  # what is left is rounding
        free = ~self.stuck & ~self.fixed
        largest = np.abs(np.where(free, self.gradient, 0.0)).max(axis=1, initial=0.0)
        return Minima(self.theta, self.cost, largest, self.decrease, self.steps, self.stuck & ~self.fixed)

    def _step(self, rows: Array) -> Array:
        """One step for these members; those that go on."""
        problem = self.problem.member(rows)
        theta, true = self.theta[rows], self.true[rows]
        self.steps[rows] += 1
        local = problem.local(theta, true)
        stuck = ((theta <= self.lower) & (local.gradient > 0)) | (
            (theta >= self.upper) & (local.gradient < 0)
        )
        free = ~stuck & ~self.fixed[rows]
        gradient = np.where(free, local.gradient, 0.0)
        self.gradient[rows], self.stuck[rows] = local.gradient, stuck
        most = local.diagonal.max(axis=1, keepdims=True)
        unit = np.sqrt(np.maximum(local.diagonal, 1e-12 * most + 1e-300))
        both = free[:, :, None] & free[:, None, :]
        A = np.where(both, local.curvature / (unit[:, :, None] * unit[:, None, :]), self.eye)
        g = gradient / unit
        if not (np.isfinite(A.sum()) and np.isfinite(g.sum())):
            bad = ~(np.isfinite(A).all(axis=(1, 2)) & np.isfinite(g).all(axis=1))
            A[bad], g[bad] = self.eye, 0.0
        moved = self._descend_once(problem, rows, A, g, unit)
        gain = (local.cost - self.cost[rows]) / np.maximum(np.abs(local.cost), 1e-300)
        # A member that does not move, or hardly, changes to the true curvature; with it, it has ended.
        turns = self.newton & ~true & (~moved | (gain < 1e-3))
        ends = ~turns & (~moved | (gain < (ENOUGH if self.newton else 1e-6)))
        last = ends | (self.steps[rows] >= self.limit)
        if last.any():
            self._promise(rows[last], A[last], g[last], local.cost[last])
        self.true[rows[turns]] = True
        self.damping[rows[turns]] = np.where(moved[turns], np.maximum(self.damping[rows[turns]], 1e-6), 1e-6)
        return rows[~ends]

    def _descend_once(self, problem: Objective, rows: Array, A: Array, g: Array, unit: Array) -> Array:
        """Damp each member's step until it goes down [b]: whether it did."""
        moved = np.zeros(len(rows), bool)
        tries = np.arange(len(rows))
        diagonal = np.arange(A.shape[1])
        while len(tries):
            members = rows[tries]
            here, damped = self.theta[members], A[tries]
            damped[:, diagonal, diagonal] += self.damping[members][:, None]
            scaled = solve(damped, g[tries])
            promised = 0.5 * np.einsum("bk,bk->b", scaled, g[tries])
            ahead = np.minimum(np.maximum(here - scaled / unit[tries], self.lower), self.upper)
            if not np.isfinite(ahead.sum()):
                ahead = np.where(np.isfinite(ahead), ahead, here)
            cost = (problem if len(tries) == len(rows) else problem.member(tries)).cost(ahead)
            before = self.cost[members]
            good = (promised > 0) & (cost < before)
            # Where the true curvature promises less than rounding, trying harder would gain nothing.
            over = self.true[members] & (promised > 0) & (promised < NOTHING * np.abs(before))
            taken = members[good]
            self.theta[taken], self.cost[taken] = ahead[good], cost[good]
            self.damping[taken] = np.maximum(self.damping[taken] / 10, 1e-14)
            moved[tries[good]] = True
            worse = members[~good]
            self.damping[worse] = np.maximum(self.damping[worse] * 8, 1e-10)
            tries = tries[~good & ~over & (self.damping[members] < 1e12)]
        return moved

    def _promise(self, rows: Array, A: Array, g: Array, cost: Array) -> None:
        """What a full Newton step would still gain, directions without curvature left out."""
        values, vectors = np.linalg.eigh(A)
        along = np.einsum("bij,bi->bj", vectors, g)
        kept = values > 1e-13
        promised = (np.where(kept, along**2, 0.0) / np.where(kept, values, 1.0)).sum(axis=1)
        floor = 1e-25 * self.problem.y.shape[-1] * self.problem.unit
        self.decrease[rows] = np.maximum(promised, 0.0) / np.maximum(np.abs(cost), floor)


def solve(A: Array, g: Array) -> Array:
    """Solutions [b, k] of A s = g; zero where A is singular."""
    try:
        return np.linalg.solve(A, g[:, :, None])[:, :, 0]
    except np.linalg.LinAlgError:
        out = np.zeros_like(g)
        for i in range(len(g)):
            try:
                out[i] = np.linalg.solve(A[i], g[i])
            except np.linalg.LinAlgError:
                continue
        return out

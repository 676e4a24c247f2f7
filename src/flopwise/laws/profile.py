"""Profile intervals: how far a parameter can go while all the others do their best to follow.

For each of a parameter's values the others are fitted anew; where the objective has risen by more than noise
explains, the interval ends. Unlike the delta method it needs no straight lines: an interval may be lopsided,
or open where the objective never rises, and then the data do not identify the parameter.

What a rise means is scaled so that, were the law linear, the interval would be the delta method's with its
covariance (sandwich, clusters and Student's t included): the adjusted likelihood ratio of Chandler and Bate
(2007, Biometrika 94), one parameter at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flopwise.laws.law import Array
from flopwise.laws.objective import Objective
from flopwise.laws.search import descend

STEPS = np.array([0.4, 0.8, 1.2, 1.6, 2.0, 2.5, 3.2])
"""Where a profile is taken, in standard errors to either side."""
FURTHER = 6
"""Times that an end which is not reached is looked for twice as far."""


@dataclass(frozen=True)
class Profile:
    """A parameter's profile: `values` as searched, rising, and the signed root `z` of the scaled rise there.

    z is -t at the lower end of an interval and t at the upper, t being Student's.
    """

    values: Array
    z: Array
    limits: tuple[float, float]
    """Bounds of the search."""

    def interval(self, t: float) -> tuple[float, float]:
        """Where z passes -t and t; a bound of the search where it never does."""
        inner = np.argsort(self.values)
        values, z = self.values[inner], np.maximum.accumulate(self.z[inner])
        low = self.limits[0] if z[0] > -t else float(np.interp(-t, z, values))
        high = self.limits[1] if z[-1] < t else float(np.interp(t, z, values))
        return low, high

    def open_ends(self, t: float) -> tuple[bool, bool]:
        """Whether no end was found below, above."""
        return bool(self.z.min() > -t), bool(self.z.max() < t)


def profile(
    problem: Objective, theta: Array, cost: float, covariance: Array, curvature: Array, lower: Array,
    upper: Array, which: list[int], t: float,
) -> list[Profile]:  # fmt: skip
    """Profiles of the parameters `which` around a fit `theta` [k], out to beyond `t`."""
    from flopwise.laws.uncertainty import invert

    naive = invert(curvature)
    k = len(theta)
    variance = np.maximum(np.diag(covariance), 1e-24 * np.maximum(theta**2, 1e-6))
    scale = variance / np.maximum(np.diag(naive), 1e-300)
    # The way the others follow, in the linear case.
    along = naive / np.diag(naive)
    # A step beyond e^3 is no news about a positive parameter, and the linear way is no guide there.
    width = np.minimum(np.sqrt(variance), 3.0 * np.where(_positive(problem), 1.0, 1 + np.abs(theta)))
    found: dict[int, dict[float, float]] = {i: {float(theta[i]): 0.0} for i in which}
    ends: dict[tuple[int, int], Array] = {(i, s): theta for i in which for s in (-1, 1)}
    pending = [(i, s, float(m)) for i in which for s in (-1, 1) for m in STEPS * max(t / 2.0, 0.7)]
    for attempt in range(FURTHER + 1):
        starts, fixed, keys = [], [], []
        for i, side, m in pending:
            value = float(np.clip(theta[i] + side * m * width[i], lower[i], upper[i]))
            begin = ends[i, side] if attempt else theta
            start = begin + along[:, i] * (value - begin[i])
            start[i] = value
            starts.append(start)
            fixed.append(np.arange(k) == i)
            keys.append((i, side))
        reached = descend(
            problem, np.array(starts), lower, upper, limit=100,
            fixed=np.array(fixed), sure=True,
        )  # fmt: skip
        for (i, side), at, c in zip(keys, reached.theta, reached.cost, strict=True):
            z = side * float(np.sqrt(2 * max(c - cost, 0.0) / scale[i]))
            found[i][float(at[i])] = z
            if side * (at[i] - ends[i, side][i]) >= 0:
                ends[i, side] = at
        # Once more, and farther, where the end has not been passed.
        pending = []
        for (i, side), at in ends.items():
            zs = [side * z for v, z in found[i].items() if side * (v - theta[i]) > 0]
            bound = lower[i] if side < 0 else upper[i]
            if max(zs, default=0.0) < t and abs(at[i] - bound) > 1e-9:
                reach = abs(at[i] - theta[i]) / width[i]
                pending += [(i, side, 1.5 * reach), (i, side, 2.2 * reach)]
        if not pending:
            break
    out = []
    for i in which:
        values = np.array(sorted(found[i]))
        out.append(
            Profile(values, np.array([found[i][v] for v in values]), (float(lower[i]), float(upper[i])))
        )
    return out


def _positive(problem: Objective) -> Array:
    return np.array([p.log for p in problem.law.parameters])

"""Profile intervals: how far a parameter can go while all the others do their best to follow.

For each of a parameter's values the others are fitted anew; where the objective has risen by more than noise
explains, the interval ends. Unlike the delta method it needs no straight lines: an interval may be lopsided,
or open where the objective never rises, and then the data do not identify the parameter.

What a rise means is scaled so that, were the law linear, the interval would be the delta method's with its
covariance (sandwich, clusters and Student's t included): the adjusted likelihood ratio of Chandler and Bate
(2007, Biometrika 94), one parameter at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from flopwise.laws.law import Array
from flopwise.laws.objective import Objective
from flopwise.laws.search import descend
from flopwise.laws.uncertainty import invert

STEPS = np.array([0.4, 0.8, 1.2, 1.6, 2.0, 2.5, 3.2])
"""Where a profile is taken, in standard errors to either side."""
FURTHER, NARROWER = 6, 8
"""Times that an end which is not reached is looked for twice as far, and that a steep rise is halved."""
RISE, FLAT = 0.7, 0.01
"""Of z: between neighbours above which a place between is looked up, and below which a profile has ended."""

FINE = 0.15
"""Standard errors between neighbours at which a jump of the objective is left as it is."""


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
        z = np.maximum.accumulate(self.z)
        low = self.limits[0] if z[0] > -t else float(np.interp(-t, z, self.values))
        high = self.limits[1] if z[-1] < t else float(np.interp(t, z, self.values))
        return low, high

    def open_ends(self, t: float) -> tuple[bool, bool]:
        """Whether no end was found below, above."""
        return bool(self.z.min() > -t), bool(self.z.max() < t)


def profile(
    problem: Objective, theta: Array, cost: float, covariance: Array, curvature: Array, lower: Array,
    upper: Array, which: list[int], t: float,
) -> list[Profile]:  # fmt: skip
    """Profiles of the parameters `which` around a fit `theta` [k], out to beyond `t`."""
    naive = invert(curvature)
    k = len(theta)
    variance = np.maximum(np.diag(covariance), 1e-24 * np.maximum(theta**2, 1e-6))
    scale = variance / np.maximum(np.diag(naive), 1e-300)
    # A term that has vanished has no variance of its own; its rise counts like the others'.
    gone = np.diag(covariance) <= 0
    if gone.any():
        scale[gone] = np.median(scale[~gone]) if not gone.all() else 1.0
    # The way the others follow, in the linear case.
    along = naive / np.diag(naive)
    # A step beyond e^3 is no news about a positive parameter, and the linear way is no guide there.
    most = 3.0 * np.where(problem.law.positive, 1.0, 1 + np.abs(theta))
    width = np.where(gone, most, np.minimum(np.sqrt(variance), most))
    found: dict[int, dict[float, float]] = {i: {float(theta[i]): 0.0} for i in which}
    # Every place reached so far whose z is no further than needed: the next starts from the nearest.
    near: dict[tuple[int, int], dict[float, Array]] = {
        (i, s): {float(theta[i]): theta} for i in which for s in (-1, 1)
    }
    pending = [(i, s, float(m) * width[i]) for i in which for s in (-1, 1) for m in STEPS * max(t / 2.0, 0.7)]
    for attempt in range(FURTHER + NARROWER):
        starts, keys = [], []
        for i, side, away in pending:
            value = float(np.clip(theta[i] + side * away, lower[i], upper[i]))
            known = near[i, side]
            begin = known[min(known, key=lambda v: abs(v - value))] if attempt else theta
            start = begin + along[:, i] * (value - begin[i])
            start[i] = value
            starts.append(start)
            keys.append((i, side))
        reached = descend(
            problem, np.array(starts), lower, upper, limit=100,
            fixed=np.array([np.arange(k) == i for i, _ in keys]), sure=True,
        )  # fmt: skip
        for (i, side), at, c in zip(keys, reached.theta, reached.cost, strict=True):
            if not (np.isfinite(at).all() and np.isfinite(c)):
                continue
            z = side * float(np.sqrt(2 * max(c - cost, 0.0) / scale[i]))
            found[i][float(at[i])] = z
            if abs(z) < t:
                near[i, side][float(at[i])] = at
        pending = [
            (i, side, away)
            for i, side in near
            for away in _wanted(
                found[i],
                float(theta[i]),
                side,
                t,
                (lower[i], upper[i]),
                attempt,
                FINE * width[i],
                bool(gone[i]),
            )
        ]
        if not pending:
            break
    out = []
    for i in which:
        values = np.array(sorted(found[i]))
        rise = np.array([found[i][v] for v in values])
        out.append(Profile(values, rise, (float(lower[i]), float(upper[i]))))
    return out


def _wanted(
    found: Mapping[float, float], middle: float, side: int, t: float, limits: tuple[float, float],
    attempt: int, fine: float, patient: bool,
) -> list[float]:  # fmt: skip
    """How far away from the fit the profile must still be taken on one side.

    Farther, while the end has not been passed and the profile still rises; and between two places that are
    more than `fine` apart and between which it rises by much. `patient`: the term has vanished, so that a
    flat stretch is to be expected before a rise.
    """
    there = sorted((side * (v - middle), side * z) for v, z in found.items() if side * (v - middle) >= 0)
    out = [
        (a + b) / 2
        for (a, low), (b, high) in pairwise(there)
        if low < t and high - low > RISE and b - a > fine
    ]
    far, top = there[-1]
    passed = max(z for _, z in there) >= t
    end = abs((limits[0] if side < 0 else limits[1]) - middle)
    flat = not patient and len(there) > 2 and attempt > 1 and top - there[-2][1] < FLAT
    if attempt < FURTHER and not passed and not flat and far < end - 1e-9:
        out += [1.5 * far, 2.2 * far]
    return [away for away in out if away > 0]

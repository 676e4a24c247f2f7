"""Chances and quantiles of the normal distribution and of Student's t, without scipy's 0.2 s of import."""

from __future__ import annotations

from functools import lru_cache
from math import atan, cos, erfc, exp, isfinite, lgamma, log, pi, sqrt, tan
from statistics import NormalDist


def ndtr(x: float) -> float:
    """The chance that a standard normal number is below `x`."""
    return 0.5 * erfc(-x / sqrt(2))


def ndtri(p: float) -> float:
    """What a standard normal number is below with chance `p`."""
    return NormalDist().inv_cdf(p)


@lru_cache(maxsize=1000)
def stdtrit(dof: float, p: float) -> float:
    """What Student's t with `dof` degrees of freedom is below with chance `p`; the normal's for infinity.

    The upper tail is integrated by Simpson's rule after t = sqrt(dof) tan(u), which makes its density a power
    of a cosine over a finite range; Newton steps on that, from the normal quantile.
    """
    if not isfinite(dof):
        return ndtri(p)
    if p < 0.5:
        return -stdtrit(dof, 1 - p)
    front = exp(lgamma((dof + 1) / 2) - lgamma(dof / 2)) / sqrt(pi)
    low, high = 0.0, pi / 2  # of u; the chance of |t| below it is 2 front * integral of cos^(dof - 1)
    u = atan(ndtri(p) / sqrt(dof))
    for _ in range(100):
        excess = front * _powers(u, dof - 1) - (p - 0.5)
        low, high = (u, high) if excess < 0 else (low, u)
        ahead = u - excess / max(front * cos(u) ** (dof - 1), 1e-300)
        ahead = ahead if low < ahead < high else (low + high) / 2
        if abs(ahead - u) < 1e-14:
            break
        u = ahead
    return sqrt(dof) * tan(u)


def _powers(u: float, power: float, n: int = 2000) -> float:
    """The integral of cos(v)^power from 0 to u."""
    h = u / n
    values = [exp(power * log(cos(i * h))) if i else 1.0 for i in range(n + 1)]
    return h / 3 * (values[0] + 4 * sum(values[1:n:2]) + 2 * sum(values[2 : n - 1 : 2]) + values[n])

"""The lowest loss of one budget: a curve in log N through its runs, and how well its minimum is known."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from flopwise.laws.law import Array

METHODS = ("parabola", "akima")
SCALES = ("log", "plain")
DRAWS = 300
"""Noisy copies of a curve behind an interpolated minimum's error."""
_PRIOR = 4.0
"""Degrees of freedom that the noise of all budgets together counts for in each one's own."""


@dataclass(frozen=True)
class Curve:
    """Runs of one budget, by size: log N [n], loss on its scale [n], log of C / (N D) [n]."""

    C: float
    x: Array
    y: Array
    k: Array
    repeats: float
    """Sum of squares of runs of one size around their mean, on the loss's scale."""
    repeats_dof: int
    rows: int

    def factor(self, x: float) -> float:
        """Log of C / (N D) at log N = `x`, by a line through the runs' own (6 wherever C = 6 N D)."""
        u = self.x - self.x.mean()
        slope = float(u @ self.k) / float(u @ u) if len(u) > 1 else 0.0
        return float(self.k.mean()) + slope * (x - float(self.x.mean()))


@dataclass(frozen=True)
class Budget:
    """The optimum of one budget; N, D and loss are None where there is none to be told (`warning` says why).

    `se`: standard error of log N (and of log D, where D = C / (6 N)); `se_loss` of log loss.
    """

    C: float
    N: float | None
    D: float | None
    loss: float | None
    se: float | None
    se_loss: float | None
    n: int
    method: str
    warning: str = ""

    @property
    def usable(self) -> bool:
        """Whether it has an optimum for the power laws."""
        return self.N is not None


@dataclass(frozen=True)
class Minimum:
    """Where a curve is lowest: log N, loss on its scale; `why` says what forbids to use it, "" if nothing."""

    x: float
    y: float
    why: str = ""


def lowest(x: Array, y: Array, method: str) -> Minimum:
    """Minimum of the curve through the points, x ascending."""
    if method == "akima":
        return _akima(x, y)
    _, (c, b, a) = _parabola(x, y)
    rise, rounding = a * float(np.ptp(x)) ** 2, 1e-12 * float(np.abs(y).max())
    if rise < rounding:
        how = "opens downward" if rise < -rounding else "is flat"
        return Minimum(np.nan, np.nan, f"the parabola {how}: no minimum among these sizes")
    u = -b / (2 * a)
    at = float(x.mean() + u)
    if not x[0] < at < x[-1]:
        side = "below the smallest" if at <= x[0] else "above the largest"
        return Minimum(at, np.nan, f"the minimum lies {side} size: add sizes on that side")
    return Minimum(at, float(c + b * u + a * u * u))


def _parabola(x: Array, y: Array) -> tuple[Array, Array]:
    """The terms 1, u, u^2 of u = x less its mean [n, 3], and their coefficients by least squares [3]."""
    u = x - x.mean()
    X = np.stack([np.ones_like(u), u, u * u], axis=1)
    return X, np.linalg.lstsq(X, y, rcond=None)[0]


def _akima(x: Array, y: Array) -> Minimum:
    at, values = (v[0] for v in _akima_minima(x, y[:, None]))
    if at in (x[0], x[-1]):
        side = "smallest" if at == x[0] else "largest"
        return Minimum(float(at), np.nan, f"the loss is lowest at the {side} size: add sizes beyond it")
    return Minimum(float(at), float(values))


def _akima_minima(x: Array, Y: Array) -> tuple[Array, Array]:
    """Where the interpolations of each column of Y [n, m] are lowest between first and last x, and how low.

    Each piece is a cubic c0 u^3 + c1 u^2 + c2 u + c3 in u = x - x_i: lowest at a knot or where it is flat.
    """
    from scipy.interpolate import Akima1DInterpolator

    c0, c1, c2, c3 = Akima1DInterpolator(x, Y).c
    width = np.diff(x)[:, None]
    with np.errstate(all="ignore"):
        root = np.sqrt(c1 * c1 - 3 * c0 * c2)
        # The larger root without cancellation, the other by their product; a straight slope has neither.
        q = -(c1 + np.copysign(root, c1))
        flats = [q / (3 * c0), c2 / q]
        places, lows = [np.broadcast_to(x[:, None], Y.shape)], [Y]
        for u in flats:
            inside = (u > 0) & (u < width)
            v = np.where(inside, u, 0.0)
            places.append(x[:-1, None] + v)
            lows.append(np.where(inside, ((c0 * v + c1) * v + c2) * v + c3, np.inf))
    at, low = np.concatenate(places), np.concatenate(lows)
    best = low.argmin(axis=0)
    columns = np.arange(Y.shape[1])
    return at[best, columns], low[best, columns]


def windowed(curve: Curve, window: float | None) -> Curve:
    """Only sizes within a factor `window` of the one with the lowest loss."""
    if window is None:
        return curve
    kept = np.abs(curve.x - curve.x[np.argmin(curve.y)]) <= np.log(window) * (1 + 1e-12)
    return replace(curve, x=curve.x[kept], y=curve.y[kept], k=curve.k[kept], rows=int(kept.sum()))


def noises(curves: list[Curve], method: str, noise: float | None) -> list[float]:
    """Standard deviation of single points of each budget, on the loss's scale.

    Given (`noise`); or from runs of one size that differ by seed, if there are four or more to spare; or from
    what a parabola leaves over (akima: how far points are from the cubic through the two on either side, in
    the manner of Gasser et al. 1986). A budget's own variance is moderated by that of all, which counts as
    four degrees of freedom: one lucky curve of five points must not outweigh all others.
    """
    if noise is not None:
        return [noise] * len(curves)
    seeds = sum(c.repeats_dof for c in curves)
    if seeds >= 4:
        single = float(np.sqrt(sum(c.repeats for c in curves) / seeds))
        return [single * float(np.sqrt(len(c.x) / c.rows)) for c in curves]  # points are means of their seeds
    left, dof = [], []
    for c in curves:
        if method == "akima" and len(c.x) > 4:
            r = _pseudo_residuals(c.x, c.y)
            spare = len(r)
        else:
            X, beta = _parabola(c.x, c.y)
            r = c.y - X @ beta
            spare = len(r) - 3
        left.append(float(r @ r))
        dof.append(spare)
    pooled = sum(left) / max(sum(dof), 1)
    return [float(np.sqrt((rss + _PRIOR * pooled) / (d + _PRIOR))) for rss, d in zip(left, dof, strict=True)]


def _pseudo_residuals(x: Array, y: Array) -> Array:
    """Of all points but two at each end [n - 4]: distance from the cubic through the two neighbours on either
    side, divided by what one unit of noise makes of it."""
    out = []
    for i in range(2, len(x) - 2):
        near = np.array([i - 2, i - 1, i + 1, i + 2])
        w = np.array([np.prod([(x[i] - x[k]) / (x[j] - x[k]) for k in near if k != j]) for j in near])
        out.append((y[i] - w @ y[near]) / np.sqrt(1 + w @ w))
    return np.array(out)


def errors(curve: Curve, method: str, sigma: float, seed: int) -> tuple[float, float, str]:
    """Standard errors of log N and of the loss (on its scale) at the minimum, and a doubt in words or ""."""
    if method == "akima":
        return _noisy(curve, sigma, seed)
    X, (_, b, a) = _parabola(curve.x, curve.y)
    covariance = sigma**2 * np.linalg.inv(X.T @ X)
    at = -b / (2 * a)
    of_x = np.array([0.0, -1 / (2 * a), b / (2 * a * a)])
    of_y = np.array([1.0, at, at * at])  # at a minimum the loss does not feel where it lies
    se = float(np.sqrt(of_x @ covariance @ of_x))
    curved = a / np.sqrt(covariance[2, 2]) if sigma else np.inf
    doubt = "the curvature is within three standard errors of none" if curved < 3 else ""
    return se, float(np.sqrt(of_y @ covariance @ of_y)), doubt


def _noisy(curve: Curve, sigma: float, seed: int) -> tuple[float, float, str]:
    """By minima of copies with noise added; draws whose minimum is at the edge widen the error."""
    if sigma == 0:
        return 0.0, 0.0, ""
    copies = curve.y[:, None] + sigma * np.random.default_rng(seed).standard_normal((len(curve.y), DRAWS))
    at, low = _akima_minima(curve.x, copies)
    inside = (at > curve.x[0]) & (at < curve.x[-1])
    if inside.sum() < DRAWS // 2:
        return np.inf, np.inf, "with noise the minimum mostly falls on the edge of the sizes"
    widen = DRAWS / int(inside.sum())
    return (
        float(np.std(at[inside])) * widen, float(np.std(low[inside])) * widen,
        f"{1 - 1 / widen:.0%} of noisy copies have no minimum inside the sizes" if widen > 1.1 else "",
    )  # fmt: skip


def optimum(curve: Curve, method: str, scale: str, sigma: float, seed: int = 0) -> Budget:
    """The optimum of one budget, with its errors, or why there is none."""
    best = lowest(curve.x, curve.y, method)
    if best.why:
        return Budget(curve.C, None, None, None, None, None, curve.rows, method, best.why)
    se, se_y, doubt = errors(curve, method, sigma, seed)
    if not np.isfinite(se):
        return Budget(curve.C, None, None, None, None, None, curve.rows, method, doubt)
    loss = float(np.exp(best.y) if scale == "log" else best.y)
    if loss <= 0:
        why = "the curve's minimum is not a loss above 0"
        return Budget(curve.C, None, None, None, None, None, curve.rows, method, why)
    inner = curve.x[1] <= best.x <= curve.x[-2]
    words = [doubt] * bool(doubt) + ["only one size lies beyond the minimum"] * (not inner)
    N = float(np.exp(best.x))
    D = curve.C / (float(np.exp(curve.factor(best.x))) * N)
    return Budget(
        curve.C, N, D, loss, se, se_y if scale == "log" else se_y / loss, curve.rows, method, "; ".join(words)
    )

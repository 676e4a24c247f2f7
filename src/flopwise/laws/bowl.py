"""A quadratic in one or two logarithms of settings: where its minimum lies, and how surely.

The interval of the minimum is Fieller's (1954): all places at which the fitted slope is not told from zero.
Unlike the estimate's standard error it knows when there is hardly a minimum at all; then it is open.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flopwise.laws.law import Array


@dataclass(frozen=True)
class Quadratic:
    """level + g'x + x'Hx / 2 for k = 1 or 2 settings x, by least squares.

    `level`: mean over blocks at x = 0. `inverse`: covariance of (g, upper triangle of H by rows) for noise of
    variance 1 [p, p]. `box` [k, 2]: range of the settings.
    """

    level: float
    g: Array
    H: Array
    inverse: Array
    rss: float
    dof: int
    box: Array

    @property
    def convex(self) -> bool:
        """Whether it has a minimum."""
        return bool(np.linalg.eigvalsh(self.H)[0] > 0)

    @property
    def at(self) -> Array:
        """Where it is flat [k]: the minimum, if it is convex."""
        return -np.linalg.solve(self.H, self.g)

    @property
    def lowest(self) -> float:
        """Its value there."""
        return float(self.level + self.g @ self.at / 2)

    def covariance(self, sigma: float) -> Array:
        """Of `at` [k, k] for noise `sigma`: H s + g = 0 gives ds = -H^-1 (dg + dH s)."""
        k, s = len(self.g), self.at
        by = np.zeros((k, len(self.inverse)))
        by[:, :k] = np.eye(k)
        for column, (i, j) in enumerate(_upper(k), k):
            by[i, column] += s[j]
            if i != j:
                by[j, column] += s[i]
        D = -np.linalg.solve(self.H, by)
        return sigma**2 * D @ self.inverse @ D.T

    def alone(self, i: int, given: float | None = None) -> tuple[Array, Array]:
        """Slope of setting i as (constant, per unit) [2], and its covariance for unit noise [2, 2].

        The other setting, if there is one, is at its best for each value of i, or held at `given`.
        """
        k = len(self.g)
        if k == 1:
            return np.array([self.g[0], self.H[0, 0]]), self.inverse
        j = 1 - i
        own, other, cross = 2 + 2 * i, 2 + 2 * j, 3  # columns of the upper triangle 00, 01, 11
        g, h, hj, c = self.g, self.H[i, i], self.H[j, j], self.H[0, 1]
        by = np.zeros((2, 5))
        if given is not None:
            line = np.array([g[i] + c * given, h])
            by[0, [i, cross]] = 1.0, given
            by[1, own] = 1.0
        else:
            line = np.array([g[i] - c * g[j] / hj, h - c * c / hj])
            by[0, [i, j, cross, other]] = 1.0, -c / hj, -g[j] / hj, c * g[j] / hj**2
            by[1, [own, cross, other]] = 1.0, -2 * c / hj, c * c / hj**2
        return line, by @ self.inverse @ by.T

    def value(self, x: Array) -> float:
        """At settings [k]."""
        return float(self.level + self.g @ x + x @ self.H @ x / 2)


def quadratic(x: Array, y: Array, blocks: Array) -> Quadratic | None:
    """Fit to settings `x` [k, n] and values `y` [n]; each block of `blocks` [n] has a level of its own.

    None where the settings do not determine a quadratic with something left to judge it by.
    """
    k, n = x.shape
    labels = np.unique(blocks, return_inverse=True)[1]
    shape = [*x, *(x[i] * x[j] * (0.5 if i == j else 1.0) for i, j in _upper(k))]
    levels = (labels[:, None] == np.arange(labels.max() + 1)).astype(float)
    X = np.column_stack([*shape, levels])
    p = len(shape)
    if n < X.shape[1] + 1 or np.linalg.matrix_rank(X, tol=1e-9 * float(np.linalg.norm(X))) < X.shape[1]:
        return None
    beta, *_ = np.linalg.lstsq(X, y, rcond=None)
    r = y - X @ beta
    H = np.zeros((k, k))
    for (i, j), value in zip(_upper(k), beta[k:p], strict=True):
        H[i, j] = H[j, i] = value
    box = np.stack([x.min(axis=1), x.max(axis=1)], axis=1)
    inverse = np.linalg.inv(X.T @ X)[:p, :p]
    return Quadratic(
        float(levels.mean(axis=0) @ beta[p:]), beta[:k], H, inverse, float(r @ r), n - X.shape[1], box
    )


def fieller(line: Array, covariance: Array, t: float) -> tuple[float, float]:
    """All u where line[0] + line[1] u is within `t` standard errors of zero, for a rising line.

    Open on both sides where the rise itself is within them of zero.
    """
    a = line[1] ** 2 - t * t * covariance[1, 1]
    if line[1] <= 0 or a <= 0:
        return -np.inf, np.inf
    b = line[0] * line[1] - t * t * covariance[0, 1]
    c = line[0] ** 2 - t * t * covariance[0, 0]
    root = float(np.sqrt(max(b * b - a * c, 0.0)))
    return float((-b - root) / a), float((-b + root) / a)


def _upper(k: int) -> list[tuple[int, int]]:
    return [(i, j) for i in range(k) for j in range(i, k)]

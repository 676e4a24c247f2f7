"""What a fit makes small: the sum over points of a loss, for many parameter sets and data sets at once.

A batch of b members shares the law and the variables; each may have its own observations and weights (a
bootstrap draw is a set of weights, a simulation a set of observations). Everything has the batch as its first
axis: parameters [b, k], residuals [b, n], derivatives [b, k, n].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from flopwise.laws.law import Array, Law

LOSSES = ("log_huber", "log_squared", "squared", "robust", "binomial", "likelihood")
"""What is summed over points: see `flopwise.laws.fit`."""
NO_VALUE = 1e100
"""A residual where the law has no value: beyond all others, with a square that is still a number."""
STEP = 1e-5
"""Of differences, for laws given as functions: errors of 1e-10 of the derivative."""


@dataclass(frozen=True)
class Local:
    """The objective around parameters: `cost` [b], `gradient` [b, k], `curvature` [b, k, k].

    Curvature is the second derivative where that was asked for; elsewhere it is "safe": positive and, with
    Huber weights, unable to overshoot. `diagonal` [b, k] is that of the safe one for all.
    """

    cost: Array
    gradient: Array
    curvature: Array
    diagonal: Array


@dataclass(frozen=True)
class Objective:
    """A law with the data it is fitted to, and the loss.

    `y`, `weights`: [n], or [b, n] where members differ; weights None is 1 everywhere.
    """

    law: Law
    x: Mapping[str, Array]
    y: Array
    delta: float
    """Where the Huber loss turns from squares to absolute values; infinity for squares alone."""
    scale: str
    """On which residuals are taken: "log" or "plain"; "nll" for a likelihood of counts."""
    weights: Array | None = None

    def member(self, rows: Array) -> Objective:
        """Of these members of the batch."""
        own = self.weights is not None and self.weights.ndim == 2
        if self.y.ndim == 1 and not own:
            return self
        y = self.y[rows] if self.y.ndim == 2 else self.y
        weights = self.weights[rows] if own and self.weights is not None else self.weights
        out = replace(self, y=y, weights=weights)
        out.__dict__["_bound"] = self._bound
        return out

    def thinned(self, most: int) -> Objective:
        """The same on at most about `most` rows, evenly spread over the table."""
        n = self.y.shape[-1]
        if n <= most:
            return self
        return self.only(np.arange(0, n, -(-n // most)))

    def only(self, rows: Array) -> Objective:
        """The same on these rows of the table."""
        weights = None if self.weights is None else self.weights[..., rows]
        x = {name: v[rows] for name, v in self.x.items()}
        return replace(self, x=x, y=self.y[..., rows], weights=weights)

    @cached_property
    def _bound(self) -> dict[int, list[Any]]:
        """What each tape computes from the data alone."""
        return {}

    @cached_property
    def observed(self) -> Array:
        """Observations on the scale of residuals."""
        return on_scale(self.scale, self.y)

    @cached_property
    def unit(self) -> float:
        """The square of a typical residual where nothing is explained: what a cost of zero is judged by."""
        return 1.0 if self.scale != "plain" else float(np.mean(np.square(self.y))) or 1.0

    @property
    def what(self) -> str:
        """Which of the law's formulas is evaluated."""
        return "nll" if self.scale == "nll" else "value"

    @property
    def _function(self) -> Any:
        """What is evaluated where there is no formula."""
        return self.law.nll_function if self.scale == "nll" else self.law.function

    def named(self, theta: Array) -> dict[str, Array]:
        """Parameters by name, [b, 1] each."""
        return named(self.law, theta)

    def residuals(self, theta: Array) -> Array:
        """Prediction minus observation on the scale [b, n]; NO_VALUE where the law has none.

        For a likelihood: minus its logarithm, row by row.
        """
        out = self._outputs(theta, 0)[0]
        if self.scale != "nll":
            with np.errstate(all="ignore"):
                out = on_scale(self.scale, out) - self.observed
        return self._filled(theta, out)

    def cost_of(self, r: Array) -> Array:
        """The objective [b] of residuals [b, n]."""
        with np.errstate(over="ignore"):  # of a residual that is no value
            if self.scale == "nll":
                each = r
            elif self.delta == np.inf:
                each = 0.5 * r * r
            else:
                size = np.minimum(np.abs(r), self.delta)
                each = size * (np.abs(r) - size / 2)
            return each.sum(axis=-1) if self.weights is None else (each * self.weights).sum(axis=-1)

    def cost(self, theta: Array) -> Array:
        """The objective [b]."""
        return self.cost_of(self.residuals(theta))

    def jacobian(self, theta: Array) -> tuple[Array, Array]:
        """Residuals [b, n] and their derivatives by the searched parameters [b, k, n]."""
        r, J, _ = self._derivatives(theta, 1)
        return r, J

    def local(self, theta: Array, true: Array) -> Local:
        """Cost, gradient and curvature at parameters [b, k]; of members `true` [b] the second derivative."""
        second = bool(true.any())
        r, J, bend = self._derivatives(theta, 2 if second else 1)
        w = 1.0 if self.weights is None else self.weights
        if self.scale == "nll":
            pull = soft = w * np.ones_like(r)
            inside = np.zeros_like(r)
        else:
            pull = np.clip(r, -self.delta, self.delta) * w
            soft = np.minimum(1.0, self.delta / np.maximum(np.abs(r), 1e-300)) * w
            inside = (np.abs(r) < self.delta) * w
        gradient = np.matmul(J, pull[:, :, None])[:, :, 0]
        diagonal = np.matmul(J * J, soft[:, :, None])[:, :, 0]
        if not second:
            return Local(
                self.cost_of(r), gradient, np.matmul(J * soft[:, None, :], J.transpose(0, 2, 1)), diagonal
            )
        # On a logarithmic scale the logarithm itself bends: its part has the form of the law's slopes.
        each = inside - pull if self.scale == "log" and bend is not None else inside
        if not true.all():
            each = np.where(true[:, None], each, soft)
        curvature = np.matmul(J * each[:, None, :], J.transpose(0, 2, 1))
        curvature += np.where(true[:, None, None], self._bend(theta, bend, pull), 0.0)
        return Local(self.cost_of(r), gradient, curvature, diagonal)

    def _bend(self, theta: Array, second: list[Any] | None, pull: Array) -> Array:
        """The law's own curvature [b, k, k] where residuals pull."""
        b, k = theta.shape
        if second is None:
            return self._bend_by_differences(theta, pull)
        out = np.zeros((b, k, k))
        value, parts = second[0], second[1:]
        factor = pull / value if self.scale == "log" else pull
        places = [(i, j) for i in range(k) for j in range(i + 1)]
        for (i, j), part in zip(places, parts, strict=True):
            if isinstance(part, float) and part == 0.0:
                continue
            along = np.einsum("bn,bn->b", factor, np.broadcast_to(part, factor.shape))
            if not np.isfinite(along.sum()):
                along = np.einsum("bn,bn->b", factor, np.where(np.isfinite(part), part, 0.0) + 0 * factor)
            out[:, i, j] = out[:, j, i] = along
        return out if np.isfinite(out.sum()) else np.where(np.isfinite(out), out, 0.0)

    def _bend_by_differences(self, theta: Array, pull: Array) -> Array:
        k, h = theta.shape[1], 1e-4
        steps = h * np.eye(k)
        r = self.residuals(theta)

        def both_ways(step: Array) -> Array:
            change = self.residuals(theta + step) - 2 * r + self.residuals(theta - step)
            return np.asarray((pull * change).sum(axis=1))

        own = np.stack([both_ways(e) for e in steps], axis=1)
        out = np.zeros((len(theta), k, k))
        for i in range(k):
            out[:, i, i] = own[:, i]
            for j in range(i):
                both = (both_ways(steps[i] + steps[j]) - own[:, i] - own[:, j]) / 2
                out[:, i, j] = out[:, j, i] = both
        return out / h**2

    def _derivatives(self, theta: Array, order: int) -> tuple[Array, Array, list[Any] | None]:
        """Residuals, their first derivatives, and the second derivatives of the law itself after its
        value."""
        b, k = theta.shape
        if self._function is not None:
            r = self.residuals(theta)
            steps = STEP * np.eye(k)
            J = np.stack(
                [(self.residuals(theta + e) - self.residuals(theta - e)) / (2 * STEP) for e in steps], 1
            )
            return r, np.where(np.isfinite(J), J, 0.0), None
        parts = self._outputs(theta, order)
        value = parts[0]
        with np.errstate(all="ignore"):
            out = value if self.scale == "nll" else on_scale(self.scale, value) - self.observed
            r = self._filled(theta, out)
            J = np.empty((b, k, r.shape[1]))
            for i in range(k):
                J[:, i] = parts[1 + i] / value if self.scale == "log" else parts[1 + i]
            if not np.isfinite(J.sum()):
                J = np.where(np.isfinite(J), J, 0.0)
        if order == 1:
            return r, J, None
        return r, J, [value, *parts[1 + k :]]

    def _outputs(self, theta: Array, order: int) -> list[Any]:
        if self._function is not None:
            with np.errstate(all="ignore"):
                return [self._function(self.named(theta), self.x)]
        tape = self.law.tape(order, self.what)
        if id(tape) not in self._bound:
            self._bound[id(tape)] = tape.bind(self.x)
        return tape.run(self._bound[id(tape)], self.named(theta))

    def _filled(self, theta: Array, out: Any) -> Array:
        shape = (len(theta), self.y.shape[-1])
        if np.shape(out) != shape:
            out = np.broadcast_to(out, shape)
        with np.errstate(invalid="ignore"):  # infinities of both signs
            if np.isfinite(out.sum()):
                return np.asarray(out)
        return np.clip(np.where(np.isnan(out), NO_VALUE, out), -NO_VALUE, NO_VALUE)


def on_scale(scale: str, values: Array) -> Array:
    """Values or their logarithms."""
    return np.log(values) if scale == "log" else values


def named(law: Law, theta: Array) -> dict[str, Any]:
    """Searched parameters [..., k] by name: [..., 1] for a batch [b, k], numbers for one set [k]."""
    own = np.where(law.positive, np.exp(np.minimum(theta, 700.0)), theta)
    if theta.ndim == 1:
        return dict(zip(law.names, own.tolist(), strict=True))
    return {name: own[..., i, None] for i, name in enumerate(law.names)}


def searched(law: Law, params: Mapping[str, float]) -> Array:
    """Parameters as searched [k]: logarithms of positive ones."""
    return np.array(
        [np.log(max(params[p.name], 1e-300)) if p.log else params[p.name] for p in law.parameters]
    )

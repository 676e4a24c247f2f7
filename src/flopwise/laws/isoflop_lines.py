"""Power laws through a few optima: straight lines in logarithms, weighted by the errors of the points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flopwise.errors import FlopwiseError
from flopwise.laws.law import Array
from flopwise.laws.quantiles import stdtrit


@dataclass(frozen=True)
class PowerLaw:
    """target = coefficient * C^a (or more variables), fitted as a line in logarithms."""

    target: str
    coefficient: float
    exponents: dict[str, float]
    covariance: Array
    """Of (log coefficient at the points' middle, exponents) [k, k]."""
    centre: dict[str, float]
    """The points' middle, in logarithms: there coefficient and exponents are least tied to each other."""
    dof: float
    scatter: float
    """Standard deviation of the points around the line, in logarithms."""
    n: int
    weighted: bool
    samples: Array | None = None
    """Of a bootstrap: (log coefficient at the middle, exponents) [m, k]; intervals then are quantiles."""

    @property
    def formula(self) -> str:
        """As text, with its numbers."""
        powers = " ".join(f"{name}^{value:.4g}" for name, value in self.exponents.items())
        return f"{self.target} = {self.coefficient:.4g} {powers}"

    def interval(self, name: str, level: float = 0.95) -> tuple[float, float]:
        """Interval of an exponent by Student's t with the points less the line's parameters, or quantiles.

        Raises:
            FlopwiseError: no such exponent, or a level outside 0 to 1.
        """
        names = list(self.exponents)
        if name not in names:
            raise FlopwiseError(f"interval: {self.target} has no exponent of {name!r}; {', '.join(names)}")
        i = 1 + names.index(name)
        if self.samples is not None:
            low, high = np.quantile(self.samples[:, i], _ends(level))
            return float(low), float(high)
        half = self._t(level) * float(np.sqrt(self.covariance[i, i]))
        return self.exponents[name] - half, self.exponents[name] + half

    def predict(self, level: float = 0.95, **variables: float) -> tuple[float, float, float]:
        """Value on the line and the interval that the line's uncertainty leaves it.

        Raises:
            FlopwiseError: a variable is missing or not above 0.
        """
        row = [1.0]
        for name, middle in self.centre.items():
            if not variables.get(name, 0.0) > 0:
                raise FlopwiseError(f"predict: {name} is {variables.get(name)}, must be a number above 0")
            row.append(float(np.log(variables[name])) - middle)
        at = np.array(row)
        value = float(at @ self._theta())
        if self.samples is not None:
            low, high = np.quantile(self.samples @ at, _ends(level))
        else:
            half = self._t(level) * float(np.sqrt(at @ self.covariance @ at))
            low, high = value - half, value + half
        return float(np.exp(value)), float(np.exp(max(low, -700.0))), float(np.exp(min(high, 700.0)))

    def to_dict(self, level: float = 0.95) -> dict[str, Any]:
        """As JSON takes it."""
        return {
            "target": self.target, "coefficient": self.coefficient, "exponents": self.exponents,
            "intervals": {name: list(self.interval(name, level)) for name in self.exponents},
            "level": level, "scatter": self.scatter, "dof": self.dof, "n": self.n, "weighted": self.weighted,
        }  # fmt: skip

    def _theta(self) -> Array:
        slopes = np.array([*self.exponents.values()])
        return np.array([np.log(self.coefficient) + slopes @ [*self.centre.values()], *slopes])

    def _t(self, level: float) -> float:
        return stdtrit(self.dof, _ends(level)[1])


def power_law(
    target: str, y: Array, variables: Mapping[str, Array], se: Array | None = None, who: str = "power law"
) -> PowerLaw:
    """Fit log y = log coefficient + sum of exponent * log variable by least squares.

    Args:
        y: values above 0 [n].
        variables: by name, above 0 [n].
        se: standard errors of log y [n]: points are weighted by 1 / se^2, and the line is never taken to be
            better known than these errors allow. Without it all points count alike.

    Raises:
        FlopwiseError: fewer points than the line's parameters and one, or variables that do not vary alone.
    """
    logs = {name: np.log(values) for name, values in variables.items()}
    centre = {name: float(values.mean()) for name, values in logs.items()}
    X = np.stack([np.ones(len(y)), *(logs[name] - middle for name, middle in centre.items())], axis=1)
    n, k = X.shape
    if n < k + 1:
        raise FlopwiseError(f"{who}: {target} has {n} points for a line in {', '.join(logs)}, needs {k + 1}")
    s = np.linalg.svd(X / np.linalg.norm(X, axis=0).clip(1e-300), compute_uv=False)
    if s[-1] < 1e-6 * s[0]:
        raise FlopwiseError(f"{who}: {', '.join(logs)} do not vary apart from each other; vary one alone")
    # Errors far below the rest (an exact curve) must not take the whole weight.
    w = np.ones(n) if se is None else 1 / np.maximum(se, max(1e-3 * float(np.median(se)), 1e-12))
    theta, *_ = np.linalg.lstsq(X * w[:, None], np.log(y) * w, rcond=None)
    r = np.log(y) - X @ theta
    spread = float(np.square(w * r).sum() / (n - k))
    inverse = np.linalg.inv((X * w[:, None]).T @ (X * w[:, None]))
    exponents = {name: float(v) for name, v in zip(logs, theta[1:], strict=True)}
    log_coefficient = float(theta[0] - sum(exponents[name] * centre[name] for name in logs))
    return PowerLaw(
        target, float(np.exp(log_coefficient)), exponents,
        inverse * (spread if se is None else max(spread, 1.0)), centre, float(n - k),
        float(np.sqrt(np.square(r).sum() / (n - k))), n, se is not None,
    )  # fmt: skip


def resampled(line: PowerLaw, others: Sequence[PowerLaw]) -> PowerLaw:
    """The line with the bootstrap's refits `others` in place of its own errors."""
    from dataclasses import replace

    slopes = np.array([[*o.exponents.values()] for o in others])
    heads = np.array([np.log(o.coefficient) for o in others]) + slopes @ [*line.centre.values()]
    return replace(line, samples=np.column_stack([heads, slopes]))


def positive(table: Mapping[str, Any], names: Sequence[str], who: str) -> dict[str, Array]:
    """Columns of a table, by name, whose logarithms and products are numbers.

    Raises:
        FlopwiseError: a column is missing, or holds a value outside 1e-100 to 1e100.
    """
    from flopwise.records.table import numbers

    columns = {name: numbers(table, name, who) for name in names}
    for name, values in columns.items():
        bad = (values < 1e-100) | (values > 1e100)
        if bad.any():
            limit = "must be above 0" if values[bad][0] <= 0 else "must be from 1e-100 to 1e100"
            raise FlopwiseError(
                f"{who}: column {name!r} holds {values[bad][0]:g} in row {int(np.argmax(bad)) + 1}, {limit}"
            )
    return columns


def _ends(level: float) -> tuple[float, float]:
    if not 0 < level < 1:
        raise FlopwiseError(f"level is {level}, must be between 0 and 1, as 0.95")
    return 0.5 - level / 2, 0.5 + level / 2

"""Fit a law to a table: linear parameters solved for, nonlinear ones searched, then polished together.

The polish is a trust-region least squares on the log scale of the parameters with a Huber loss, in float64,
until neither step nor gradient moves. Intervals are by the delta method with a covariance that is the larger
of the classical and the cluster-robust one, and Student's t: with a dozen points nothing finer is honest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy import optimize, stats

from flopwise.errors import FlopwiseError
from flopwise.laws.law import Law, get

LOSSES = ("log_huber", "squared")


@dataclass(frozen=True)
class Prediction:
    """A predicted value with its interval. `mean_low` and `mean_high` leave out the scatter of single runs.

    `extrapolation`: how many times beyond the largest fitted value the farthest variable lies (1 = inside).
    """

    value: Any
    low: Any
    high: Any
    mean_low: Any
    mean_high: Any
    extrapolation: float


@dataclass(frozen=True)
class Allocation:
    """The compute-optimal split of a budget C between parameters N and tokens D."""

    C: float
    N: float
    D: float
    loss: float


@dataclass
class Fit:
    """A fitted law."""

    law: str
    params: dict[str, float]
    objective: float
    loss: str
    n: int
    n_clusters: int
    covariance: np.ndarray
    """Of the parameters as searched (logarithms where the parameter is positive)."""
    scatter: float
    """Standard deviation of single runs around the law, on the law's scale."""
    dof: int
    ranges: dict[str, tuple[float, float]]
    status: str
    diagnostics: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def _se(self, name: str) -> float:
        return float(np.sqrt(self.covariance[i := get(self.law).names.index(name), i]))

    def interval(self, name: str, level: float = 0.95) -> tuple[float, float]:
        """Confidence interval of a parameter (delta method, Student's t)."""
        parameter = {p.name: p for p in get(self.law).parameters}[name]
        half = stats.t.ppf(0.5 + level / 2, self.dof) * self._se(name)
        value = self.params[name]
        if parameter.log:
            # A width beyond any number is "not identified"; keep it finite for JSON.
            return float(value * np.exp(-min(half, 300))), float(value * np.exp(min(half, 300)))
        return value - half, value + half

    def predict(self, level: float = 0.95, **variables: Any) -> Prediction:
        """The law at new values, numbers or arrays.

        Raises:
            FlopwiseError: a variable is missing or not positive.
        """
        law = get(self.law)
        for name in law.variables:
            if name not in variables:
                raise FlopwiseError(f"predict: {self.law} needs {' and '.join(law.variables)}; {name} is missing")
        x = {name: np.atleast_1d(np.asarray(variables[name], dtype=float)) for name in law.variables}
        for name, values in x.items():
            if not (np.isfinite(values).all() and (values > 0).all()):
                raise FlopwiseError(f"predict: {name} is {variables[name]}, must be above 0")
        theta = _pack(law, self.params)
        value = _evaluate(law, theta, x)
        J = _jacobian(law, theta, x)
        var = np.einsum("ij,jk,ik->i", J, self.covariance, J)
        t = stats.t.ppf(0.5 + level / 2, self.dof)
        ends = []
        for scatter in (self.scatter, 0.0):
            half = t * np.sqrt(var + scatter**2)
            pair = (value - half, value + half) if law.scale == "plain" else (value * np.exp(-half), value * np.exp(half))
            ends += pair
        beyond = max(float(np.max(v)) / self.ranges[n][1] for n, v in x.items())
        out = [v.item() if np.ndim(variables[law.variables[0]]) == 0 and v.size == 1 else v for v in (value, *ends)]
        return Prediction(*out, extrapolation=max(1.0, beyond))

    def optimal(self, C: float) -> Allocation:
        """The N and D that minimise the predicted loss at C = 6 N D (laws in N and D)."""
        law = get(self.law)
        if law.variables != ("N", "D"):
            raise FlopwiseError(f"optimal: {self.law} is a law in {', '.join(law.variables)}; it needs one in N and D")
        if not C > 0:
            raise FlopwiseError(f"optimal: C is {C}, must be above 0")
        theta = _pack(law, self.params)

        def loss(log_n: float) -> float:
            N = np.exp(np.array([log_n]))
            return float(_evaluate(law, theta, {"N": N, "D": C / (6 * N)})[0])

        grid = np.linspace(0.0, np.log(C / 6), 400)
        best = int(np.argmin([loss(g) for g in grid]))
        found = optimize.minimize_scalar(
            loss, bounds=(grid[max(0, best - 1)], grid[min(399, best + 1)]), method="bounded", options={"xatol": 1e-10}
        )
        N = float(np.exp(found.x))
        return Allocation(C, N, C / (6 * N), float(found.fun))

    def draws(self, n: int, seed: int = 0) -> list[dict[str, float]]:
        """Parameter sets from the fit's uncertainty (multivariate t), for propagation into plans."""
        law = get(self.law)
        rng = np.random.default_rng(seed)
        z = rng.multivariate_normal(np.zeros(len(law.names)), self.covariance, size=n, check_valid="ignore")
        z *= np.sqrt(self.dof / rng.chisquare(self.dof, size=n))[:, None]
        theta = _pack(law, self.params)
        return [_unpack(law, theta + row) for row in z]

    def to_dict(self) -> dict[str, Any]:
        """All of it, as JSON takes it."""
        return {
            "law": self.law, "formula": get(self.law).formula, "params": self.params,
            "intervals": {name: list(self.interval(name)) for name in self.params}, "objective": self.objective,
            "loss": self.loss, "n": self.n, "n_clusters": self.n_clusters, "scatter": self.scatter, "dof": self.dof,
            "covariance": self.covariance.tolist(), "ranges": self.ranges, "status": self.status,
            "diagnostics": self.diagnostics, "warnings": self.warnings,
        }  # fmt: skip

    def to_json(self, path: str | Path) -> None:
        """Write `to_dict`, atomically."""
        from flopwise.records.folder import atomic_write

        atomic_write(Path(path), json.dumps(self.to_dict(), indent=1))

    @classmethod
    def from_json(cls, path: str | Path) -> Fit:
        """Read what `to_json` wrote.

        Raises:
            FlopwiseError: no such file, or not a fit.
        """
        try:
            d = json.loads(Path(path).read_text(encoding="utf-8"))
            names = ("law", "params", "objective", "loss", "n", "n_clusters", "scatter", "dof", "status", "diagnostics", "warnings")
            ranges = {k: (v[0], v[1]) for k, v in d["ranges"].items()}
            fit = cls(**{k: d[k] for k in names}, covariance=np.array(d["covariance"]), ranges=ranges)
        except FileNotFoundError:
            raise FlopwiseError(f"fit {path} does not exist; make it with: flopwise fit TABLE --law NAME --out {path}") from None
        except (OSError, ValueError, KeyError, TypeError, IndexError) as e:
            raise FlopwiseError(f"fit {path} is not a fit written by flopwise ({type(e).__name__})") from e
        get(fit.law)
        return fit


def fit(
    law: str | Law, table: Mapping[str, Any], loss: str = "log_huber", delta: float = 1e-3, cluster: str | None = None,
    seed: int = 0, target: str | None = None, starts: int = 40,
) -> Fit:  # fmt: skip
    """Fit a law to columns of a table.

    Args:
        table: columns by name (a mapping or a dataframe); those named as the law's variables and target are used.
        loss: "log_huber" (sum of Huber on the law's scale, limit `delta`) or "squared".
        cluster: column of runs whose points share noise (checkpoints and branches of one run).
        starts: random starts for the nonlinear parameters.

    Raises:
        FlopwiseError: unknown law or loss, a column missing, values not finite or not positive, too few points.
    """
    law = get(law)
    if loss not in LOSSES:
        raise FlopwiseError(f"fit: loss {loss!r} is unknown; there are {', '.join(LOSSES)}")
    x, y, clusters = _columns(law, table, target or law.target, cluster)
    k = len(law.parameters)
    if len(y) < k + 1:
        raise FlopwiseError(f"fit: {law.name} has {k} parameters and needs at least {k + 1} points, there are {len(y)}")
    observed = np.log(y) if law.scale == "log" else y

    def residuals(theta: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            value = _evaluate(law, theta, x)
            out = (np.log(value) if law.scale == "log" else value) - observed
        return np.where(np.isfinite(out), out, 1e3)

    lower = np.array([_limit(p, p.bounds[0], -np.inf) for p in law.parameters])
    upper = np.array([_limit(p, p.bounds[1], np.inf) for p in law.parameters])
    options: dict[str, Any] = {"xtol": 1e-15, "ftol": 1e-15, "gtol": 1e-15, "x_scale": "jac", "max_nfev": 3000}
    robust = {"loss": "huber", "f_scale": delta} if loss == "log_huber" else {"loss": "linear"}
    candidates = sorted(
        (optimize.least_squares(residuals, t, bounds=(lower, upper), loss="linear", max_nfev=200, x_scale="jac")
         for t in _starts(law, x, y, starts, seed, lower, upper)),
        key=lambda o: o.cost,
    )  # fmt: skip
    polished = [optimize.least_squares(residuals, o.x, bounds=(lower, upper), **robust, **options) for o in candidates[:4]]
    best = min(polished, key=lambda o: o.cost)
    return _summarise(law, best, residuals, x, clusters, loss, [o.cost for o in polished], lower, upper)


def _summarise(
    law: Law, best: Any, residuals: Any, x: dict[str, np.ndarray], clusters: np.ndarray | None, loss: str,
    costs: list[float], lower: np.ndarray, upper: np.ndarray,
) -> Fit:  # fmt: skip
    """Covariance, scatter, warnings."""
    r = residuals(best.x)
    n, k = len(r), len(best.x)
    J = optimize.approx_fprime(best.x, residuals, 1e-7)
    names = law.names
    at_bound = [names[i] for i in range(k) if min(best.x[i] - lower[i], upper[i] - best.x[i]) < 1e-6]
    dof = n - k
    scatter = float(np.sqrt((r**2).sum() / dof))
    inverse = np.linalg.pinv(J.T @ J, rcond=1e-14)
    covariance = scatter**2 * inverse
    warnings = []
    n_clusters = n
    if clusters is not None:
        groups = np.unique(clusters)
        n_clusters = len(groups)
        if n_clusters > 1:
            scores = np.stack([J[clusters == g].T @ r[clusters == g] for g in groups])
            robust = inverse @ (scores.T @ scores) @ inverse * n_clusters / (n_clusters - 1)
            # Few clusters make the robust estimate too small by chance: never go below the classical one.
            grow = np.sqrt(np.maximum(1.0, np.diag(robust) / np.maximum(np.diag(covariance), 1e-300)))
            covariance = covariance * np.outer(grow, grow)
        if n_clusters < 2 * k:
            warnings.append(f"{n_clusters} independent runs for {k} parameters: intervals lean on the law's form")
    condition = float(np.linalg.cond(J / np.maximum(np.linalg.norm(J, axis=0), 1e-300)))
    if condition > 1e4:
        warnings.append(f"parameters trade off against each other (condition {condition:.0e}); trust predictions more than them")
    if at_bound:
        warnings.append(f"at the edge of its range: {', '.join(at_bound)}")
    theta = {name: float(v) for name, v in _unpack(law, best.x).items()}
    ranges = {name: (float(v.min()), float(v.max())) for name, v in x.items()}
    diagnostics = {
        "gradient": float(np.max(np.abs(best.grad))), "condition": condition, "at_bounds": at_bound,
        "local_optima": [float(c) for c in sorted(costs)], "residual_rms": float(np.sqrt((r**2).mean())), "evaluations": int(best.nfev),
    }  # fmt: skip
    status = "converged" if best.success else "iteration_limit"
    return Fit(
        law.name, theta, float(best.cost), loss, n, n_clusters, covariance, scatter, dof, ranges,
        "at_bound" if at_bound and best.success else status, diagnostics, warnings,
    )  # fmt: skip


def _columns(
    law: Law, table: Mapping[str, Any], target: str, cluster: str | None
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray | None]:
    """The columns a law needs, checked."""
    out = {}
    for name in (*law.variables, target):
        if name not in table:
            raise FlopwiseError(f"fit: {law.name} needs a column {name!r}; there are {', '.join(map(str, table))[:200]}")
        try:
            values = np.asarray(table[name], dtype=float)
        except (TypeError, ValueError):
            raise FlopwiseError(f"fit: column {name!r} holds something that is not a number") from None
        bad = ~np.isfinite(values) | ((values <= 0) if name != target or law.scale == "log" else False)
        if bad.any():
            raise FlopwiseError(f"fit: column {name!r} holds {values[bad][0]} in row {int(np.argmax(bad)) + 1}, must be above 0")
        out[name] = values
    if cluster is not None and cluster not in table:
        raise FlopwiseError(f"fit: there is no column {cluster!r} to cluster by; there are {', '.join(map(str, table))[:200]}")
    y = out.pop(target)
    return out, y, None if cluster is None else np.asarray(table[cluster])


def _limit(p: Any, value: float, none: float) -> float:
    if not p.log:
        return value
    return float(np.log(value)) if 0 < value < np.inf else none


def _pack(law: Law, params: Mapping[str, float]) -> np.ndarray:
    return np.array([np.log(max(params[p.name], 1e-300)) if p.log else params[p.name] for p in law.parameters])


def _unpack(law: Law, theta: np.ndarray) -> dict[str, float]:
    values = zip(law.parameters, theta, strict=True)
    return {p.name: np.exp(min(v, 700.0)) if p.log else v for p, v in values}


def _evaluate(law: Law, theta: np.ndarray, x: Mapping[str, np.ndarray]) -> np.ndarray:
    return law.function(_unpack(law, theta), x)


def _jacobian(law: Law, theta: np.ndarray, x: Mapping[str, np.ndarray]) -> np.ndarray:
    """Derivative [n, k] of the law, on its scale, by the searched parameters (central differences)."""

    def value(t: np.ndarray) -> np.ndarray:
        out = _evaluate(law, t, x)
        return np.log(out) if law.scale == "log" else out

    h = 1e-5
    columns = []
    for i in range(len(theta)):
        e = np.zeros_like(theta)
        e[i] = h
        columns.append((value(theta + e) - value(theta - e)) / (2 * h))
    return np.stack(columns, axis=1)


def _starts(
    law: Law, x: dict[str, np.ndarray], y: np.ndarray, n: int, seed: int, lower: np.ndarray, upper: np.ndarray
) -> list[np.ndarray]:
    """Random nonlinear parameters; linear ones by non-negative least squares on relative errors."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(n):
        params = {}
        for p in law.parameters:
            a, b = p.start
            params[p.name] = float(np.exp(rng.uniform(np.log(a), np.log(b)))) if p.log else float(rng.uniform(a, b))
        if law.terms is not None:
            X = law.terms(params, x) / y[:, None]
            norms = np.maximum(np.linalg.norm(X, axis=0), 1e-300)
            solved, _ = optimize.nnls(X / norms, np.ones(len(y)))
            params |= {name: max(float(v), 1e-8) for name, v in zip(law.linear, solved / norms, strict=True)}
        out.append(np.clip(_pack(law, params), lower + 1e-9, upper - 1e-9))
    return out

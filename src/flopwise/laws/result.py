"""A fitted law: its parameters with intervals, what it predicts, how it is kept in a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from flopwise.errors import FlopwiseError
from flopwise.laws.law import get
from flopwise.laws.search import differences, evaluate, on_scale, pack, unpack

DRAWS = 400
"""Parameter sets behind intervals that are quantiles."""
_WIDEST = 300.0
"""Half-width of a log interval that means "not identified"; keeps its ends finite for JSON."""


@dataclass(frozen=True)
class Prediction:
    """A predicted value with its interval. `mean_low` and `mean_high` leave out the scatter of single runs.

    `extrapolation`: how many times beyond the fitted range the farthest variable lies (1 = inside).
    """

    value: Any
    low: Any
    high: Any
    mean_low: Any
    mean_high: Any
    extrapolation: float


@dataclass(frozen=True)
class Allocation:
    """The compute-optimal split of C = 6 N D, with the intervals that the fit's uncertainty leaves."""

    C: float
    N: float
    D: float
    loss: float
    intervals: dict[str, tuple[float, float]]


@dataclass
class Fit:
    """A fitted law.

    `status`: "converged"; "at_bound" (a parameter wants to leave its range); "iteration_limit"; or
    "not_identified" (the data end where the law still tells nothing of what comes: no extrapolation).
    """

    law: str
    params: dict[str, float]
    objective: float
    loss: str
    n: int
    n_clusters: int
    covariance: np.ndarray
    """Of the parameters as searched (logarithms where the parameter is positive) [k, k]."""
    scatter: float
    """Standard deviation of single runs around the law, on `scale`."""
    dof: float
    ranges: dict[str, tuple[float, float]]
    status: str
    diagnostics: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    misfit: float = 0.0
    """Relative root mean square error of predictions of held-out scale; 0 where nobody tried."""
    samples: np.ndarray | None = field(default=None, repr=False)
    """Searched parameters of bootstrap refits [m, k]; intervals then are their quantiles."""

    @property
    def scale(self) -> str:
        """Of residuals: "log", or "plain" (laws of accuracy, and fits by squares of the target itself)."""
        return "plain" if self.loss == "squared" else get(self.law).scale

    @property
    def theta(self) -> np.ndarray:
        """Parameters as searched [k]."""
        return pack(get(self.law), self.params)

    def _t(self, level: float) -> float:
        from scipy.special import stdtrit

        if not 0 < level < 1:
            raise FlopwiseError(f"level is {level}, must be between 0 and 1, as 0.95")
        return float(stdtrit(self.dof, 0.5 + level / 2))

    def interval(self, name: str, level: float = 0.95) -> tuple[float, float]:
        """Confidence interval of a parameter: bootstrap quantiles if there are any, else by delta and t."""
        law = get(self.law)
        if name not in law.names:
            raise FlopwiseError(
                f"interval: {law.name} has no parameter {name!r}; there are {', '.join(law.names)}"
            )
        i = law.names.index(name)
        t = self._t(level)
        if self.samples is not None:
            low, high = np.quantile(self.samples[:, i], [0.5 - level / 2, 0.5 + level / 2])
        else:
            half = min(t * float(np.sqrt(self.covariance[i, i])), _WIDEST)
            low, high = self.theta[i] - half, self.theta[i] + half
        if law.parameters[i].log:
            low, high = np.exp([max(low, -700.0), min(high, 700.0)])
        a, b = law.parameters[i].bounds
        return float(np.clip(low, a, b)), float(np.clip(high, a, b))

    def predict(self, level: float = 0.95, **variables: Any) -> Prediction:
        """The law at new values, numbers or arrays.

        The interval is that of a single new run: parameters, scatter, and at 95% never less than twice the
        error that the law made on held-out scale.

        Raises:
            FlopwiseError: a variable is missing or not positive, or the law must not be extrapolated.
        """
        from scipy.special import ndtri

        law = get(self.law)
        x = self._variables(variables)
        beyond = self._beyond(x)
        if beyond > 1 + 1e-9 and law.unready and (reason := law.unready(self.params, self.ranges)):
            raise FlopwiseError(
                f"predict: {reason}; it is not extrapolated ({beyond:.3g} times beyond the data)"
            )
        t = self._t(level)
        middle = on_scale(self.scale, evaluate(law, self.theta, x))
        if self.samples is not None:
            drawn = np.stack([on_scale(self.scale, evaluate(law, s, x)) for s in self.samples])
            low, high = np.quantile(drawn, [0.5 - level / 2, 0.5 + level / 2], axis=0)
            below, above = np.maximum(middle - low, 0.0), np.maximum(high - middle, 0.0)
        else:
            J = differences(lambda theta: on_scale(self.scale, evaluate(law, theta, x)), self.theta)
            variance = np.einsum("ij,jk,ik->i", J, self.covariance, J)
            below = above = np.minimum(t * np.sqrt(np.maximum(variance, 0.0)), _WIDEST)
        run = t * self.scatter
        misfit = (
            float(ndtri(0.5 + level / 2)) * self.misfit * (1.0 if self.scale == "log" else np.abs(middle))
        )
        ends = [
            middle - np.maximum(np.hypot(below, run), misfit),
            middle + np.maximum(np.hypot(above, run), misfit),
            middle - below, middle + above,
        ]  # fmt: skip
        with np.errstate(over="ignore"):
            back = [np.exp(v) if self.scale == "log" else v for v in (middle, *ends)]
        clipped = [back[0], *(np.clip(v, *law.span) for v in back[1:])]
        scalar = all(np.ndim(v) == 0 for v in variables.values())
        value, low, high, mean_low, mean_high = (float(v[0]) if scalar else v for v in clipped)
        return Prediction(value, low, high, mean_low, mean_high, beyond)

    def _variables(self, given: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The law's variables as arrays of one length, checked."""
        law = get(self.law)
        needs = f"{law.name} needs {' and '.join(law.variables)}"
        for name in law.variables:
            if name not in given:
                raise FlopwiseError(f"predict: {needs}; {name} is missing")
        if unknown := [name for name in given if name not in law.variables]:
            raise FlopwiseError(f"predict: {needs}; it has no {unknown[0]}")
        arrays = {}
        for name in law.variables:
            try:
                values = np.atleast_1d(np.asarray(given[name], dtype=float))
            except (TypeError, ValueError):
                values = np.array([np.nan])
            if not (
                np.isfinite(values).all()
                and (values >= 0).all()
                and (name in law.from_zero or (values > 0).all())
            ):
                raise FlopwiseError(f"predict: {name} is {str(given[name])[:60]}, must be a number above 0")
            arrays[name] = values
        try:
            return dict(zip(arrays, np.broadcast_arrays(*arrays.values()), strict=True))
        except ValueError:
            raise FlopwiseError(
                f"predict: lengths differ: { {n: len(v) for n, v in arrays.items()} }"
            ) from None

    def _beyond(self, x: Mapping[str, np.ndarray]) -> float:
        """How many times outside the fitted range, either way; 1 inside."""
        beyond = 1.0
        for name, values in x.items():
            low, high = self.ranges[name]
            beyond = max(beyond, float(values.max()) / high)
            if values.min() > 0:
                beyond = max(beyond, low / float(values.min()))
        return beyond

    def optimal(self, C: float, demand: float = 0.0, level: float = 0.95, seed: int = 0) -> Allocation:
        """The N and D that minimise the predicted loss at C = 6 N D + 2 N `demand` (laws in N and D).

        Intervals of N and D are quantiles over the fit's draws; that of the loss is `predict`'s.
        """
        from flopwise.laws.optimum import optimum

        law = get(self.law)
        if law.variables != ("N", "D"):
            raise FlopwiseError(
                f"optimal: {law.name} is a law in {', '.join(law.variables)}; it needs one in N and D"
            )
        if not 6 + 2 * demand < C < np.inf:
            raise FlopwiseError(f"optimal: C is {C}, must be a number of FLOPs above {6 + 2 * demand:.3g}")
        N, D = (float(v[0]) for v in optimum(law, self.params, C, demand)[:2])
        sets = self.draws(DRAWS, seed)
        drawn = optimum(law, {name: np.array([s[name] for s in sets]) for name in law.names}, C, demand)
        ends = [np.quantile(v, [0.5 - level / 2, 0.5 + level / 2]) for v in drawn[:2]]
        at = self.predict(N=N, D=D, level=level)
        intervals = {
            "N": tuple(map(float, ends[0])),
            "D": tuple(map(float, ends[1])),
            "loss": (at.low, at.high),
        }
        return Allocation(C, N, D, at.value, intervals)  # type: ignore[arg-type]

    def draws(self, n: int, seed: int = 0) -> list[dict[str, float]]:
        """Parameter sets from the fit's uncertainty (bootstrap refits, else multivariate t), for plans."""
        law = get(self.law)
        rng = np.random.default_rng(seed)
        if self.samples is not None:
            return [unpack(law, self.samples[i]) for i in rng.integers(len(self.samples), size=n)]
        z = rng.multivariate_normal(
            np.zeros(len(law.names)), self.covariance, size=n, check_valid="ignore", method="eigh"
        )
        z *= np.sqrt(self.dof / rng.chisquare(self.dof, size=n))[:, None]
        return [unpack(law, row) for row in self.theta + z]

    def to_dict(self) -> dict[str, Any]:
        """All of it, as JSON takes it."""
        return {
            "law": self.law, "formula": get(self.law).formula, "params": self.params,
            "intervals": {name: list(self.interval(name)) for name in self.params},
            "objective": self.objective,
            "loss": self.loss, "n": self.n, "n_clusters": self.n_clusters, "scatter": self.scatter,
            "misfit": self.misfit, "dof": self.dof, "covariance": self.covariance.tolist(),
            "samples": None if self.samples is None else self.samples.tolist(),
            "ranges": {name: list(ends) for name, ends in self.ranges.items()}, "status": self.status,
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
            FlopwiseError: no such file, not a fit, or of a law that is not in the catalogue.
        """
        try:
            d = json.loads(Path(path).read_text(encoding="utf-8"))
            law = get(str(d["law"]))
            k = len(law.names)
            fit = cls(
                law=law.name, params={name: float(d["params"][name]) for name in law.names},
                objective=float(d["objective"]), loss=str(d["loss"]), n=int(d["n"]),
                n_clusters=int(d["n_clusters"]),
                covariance=np.array(d["covariance"], dtype=float).reshape(k, k), scatter=float(d["scatter"]),
                dof=float(d["dof"]),
                ranges={v: (float(d["ranges"][v][0]), float(d["ranges"][v][1])) for v in law.variables},
                status=str(d["status"]), diagnostics=dict(d["diagnostics"]),
                warnings=[str(w) for w in d["warnings"]],
                misfit=float(d.get("misfit") or 0.0),
                samples=np.array(d["samples"], dtype=float).reshape(-1, k) if d.get("samples") else None,
            )  # fmt: skip
            numbers = [
                *fit.params.values(),
                *fit.covariance.flat,
                fit.scatter,
                fit.misfit,
                *np.ravel([*fit.ranges.values()]),
            ]
            if not (np.isfinite(numbers).all() and fit.dof > 0 and fit.scatter >= 0):
                raise ValueError("not finite")
            return fit
        except FileNotFoundError:
            raise FlopwiseError(
                f"fit {path} does not exist; make it with: flopwise fit TABLE --law NAME --out {path}"
            ) from None
        except (OSError, ValueError, KeyError, TypeError, IndexError) as e:
            raise FlopwiseError(f"fit {path} is not a fit written by flopwise ({type(e).__name__})") from e

"""A fitted law: its parameters with intervals, what it predicts, how it is kept in a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from flopwise.errors import FlopwiseError
from flopwise.laws import doubts
from flopwise.laws.advice import slopes
from flopwise.laws.law import Law
from flopwise.laws.objective import Objective, named, on_scale, searched
from flopwise.laws.profile import Profile, profile

DRAWS = 400
"""Parameter sets behind intervals that are quantiles."""
_EXACT = 1e-9
"""Scatter, relative, below which data have no noise."""
_WIDEST = 300.0
"""Half-width of a log interval that means "not identified"; keeps its ends finite for JSON."""


@dataclass(frozen=True)
class Prediction:
    """A predicted value with its interval. `mean_low` and `mean_high` leave out the scatter of single runs.

    `extrapolation`: how many times beyond the fitted range the farthest variable lies (1 = inside);
    `warnings`: why that is too far to be believed.
    """

    value: Any
    low: Any
    high: Any
    mean_low: Any
    mean_high: Any
    extrapolation: float
    warnings: tuple[str, ...] = ()


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

    form: Law
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
    """Degrees of freedom of Student's t; infinite for a likelihood of independent counts."""
    ranges: dict[str, tuple[float, float]]
    status: str
    dofs: np.ndarray | None = field(default=None, repr=False)
    """Of each parameter's own interval [k], where they differ from `dof`."""
    diagnostics: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    misfit: float = 0.0
    """Relative root mean square error of predictions of held-out scale; 0 where nobody tried."""
    samples: np.ndarray | None = field(default=None, repr=False)
    """Searched parameters of bootstrap refits or posterior draws [m, k]; intervals are their quantiles."""
    intervals: str = "profile"
    """How they are made: "profile", "delta", "bootstrap", "posterior"."""
    fixed: dict[str, float] = field(default_factory=dict)
    """Parameters that were held, with their values."""
    curvature: np.ndarray | None = field(default=None, repr=False)
    problem: Objective | None = field(default=None, repr=False, compare=False)
    """The data and loss; not kept in a file."""
    _depth: float = field(default=0.0, repr=False, compare=False)
    """Level that the profiles reach."""
    profiles: dict[str, Profile] = field(default_factory=dict, repr=False, compare=False)
    """By parameter, those that were asked for."""

    @property
    def law(self) -> str:
        """The law's name, or its formula if it has none."""
        return self.form.name

    @property
    def scale(self) -> str:
        """Of residuals: "log", or "plain" (laws of accuracy, and fits by squares of the target itself)."""
        return "plain" if self.loss == "squared" or self.form.from_counts else self.form.scale

    @property
    def theta(self) -> np.ndarray:
        """Parameters as searched [k]."""
        return searched(self.form, self.params)

    def t(self, level: float, name: str = "") -> float:
        """Half-width of an interval of this level in standard errors: of a parameter, or of predictions."""
        from flopwise.laws.quantiles import ndtri, stdtrit

        if not isinstance(level, int | float) or not 0 < level < 1:
            raise FlopwiseError(f"level is {str(level)[:40]}, must be between 0 and 1, as 0.95")
        dof = self.dof if not name or self.dofs is None else float(self.dofs[self.form.names.index(name)])
        return float(stdtrit(dof, 0.5 + level / 2) if np.isfinite(dof) else ndtri(0.5 + level / 2))

    def interval(self, name: str, level: float = 0.95, method: str = "") -> tuple[float, float]:
        """Confidence interval of a parameter.

        `method`: how, if not as the fit says (`intervals`): "profile" (from the profile likelihood; a bound
        where no end was found), "delta" (curvature and Student's t), or the quantiles of the samples there
        are.
        """
        if name not in self.form.names:
            raise FlopwiseError(
                f"interval: {self.law} has no parameter {name!r}; there are {', '.join(self.form.names)}"
            )
        i = self.form.names.index(name)
        t, method = self.t(level, name), method or self.intervals
        if method not in ("profile", "delta", "bootstrap", "posterior"):
            raise FlopwiseError(
                f"interval: method {method!r} is unknown; profile, delta, bootstrap, posterior"
            )
        if method in ("bootstrap", "posterior"):
            if self.samples is None:
                raise FlopwiseError(f"interval: there are no {method} samples; fit with intervals={method!r}")
            low, high = np.quantile(self.samples[:, i], [0.5 - level / 2, 0.5 + level / 2])
        elif method == "profile" and self.profile(name, level) is not None:
            low, high = self.profiles[name].interval(t)
        else:
            half = t * float(np.sqrt(self.covariance[i, i]))
            half = min(half, _WIDEST) if self.form.parameters[i].log else half
            low, high = self.theta[i] - half, self.theta[i] + half
        if self.form.parameters[i].log:
            low, high = np.exp([max(low, -700.0), min(high, 700.0)])
        a, b = self.form.parameters[i].bounds
        return float(np.clip(low, a, b)), float(np.clip(high, a, b))

    @np.errstate(all="ignore")
    def profile(self, name: str, level: float = 0.95) -> Profile | None:
        """The profile likelihood of a parameter, made on first use; None for a fit read from a file without.

        All parameters are profiled together, as far as an interval of `level` needs; a parameter that no
        value is too far for is warned of.
        """
        deep_enough = name in self.profiles and level <= max(self._depth, 0.95)
        if deep_enough or self.problem is None or self.curvature is None:
            return self.profiles.get(name)
        if self.problem.scale != "nll" and self.scatter < _EXACT * np.sqrt(self.problem.unit):
            return None  # the fit is exact: what would rise is rounding
        from flopwise.laws.starts import bounds

        self._depth = max(level, 0.95)
        t, low, high = self.t(self._depth), *bounds(self.problem)
        names, factor = self.form.names, 2 if self.loss in ("log_squared", "squared") else 1
        found = profile(
            self.problem, self.theta, self.objective / factor, self.covariance, self.curvature, low, high,
            list(range(len(names))), t,
        )  # fmt: skip
        self.profiles.update(zip(names, found, strict=True))
        if self._depth == 0.95:
            doubts.after_profiles(self)
        return self.profiles[name]

    @np.errstate(all="ignore")
    def predict(self, level: float = 0.95, **variables: Any) -> Prediction:
        """The law at new values, numbers or arrays.

        The interval is that of a single new run: parameters, scatter, and at 95% never less than twice the
        error that the law made on held-out scale.

        Raises:
            FlopwiseError: a variable is missing or not positive, or the law must not be extrapolated.
        """
        from flopwise.laws.quantiles import ndtri

        law = self.form
        x = self._variables(variables)
        beyond = self._beyond(x)
        if beyond > 1 + 1e-9 and (reason := doubts.unready(self)):
            raise FlopwiseError(
                f"predict: {reason}; it is not extrapolated ({beyond:.3g} times beyond the data)"
            )
        t = self.t(level)
        middle = self.at(self.theta[None], x)[0]
        if self.samples is not None:
            drawn = self.at(self.samples, x)
            low, high = np.quantile(drawn, [0.5 - level / 2, 0.5 + level / 2], axis=0)
            below, above = np.maximum(middle - low, 0.0), np.maximum(high - middle, 0.0)
        else:
            J = slopes(self, x)
            variance = np.einsum("ji,jk,ki->i", J, self.covariance, J)
            below = above = t * np.sqrt(np.maximum(variance, 0.0))
            if self.scale == "log":
                below = above = np.minimum(below, _WIDEST)
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
        return Prediction(value, low, high, mean_low, mean_high, beyond, doubts.too_far(self, x))

    def at(self, theta: np.ndarray, x: Mapping[str, np.ndarray]) -> np.ndarray:
        """The law [m, n] on the scale of residuals, for parameter sets [m, k]."""
        with np.errstate(all="ignore"):
            values = on_scale(self.scale, self.form(named(self.form, theta), x))
        return np.broadcast_to(values, (len(theta), len(next(iter(x.values())))))

    def _variables(self, given: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The law's variables as arrays of one length, checked."""
        law = self.form
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
            except (TypeError, ValueError, OverflowError):
                values = np.array([np.nan])
            if values.ndim > 1 or not values.size:
                raise FlopwiseError(
                    f"predict: {name} has the shape {values.shape}, must be a number or a list"
                )
            least = -np.inf if name in law.signed else 0.0
            zero = name in law.from_zero or name in law.signed
            if not (np.isfinite(values).all() and (values >= least).all() and (zero or (values > 0).all())):
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
            low, high = self.ranges.get(name, (0.0, np.inf))
            if high > 0:
                beyond = max(beyond, float(values.max()) / high)
            if values.min() > 0 and low > 0:
                beyond = max(beyond, low / float(values.min()))
        return beyond

    def optimal(self, C: float, demand: float = 0.0, level: float = 0.95, seed: int = 0) -> Allocation:
        """The N and D that minimise the predicted loss at C = 6 N D + 2 N `demand` (laws in N and D).

        Intervals of N and D are quantiles over the fit's draws; that of the loss is `predict`'s.
        """
        from flopwise.laws.optimum import optimum

        law = self.form
        if law.variables != ("N", "D"):
            raise FlopwiseError(
                f"optimal: {law.name} is a law in {', '.join(law.variables)}; it needs one in N and D"
            )
        self.t(level)
        if not 0 <= demand < np.inf:
            raise FlopwiseError(f"optimal: demand is {demand}, must be a number of tokens from 0")
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

    def frontier(self, C: Any, demand: float = 0.0, level: float = 0.95) -> list[Allocation]:
        """`optimal` at each compute budget of `C`: the compute-optimal frontier with its intervals."""
        return [self.optimal(float(c), demand, level) for c in np.atleast_1d(np.asarray(C, dtype=float))]

    def draws(self, n: int, seed: int = 0) -> list[dict[str, float]]:
        """Parameter sets from the fit's uncertainty (bootstrap or posterior, else multivariate t), for
        plans."""
        rng = np.random.default_rng(seed)
        if self.samples is not None:
            return [named(self.form, self.samples[i]) for i in rng.integers(len(self.samples), size=n)]
        z = rng.multivariate_normal(
            np.zeros(len(self.form.names)), self.covariance, size=n, check_valid="ignore", method="eigh"
        )
        if np.isfinite(self.dof):
            z *= np.sqrt(self.dof / rng.chisquare(self.dof, size=n))[:, None]
        low, high = np.array([(-np.inf, np.inf) if p.log else p.bounds for p in self.form.parameters]).T
        return [named(self.form, row) for row in np.clip(self.theta + z, low, high)]

    def plot(self, kind: str = "fit", backend: str = "matplotlib", **options: Any) -> Any:
        """A figure: "fit" (points, curves, bands), "residuals", "profile", "isoflop"; see `laws.plotting`."""
        from flopwise.laws.plotting import plot

        return plot(self, kind, backend, **options)

    def to_dict(self) -> dict[str, Any]:
        """All of it, as JSON takes it."""
        from flopwise.laws.saving import to_dict

        return to_dict(self)

    @property
    def support(self) -> dict[str, list[float]]:
        """Ranges of compute and of tokens per parameter that were fitted, for a law in N and D."""
        if self.problem is None or not {"N", "D"} <= set(self.problem.x):
            return self.diagnostics.get("support", {})
        N, D = self.problem.x["N"], self.problem.x["D"]
        return {name: [float(v.min()), float(v.max())] for name, v in (("C", 6 * N * D), ("D / N", D / N))}

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
        from flopwise.laws.saving import from_dict

        try:
            return from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise FlopwiseError(
                f"fit {path} does not exist; make it with: flopwise fit TABLE --law NAME --out {path}"
            ) from None
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as e:
            raise FlopwiseError(f"fit {path} is not a fit written by flopwise ({type(e).__name__})") from e

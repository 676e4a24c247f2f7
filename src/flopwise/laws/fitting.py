"""Fit a law to a table: columns checked, search, how sure it is, what a reader should be warned of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from flopwise.errors import FlopwiseError
from flopwise.laws import doubts
from flopwise.laws.law import Array, Law, get, own
from flopwise.laws.objective import LOSSES, NO_VALUE, Objective, named
from flopwise.laws.resampling import bootstrap as resample
from flopwise.laws.resampling import posterior
from flopwise.laws.result import Allocation, Fit, Prediction
from flopwise.laws.search import Minima, descend
from flopwise.laws.starts import TURN, bounds, minimise
from flopwise.laws.uncertainty import Spread, from_likelihood, invert, robust_scale, spread

__all__ = ["INTERVALS", "LOSSES", "Allocation", "Fit", "Prediction", "fit"]

INTERVALS = ("profile", "delta", "bootstrap", "posterior")
FLAT = 1e15
"""Condition number where nothing curves."""
FEWEST = 4
"""Independent runs that a bootstrap takes."""
MOST = 50_000
"""Rows that are fitted; of more, a random sample says as much as anyone can use."""
LEAST = 1e-12
"""Delta below which rounding is all that is inside."""
VANISHED = 1e-6
"""Share of the target that a term must add somewhere to be there at all."""


@np.errstate(all="ignore")  # values that are no numbers are judged where they matter
def fit(
    law: str | Law, table: Any, loss: str = "log_huber", delta: float = 1e-3, cluster: str | None = None,
    seed: int = 0, target: str | None = None, starts: int = 100, bootstrap: int = 0,
    intervals: str = "profile", fixed: Mapping[str, float] | None = None,
    progress: Callable[[float], None] | None = None,
) -> Fit:  # fmt: skip
    """Fit a law to columns of a table.

    Args:
        law: a name of `flopwise.laws()`, a `Law`, or a formula of one's own as "loss = E + A / N^b": names
            in it that are no columns of the table are positive parameters.
        table: columns by name (a mapping or dataframe), or the path of a file or folder of runs
            (`read_table`); those named as the law's variables and target are used.
        loss: "log_huber" (sum over points of Huber's loss, limit `delta`, of the difference of logarithms),
            "log_squared" (sum of its squares), "squared" (sum of squares of the difference itself), "robust"
            (Huber's loss with the limit fitted to the scatter). Laws of accuracy and coverage have no
            logarithm: there these take the difference itself. "binomial": the likelihood of counts, columns n
            and c, for a law of a share. Laws of counts always take their own likelihood.
        cluster: column of runs whose points share noise (checkpoints and branches of one run).
        starts: starts where more than three parameters are nonlinear; for fewer there is a grid.
        bootstrap: refits to resampled clusters (rows, without `cluster`); intervals are then their quantiles.
        intervals: "profile" (likelihood, computed when asked for), "delta" (quick), "bootstrap" (as many
            draws as `bootstrap`, 1000 without), "posterior" (Bayesian, flat within bounds).
        fixed: parameters held at values.
        progress: called with the share of bootstrap refits or posterior steps done.

    Raises:
        FlopwiseError: unknown law or loss, a column missing, a value that is no number or out of range, too
            few points or too few different ones.
    """
    from flopwise.records.table import read_table

    if not isinstance(table, Mapping):
        table = read_table(table)
    base = own(law, table) if isinstance(law, str) and "=" in law else get(law)
    form = base.fix(fixed or {})
    _check(loss, delta, bootstrap, intervals, seed, starts)
    if loss == "binomial":
        form = form.from_shares()
    if form.from_counts:
        loss = "binomial" if loss == "binomial" else "likelihood"
    elif loss == "likelihood":
        raise FlopwiseError(
            f"fit: {form.name} is no law of counts; for shares with columns n and c: binomial"
        )
    x, y, clusters = columns(form, table, target or form.target, cluster)
    rows = np.arange(len(y))
    if len(y) > MOST:
        rows = _sample(clusters, len(y), seed)
        x, y = {n: v[rows] for n, v in x.items()}, y[rows]
        clusters = None if clusters is None else clusters[rows]
    doubts.enough(form, x, y)
    scale = "nll" if form.from_counts else "plain" if loss == "squared" else form.scale
    # The robust loss begins near absolute deviations: squares would let one bad row set its limit.
    size = 1e-3 * (1.0 if scale == "log" else float(np.sqrt(np.mean(np.square(y)))) or 1.0)
    limit = {"log_huber": delta, "robust": size}.get(loss, np.inf)
    problem = Objective(form, x, y, limit, scale)
    problem, ends = _search(problem, loss, starts, seed)
    theta = ends.theta[0]
    if np.abs(problem.residuals(theta[None])).max() >= NO_VALUE:
        raise FlopwiseError(
            f"fit: {form.name} has no value at these points for any parameters tried; check their units"
        )
    edge = _at_bounds(problem, theta)
    noise = _noise(problem, theta, clusters, np.array([p not in edge for p in form.names]))
    out = Fit(
        form=form, params=named(form, theta), loss=loss,
        objective=float(ends.cost[0]) * (2 if loss in ("log_squared", "squared") else 1), n=len(y),
        n_clusters=len(y) if clusters is None else len(np.unique(clusters)), covariance=noise.covariance,
        scatter=noise.scatter, dof=noise.dof, dofs=noise.dofs, ranges=_ranges(form, x), status="converged",
        fixed=dict(fixed or {}), curvature=noise.curvature, problem=problem,
    )  # fmt: skip
    _diagnose(out, ends, noise, edge)
    doubts.look(out, ends, noise, table, cluster, target or form.target, rows)
    if bootstrap or intervals == "bootstrap":
        _bootstrap(out, clusters, bootstrap or 1000, seed, progress)
    elif intervals == "posterior":
        _posterior(out, noise, seed, progress)
    else:
        out.intervals = intervals
    return out


def _sample(clusters: Array | None, n: int, seed: int) -> Array:
    """`MOST` of n rows at random, or the rows of clusters that hold about as many."""
    rng = np.random.default_rng(seed)
    if clusters is None:
        return np.sort(rng.choice(n, MOST, replace=False))
    names = np.unique(clusters)
    share = max(1, int(len(names) * MOST / n))
    return np.flatnonzero(np.isin(clusters, rng.choice(names, share, replace=False)))[:MOST]


def _check(loss: str, delta: float, bootstrap: int, intervals: str, seed: int, starts: int) -> None:
    if loss not in LOSSES:
        raise FlopwiseError(f"fit: loss {loss!r} is unknown; there are {', '.join(LOSSES)}")
    if intervals not in INTERVALS:
        raise FlopwiseError(f"fit: intervals {intervals!r} are unknown; there are {', '.join(INTERVALS)}")
    if not isinstance(delta, int | float) or not LEAST <= delta < np.inf:
        raise FlopwiseError(f"fit: delta is {str(delta)[:40]}, must be a number from {LEAST:g}")
    if not isinstance(bootstrap, int) or (bootstrap and not 20 <= bootstrap <= 100_000):
        raise FlopwiseError(f"fit: bootstrap is {str(bootstrap)[:40]}, must be 0 or from 20 to 100000 refits")
    for name, value, least in (("seed", seed, 0), ("starts", starts, 1)):
        if not isinstance(value, int | np.integer) or value < least:
            raise FlopwiseError(f"fit: {name} is {str(value)[:40]}, must be a whole number from {least}")


def _search(problem: Objective, loss: str, starts: int, seed: int) -> tuple[Objective, Minima]:
    """The minima, best first; for the robust loss with its limit fitted too."""
    ends = minimise(problem, starts, seed)
    if loss != "robust":
        return problem, ends
    k = ends.theta.shape[1]
    for _ in range(20):
        sigma = robust_scale(problem.residuals(ends.theta[:1])[0], k)
        if sigma == 0 or abs(TURN * sigma / problem.delta - 1) < 1e-3:
            break
        problem = replace(problem, delta=TURN * sigma)
        ends = descend(problem, ends.theta, *bounds(problem))
        ends = ends.take(np.argsort(ends.cost, kind="stable"))
    return problem, ends


def _noise(problem: Objective, theta: Array, clusters: Array | None, free: Array) -> Spread:
    """The spread of the `free` parameters [k]; those at an edge are taken as held, without variance."""
    r, J = problem.jacobian(theta[None])
    if not free.any():
        free = np.ones_like(free)
    inner = J[0][free].T
    if problem.scale == "nll":
        H = np.nan_to_num(problem.local(theta[None], np.ones(1, bool)).curvature[0])
        found = from_likelihood(H[np.ix_(free, free)], inner, clusters, J.shape[2])
    else:
        found = spread(inner, r[0], clusters, problem.delta)
    if free.all():
        return found
    k = len(free)
    covariance, curvature, dofs = np.zeros((k, k)), np.zeros((k, k)), np.full(k, found.dof)
    covariance[np.ix_(free, free)], curvature[np.ix_(free, free)] = found.covariance, found.curvature
    curvature[~free, ~free] = np.abs(np.diag(found.curvature)).min() * 1e-6
    dofs[free] = found.dofs
    return replace(found, covariance=covariance, curvature=curvature, dofs=dofs)


def _diagnose(out: Fit, ends: Minima, noise: Spread, at_bound: list[str]) -> None:
    """Fill in diagnostics and status."""
    form, problem = out.form, out.problem
    assert problem is not None
    theta = ends.theta[0]
    deviation = np.sqrt(np.maximum(np.diag(noise.curvature), 1e-300))
    values, vectors = np.linalg.eigh(np.nan_to_num(noise.curvature / np.outer(deviation, deviation)))
    top = float(values[-1])
    condition = float(np.sqrt(top / max(values[0], 1e-30 * top))) if top > 0 else FLAT
    flat = [
        {form.names[i]: round(float(v), 3) for i, v in enumerate(vectors[:, j]) if abs(v) > 0.05}
        for j in np.flatnonzero(values < 1e-10 * values[-1])
    ]
    r = problem.residuals(theta[None])[0]
    out.diagnostics = {
        "gradient": float(ends.gradient[0]), "newton_decrease": float(ends.decrease[0]),
        "steps": int(ends.steps[0]),
        "condition": condition, "flat_directions": flat, "at_bounds": at_bound,
        "starts_finished": len(ends.cost), "local_optima": ends.cost.tolist(),
        "covariance": noise.how,
    }  # fmt: skip
    if problem.scale != "nll":
        out.diagnostics |= {
            "residual_rms": float(np.sqrt((r**2).mean())),
            "noise_between_clusters": noise.between, "noise_within": noise.within,
        }  # fmt: skip
    if out.loss == "robust":
        out.diagnostics["delta"] = problem.delta if problem.delta < np.inf else None
    out.status = "iteration_limit" if not ends.converged[0] else "at_bound" if at_bound else "converged"


def _at_bounds(problem: Objective, theta: Array) -> list[str]:
    """Parameters at the edge of their range, and factors of terms that have vanished."""
    lower, upper = bounds(problem)
    near = (theta <= lower + 1e-6) | (theta >= upper - 1e-6)
    if problem.scale != "nll":
        J = problem.jacobian(theta[None])[1][0]
        effect = np.abs(J).max(axis=1) / np.sqrt(problem.unit)
        near |= problem.law.positive & (effect < VANISHED) & (theta < np.log(1e-3))
    return [name for name, at in zip(problem.law.names, near, strict=True) if at]


def _bootstrap(
    out: Fit, clusters: Array | None, n: int, seed: int, progress: Callable[[float], None] | None
) -> None:
    assert out.problem is not None
    if out.n_clusters < FEWEST:
        raise FlopwiseError(
            f"fit: a bootstrap over {out.n_clusters} independent runs says nothing; it needs {FEWEST} or more"
        )
    low, high = bounds(out.problem)
    samples, failed = resample(out.problem, out.theta, low, high, clusters, n, seed, progress)
    if len(samples) < max(20, n // 2):
        raise FlopwiseError(
            f"fit: only {n - failed} of {n} bootstrap refits converged; leave --bootstrap out"
        )
    out.samples, out.intervals = samples, "bootstrap"
    out.diagnostics["bootstrap"] = {"draws": len(samples), "not_converged": failed}
    if out.n_clusters < 10:
        out.warnings.append(
            f"a bootstrap over {out.n_clusters} independent runs understates what is not known; without it "
            f"intervals are by Student's t"
        )


def _posterior(out: Fit, noise: Spread, seed: int, progress: Callable[[float], None] | None) -> None:
    problem = out.problem
    assert problem is not None
    # The objective's rise counts as in the profile of the middle parameter: there is one scale for all.
    scale = np.diag(noise.covariance) / np.maximum(np.diag(invert(noise.curvature)), 1e-300)
    out.samples, accepted = posterior(
        problem, out.theta, noise.covariance, *bounds(problem), float(np.median(scale)), 2000, seed, progress
    )
    out.intervals = "posterior"
    out.diagnostics["posterior"] = {"draws": len(out.samples), "accepted": accepted}


def _ranges(form: Law, x: Mapping[str, Array]) -> dict[str, tuple[float, float]]:
    """Of each variable the law predicts from; a law of counts has seen k up to the samples drawn."""
    out = {name: (float(v.min()), float(v.max())) for name, v in x.items() if name in form.variables}
    if form.from_counts and "k" in form.variables and "k" not in x and "n" in x:
        out["k"] = (1.0, float(x["n"].max()))
    return out


def columns(
    law: Law, table: Mapping[str, Any], target: str, cluster: str | None
) -> tuple[dict[str, Array], Array, Array | None]:
    """The columns a law needs, checked: variables, target (zeros for a law of counts), cluster numbers."""
    from flopwise.records.table import numbers, require

    wanted = law.counts if law.from_counts else (*law.variables, target)
    out = {}
    for name in wanted:
        values = numbers(table, name, f"fit: {law.name}")
        low, high = law.span if name == target and not law.from_counts else (0.0, np.inf)
        if name in law.signed or (name in ("n", "c") and law.from_counts):
            low = -np.inf if name in law.signed else 0.0
        bad = (values < low) | (values > high)
        limit = f"must be from {low:g} to {high:g}"
        zero = name in law.from_zero or name in law.signed or (name == "c" and law.from_counts)
        if (name == target and law.scale == "log") or (name != target and not zero):
            bad |= values <= 0
            limit = "must be above 0"
        if bad.any():
            raise FlopwiseError(
                f"fit: column {name!r} holds {values[bad][0]:g} in row {int(np.argmax(bad)) + 1}, {limit}"
            )
        out[name] = values
    if len({len(v) for v in out.values()}) > 1:
        raise FlopwiseError(f"fit: columns differ in length: { {n: len(v) for n, v in out.items()} }")
    if law.from_counts and {"n", "c"} <= set(out):
        bad = (out["c"] > out["n"]) | (out["c"] % 1 != 0) | (out["n"] % 1 != 0)
        if bad.any():
            i = int(np.argmax(bad))
            raise FlopwiseError(
                f"fit: row {i + 1} has c = {out['c'][i]:g} correct of n = {out['n'][i]:g} samples; both must "
                f"be whole numbers, c at most n"
            )
    y = np.zeros(len(next(iter(out.values())))) if law.from_counts else out.pop(target)
    if cluster is None:
        return out, y, None
    require(table, cluster, "fit: to cluster by")
    labels = np.asarray(table[cluster])
    if labels.shape != y.shape:
        raise FlopwiseError(
            f"fit: column {cluster!r} to cluster by has the shape {labels.shape}, not {y.shape}"
        )
    return out, y, np.unique(labels.astype(str), return_inverse=True)[1]

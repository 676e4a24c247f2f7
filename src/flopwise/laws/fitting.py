"""Fit a law to a table: search, intervals, and what a reader should be warned of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from flopwise.errors import FlopwiseError
from flopwise.laws.law import Array, Law, get
from flopwise.laws.result import Allocation, Fit, Prediction
from flopwise.laws.search import NO_VALUE, Minimum, Problem, minimise, unpack
from flopwise.laws.uncertainty import Spread, bootstrap, spread

__all__ = ["LOSSES", "Allocation", "Fit", "Prediction", "fit"]

LOSSES = ("log_huber", "log_squared", "squared")


def fit(
    law: str | Law, table: Any, loss: str = "log_huber", delta: float = 1e-3, cluster: str | None = None,
    seed: int = 0,
    target: str | None = None, starts: int = 100, bootstrap: int = 0,
    progress: Callable[[float], None] | None = None,
) -> Fit:  # fmt: skip
    """Fit a law to columns of a table.

    Args:
        table: columns by name (a mapping or dataframe), or the path of a file or folder of runs
            (`read_table`); those named as the law's variables and target are used.
        loss: "log_huber" (sum over points of Huber's loss, limit `delta`, of the difference of logarithms),
            "log_squared" (sum of its squares) or "squared" (sum of squares of the difference itself). Laws of
            accuracy and coverage have no logarithm: there all three take the difference itself.
        cluster: column of runs whose points share noise (checkpoints and branches of one run).
        starts: random starts for the nonlinear parameters.
        bootstrap: refits to resampled clusters (rows, without `cluster`); intervals are then their quantiles.
        progress: called with the share of bootstrap refits done.

    Raises:
        FlopwiseError: unknown law or loss, a column missing, a value that is no number or out of range, too
            few points or too few different ones.
    """
    law = get(law)
    if loss not in LOSSES:
        raise FlopwiseError(f"fit: loss {loss!r} is unknown; there are {', '.join(LOSSES)}")
    if not delta > 0:
        raise FlopwiseError(f"fit: delta is {delta}, must be above 0")
    if bootstrap and not 20 <= bootstrap <= 100_000:
        raise FlopwiseError(f"fit: bootstrap is {bootstrap}, must be 0 or from 20 to 100000 refits")
    x, y, clusters = _columns(law, table, target or law.target, cluster)
    _enough(law, x, y)
    scale = "plain" if loss == "squared" else law.scale
    problem = Problem(law, x, y, delta if loss == "log_huber" else np.inf, scale)
    ends = minimise(problem, max(starts, 1), seed)
    best = ends[0]
    r, J = problem.residuals(best.theta), problem.jacobian(best.theta)
    if not np.isfinite(J).all() or np.abs(r).max() >= NO_VALUE:
        raise FlopwiseError(
            f"fit: {law.name} has no value at these points for any parameters tried; check their units"
        )
    noise = spread(J, r, clusters, problem.delta)
    out = Fit(
        law=law.name, params=unpack(law, best.theta), objective=best.cost * (1 if loss == "log_huber" else 2),
        loss=loss, n=len(y),
        n_clusters=len(y) if clusters is None else len(np.unique(clusters)), covariance=noise.covariance,
        scatter=noise.scatter, dof=noise.dof,
        ranges={name: (float(v.min()), float(v.max())) for name, v in x.items()},
        status="converged",
    )  # fmt: skip
    _diagnose(out, law, x, J, r, ends, noise)
    if bootstrap:
        _bootstrap(out, problem, best.theta, clusters, bootstrap, seed, progress)
    return out


def _diagnose(
    out: Fit, law: Law, x: Mapping[str, Array], J: Array, r: Array, ends: list[Minimum], noise: Spread
) -> None:
    """Fill in status, diagnostics, warnings."""
    best = ends[0]
    k = len(law.names)
    at_bound = [name for name, stuck in zip(law.names, best.at_bound, strict=True) if stuck]
    norms = np.linalg.norm(J, axis=0)
    s = np.linalg.svd(J / np.where(norms > 0, norms, 1.0), compute_uv=False)
    condition = float(s[0] / max(s[-1], 1e-15 * s[0]))
    out.diagnostics = {
        "gradient": best.gradient, "newton_decrease": best.decrease, "steps": best.steps,
        "condition": condition,
        "at_bounds": at_bound, "local_optima": [m.cost for m in ends],
        "residual_rms": float(np.sqrt((r**2).mean())),
        "noise_between_clusters": noise.between, "noise_within": noise.within,
    }  # fmt: skip
    out.status = "iteration_limit" if not best.converged else "at_bound" if at_bound else "converged"
    say = out.warnings.append
    if law.unready and (reason := law.unready(out.params, out.ranges)):
        out.status = "not_identified"
        say(reason)
    if not best.converged:
        say(f"the search stopped before it settled (one step more promises {best.decrease:.1e} of the rest)")
    if at_bound:
        say(f"at the edge of its range: {', '.join(at_bound)}")
    if line := _on_a_line(x):
        say(
            f"{' and '.join(line)} lie on one line, so that their terms cannot be told apart: believe the "
            f"law along that line only, and vary one of them alone"
        )
    if condition > 1e4:
        say(f"parameters trade off against each other (condition {condition:.0e}); trust predictions more")
    if not noise.seen:
        say(
            f"{out.n_clusters} runs for a law with {k} parameters: how much runs differ cannot be seen and "
            f"is left out of the intervals; repeat some with another seed"
        )
    elif out.n_clusters < 2 * k and out.n_clusters < out.n:
        say(f"{out.n_clusters} independent runs for {k} parameters: intervals lean on the law's form")


def _bootstrap(
    out: Fit, problem: Problem, theta: Array, clusters: Array | None, n: int, seed: int,
    progress: Callable[[float], None] | None,
) -> None:  # fmt: skip
    out.samples, failed = bootstrap(problem, theta, clusters, n, seed, progress)
    if len(out.samples) < max(20, n // 2):
        raise FlopwiseError(
            f"fit: only {n - failed} of {n} bootstrap refits converged; leave --bootstrap out"
        )
    out.diagnostics["bootstrap"] = {"draws": len(out.samples), "not_converged": failed}
    if out.n_clusters < 10:
        out.warnings.append(
            f"a bootstrap over {out.n_clusters} independent runs understates what is not known; without it "
            f"intervals are by Student's t"
        )


def _columns(
    law: Law, table: Any, target: str, cluster: str | None
) -> tuple[dict[str, Array], Array, Array | None]:
    """The columns a law needs, checked."""
    from flopwise.records.table import numbers, read_table, require

    if not isinstance(table, Mapping):
        table = read_table(table)
    out = {}
    for name in (*law.variables, target):
        values = numbers(table, name, f"fit: {law.name}")
        low, high = law.span if name == target else (0.0, np.inf)
        bad = (values < low) | (values > high)
        if (name == target and law.scale == "log") or (name != target and name not in law.from_zero):
            bad |= values <= 0
            limit = "must be above 0"
        else:
            limit = f"must be from {low:g} to {high:g}"
        if bad.any():
            raise FlopwiseError(
                f"fit: column {name!r} holds {values[bad][0]:g} in row {int(np.argmax(bad)) + 1}, {limit}"
            )
        out[name] = values
    if len({len(v) for v in out.values()}) > 1:
        raise FlopwiseError(f"fit: columns differ in length: { {n: len(v) for n, v in out.items()} }")
    y = out.pop(target)
    if cluster is None:
        return out, y, None
    require(table, cluster, "fit: to cluster by")
    labels = np.asarray(table[cluster])
    return out, y, np.unique(labels.astype(str), return_inverse=True)[1]


def _enough(law: Law, x: Mapping[str, Array], y: Array) -> None:
    """Raise unless there are points enough, and different enough."""
    k, names = len(law.names), ", ".join(x)
    if len(y) < k + 1:
        raise FlopwiseError(
            f"fit: {law.name} has {k} parameters and needs at least {k + 1} points, there are {len(y)}"
        )
    different = np.unique(np.stack(list(x.values())), axis=1).shape[1]
    if different < k:
        raise FlopwiseError(
            f"fit: {law.name} has {k} parameters, and the {len(y)} rows hold only {different} different "
            f"({names}); add runs at other {names}"
        )
    for name, values in x.items():
        if np.ptp(values) == 0:
            raise FlopwiseError(f"fit: {name} is {values[0]:g} in every row; {law.name} needs it to vary")


def _on_a_line(x: Mapping[str, Array]) -> list[str]:
    """Pairs of variables whose logarithms are one line (correlation above 0.9995)."""
    names = [name for name, values in x.items() if (values > 0).all()]
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            if abs(np.corrcoef(np.log(x[a]), np.log(x[b]))[0, 1]) > 0.9995:
                return [a, b]
    return []

"""What a fit cannot be trusted with, in words: refusals before it, warnings after it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from flopwise.errors import FlopwiseError
from flopwise.laws.advice import missing_runs
from flopwise.laws.law import Array, Law
from flopwise.laws.objective import named
from flopwise.laws.search import Minima, descend
from flopwise.laws.starts import bounds
from flopwise.laws.uncertainty import Spread, robust_scale

if TYPE_CHECKING:
    from flopwise.laws.result import Fit

LINE = 0.15
"""Standard deviation in logarithms of a variable around its line in another, below which they are one."""
OUTLIER = 4.5
"""Robust standard deviations."""
RUN_COLUMNS = ("run", "run_id", "trunk", "experiment_id")
"""Columns that would name the run of a checkpoint."""
VAGUE = "not identified to within a factor of e"
"""What is said before profiles are made; they say it better."""
WIDE = 10.0
"""Ratio of an interval's ends above which a parameter is said to be hardly identified."""
FAR, ASIDE = 10.0, 1.5
"""How many times beyond the fitted compute, and the tokens per parameter, a prediction is warned of."""
LOOSE = 1.0
"""Standard error of a logarithm that means "known to no better than a factor of e to 2.7"."""


def enough(law: Law, x: Mapping[str, Array], y: Array) -> None:
    """Raise unless there are points enough, and different enough; the message says which to add."""
    k, names = len(law.names), ", ".join(x)
    if not len(y):
        raise FlopwiseError("fit: the table has no rows")
    if len(y) < k + 1:
        raise FlopwiseError(
            f"fit: {law.name} has {k} parameters and needs at least {k + 1} points, there are {len(y)}; add "
            f"{missing_runs(x, k + 1 - len(y))}, hold parameters with --fix, or fit a law with fewer"
        )
    if not law.from_counts and np.ptp(y) == 0:
        raise FlopwiseError(f"fit: {law.target} is {y[0]:g} in every row; there is nothing to fit")
    for name, values in x.items():
        if np.ptp(values) == 0 and name not in law.counts:
            raise FlopwiseError(
                f"fit: {name} is {values[0]:g} in every row; {law.name} needs it to vary: without that its "
                f"exponent cannot be told from the floor. Add runs at a third and at three times that {name}"
            )
    if law.from_counts:
        return
    different = np.unique(np.stack(list(x.values())), axis=1).shape[1]
    if different < k:
        raise FlopwiseError(
            f"fit: {law.name} has {k} parameters, and the {len(y)} rows hold only {different} different "
            f"({names}); add runs at other {names}"
        )


def look(
    out: Fit, ends: Minima, noise: Spread, table: Mapping[str, Any], cluster: str | None, target: str,
    rows: Array,
) -> None:  # fmt: skip
    """Append to the fit's warnings whatever a careful reader would want to know.

    `rows` [n]: which rows of the table were fitted.
    """
    form, problem = out.form, out.problem
    assert problem is not None
    say, k = out.warnings.append, len(form.names)
    serious = out.diagnostics.setdefault("serious", [])
    if form.unready and (reason := form.unready(out.params, out.ranges)):
        out.status = "not_identified"
        say(reason)
        serious.append("the data end before the law shows")
    if not ends.converged[0]:
        serious.append("the search did not settle")
        say(
            f"the search stopped before it settled (one step more promises {ends.decrease[0]:.1e} of "
            f"the rest)"
        )
    if at_bound := out.diagnostics["at_bounds"]:
        serious.append(f"{', '.join(at_bound)} at the edge of its range")
        say(f"at the edge of its range: {', '.join(f'{n} = {out.params[n]:.3g}' for n in at_bound)}")
    if line := on_a_line({name: v for name, v in problem.x.items() if name in form.variables}):
        serious.append(f"{' and '.join(line)} were not varied apart ({missing_runs(problem.x, 1)} would)")
        say(
            f"{' and '.join(line)} lie on one line, so that their terms cannot be told apart: believe the "
            f"law along that line only, and vary one of them alone"
        )
    if out.n <= k + 2:
        serious.append(f"{out.n} points for {k} parameters")
        say(f"{out.n} points for {k} parameters: next to nothing is left to test the law with")
    _not_identified(out, noise)
    if not noise.seen:
        say(
            f"{out.n_clusters} runs for a law with {k} parameters: how much runs differ cannot be seen and "
            f"is left out of the intervals; repeat some with another seed"
        )
    elif out.n_clusters < 2 * k and out.n_clusters < out.n:
        say(f"{out.n_clusters} independent runs for {k} parameters: intervals lean on the law's form")
    if cluster is None:
        for column in RUN_COLUMNS:
            if column in table and (g := len(np.unique(np.asarray(table[column]).astype(str)))) < out.n:
                say(
                    f"{out.n} rows come from {g} values of {column!r}: points of one run are not "
                    f"independent; "
                    f"say --cluster {column}"
                )
                break
    if problem.scale != "nll":
        _rows(out, problem.residuals(ends.theta[:1])[0], rows)
        _other_loss(out, ends.theta[:1])
    _conventions(out, table, target, cluster)
    if len(table[next(iter(problem.x))]) > out.n:
        say(
            f"{len(table[next(iter(problem.x))])} rows: fitted to {out.n} of them, drawn at random"
            f"{' by whole clusters' if cluster else ''}; intervals are those of the sample"
        )


def after_profiles(fit: Fit) -> None:
    """Append what the profiles of all parameters show: those that no value, or hardly any, is too far for."""
    fit.warnings[:] = [line for line in fit.warnings if not line.startswith(VAGUE)]
    for p in fit.form.parameters:
        made, t = fit.profiles[p.name], fit.t(0.95, p.name)
        sides = [w for w, end in zip(("smaller", "larger"), made.open_ends(t), strict=True) if end]
        if len(sides) == 2:
            fit.diagnostics.setdefault("serious", []).append(f"{p.name} is not identified")
        low, high = (float(np.exp(v)) if p.log else v for v in made.interval(t))
        if sides and p.name not in fit.diagnostics.get("at_bounds", ()):
            values = np.exp(made.values) if p.log else made.values
            fit.warnings.append(
                f"{p.name} is not identified: no {' or '.join(sides)} value is ruled out at 95% (the profile "
                f"was followed from {values.min():.3g} to {values.max():.3g})"
            )
        elif not sides and p.log and high > WIDE * low:
            fit.warnings.append(
                f"{p.name} is hardly identified: anything from {low:.3g} to {high:.3g} will do at 95%"
            )


def unready(fit: Fit) -> str:
    """Why the law must not be extrapolated: at its parameters, or at ends of their intervals; else ""."""
    if fit.form.unready is None:
        return ""
    if reason := fit.form.unready(fit.params, fit.ranges):
        return reason
    for name in fit.params:
        for end in fit.interval(name):
            if reason := fit.form.unready(fit.params | {name: end}, fit.ranges):
                return f"{reason} (at an end of the 95% interval of {name})"
    return ""


def too_far(fit: Fit, x: Mapping[str, Array]) -> tuple[str, ...]:
    """In words: beyond ten times the compute that was fitted, or tokens per parameter never seen."""
    said = []
    support = {name: (float(v[0]), float(v[1])) for name, v in fit.support.items()}
    asked = dict(x)
    if {"N", "D"} <= set(x):
        asked |= {"C": 6 * x["N"] * x["D"], "D / N": x["D"] / x["N"]}
    if "C" in fit.ranges:
        support["C"] = fit.ranges["C"]
    if "C" in support and (times := float(asked["C"].max()) / support["C"][1]) > FAR:
        said.append(
            f"C = {asked['C'].max():.3g} is {times:.3g} times the largest that was fitted; beyond {FAR:g} "
            f"times the interval does not know whether the form still holds"
        )
    if "D / N" in support:
        low, high = support["D / N"]
        ratio = asked["D / N"]
        outside = np.maximum(ratio / high, low / ratio)
        if outside.max() > ASIDE:
            said.append(
                f"{ratio[np.argmax(outside)]:.3g} tokens per parameter; the fitted runs have {low:.3g} to "
                f"{high:.3g}, and laws are unreliable outside"
            )
    return tuple(said)


def _not_identified(out: Fit, noise: Spread) -> None:
    """Parameters that the data leave open, and directions that are flat."""
    form = out.form
    errors = np.sqrt(np.maximum(np.diag(noise.covariance), 0.0))
    loose = [
        p.name
        for p, e, v in zip(form.parameters, errors, out.theta, strict=True)
        if e > (LOOSE if p.log else 2 * max(abs(v), 1e-12))
    ]
    flat = out.diagnostics["flat_directions"]
    if flat:
        out.diagnostics["serious"].append(f"{' and '.join(flat[0])} cannot be told apart")
        out.warnings.append(
            f"the data do not see the direction {' , '.join(f'{n} {v:+g}' for n, v in flat[0].items())}: "
            f"{' and '.join(flat[0])} can move together without any change"
        )
    elif loose:
        out.warnings.append(
            f"{VAGUE}: {', '.join(loose)}; the law's predictions may still be sure, its parameters are not"
        )
    elif out.diagnostics["condition"] > 1e4:
        out.warnings.append(
            f"parameters trade off against each other (condition {out.diagnostics['condition']:.0e}); trust "
            f"predictions more"
        )


def _rows(out: Fit, r: Array, places: Array) -> None:
    """Outliers, by row."""
    from flopwise.laws.quantiles import ndtri

    problem = out.problem
    assert problem is not None
    n, k = len(r), len(out.form.names)
    # A fit by absolute deviations goes through k points: without those.
    sigma = 1.4826 * float(np.median(np.sort(np.abs(r))[k:])) if n > k else 0.0
    if n >= 2 * k and sigma > 0:
        limit = max(OUTLIER, float(-ndtri(0.01 / n)))  # of many normal rows a few are far out
        far = np.flatnonzero(np.abs(r) > limit * sigma)
        if len(far):
            worst = far[np.argsort(-np.abs(r[far]))][:5]
            unit = (lambda v: f"{np.expm1(-v):+.1%}") if problem.scale == "log" else (lambda v: f"{-v:+.3g}")
            named_rows = ", ".join(f"row {places[i] + 1} ({unit(r[i])})" for i in worst)
            more = f" and {len(far) - len(worst)} more" if len(far) > len(worst) else ""
            out.warnings.append(
                f"far from the law, beyond {limit:.1f} robust standard deviations: "
                f"{named_rows}{more}; look at "
                f"them, and see whether the fit depends on them (--loss robust)"
            )


def _other_loss(out: Fit, theta: Array) -> None:
    """Where another sensible loss gives another answer, by more than the standard error."""
    problem = out.problem
    assert problem is not None
    if out.loss in ("log_huber", "robust"):
        other, how = replace(problem, delta=np.inf), "squares"
    else:
        sigma = robust_scale(problem.residuals(theta)[0], theta.shape[1])
        if sigma == 0:
            return
        other, how = replace(problem, delta=1.345 * sigma), "a robust loss"
    end = descend(other, theta, *bounds(other), limit=60, newton=False)
    errors = np.sqrt(np.maximum(np.diag(out.covariance), 0.0))
    apart = np.abs(end.theta[0] - theta[0]) / np.maximum(errors, 1e-12)
    if apart.max() > 1:
        then = named(out.form, end.theta[0])
        worst = int(np.argmax(apart))
        name = out.form.names[worst]
        rest = [n for n, a in zip(out.form.names, apart, strict=True) if a > 1 and n != name]
        also = f"; also {', '.join(rest)}" if rest else ""
        out.warnings.append(
            f"the loss matters: {name} is {out.params[name]:.4g} by {out.loss} and {then[name]:.4g} "
            f"by {how}, "
            f"{apart[worst]:.1f} standard errors apart{also}"
        )
    out.diagnostics["other_loss"] = {"loss": how, "params": named(out.form, end.theta[0])}


def _conventions(out: Fit, table: Mapping[str, Any], target: str, cluster: str | None) -> None:
    """Columns that contradict each other: N with and without embeddings, C that is not 6 N D."""
    from flopwise.records.conventions import conventions

    columns = {str(name): values for name, values in table.items()}
    out.warnings += conventions(columns, (*out.form.variables, target), cluster)


def on_a_line(x: Mapping[str, Array]) -> list[str]:
    """A pair of variables whose logarithms are one line."""
    names = [name for name, values in x.items() if (values > 0).all() and np.ptp(values) > 0]
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            u, v = (np.log(x[n]) - np.log(x[n]).mean() for n in (a, b))
            if np.std(u) < 1e-12 or np.std(v) < 1e-12:
                continue
            around = np.std(v - u * (u @ v) / (u @ u))
            if around < min(LINE, 0.1 * np.std(v)):
                return [a, b]
    return []

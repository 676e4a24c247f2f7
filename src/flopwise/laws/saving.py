"""A fit as JSON and back: everything but the data."""

from __future__ import annotations

from typing import Any

import numpy as np

from flopwise.laws.formula import parse
from flopwise.laws.law import get, own
from flopwise.laws.objective import LOSSES
from flopwise.laws.profile import Profile
from flopwise.laws.result import Fit


def to_dict(fit: Fit) -> dict[str, Any]:
    """All of a fit but the data, with its intervals at 95%."""
    return {
        "law": fit.law, "formula": fit.form.formula, "params": fit.params,
        "intervals": {name: [_finite(end) for end in fit.interval(name)] for name in fit.params},
        "objective": fit.objective,
        "loss": fit.loss, "n": fit.n, "n_clusters": fit.n_clusters, "scatter": fit.scatter,
        "misfit": fit.misfit, "dof": fit.dof if np.isfinite(fit.dof) else None,
        "dofs": None if fit.dofs is None or not np.isfinite(fit.dofs).all() else fit.dofs.tolist(),
        "fixed": fit.fixed, "interval_method": fit.intervals,
        "covariance": fit.covariance.tolist(),
        "samples": None if fit.samples is None else fit.samples.tolist(),
        "profiles": {
            name: {"values": p.values.tolist(), "z": p.z.tolist(), "limits": [*map(_finite, p.limits)]}
            for name, p in fit.profiles.items()
        },
        "ranges": {name: list(ends) for name, ends in fit.ranges.items()}, "status": fit.status,
        "diagnostics": fit.diagnostics
        | {"support": {name: [*map(_finite, ends)] for name, ends in fit.support.items()}},
        "warnings": fit.warnings,
    }  # fmt: skip


def from_dict(d: dict[str, Any]) -> Fit:
    """A fit from what `to_dict` gave.

    Raises:
        FlopwiseError: its law is not in the catalogue.
        ValueError, KeyError, TypeError, IndexError, AttributeError: it is something else.
    """
    fixed = {str(p): float(v) for p, v in (d.get("fixed") or {}).items()}
    form = _form(str(d["law"]), [str(p) for p in d["params"]], fixed)
    loss, k = str(d["loss"]), len(form.names)
    if loss not in LOSSES:
        raise ValueError(f"loss {loss!r}")
    if loss == "binomial":
        form = form.from_shares()
    fit = Fit(
        form=form, params={p: float(d["params"][p]) for p in form.names},
        objective=float(d["objective"]), loss=loss, n=int(d["n"]),
        n_clusters=int(d["n_clusters"]),
        covariance=np.array(d["covariance"], dtype=float).reshape(k, k), scatter=float(d["scatter"]),
        dof=np.inf if d["dof"] is None else float(d["dof"]),
        dofs=np.array(d["dofs"], dtype=float).reshape(k) if d.get("dofs") else None,
        ranges={str(v): (float(ends[0]), float(ends[1])) for v, ends in d["ranges"].items()},
        status=str(d["status"]), diagnostics=dict(d["diagnostics"]),
        warnings=[str(w) for w in d["warnings"]],
        misfit=float(d.get("misfit") or 0.0),
        samples=np.array(d["samples"], dtype=float).reshape(-1, k) if d.get("samples") else None,
        intervals=str(d.get("interval_method") or "delta"), fixed=fixed,
        profiles={str(p): _profile(v) for p, v in (d.get("profiles") or {}).items()},
    )  # fmt: skip
    ends = np.ravel([*fit.ranges.values()])
    numbers = [*fit.params.values(), *fit.covariance.flat, fit.scatter, fit.misfit, *ends]
    if not (np.isfinite(numbers).all() and fit.dof > 0 and fit.scatter >= 0):
        raise ValueError("not finite")
    return fit


def _form(name: str, params: list[str], fixed: dict[str, float]) -> Any:
    """The law by its name; from its formula, whose parameters are the names that have values."""
    if "=" not in name:
        return get(name).fix(fixed)
    return own(name, [v for v in parse(name).names if v not in {*params, *fixed}]).fix(fixed)


def _profile(v: dict[str, Any]) -> Profile:
    values, z = np.array(v["values"], dtype=float), np.array(v["z"], dtype=float)
    low, high = v["limits"]
    return Profile(
        values, z, (-np.inf if low is None else float(low), np.inf if high is None else float(high))
    )


def _finite(value: float) -> float | None:
    """As JSON takes it: no end is null."""
    return value if np.isfinite(value) else None

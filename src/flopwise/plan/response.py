"""What a plan asks of laws: the value at a point, for the best parameters and for draws of them.

A response is one fitted law, or two in a chain: a law that predicts a loss, and one that goes on from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np

from flopwise.errors import FlopwiseError

if TYPE_CHECKING:
    from flopwise.laws import Fit, Prediction

Point = Mapping[str, Any]
KNOWN = ("N", "D", "U", "post", "k")
"""Variables that a plan decides on."""
RISES = ("coverage", "accuracy", "reward")
"""Targets of which more is better."""
DRAWN = 1000
"""Draws behind a prediction of a share or of two laws in a chain."""


@dataclass(frozen=True)
class Response:
    """A metric as a function of N, D, U (unique tokens), post and k; those it does not know leave it as it
    is."""

    fit: Fit
    """Of the metric."""
    inner: Fit | None = None
    """Of the loss that `fit` goes on from."""

    @property
    def name(self) -> str:
        """The law's name, or those of the chain."""
        return self.fit.law if self.inner is None else f"{self.inner.law} > {self.fit.law}"

    @property
    def metric(self) -> str:
        """The target of the law."""
        return self.fit.form.target

    @property
    def rises(self) -> bool:
        """Whether more of the metric is better."""
        return self.metric in RISES

    @property
    def variables(self) -> frozenset[str]:
        """Those of `KNOWN` that matter."""
        own = set(self.fit.form.variables) | (set(self.inner.form.variables) if self.inner else set())
        return frozenset(own & set(KNOWN))

    @property
    def ranges(self) -> dict[str, tuple[float, float]]:
        """What was fitted, by variable."""
        return {**self.fit.ranges, **(self.inner.ranges if self.inner else {})}

    @property
    def warnings(self) -> list[str]:
        """Those of the fits."""
        return [*self.fit.warnings, *(self.inner.warnings if self.inner else ())]

    def best(self) -> list[dict[str, Any]]:
        """The fitted parameters, as `value` takes them, one set."""
        return [{n: np.array([[v]]) for n, v in f.params.items()} for f in self._fits()]

    def draws(self, n: int, seed: int = 0) -> list[dict[str, Any]]:
        """`n` sets of parameters from the fits' uncertainty."""
        out = []
        for i, f in enumerate(self._fits()):
            sets = f.draws(n, seed + i)
            out.append({name: np.array([[s[name]] for s in sets]) for name in f.params})
        return out

    def _fits(self) -> list[Fit]:
        return [self.fit] if self.inner is None else [self.inner, self.fit]

    def value(self, params: Sequence[Mapping[str, Any]], x: Point) -> np.ndarray:
        """The metric [b, m] for b sets of parameters at points whose columns broadcast to [b, m]."""
        columns = {name: np.asarray(v, dtype=float) for name, v in x.items()}
        with np.errstate(all="ignore"):
            if self.inner is not None:
                columns["loss"] = np.asarray(self.inner.form(params[0], columns))
            out = np.asarray(self.fit.form(params[-1], columns))
        shape = np.broadcast_shapes(
            *(np.shape(v) for v in columns.values()), np.shape(next(iter(params[-1].values())))
        )
        return np.broadcast_to(out, shape)

    def score(self, params: Sequence[Mapping[str, Any]], x: Point) -> np.ndarray:
        """`value` with a sign, so that more is better; where it is no number, minus infinity."""
        value = self.value(params, x)
        return np.where(np.isfinite(value), value if self.rises else -value, -np.inf)

    def predict(self, x: Mapping[str, float], level: float = 0.95, seed: int = 0) -> Prediction:
        """The metric of a single run at a point, with its interval."""
        if self.inner is not None:
            return self._chained(x, level, seed)
        made = self.fit.predict(level=level, **{v: x[v] for v in self.fit.form.variables})
        return self._drawn(made, x, level, seed) if self.rises else made

    def _drawn(self, made: Prediction, x: Mapping[str, float], level: float, seed: int) -> Prediction:
        """Ends from draws: near 0 and 1 a share bends too much for the straight lines of `predict`."""
        rng = np.random.default_rng((seed, 1))
        values = self.value(self.draws(DRAWN, seed), {v: np.array([[x[v]]]) for v in self.variables})[:, 0]
        dof, span = self.fit.dof, self.fit.form.span
        noise = rng.standard_t(dof, DRAWN) if np.isfinite(dof) else rng.standard_normal(DRAWN)
        q = [0.5 - level / 2, 0.5 + level / 2]
        # A draw far off may have no value at all.
        low, high = np.nanquantile(values, q)
        run_low, run_high = np.nanquantile(np.clip(values + self.fit.scatter * noise, *span), q)
        misfit = NormalDist().inv_cdf(q[1]) * self.fit.misfit * abs(made.value)
        ends = np.clip([min(run_low, made.value - misfit), max(run_high, made.value + misfit)], *span)
        return replace(
            made, low=float(ends[0]), high=float(ends[1]), mean_low=float(low), mean_high=float(high)
        )

    def _chained(self, x: Mapping[str, float], level: float, seed: int) -> Prediction:
        """Through draws: of both laws, and of the scatter of runs around them."""
        from flopwise.laws.result import Prediction

        assert self.inner is not None
        loss = self.inner.predict(level=level, **{v: x[v] for v in self.inner.form.variables})
        rest = {v: float(x[v]) for v in self.fit.form.variables if v != "loss"}
        rng = np.random.default_rng(seed)
        outer = self.draws(DRAWN, seed)[1]
        ends: list[float] = []
        spans = ((loss.low, loss.high, self.fit.scatter), (loss.mean_low, loss.mean_high, 0.0))
        for low, high, scatter in spans:
            half = (np.log(high) - np.log(low)) / 2 / self.inner.t(level)
            drawn = loss.value * np.exp(half * rng.standard_normal((DRAWN, 1)))
            values = np.asarray(self.fit.form(outer, {"loss": drawn, **rest}))[:, 0]
            values = np.clip(values + scatter * rng.standard_normal(DRAWN), *self.fit.form.span)
            ends += [float(v) for v in np.nanquantile(values, [0.5 - level / 2, 0.5 + level / 2])]
        at = self.fit.predict(level=level, loss=loss.value, **rest)
        beyond = max(loss.extrapolation, at.extrapolation)
        run_low, run_high, mean_low, mean_high = ends
        said = (*loss.warnings, *at.warnings)
        return Prediction(at.value, run_low, run_high, mean_low, mean_high, beyond, said)


def responses(fits: Sequence[Fit]) -> list[Response]:
    """The laws given, those that predict from a loss chained to those that predict one.

    Raises:
        FlopwiseError: none given, a law in other variables, or laws of different metrics.
    """
    if not fits:
        raise FlopwiseError(
            "plan: no fit given; make one with: flopwise fit TABLE --law chinchilla --out fit.json"
        )
    after = [f for f in fits if "loss" in f.form.variables]
    before = [f for f in fits if f not in after]
    found = [Response(f, inner) for f in after for inner in before if inner.form.target == "loss"]
    if not after:
        found = [Response(f) for f in before]
    elif not found:
        raise FlopwiseError(
            f"plan: {after[0].law} goes on from a loss; give a law that predicts one from N and D beside it"
        )
    for r in found:
        alien = (set(r.fit.form.variables) - {"loss"} | set(r.inner.form.variables if r.inner else ())) - set(
            KNOWN
        )
        if alien or not {"N", "D"} <= r.variables:
            inside = r.inner or r.fit
            raise FlopwiseError(
                f"plan: {inside.law} is a law in {', '.join(inside.form.variables)}; plans need one in N "
                "and D (and U, post, k)"
            )
    if len(metrics := {r.metric for r in found}) > 1:
        told = ", ".join(f"{r.name} predicts {r.metric}" for r in found)
        raise FlopwiseError(
            f"plan: laws of {len(metrics)} metrics cannot be compared ({told}); give laws of one"
        )
    return found

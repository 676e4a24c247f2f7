"""What a small search over learning rate and batch says: the best of both, how surely, and of other sizes.

Log loss is a quadratic in log rate (and log batch) near its minimum, with a level of its own for each seed:
runs of one seed see the same data from the same start, so that much of their noise cancels. Each rung has its
own minimum with Fieller's interval; noise is pooled over rungs. A rule that transfers keeps the minimum where
it is, so the slope between rungs tests the rule. Base rate and base batch stay unless the intervals say no.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import numpy as np

from flopwise.errors import FlopwiseError
from flopwise.laws.bowl import Quadratic, fieller, quadratic
from flopwise.laws.law import Array
from flopwise.laws.quantiles import stdtrit

WITHIN = 0.1
"""Runs whose loss is farther than this share above a rung's lowest are left out: there it is no quadratic."""
DIVERGED = 0.5
"""Where fewer than four rates are left, the four best count as far as this."""


@dataclass(frozen=True)
class Rung:
    """The minimum of one width. `where`: "inside", "low" or "high" (beyond that end of the rates), "flat".

    `low`, `high`: interval of `rate_factor` at the chosen batch (0, infinity: open). `se`: of its logarithm,
    infinity where it is not used. `curvature`: rise of log loss per squared logarithm of the rate. `batch`:
    the best in sequences with its interval, where three or more were tried and it lies among them.
    """

    width: int
    where: str
    rate_factor: float
    low: float
    high: float
    se: float
    curvature: float
    curvature_se: float
    loss: float
    runs: int
    batch: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class Tuning:
    """What the search found and what to take from it.

    `location`, `slope`: log of the best factor at the middle of the rungs, and its rise per log width, with
    standard errors; `transfer`: "consistent", "moves" or "untested". `t`: half-width of intervals in errors.
    """

    rate_factor: float
    batch_size: int
    interval: tuple[float, float]
    rungs: list[Rung]
    level: float
    t: float
    words: list[str] = field(default_factory=list)
    transfer: str = "untested"
    middle: float = 0.0
    location: float = 0.0
    location_se: float = math.inf
    slope: float = 0.0
    slope_se: float = 0.0
    curvature: float = 0.0

    def factor(self, width: int) -> float:
        """What to multiply the rule's rates by at this width: follows the slope only if that is no chance."""
        if self.transfer != "moves":
            return self.rate_factor
        return math.exp(self.location + self.slope * (math.log(width) - self.middle))

    def penalty(self, width: int, factor: float) -> tuple[float, float, float]:
        """Relative loss given away at `width` by running at `factor`, with its interval.

        The slope counts as measured, consistent with none or not: its error is in the interval. Without a
        minimum it is 0, up to infinity.
        """
        if not math.isfinite(self.location_se):
            return 0.0, 0.0, math.inf
        away = math.log(width) - self.middle
        off = abs(math.log(factor) - self.location - self.slope * away)
        half = self.t * math.hypot(self.location_se, self.slope_se * away)
        a = self.curvature
        return a * off**2, a * max(off - half, 0.0) ** 2, a * (off + half) ** 2

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it; what is infinite is None."""
        return _finite(asdict(self))

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> Tuning:
        """What `to_dict` gave."""

        def opened(found: Mapping[str, Any]) -> dict[str, Any]:
            return {n: math.inf if v is None and n != "batch" else v for n, v in found.items()}

        rungs = [Rung(**opened(r | {"batch": r["batch"] and tuple(r["batch"])})) for r in d["rungs"]]
        low, high = d["interval"]
        ends = (low, math.inf if high is None else high)
        known = {f.name for f in fields(cls)}  # the file holds the curves as well
        return cls(**{n: v for n, v in opened(d).items() if n in known} | {"rungs": rungs, "interval": ends})


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def fit_tuning(rows: Iterable[Mapping[str, Any]], *, batch_size: int, level: float = 0.95) -> Tuning:
    """The best rate factor and batch of a search.

    Args:
        rows: runs with width, rate_factor, batch_size (sequences), seed and loss.
        batch_size: the ladder's own, which stays unless the search says otherwise.

    Raises:
        FlopwiseError: no width with enough finished runs near its best.
    """
    groups = _by_width(list(rows))
    fitted = {w: q for w, (x, y, s) in groups.items() if (q := quadratic(x, y, s)) is not None}
    if not fitted:
        raise FlopwiseError(
            f"tuning: no width has runs enough within {WITHIN:.0%} of its best for a parabola; it takes "
            f"three rates and a run to spare, better five rates"
        )
    dof = sum(q.dof for q in fitted.values())
    sigma = math.sqrt(sum(q.rss for q in fitted.values()) / dof)
    t = stdtrit(dof, 0.5 + level / 2)
    words: list[str] = []
    best, batches = _batch(fitted, groups, batch_size, sigma, t, words)
    rungs = [
        replace(_rung(w, q, groups[w], math.log(best), sigma, t, words), batch=batches.get(w))
        for w, q in fitted.items()
    ]
    tried = np.unique(np.concatenate([x[0] for x, _, _ in groups.values()]))
    return _decide(Tuning(1.0, best, (0.0, math.inf), rungs, level, t, words), tried)


def _by_width(rows: list[Mapping[str, Any]]) -> dict[int, tuple[Array, Array, Array]]:
    """Settings [k, n], log loss [n] and seeds [n] of each width; k is 2 where three batches were tried."""
    out = {}
    for width in sorted({int(r["width"]) for r in rows}):
        own = [r for r in rows if int(r["width"]) == width and 0 < float(r["loss"] or 0) < math.inf]
        best: dict[float, float] = {}
        for r in own:
            best[r["rate_factor"]] = min(r["loss"], best.get(r["rate_factor"], math.inf))
        lowest = min(best.values(), default=0.0)
        four = sorted(best, key=lambda rate: best[rate])[:4]
        own = [
            r for r in own
            if r["loss"] <= (1 + WITHIN) * lowest
            or (r["rate_factor"] in four and r["loss"] <= (1 + DIVERGED) * lowest)
        ]  # fmt: skip
        if own:
            u, v, y = (np.log([float(r[n]) for r in own]) for n in ("rate_factor", "batch_size", "loss"))
            x = np.stack([u, v]) if len(np.unique(v)) > 2 else u[None]
            out[width] = x, y, np.array([int(r.get("seed", 0)) for r in own])
    return out


def _batch(
    fitted: Mapping[int, Quadratic], groups: Mapping[int, tuple[Array, Array, Array]], base: int,
    sigma: float, t: float, words: list[str],
) -> tuple[int, dict[int, tuple[float, float, float]]]:  # fmt: skip
    """The batch to take, of those tried, and the best of each width with its interval, in sequences."""
    found: dict[int, tuple[float, float, float]] = {}
    logs, errors = [], []
    for width, q in fitted.items():
        if len(q.g) < 2:
            continue
        line, covariance = q.alone(1)
        low, high = fieller(line, sigma**2 * covariance, t) if q.convex else (-math.inf, math.inf)
        left, right = q.box[1]
        if not (math.isfinite(high) and left <= q.at[1] <= right):
            words.append(f"width {width}: no best batch in {_span(left, right)} sequences; try others")
            continue
        found[width] = math.exp(q.at[1]), math.exp(low), _exp(high)
        words.append(f"width {width}: best batch {found[width][0]:.3g} sequences ({_span(low, high)})")
        logs.append(q.at[1])
        errors.append(math.sqrt(q.covariance(sigma)[1, 1]))
    if not logs:
        return base, found
    middle, se = _mean(np.array(logs), np.array(errors))
    if abs(middle - math.log(base)) <= t * se:
        words.append(f"batch stays at {base}: the interval of the best holds it")
        return base, found
    tried = {float(v) for x, _, _ in groups.values() if len(x) == 2 for v in x[1]}
    chosen = round(math.exp(min(tried, key=lambda v: abs(v - middle))))
    words.append(
        f"batch {chosen} in place of {base}: the nearest of those tried to the best, {math.exp(middle):.3g}; "
        f"time per token was not weighed"
    )
    return chosen, found


def _rung(
    width: int, q: Quadratic, group: tuple[Array, Array, Array], log_batch: float, sigma: float, t: float,
    words: list[str],
) -> Rung:  # fmt: skip
    """The best rate of a width at the chosen batch, and where it lies."""
    line, unit = q.alone(0, log_batch if len(q.g) == 2 else None)
    covariance = sigma**2 * unit
    tried = np.unique(group[0][0])
    left, right = float(tried[0]), float(tried[-1])
    step = (right - left) / (len(tried) - 1)
    low, high = fieller(line, covariance, t)
    at = float(-line[0] / line[1]) if line[1] > 0 else math.nan

    def slope(u: float) -> float:
        """At u, in standard errors."""
        v = np.array([1.0, u])
        return float(v @ line) / math.sqrt(max(float(v @ covariance @ v), 1e-300))

    # A little beyond the rates the parabola still knows; farther out it does not.
    used = math.isfinite(high) and left - step <= at <= right + step
    if used and left <= at <= right:
        where = "inside"
        words.append(f"width {width}: best at {math.exp(at):.3g} times the rule's rate ({_span(low, high)})")
    elif at > right or slope(right) < -t:
        where, more = "high", (right + step, right + 2 * step)
    elif at < left or slope(left) > t:
        where, more = "low", (left - step, left - 2 * step)
    else:
        where, at, low, high = "flat", 0.0, -math.inf, math.inf
        words.append(
            f"width {width}: factors {_span(left, right)} are not told apart (noise {sigma:.2%} of the "
            f"loss); add seeds, or rates farther apart"
        )
    if where in ("low", "high"):
        end = right if where == "high" else left
        if not used:
            at = end
            low, high = (end, math.inf) if where == "high" else (-math.inf, end)
        words.append(
            f"width {width}: best at or beyond {math.exp(end):.3g}, the end of the rates tried; add "
            f"{math.exp(more[0]):.2g} and {math.exp(more[1]):.2g}"
        )
    v = np.array([1.0, at])
    se = math.sqrt(max(float(v @ covariance @ v), 1e-18)) / float(line[1]) if used else math.inf
    x = v[1:] if len(q.g) == 1 else np.array([at, log_batch])
    return Rung(
        width, where, math.exp(at), math.exp(low), _exp(high), se, float(line[1]) / 2,
        float(math.sqrt(covariance[1, 1])) / 2, math.exp(q.value(x)), len(group[1]),
    )  # fmt: skip


def _decide(made: Tuning, tried: Array) -> Tuning:
    """One factor for all widths, or how it moves; the base rate stays where the interval holds it."""
    words, t = made.words, made.t
    used = [r for r in made.rungs if math.isfinite(r.se)]
    if not used:
        sides = {r.where for r in made.rungs}
        if sides not in ({"low"}, {"high"}):
            words.append("factor 1 stays: no width shows a best rate")
            return made
        ends = [r.rate_factor for r in made.rungs]
        factor = max(ends) if sides == {"high"} else min(ends)
        words.append(f"factor {factor:.3g}, the end of the rates tried: the best lies beyond it")
        return replace(
            made, rate_factor=factor, interval=(factor, math.inf) if sides == {"high"} else (0.0, factor)
        )
    logs, widths = (np.log([getattr(r, name) for r in used]) for name in ("rate_factor", "width"))
    errors = np.array([r.se for r in used])
    location, location_se = _mean(logs, errors)
    middle, _ = _mean(widths, errors)
    low, high = location - t * location_se, location + t * location_se
    if len(used) == 1:
        low, high = (math.log(max(v, 1e-300)) for v in (used[0].low, used[0].high))
    curvature, _ = _mean(*np.array([[r.curvature, r.curvature_se] for r in used]).T)
    made = replace(
        made, interval=(math.exp(low), _exp(high)), middle=middle, location=location,
        location_se=location_se, curvature=curvature,
    )  # fmt: skip
    if np.ptp(widths) > 0:
        made = _transfer(made, logs, widths, errors)
    else:
        words.append("one width shows a best rate: whether the rule holds at others is not tested")
    if made.transfer == "moves":
        return replace(made, rate_factor=math.exp(location))
    best = f"the best, {math.exp(location):.3g}, has the interval {_span(low, high)}"
    if low <= 0 <= high:
        words.append(f"factor 1 stays: {best}")
        return made
    factor = math.exp(float(np.clip(location, tried[0], tried[-1])))
    words.append(f"factor {factor:.3g} in place of 1: {best}")
    return replace(made, rate_factor=factor)


def _transfer(made: Tuning, logs: Array, widths: Array, errors: Array) -> Tuning:
    """Whether the best factor is the same at all widths, as a rule that transfers has it."""
    weights = 1 / errors**2
    away = widths - made.middle
    spread = float(weights @ away**2)
    slope, se = float(weights @ (away * logs)) / spread, 1 / math.sqrt(spread)
    moves = abs(slope) > made.t * se
    made.words.append(
        f"the best factor goes as width^{slope:.2f} ({slope - made.t * se:.2f} to "
        f"{slope + made.t * se:.2f}): "
        + ("the rule, which says 0, does not hold; factors follow this slope" if moves
           else "consistent with the rule, which says 0")
    )  # fmt: skip
    return replace(made, slope=slope, slope_se=se, transfer="moves" if moves else "consistent")


def _mean(values: Array, errors: Array) -> tuple[float, float]:
    """Weighted by errors, with its own error."""
    weights = 1 / np.maximum(errors, 1e-9) ** 2
    return float(weights @ values / weights.sum()), float(1 / math.sqrt(weights.sum()))


def _span(low: float, high: float) -> str:
    """Ends given as logarithms."""
    if not math.isfinite(low) or not math.isfinite(high):
        return "open"
    return f"{math.exp(low):.3g} to {_exp(high):.3g}"


def _exp(log: float) -> float:
    """Of an end that may be as good as open."""
    return math.exp(log) if log < 700 else math.inf

"""Forecast coverage: from some samples per problem to pass@k at larger k, with an interval that admits doubt.

Up to the samples drawn, pass@k is measured. Beyond them the problems not yet solved decide: of those, a
share 1 - M(k) / M(n) is solved by k, where M, what k samples leave unsolved, is extrapolated by a form of
`coverage_forms`. A hundred samples hardly ever tell the forms apart, though a hundred times further on the
forms differ by .1 or more. So the choice is by rule:

1. The power form, the published law, unless another beats it significantly at held-out k; then the best.
2. Its forecast is brought within the middle half of what the other forms, weighted by their held-out score,
   expect.

The interval is for pass@k as fresh samples would give it on average. It holds draws of all forms that
held-out k does not reject, half of them from the chosen one. In them are the luck of the samples drawn, the
doubt about parameters (problems resampled), about the form, about which unsolved problems fall, and the
form's own error at held-out k, extrapolated in proportion to log k.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from flopwise.errors import FlopwiseError
from flopwise.laws.counts import Array, Counts, check_ks
from flopwise.laws.coverage_fit import Fitted, fit_form
from flopwise.laws.coverage_forms import FORMS
from flopwise.laws.quantiles import stdtrit

TRIAL = 4
"""Forms are tried by forecasting pass@n from the first n / 4 samples."""
DEFAULT = "power"
REJECTED = 0.05
"""Chance at which the default is rejected wrongly, shared among its rivals."""
FEW_SOLVED = 10
GRID = 64
"""Numbers of samples at which a form is worked out; where unsolved problems have more, between them."""
MIDDLE = (0.25, 0.75)
"""Quantiles of what the other forms expect, between which the forecast is kept."""


@dataclass(frozen=True)
class Point:
    """pass@k with its interval. `measured`: every problem was solved or has k samples, no form is needed."""

    k: int
    value: float
    low: float
    high: float
    measured: bool


@dataclass(frozen=True)
class Forecast:
    """A forecast of pass@k with its interval.

    `form`, `params`: the form chosen; `n`: samples per problem (median); `trial`: each form's error when it
    forecasts pass@n from the first quarter of the samples; `held_out`: each form's log-score there, less the
    best one's; `weights`: each form's share of the interval's draws; `forms`: each form's own forecast of
    pass@k; `points`: all k asked for; `over`: whether the interval is for the "same" problems or for "new"
    ones like them; `draws`: what the interval of the last k summarises.
    """

    form: str
    params: dict[str, float]
    n: int
    k: int
    value: float
    low: float
    high: float
    level: float
    over: str
    problems: int
    solved: int
    trial: dict[str, float]
    held_out: dict[str, float]
    weights: dict[str, float]
    forms: dict[str, float]
    points: list[Point]
    warnings: list[str]
    draws: Array = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it, draws left out."""
        shown = {name: value for name, value in vars(self).items() if name != "draws"}
        return shown | {"points": [asdict(p) for p in self.points]}


@dataclass(frozen=True)
class Trial:
    """How a form did at held-out k.

    `error` of pass@n; log-`score` of each problem [P]; `drift`, the error of log M per unit of log k; how
    many problems were first `solved` in the held-out samples, expected over the orders of samples.
    """

    error: float
    score: Array
    drift: float
    solved: float


def forecast(
    samples: Counts | Any, k: int | Sequence[int], seed: int = 0, draws: int = 400, level: float = 0.95,
    over: str = "same",
) -> Forecast:  # fmt: skip
    """Forecast pass@k from judged samples.

    Args:
        samples: [problems, n] whether each sample is right, or `Counts`, whose n may differ by problem; only
            samples that the forecast may see.
        k: number of samples to forecast for, usually beyond n, or several; the last is the forecast's own.
        draws: behind the interval.
        level: of the interval, between 0 and 1.
        over: "same" asks about these very problems, "new" about others from where these came from.

    Raises:
        FlopwiseError: fewer than 10 problems, none with 8 samples, none solved, k below 1.
    """
    counts = samples if isinstance(samples, Counts) else Counts.judged(samples)
    ks = check_ks(k)
    _check(counts, draws, level, over)
    rng = np.random.default_rng(seed)
    units, member = counts.distinct()
    fits = {name: fit_form(form, units, member.sum(axis=0)) for name, form in FORMS.items()}
    trials = held_out(counts)
    chosen, weights = choose(trials)
    ahead = _Ahead(counts, ks, draws, over, rng)
    own = {name: ahead.values(fit) for name, fit in fits.items()}
    drawn = {name: ahead.draws(fit, member, trials[name].drift) for name, fit in fits.items()}
    picked = _picked(weights, draws, rng)
    pool = np.concatenate([drawn[name][picked == i] for i, name in enumerate(weights)])
    others = [name for name in weights if name != chosen and weights[name] > 0]
    value = own[chosen]
    if others:
        mass = np.concatenate([np.full(draws, weights[name]) for name in others])
        value = np.clip(value, *_quantiles(np.concatenate([drawn[name] for name in others]), mass, MIDDLE))
    low, high = np.quantile(pool, [0.5 - level / 2, 0.5 + level / 2], axis=0)
    low, high = np.minimum(low, value), np.maximum(high, value)
    points = [
        Point(int(k), float(value[i]), float(low[i]), float(high[i]), bool(ahead.measured[i]))
        for i, k in enumerate(ks)
    ]
    last, solved = points[-1], int((counts.c > 0).sum())
    return Forecast(
        form=chosen, params=fits[chosen].params, n=int(np.median(counts.n)), k=last.k, value=last.value,
        low=last.low, high=last.high, level=level, over=over, problems=len(counts), solved=solved,
        trial={name: t.error for name, t in trials.items()},
        held_out=_scores(trials), weights=weights,
        forms={name: float(v[-1]) for name, v in own.items()}, points=points,
        warnings=_warnings(counts, solved, last, fits), draws=pool[:, -1],
    )  # fmt: skip


def _check(counts: Counts, draws: int, level: float, over: str) -> None:
    """Raise a FlopwiseError unless a forecast can be made."""
    P, n = len(counts), int(counts.n.max())
    if n < 8 or P < 10:
        raise FlopwiseError(
            f"coverage: {P} problems with {n} samples; a forecast needs 10 problems with 8 samples"
        )
    if not counts.c.any():
        raise FlopwiseError(
            f"coverage: none of {counts.n.sum()} samples is right; nothing to forecast from, draw more"
        )
    if not 0 < level < 1 or draws < 2:
        raise FlopwiseError(f"coverage: level is {level:g} and draws {draws}; need 0 < level < 1, 2 draws")
    if over not in ("same", "new"):
        raise FlopwiseError(f"coverage: over is {over!r:.60}, must be 'same' or 'new'")


class _Ahead:
    """pass@k of problems of which some were solved: measured as far as it goes, then by a form."""

    def __init__(self, counts: Counts, ks: Array, draws: int, over: str, rng: np.random.Generator):
        P = len(counts)
        self.rng, self.ks, self.P = rng, ks, P
        self.open_n, kind = np.unique(counts.n[counts.c == 0], return_inverse=True)
        group = np.full(P, -1)
        group[counts.c == 0] = kind.ravel()
        solved = np.stack([counts.solved_by(k) for k in ks], axis=1)
        # Resampled problems; for the same problems they only move the parameters.
        self.resampled = rng.multinomial(P, np.full(P, 1 / P), size=draws).astype(float)
        weight = self.resampled if over == "new" else np.ones((draws, P))
        each = np.arange(len(self.open_n))[None, :] == group[:, None]
        self.open = each.sum(axis=0).astype(float)
        self.open_drawn = weight @ each
        self.done, self.done_drawn = solved.mean(axis=0), weight @ solved / P
        self.measured = np.array([(self.open_n >= k).all() for k in ks])
        # Other samples of the same problems would have solved others; resampled problems differ by that too.
        variance = [counts.variance(k).sum() if over == "same" else 0.0 for k in ks]
        self.resolved = rng.standard_normal((draws, 1)) * np.sqrt(variance) / P

    def _solved_later(self, fit: Fitted, z: Array, drift: Array) -> Array:
        """Chance [B, groups, K] that a problem unsolved after n samples is solved by k."""
        G = len(self.open_n)
        at = self.open_n.astype(float) if G <= GRID else np.geomspace(self.open_n[0], self.open_n[-1], GRID)
        log_missed = fit.form.log_missed(z, np.concatenate([at, self.ks]))
        log_missed_n, log_missed_k = log_missed[:, : len(at)], log_missed[:, len(at) :]
        if G > GRID:
            place = np.interp(np.log(self.open_n), np.log(at), np.arange(GRID))
            left = np.minimum(place.astype(int), GRID - 2)
            part = place - left
            log_missed_n = log_missed_n[:, left] * (1 - part) + log_missed_n[:, left + 1] * part
        further = np.maximum(np.log(self.ks[None, :] / self.open_n[:, None]), 0.0)
        change = log_missed_k[:, None, :] - log_missed_n[:, :, None]
        # A drift scales what is left of the unsolved; it cannot bring solved ones back.
        change = np.minimum(change + drift[:, None, None] * further[None], 0.0)
        return np.where(further[None] > 0, -np.expm1(change), 0.0)

    def values(self, fit: Fitted) -> Array:
        """The form's own forecast [K]."""
        if not len(self.open_n):
            return self.done
        later = self._solved_later(fit, fit.z[None, :], np.zeros(1))[0]
        return self.done + self.open @ later / self.P

    def draws(self, fit: Fitted, member: Array, drift: float) -> Array:
        """Draws [B, K] of the forecast."""
        B = len(self.resampled)
        z = fit.redrawn((self.resampled - 1) @ member, self.rng)
        if not len(self.open_n):
            return np.clip(self.done_drawn + self.resolved, 0.0, 1.0)
        later = self._solved_later(fit, z, drift * self.rng.standard_normal(B))
        count = np.einsum("bg,bgk->bk", self.open_drawn, later)
        luck = np.einsum("bg,bgk->bk", self.open_drawn, later * (1 - later))
        unsolved = self.open_drawn.sum(axis=1)[:, None]
        # A problem that other samples would have left unsolved may have been solved later all the same.
        done = self.done_drawn + self.resolved * (1 - count / np.maximum(unsolved, 1.0))
        count = count + self.rng.standard_normal((B, 1)) * np.sqrt(np.maximum(luck, 0.0))
        return np.clip(done + np.clip(count, 0.0, unsolved) / self.P, 0.0, 1.0)


def held_out(counts: Counts) -> dict[str, Trial]:
    """Each form fitted to the first quarter of the samples and asked about the others."""
    unsolved = counts.n[counts.c == 0]
    ref = int(np.median(unsolved if len(unsolved) else counts.n))
    ref = max(min(ref, int(counts.n.max())), 4)
    m = max(ref // TRIAL, 1)
    units, member = counts.first(m)
    ks = np.unique(np.round(np.geomspace(m, ref, 9)))
    end = np.minimum(counts.n, ref)
    part = counts.n > m
    left = 1 - np.stack([counts.solved_by(k) for k in ks], axis=1)
    left *= part[:, None]
    step = -np.diff(left, axis=1)
    out = {}
    for name, form in FORMS.items():
        fit = fit_form(form, units, member.sum(axis=0))
        log_missed = form.log_missed(fit.z[None, :], ks)[0]
        change = log_missed - log_missed[0]
        at_end = np.interp(np.log(np.maximum(end, m)), np.log(ks), change)
        mass = np.maximum(-np.diff(np.exp(change)), 1e-300)
        score = step @ np.log(mass) + left[:, -1] * at_end
        expected, measured = (left[:, 0] * np.exp(at_end)).sum(), left[:, -1].sum()
        drift = np.log(max(measured, 0.5) / max(expected, 0.5)) / np.log(ref / m)
        out[name] = Trial(float((measured - expected) / len(counts)), score, float(drift), float(step.sum()))
    return out


def choose(trials: dict[str, Trial]) -> tuple[str, dict[str, float]]:
    """The form, and each form's share of the interval.

    Held-out scores are compared in pairs of problems. Only problems that were solved in the held-out samples
    tell forms apart, so there are as many degrees of freedom as those, less one.
    """
    best = max(trials, key=lambda name: float(trials[name].score.sum()))
    solved = trials[best].solved
    limit = stdtrit(solved - 1, 1 - REJECTED / (len(trials) - 1)) if solved > 1 else np.inf

    def behind(name: str) -> float:
        """Standard errors by which the best form won."""
        lost = trials[best].score - trials[name].score
        spread = float(lost.std(ddof=1)) * np.sqrt(len(lost))
        return float(lost.sum()) / spread if spread > 0 else 0.0

    kept = [name for name in trials if behind(name) < limit]
    chosen = DEFAULT if DEFAULT in kept else best
    scores = _scores(trials)
    mass = {name: float(np.exp(scores[name])) if name in kept and name != chosen else 0.0 for name in trials}
    total = sum(mass.values())
    weights = {name: value / (2 * total) if total else 0.0 for name, value in mass.items()}
    return chosen, weights | {chosen: 1 - sum(weights.values())}


def _scores(trials: dict[str, Trial]) -> dict[str, float]:
    """Held-out log-score of all problems, less the best form's."""
    total = {name: float(trial.score.sum()) for name, trial in trials.items()}
    return {name: value - max(total.values()) for name, value in total.items()}


def _picked(weights: dict[str, float], draws: int, rng: np.random.Generator) -> Array:
    """Which form each draw is taken from."""
    ends = np.cumsum(list(weights.values()))
    place = np.searchsorted(ends, (np.arange(draws) + 0.5) / draws)
    return rng.permutation(np.minimum(place, len(weights) - 1))


def _quantiles(values: Array, mass: Array, levels: Sequence[float]) -> list[Array]:
    """Quantiles of weighted draws [B, K], each [K]."""
    order = np.argsort(values, axis=0)
    share = np.cumsum(mass[order], axis=0) / mass.sum()
    found = [np.minimum((share < level).sum(axis=0), len(values) - 1) for level in levels]
    ordered = np.take_along_axis(values, order, axis=0)
    return [ordered[rows, np.arange(values.shape[1])] for rows in found]


def _warnings(counts: Counts, solved: int, last: Point, fits: dict[str, Fitted]) -> list[str]:
    found = []
    if solved < FEW_SOLVED and not last.measured:
        found.append(
            f"only {solved} of {len(counts)} problems were solved; the forecast leans on weak priors"
        )
    unsolved = counts.n[counts.c == 0]
    if not last.measured and last.k > 100 * np.median(unsolved):
        found.append(
            f"k = {last.k} is {last.k / np.median(unsolved):.0f} times the samples drawn; forecasts were "
            f"tested up to 100 times"
        )
    stuck = [name for name, fit in fits.items() if not fit.converged]
    if stuck:
        found.append(f"not converged: {', '.join(stuck)}")
    return found

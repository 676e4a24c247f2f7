"""Optimal experimental design: which runs, within a budget, say most about what is to be known.

Laws are taken as straight in their parameters around the fit and around draws of it. What is known of the law
at all candidates and aims is then one Gaussian, and a run yet to be made changes its covariance in a way that
does not depend on what the run will measure: that is what makes planning it possible (c-optimality; Chaloner
and Verdinelli 1995, "Bayesian Experimental Design: A Review"). Runs are added by the fall of the aim's
variance for what they cost, then exchanged one by one (Fedorov 1972; Atkinson and Donev 1989).

With several laws the aim's variance has a second part, between the laws. Runs that tell two laws apart take
it away: by exp(-d^2 / 8), the Bhattacharyya coefficient of the two predictions of the data, d the distance
between them in standard deviations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from flopwise.laws.law import Array

POWERS = (1.0, 0.5, 0.0)
"""Of the cost that a fall in variance is divided by when runs are chosen: by the FLOP, or by the run."""
MOST = 60
"""Runs that are proposed at most."""
PASSES = 2
"""Times that every chosen run is tried against all others."""
FEW = 6
"""Runs up to which an exchange may put several in one's place."""
WORTH = 1e-3
"""Fall of the logarithm of the aim's variance below which a run is not worth making."""


@dataclass(frozen=True)
class Option:
    """One way to make a run: the rows of the candidates it measures, and its FLOPs.

    Of one `group` (a run that may be stopped earlier or later) one option at most is chosen.
    """

    rows: tuple[int, ...]
    cost: float
    group: int


@dataclass(frozen=True)
class Noise:
    """Variances of a measurement's noise: of its own, and shared by the rows of a run."""

    within: float
    between: float

    def of(self, options: Sequence[Option]) -> Array:
        """Covariance of the measurements of runs [rows, rows]."""
        runs = np.repeat(np.arange(len(options)), [len(o.rows) for o in options])
        return self.within * np.eye(len(runs)) + self.between * (runs[:, None] == runs)


@dataclass(frozen=True)
class Belief:
    """What is known of a law at candidates and aims.

    `covariance` [draws, m, m]: the last `aims` of the m places are to be known, the others are candidates.
    """

    covariance: Array
    aims: int
    noise: Noise

    @cached_property
    def spread(self) -> Array:
        """Variances of the aims, summed, for each draw."""
        return np.einsum("sii->s", self.covariance[:, -self.aims :, -self.aims :])

    @cached_property
    def variance(self) -> float:
        """Geometric mean of `spread` over draws: a few wild draws do not decide."""
        return float(np.exp(np.log(np.maximum(self.spread, 1e-300)).mean()))

    def given(self, options: Sequence[Option]) -> Belief:
        """What will be known once these runs are made."""
        rows = np.array([r for o in options for r in o.rows], dtype=int)
        if not len(rows):
            return self
        sides = self.covariance[:, :, rows]
        among = sides[:, rows] + self.noise.of(options)
        return replace(
            self, covariance=self.covariance - sides @ np.linalg.solve(among, sides.transpose(0, 2, 1))
        )

    def falls(self, options: Sequence[Option]) -> Array:
        """`variance` after each of the options alone [options]."""
        out = np.empty(len(options))
        single = np.array([len(o.rows) == 1 for o in options])
        rows = np.array([o.rows[0] for o in options])[single]
        towards = self.covariance[:, -self.aims :, rows]
        own = np.einsum("sii->si", self.covariance)[:, rows] + self.noise.within + self.noise.between
        left = self.spread[:, None] - np.einsum("sqr,sqr->sr", towards, towards) / own
        out[single] = np.exp(np.log(np.maximum(left, 1e-300)).mean(axis=0))
        for i in np.flatnonzero(~single).tolist():
            among = np.array(options[i].rows)
            block = self.covariance[:, among[:, None], among] + self.noise.of([options[i]])
            towards = self.covariance[:, among, -self.aims :]
            gone = np.einsum("srq,srq->s", towards, np.linalg.solve(block, towards))
            out[i] = np.exp(np.log(np.maximum(self.spread - gone, 1e-300)).mean())
        return out


@dataclass(frozen=True)
class Rivalry:
    """Two laws: how far apart they are at candidates, for what is not known of them and the noise.

    `apart` [m]: the difference of their predictions; `covariance` [m, m]: mean of the two laws'. `gap`: their
    difference at the aims, squared and weighted by the chance of both; `distance`: d^2 by the runs so far.
    """

    apart: Array
    covariance: Array
    noise: Noise
    gap: float
    distance: float = 0.0

    @property
    def variance(self) -> float:
        """What the doubt between the two adds to the aim's variance."""
        return self.gap * float(np.exp(-self.distance / 8))

    def given(self, options: Sequence[Option]) -> Rivalry:
        """Once these runs are made: what each says beyond the others."""
        rows = np.array([r for o in options for r in o.rows], dtype=int)
        if not len(rows):
            return self
        sides = self.covariance[:, rows]
        weights = np.linalg.solve(sides[rows] + self.noise.of(options), np.c_[sides.T, self.apart[rows]])
        return replace(
            self, apart=self.apart - sides @ weights[:, -1],
            covariance=self.covariance - sides @ weights[:, :-1],
            distance=self.distance + float(self.apart[rows] @ weights[:, -1]),
        )  # fmt: skip

    def falls(self, options: Sequence[Option]) -> Array:
        """`variance` after each of the options alone [options]."""
        told = np.empty(len(options))
        for i, option in enumerate(options):
            rows = np.array(option.rows)
            block = self.covariance[rows[:, None], rows] + self.noise.of([option])
            told[i] = self.apart[rows] @ np.linalg.solve(block, self.apart[rows])
        return self.gap * np.exp(-(self.distance + told) / 8)


@dataclass(frozen=True)
class Knowledge:
    """All laws with their weights, and every pair of them."""

    beliefs: tuple[Belief, ...]
    weights: tuple[float, ...]
    rivalries: tuple[Rivalry, ...] = ()

    @property
    def variance(self) -> float:
        """Of the aims: within the laws and between them."""
        inside = sum(w * b.variance for w, b in zip(self.weights, self.beliefs, strict=True))
        return inside + sum(r.variance for r in self.rivalries)

    def given(self, options: Sequence[Option]) -> Knowledge:
        """Once these runs are made."""
        return replace(
            self, beliefs=tuple(b.given(options) for b in self.beliefs),
            rivalries=tuple(r.given(options) for r in self.rivalries),
        )  # fmt: skip

    def falls(self, options: Sequence[Option]) -> Array:
        """`variance` after each of the options alone [options]."""
        inside = sum(w * b.falls(options) for w, b in zip(self.weights, self.beliefs, strict=True))
        return np.asarray(inside + sum((r.falls(options) for r in self.rivalries), np.zeros(len(options))))


def choose(start: Knowledge, options: Sequence[Option], budget: float) -> list[Option]:
    """The options of at most `budget` in all that leave the least variance of the aims, in order of choice.

    Several greedy designs, by the FLOP and by the run, each improved by exchanges; the best of them. Runs
    that hardly add anything are left out.
    """
    tried: list[list[Option]] = []
    for power in POWERS:
        chosen = _greedy(start, options, budget, power)
        if chosen not in tried:
            tried.append(chosen)
    found = [_exchanged(start, options, budget, chosen) for chosen in tried]
    return min(found, key=lambda chosen: start.given(chosen).variance)


def _affordable(options: Sequence[Option], chosen: Sequence[Option], budget: float) -> list[Option]:
    left = budget - sum(o.cost for o in chosen)
    taken = {o.group for o in chosen}
    return [o for o in options if o.cost <= left * (1 + 1e-9) and o.group not in taken]


def _greedy(
    start: Knowledge, options: Sequence[Option], budget: float, power: float, chosen: Sequence[Option] = ()
) -> list[Option]:
    """Add to the chosen what most lowers the logarithm of the variance for its cost to a power."""
    out, now = list(chosen), start.given(chosen)
    while len(out) < MOST and (open_ := _affordable(options, out, budget)):
        fall = np.log(now.variance) - np.log(now.falls(open_))
        worth = fall / np.array([o.cost for o in open_]) ** power
        i = int(np.argmax(np.where(fall > WORTH, worth, -np.inf)))
        if not fall[i] > WORTH:
            break
        out.append(open_[i])
        now = now.given([open_[i]])
    return out


def _exchanged(
    start: Knowledge, options: Sequence[Option], budget: float, chosen: list[Option]
) -> list[Option]:
    """Each chosen run against what could be made in its place, until nothing improves.

    Of few runs, several may come in one's place.
    """
    least = start.given(chosen).variance
    for _ in range(PASSES):
        before = least
        for option in list(chosen):
            others = [o for o in chosen if o != option]
            for ahead in _instead(start, options, budget, others, len(chosen) <= FEW):
                left = start.given(ahead).variance
                if left < least * (1 - WORTH / 10):
                    chosen, least = ahead, left
        if least > before * (1 - WORTH):
            break
    return chosen


def _instead(
    start: Knowledge, options: Sequence[Option], budget: float, others: list[Option], refill: bool
) -> list[list[Option]]:
    """What could be made beside the others: the best single run, then greedily; or greedily by the FLOP."""
    open_ = _affordable(options, others, budget)
    if not open_:
        return []
    best = open_[int(np.argmin(start.given(others).falls(open_)))]
    out = [[*others, best]]
    if refill:
        out = [_greedy(start, options, budget, 0.0, out[0]), _greedy(start, options, budget, 1.0, others)]
    return out

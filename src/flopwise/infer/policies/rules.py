"""When to stop sampling a prompt: rules that look at the samples so far, for replay and for live use alike.

| rule | stops when | source |
|---|---|---|
| `beta` | the leading answer is ahead of the next with this chance | Aggarwal et al., arXiv 2305.11860 |
| `window` | the last so many samples all gave one answer | Li et al., arXiv 2401.10480 |
| `votes` | another sample's value in votes is below its price: by dynamic programming | own |
| `score` | another sample's value in the best score is below its price | Weitzman 1979, Rothschild 1974 |
| `accept` | a judge's score reaches a threshold; with the verifier, the first right one | |

A price is in accuracy per sample of mean cost: at .01 a sample must be expected to bring one point.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal

import numpy as np

from flopwise.errors import FlopwiseError, one_line
from flopwise.infer.policies.walk import Walk

LONGEST = 128
"""Samples up to which the votes' dynamic programme is worked out."""
PRICES = np.geomspace(1e-5, 0.5, 30)
"""At which its states' values are compared."""


@dataclass(frozen=True)
class Rule:
    """A rule with its setting, `dial`: it stops once its evidence reaches `bar`.

    Rules of one `family` share their evidence and differ by the dial alone.
    """

    dial: float
    kind: ClassVar[str]
    choice: ClassVar[Literal["votes", "score"]] = "votes"
    """What is answered then: the most frequent answer, or the highest-scored sample."""

    @property
    def judge(self) -> str | None:
        """By whose scores it goes, and chooses."""
        return None

    @property
    def name(self) -> str:
        """Kind, judge and setting, as `beta:0.95`."""
        by = "" if self.judge is None else f":{self.judge}"
        return f"{self.kind}{by}:{self.dial:g}"

    @property
    def family(self) -> Hashable:
        """Equal for rules with the same evidence."""
        return self.kind, self.judge

    @property
    def bar(self) -> float:
        """What the evidence must reach."""
        return self.dial

    def evidence(self, walk: Walk) -> np.ndarray:
        """[R, n] for stopping after each sample."""
        raise NotImplementedError

    def stops(self, walk: Walk) -> np.ndarray:
        """[R, n] bool: after which samples it would stop; it is not asked again then."""
        return self.evidence(walk) >= self.bar


@dataclass(frozen=True)
class BetaStop(Rule):
    """Adaptive-Consistency: with v1 votes for the first answer, v2 for the second, and their shares unknown
    (uniform), the first is more frequent with chance P(Beta(v1 + 1, v2 + 1) > 1/2)."""

    dial: float = 0.95
    kind: ClassVar[str] = "beta"

    def __post_init__(self) -> None:
        if not 0.5 < self.dial < 1:
            raise FlopwiseError(f"beta: confidence is {self.dial:g}, must be above 0.5 and below 1")

    def evidence(self, walk: Walk) -> np.ndarray:
        """The confidence."""
        return _ahead(walk.codes.shape[1])[walk.votes.top, walk.votes.second]


@dataclass(frozen=True)
class WindowStop(Rule):
    """Early-stopping self-consistency: samples come in windows; stop once those of one all agree.

    An abstention agrees with nobody.
    """

    dial: float = 4
    kind: ClassVar[str] = "window"

    def __post_init__(self) -> None:
        if self.dial < 1 or self.dial != round(self.dial):
            raise FlopwiseError(f"window: size is {self.dial:g}, must be a whole number of at least 1")

    @property
    def family(self) -> Hashable:
        """Windows of other sizes end elsewhere."""
        return self.kind, self.dial

    def evidence(self, walk: Walk) -> np.ndarray:
        """The size at the end of a window that agrees, else 0."""
        codes, size = walk.codes, int(self.dial)
        out = np.zeros(codes.shape)
        for end in range(size, codes.shape[1] + 1, size):
            window = codes[:, end - size : end]
            out[:, end - 1] = size * ((window[:, 0] >= 0) & (window == window[:, :1]).all(axis=1))
        return out


@dataclass(frozen=True)
class VotesValue(Rule):
    """Bayesian optimal stopping of a vote: goes on while what more votes may change is worth their price.

    States are the counts of the first answer, of the second and of all else; the next sample is of each with
    a chance in proportion to its count plus one (a uniform Dirichlet prior over the three). Stopping is worth
    the chance that the first is truly more frequent than the second (`BetaStop`). Solved backwards from the
    last sample allowed. An answer in third place is not expected to win.
    """

    dial: float = 0.005
    kind: ClassVar[str] = "votes"

    def __post_init__(self) -> None:
        _check_price(self)

    @property
    def bar(self) -> float:
        """The value of going on must have come down to the price."""
        return -self.dial

    def evidence(self, walk: Walk) -> np.ndarray:
        """Minus the value of going on, per mean cost of a sample."""
        n = walk.codes.shape[1]
        longest = min(n, LONGEST)
        value = _votes_index(longest)
        t = np.minimum(np.arange(1, n + 1), longest)
        return (
            -value[t, np.minimum(walk.votes.top, longest), np.minimum(walk.votes.second, longest)]
            / walk.price
        )


@dataclass(frozen=True)
class ScoreValue(Rule):
    """Bayesian optimal stopping of best-of-n: Pandora's box whose contents are learned while it is opened.

    A score is worth its chance to be right. A prompt's values are drawn from an unknown distribution, itself
    drawn from a Dirichlet process: `spread` (its concentration) samples' worth of belief in `base`, the
    values of all prompts. After t samples whose best is y, one more is expected to add
    spread / (spread + t) E_base max(U - y, 0): none of those seen can add anything. This falls along every
    path, so that looking one step ahead is optimal (Chow and Robbins's monotone case). With the verifier it
    is the beta posterior's chance of a first success. Weitzman 1979 for a known distribution, Rothschild 1974
    for the Dirichlet; Kalayci et al., arXiv 2510.01394 for samples of language models.

    Args:
        by: whose scores.
        base: values sorted, [M] in [0, 1].
        knots: scores [K] and what they are worth [K], rising, linear between; None: scores are values.
    """

    dial: float = 0.005
    by: str = "reward"
    spread: float = 1.0
    base: tuple[float, ...] = ()
    knots: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    kind: ClassVar[str] = "score"
    choice: ClassVar[Literal["votes", "score"]] = "score"

    def __post_init__(self) -> None:
        _check_price(self)

    @property
    def judge(self) -> str:
        """Whose scores."""
        return self.by

    def value(self, scores: np.ndarray) -> np.ndarray:
        """What scores are worth, in [0, 1]."""
        if self.knots is not None:
            scores = np.interp(scores, *self.knots)
        return np.clip(np.nan_to_num(scores, nan=0.0, neginf=0.0, posinf=1.0), 0.0, 1.0)

    @property
    def family(self) -> Hashable:
        """Whatever was learned."""
        return self.kind, self.by, self.spread, self.base, self.knots

    @property
    def bar(self) -> float:
        """The index must have come down to the price."""
        return -self.dial

    def evidence(self, walk: Walk) -> np.ndarray:
        """Minus the index, per mean cost of a sample."""
        scores = walk.score(self.by)
        best = np.maximum.accumulate(self.value(scores), axis=1)
        t = np.arange(1, scores.shape[1] + 1)
        return -self.spread / (self.spread + t) * self._excess(best) / walk.price

    def _excess(self, y: np.ndarray) -> np.ndarray:
        """E max(U - y, 0) under the base."""
        base = np.asarray(self.base if self.base else np.linspace(0, 1, 101))
        above = np.append(np.cumsum(base[::-1])[::-1], 0.0)
        place = np.searchsorted(base, y, side="right")
        return (above[place] - (len(base) - place) * y) / len(base)

    @classmethod
    def fit(cls, scores: np.ndarray, correct: np.ndarray, by: str, dial: float = 0.005) -> ScoreValue:
        """Learn values, base and spread from judged samples [P, n] of other prompts.

        Values: the isotonic regression of verdicts on scores. Spread by moments: under a Dirichlet process
        the variance of prompts' mean values is that of all values over 1 + spread.
        """
        known = np.isfinite(scores)
        if not known.any():
            raise FlopwiseError(f"score: none of the samples has a score by {by}; choose another judge")
        x, order = np.unique(scores[known], return_inverse=True)
        counts = np.bincount(order.ravel()).astype(float)
        rates = np.bincount(order.ravel(), correct[known].astype(float)) / counts
        fitted = rising(rates, counts)
        keep = np.ones(len(x), dtype=bool)  # a flat piece needs its two ends alone
        keep[1:-1] = (fitted[1:-1] != fitted[:-2]) | (fitted[1:-1] != fitted[2:])
        knots = (tuple(x[keep].tolist()), tuple(fitted[keep].tolist()))
        made = cls(dial, by, 1.0, (), knots)
        values = made.value(np.where(known, scores, -np.inf))
        n = values.shape[1]
        total, within = values.var(), values.var(axis=1, ddof=1).mean() if n > 1 else 0.0
        between = (
            max(float(values.mean(axis=1).var(ddof=1)) - within / n, 1e-12) if len(values) > 1 else 1e-12
        )
        spread = float(np.clip(total / between - 1, 0.1, 1000.0)) if total > 0 else 1.0
        base = np.quantile(values, (np.arange(400) + 0.5) / 400)
        return cls(dial, by, spread, tuple(np.sort(base).tolist()), knots)


@dataclass(frozen=True)
class Accept(Rule):
    """Stops at the first sample whose score reaches the threshold, and gives the highest-scored so far."""

    dial: float = 0.5
    by: str = "verifier"
    kind: ClassVar[str] = "accept"
    choice: ClassVar[Literal["votes", "score"]] = "score"

    @property
    def judge(self) -> str:
        """Whose scores."""
        return self.by

    def evidence(self, walk: Walk) -> np.ndarray:
        """The highest score so far."""
        return np.maximum.accumulate(walk.score(self.by), axis=1)


KINDS: dict[str, type[Rule]] = {
    rule.kind: rule for rule in (BetaStop, WindowStop, VotesValue, ScoreValue, Accept)
}
"""Rules by kind."""


def make_rule(kind: str, dial: float | None = None, by: str | None = None) -> Rule:
    """A rule by its kind.

    Raises:
        FlopwiseError: there is none, or a setting out of range.
    """
    if kind not in KINDS:
        raise FlopwiseError(f"rule is {one_line(kind, 40)!r}, must be one of {', '.join(KINDS)}")
    made = KINDS[kind]
    given: dict[str, float | str] = {} if dial is None else {"dial": float(dial)}
    if by is not None and made.choice == "score":
        given["by"] = by
    return made(**given)  # type: ignore[arg-type]


def rising(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The rising sequence nearest to values, by weighted squares: pools neighbours that violate the order.

    >>> rising(np.array([1.0, 3.0, 2.0]), np.ones(3)).tolist()
    [1.0, 2.5, 2.5]
    """
    means: list[float] = []
    weights: list[float] = []
    sizes: list[int] = []
    for value, w in zip(values.tolist(), weight.tolist(), strict=True):
        mean, size = value, 1
        while means and means[-1] >= mean:
            last = weights.pop()
            mean = (means.pop() * last + mean * w) / (last + w)
            w += last
            size += sizes.pop()
        means.append(mean)
        weights.append(w)
        sizes.append(size)
    return np.repeat(means, sizes)


def _check_price(rule: Rule) -> None:
    if not 0 < rule.dial < 1:
        raise FlopwiseError(
            f"{rule.kind}: price is {rule.dial:g}, must be above 0 and below 1 accuracy a sample"
        )


@lru_cache(maxsize=8)
def _ahead(n: int) -> np.ndarray:
    """[n + 1, n + 1] chance that an answer with v1 votes is truly more frequent than one with v2."""
    from scipy.special import betainc

    votes = np.arange(n + 1.0)
    chance = betainc(votes[None, :] + 1, votes[:, None] + 1, 0.5)
    chance[0, 0] = 0.0  # nobody answered: there is nothing to give
    return np.asarray(chance)


@lru_cache(maxsize=8)
def _votes_index(n: int) -> np.ndarray:
    """[n + 1, n + 1, n + 1]: by samples, first and second count, the highest price at which to go on."""
    stop = _ahead(n)
    a, b = np.arange(n + 1)[:, None], np.arange(n + 1)[None, :]
    index = np.zeros((n + 1, n + 1, n + 1), dtype=np.float32)
    after = np.broadcast_to(stop, (len(PRICES), n + 1, n + 1))
    up, over = np.minimum(a + 1, n), np.minimum(b + 1, n)
    for t in range(n - 1, -1, -1):
        rest = np.maximum(t - a - b, 0)
        # While all agree, whoever disagrees becomes the second; a second that gets ahead becomes the first.
        first, second = np.maximum(a, over), np.minimum(a, over)
        none = (a == 0) & (b == 0)
        lead = after[:, np.minimum(up, n), b]
        pair = after[:, first, second]
        other = np.where((b == 0) & ~none, pair, after)
        pair = np.where(none, lead, pair)
        go_on = (lead * (a + 1) + pair * (b + 1) + other * (rest + 1)) / (a + b + rest + 3)
        go_on = go_on - PRICES[:, None, None]
        worth = go_on >= stop
        index[t] = np.where(worth.any(axis=0), PRICES[len(PRICES) - 1 - worth[::-1].argmax(axis=0)], 0.0)
        after = np.maximum(stop, go_on)
    return index


def families(strategies: Sequence[str], n: int) -> list[Rule]:
    """Rules that stop early what some strategies would do with all n samples, over a range of settings.

    Votes get `beta`, `window` and `votes`; best-of-n by the verifier gets `accept`. Rules by a learned score
    depend on the scores: see `options.score_rules`.
    """
    found: list[Rule] = []
    if "self_consistency" in strategies:
        found += [BetaStop(t) for t in (0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999)]
        found += [WindowStop(float(w)) for w in (2, 3, 4, 5, 8, 10) if w < n]
        found += [VotesValue(float(p)) for p in (0.1, 0.05, 0.03, 0.02, 0.01, 0.005, 0.002, 0.001)]
    if "best_of_n:verifier" in strategies:
        found.append(Accept())
    return found

"""Samples of a prompt in the order they come: what a rule that may stop sees after each.

R rows are orders of some problems' samples, n each. Columns are times: column t - 1 is after t samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from flopwise.errors import FlopwiseError
from flopwise.infer.samples import Samples
from flopwise.infer.votes import cast_votes

CELLS = 1 << 20
"""Rows times samples held at a time."""


@dataclass(frozen=True)
class Votes:
    """Counts after each sample [R, n]: of the most frequent answer, of the next, of all that voted; and the
    chance that the most frequent answer, drawn where several are level, is right."""

    top: np.ndarray
    second: np.ndarray
    cast: np.ndarray
    right: np.ndarray

    @classmethod
    def along(cls, codes: np.ndarray, right: np.ndarray) -> Votes:
        """Of answers as numbers [R, n], -1 where a sample abstains, and how right each one's answer is.

        >>> Votes.along(np.array([[0, 1, 1]]), np.array([[0.0, 1.0, 1.0]])).right.tolist()
        [[0.0, 0.5, 1.0]]
        """
        R, n = codes.shape
        rows = np.arange(R)
        counts = np.zeros((R, int(codes.max(initial=0)) + 1), dtype=np.int32)
        top, second = np.zeros(R, dtype=np.int32), np.zeros(R, dtype=np.int32)
        level, won = np.zeros(R), np.zeros(R)
        tops, seconds = np.zeros((R, n), dtype=np.int32), np.zeros((R, n), dtype=np.int32)
        chance = np.zeros((R, n))
        for t in range(n):
            code = codes[:, t]
            votes = code >= 0
            place = np.where(votes, code, 0)
            counts[rows, place] += votes
            mine = np.where(votes, counts[rows, place], -1)
            ahead, joins = mine > top, mine == top
            won = np.where(ahead, right[:, t], won + joins * right[:, t])
            level = np.where(ahead, 1.0, level + joins)
            # Whoever gets ahead was level with the top before, so the next one's count stays as it is.
            second = np.where(joins, top, np.where(ahead, second, np.maximum(second, mine)))
            top = np.where(ahead, mine, top)
            tops[:, t], seconds[:, t], chance[:, t] = top, second, won / np.maximum(level, 1.0)
        return cls(tops, seconds, np.cumsum(codes >= 0, axis=1), chance)


@dataclass(frozen=True)
class Walk:
    """Rows of samples in an order, as rules see them.

    `codes`: answers as numbers [R, n], -1 abstains; `right`: how right each sample's answer is, 0 where
    nobody knows; `correct`: each sample's own verdict; `scores` by judge [R, n], NaN ranks last; `cost` of
    each sample [R, n], its judge's included; `unit`: the mean cost of a sample over all prompts.
    """

    codes: np.ndarray
    right: np.ndarray
    correct: np.ndarray
    scores: dict[str, np.ndarray]
    cost: np.ndarray
    unit: float

    @cached_property
    def votes(self) -> Votes:
        """Counts of answers along the rows."""
        return Votes.along(self.codes, self.right)

    @cached_property
    def price(self) -> np.ndarray:
        """What one more sample of this prompt should cost [R, n], by those so far; 1: as others do."""
        return np.maximum(self.spent / np.arange(1, self.cost.shape[1] + 1) / self.unit, 1e-9)

    def score(self, judge: str) -> np.ndarray:
        """[R, n] by a judge; -inf where it gave none."""
        if judge not in self.scores:
            raise FlopwiseError(f"stopping: the samples have no score by {judge[:40]!r}")
        return np.where(np.isnan(self.scores[judge]), -np.inf, self.scores[judge])

    @cached_property
    def spent(self) -> np.ndarray:
        """Cost [R, n] of all samples so far."""
        return np.cumsum(self.cost, axis=1)

    def right_of_best(self, judge: str) -> np.ndarray:
        """Verdict [R, n] on the highest-scored so far; the first of those level, which in a random order is a
        random one."""
        score = self.score(judge)
        highest = np.maximum.accumulate(score, axis=1)
        new = np.ones(score.shape, dtype=bool)
        new[:, 1:] = score[:, 1:] > highest[:, :-1]
        place = np.maximum.accumulate(np.where(new, np.arange(score.shape[1]), 0), axis=1)
        return np.take_along_axis(self.correct, place, axis=1)


class Shuffled:
    """Samples in many random orders, the same ones for every rule, so that rules are compared in pairs.

    Args:
        orders: of each problem's samples; by default so many that there are about 10,000 rows, 16 to 256.
    """

    def __init__(self, samples: Samples, orders: int | None = None, seed: int = 0):
        self.samples, self.seed = samples, seed
        self.orders = orders or int(np.clip(10_000 // samples.P, 16, 256))
        votes = [cast_votes(a, c) for a, c in zip(samples.answers, samples.correct, strict=True)]
        self.codes = np.stack([codes for codes, _ in votes])
        self.right = np.stack(
            [right[codes] * (codes >= 0) if len(right) else np.zeros(samples.n) for codes, right in votes]
        )
        self.unit = float(samples.decode_flops.mean()) or 1.0
        self._kept: dict[str | None, list[tuple[np.ndarray, Walk]]] = {}

    def chunks(self, judge: str | None = None) -> Iterator[tuple[np.ndarray, Walk]]:
        """Problems [p] and their walk, whose rows are each problem's orders one after another.

        Samples pay for the judge.
        """
        if judge in self._kept:
            yield from self._kept[judge]
            return
        s, n = self.samples, self.samples.n
        cost = s.decode_flops + s.score_flops.get(judge or "", 0.0)
        at_once = max(1, CELLS // (self.orders * n))
        for first in range(0, s.P, at_once):
            rows = np.arange(first, min(first + at_once, s.P))
            rng = np.random.default_rng((self.seed, first))
            order = np.argsort(rng.random((len(rows) * self.orders, n)), axis=1)
            of = np.repeat(rows, self.orders)[:, None]
            scores = {} if judge is None else {judge: s.score(judge)[of, order]}
            walk = Walk(
                self.codes[of, order], self.right[of, order], s.correct[of, order].astype(float), scores,
                cost[of, order], self.unit,
            )  # fmt: skip
            if at_once >= s.P:
                self._kept[judge] = [(rows, walk)]
            yield rows, walk

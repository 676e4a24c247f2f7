"""How hard a prompt is, from samples held out for that, or from a probe; never from those that are evaluated.

Difficulty taken from the samples that are then scored leaks: the lucky prompts of a bin look easy and were
right, so that every choice by bin seems to gain. Samples spent on difficulty are paid for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flopwise.errors import FlopwiseError, one_line
from flopwise.infer.samples import Samples

MINIMUM = 5
"""Problems in a bin, for its curve to be of use."""


@dataclass(frozen=True)
class Difficulty:
    """How easy prompts look [P], and what it cost to know [P].

    `by`: `verifier` (share right of m samples), `agreement` (share of m samples that gave the most frequent
    answer), a judge (mean score of m samples), or `probe`.
    """

    by: str
    ease: np.ndarray
    cost: np.ndarray
    m: int

    @classmethod
    def of(cls, held: Samples, by: str) -> Difficulty:
        """From held-out samples: the first part of `Samples.split`.

        Raises:
            FlopwiseError: the samples have no answers, or no such score.
        """
        if by == "agreement":
            ease = np.array([_agreement(row) for row in held.answers])
            if not ease.any():
                raise FlopwiseError(
                    "difficulty: the samples have no answers that could agree; take verifier or a judge"
                )
        elif by == "verifier":
            ease = held.correct.mean(axis=1)
        else:
            scores = held.score(by)
            known = np.isfinite(scores)
            ease = np.where(known, scores, 0.0).sum(axis=1) / np.maximum(known.sum(axis=1), 1)
            scored = known.any(axis=1)
            if not scored.any():
                raise FlopwiseError(f"difficulty: no sample has a score by {by}; choose another judge")
            ease[~scored] = ease[scored].min()
        return cls(by, ease, held.cost(held.n, by) - held.prefill_flops, held.n)

    @classmethod
    def probe(cls, scores: np.ndarray, cost: np.ndarray | float = 0.0) -> Difficulty:
        """From a score of the prompt itself [P], higher for easier, that costs so much.

        Raises:
            FlopwiseError: a prompt has none.
        """
        ease = np.asarray(scores, dtype=float)
        if not np.isfinite(ease).all():
            raise FlopwiseError(
                f"difficulty: prompt {int(np.argmin(np.isfinite(ease))) + 1} has no probe's score"
            )
        return cls("probe", ease, np.broadcast_to(np.asarray(cost, float), ease.shape), 0)

    def bins(self, train: np.ndarray, count: int) -> np.ndarray:
        """Edges that part the training prompts into at most `count` bins, none of fewer than `MINIMUM`.

        A prompt is in bin `np.searchsorted(edges, ease, side="right")`; bin 0 is the hardest.
        """
        ease = np.sort(self.ease[train])
        count = max(1, min(count, len(ease) // MINIMUM))
        edges: list[float] = []
        start = 0
        for i in range(1, count):
            # The next value at which a bin may end; equal values stay together.
            wanted = max(round(len(ease) * i / count), start + MINIMUM)
            if wanted >= len(ease):
                break
            low, high = (int(np.searchsorted(ease, ease[wanted], side)) for side in ("left", "right"))
            cut = low if low - start >= MINIMUM and wanted - low <= high - wanted else high
            if cut - start < MINIMUM or len(ease) - cut < MINIMUM or cut <= start:
                continue
            edges.append(float((ease[cut - 1] + ease[cut]) / 2))
            start = cut
        return np.array(edges)


def _agreement(answers: list[str | None]) -> float:
    given = [a for a in answers if a is not None]
    return max((given.count(a) for a in set(given)), default=0) / len(answers)


@dataclass(frozen=True)
class Beta:
    """How chances of success are spread over prompts: Beta(a, b), fitted to counts of other samples."""

    a: float
    b: float

    @classmethod
    def fit(cls, correct: np.ndarray) -> Beta:
        """By empirical Bayes: the most likely prior of counts of right samples, from verdicts [P, m].

        Raises:
            FlopwiseError: no verdicts.
        """
        from flopwise.laws.counts import Counts
        from flopwise.laws.coverage_fit import fit_form
        from flopwise.laws.coverage_forms import FORMS

        units, member = Counts.judged(correct).distinct()
        params = fit_form(FORMS["beta_binomial"], units, member.sum(axis=0)).params
        return cls(params["a"], params["b"])

    def posterior(self, right: np.ndarray, m: int) -> tuple[np.ndarray, np.ndarray]:
        """(a, b) of prompts [P] of whose m samples so many were right."""
        return self.a + right, self.b + m - right


def coverage(a: np.ndarray, b: np.ndarray, k: np.ndarray | float) -> np.ndarray:
    """Chance that k samples hold a right one, where the chance of each is spread as Beta(a, b).

    1 - B(a, b + k) / B(a, b).

    >>> coverage(np.array([1.0]), np.array([1.0]), 1).round(6).tolist()
    [0.5]
    """
    from scipy.special import betaln

    return np.asarray(-np.expm1(betaln(a, b + k) - betaln(a, b)))


def default_signal(samples: Samples) -> str:
    """What shows how hard a prompt is: agreement where there are answers, else a judge, else the verifier."""
    if any(a is not None for row in samples.answers for a in row):
        return "agreement"
    return next(iter(samples.scores), "verifier")


def parse(text: str) -> tuple[str, int | None]:
    """`BY` or `BY:m`, as `agreement:4`.

    Raises:
        FlopwiseError: m is no whole number of at least 1.
    """
    by, colon, m = text.partition(":")
    if colon and not (m.isdigit() and int(m) >= 1):
        raise FlopwiseError(
            f"difficulty is {one_line(text, 40)!r}, must be NAME or NAME:SAMPLES, as agreement:4"
        )
    return by, int(m) if colon else None

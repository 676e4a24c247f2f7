"""The plan: which model to make, and how to ask it, for a budget and a number of questions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from flopwise.errors import FlopwiseError
from flopwise.plan.systems import System, paired_draws

DRAWS = 2000
QUESTIONS = tuple(10.0**e for e in range(3, 10))
"""Demands at which the plan is made again, to show what would change it."""


@dataclass(frozen=True)
class Option:
    """A system with what is expected of it. `origin`: "measured", or "predicted" by a fitted law.

    `chance_best`: share of resamples of the problems in which no other measured option of the same kind
    answers more; for a prediction, share of draws from its interval in which nothing at all does.
    """

    model: str
    how: str
    origin: str
    strategy: str
    n: int
    accuracy: float
    low: float
    high: float
    one_off_flops: float
    per_question_flops: float
    total_flops: float
    chance_best: float | None = None


@dataclass(frozen=True)
class Predicted:
    """A system that was not measured: what a law expects of it, with draws of that."""

    model: str
    how: str
    strategy: str
    n: int
    draws: np.ndarray
    one_off_flops: float
    per_question_flops: float


def options(
    systems: Sequence[System], predicted: Sequence[Predicted], how: dict[str, str],
    questions: float, budget: float, seed: int = 0,
) -> list[Option]:  # fmt: skip
    """All that the budget affords, best first within each kind; `how` says in words how a model is made."""
    measured = [s for s in systems if s.total_flops(questions) <= budget]
    extra = [p for p in predicted if p.one_off_flops + questions * p.per_question_flops <= budget]
    if not measured and not extra:
        return []
    columns = [paired_draws(measured, DRAWS, seed)] if measured else []
    rng = np.random.default_rng(seed + 1)
    columns += [rng.choice(p.draws, DRAWS)[:, None] for p in extra]
    draws = np.concatenate(columns, axis=1)
    found = [
        Option(
            s.model, f"{how.get(s.model, s.model)}; {answering(s.strategy, s.n)}", "measured",
            s.strategy, s.n, s.accuracy, 0.0, 0.0,
            s.one_off_flops, s.per_question_flops, s.total_flops(questions),
        )
        for s in measured
    ] + [
        Option(
            p.model, f"{p.how}; {answering(p.strategy, p.n)}", "predicted",
            p.strategy, p.n, float(p.draws.mean()), 0.0, 0.0,
            p.one_off_flops, p.per_question_flops, p.one_off_flops + questions * p.per_question_flops,
        )
        for p in extra
    ]  # fmt: skip
    out = []
    for checkable in (True, False):
        rows = [i for i, o in enumerate(found) if (o.strategy == "verifier") == checkable]
        if not rows:
            continue
        known = [i for i in rows if found[i].origin == "measured"]
        wins = _win_shares(draws, rows) | _win_shares(draws, known)
        for i in rows:
            low, high = np.quantile(draws[:, i], [0.025, 0.975])
            out.append(replace(found[i], low=float(low), high=float(high), chance_best=wins[i]))
    # Of equals, the cheaper.
    return sorted(out, key=lambda o: (-o.accuracy, o.total_flops))


def _win_shares(draws: np.ndarray, rows: Sequence[int]) -> dict[int, float]:
    """For each of `rows` the share of draws [n, options] in which it is the best of them."""
    if not rows:
        return {}
    wins = np.bincount(draws[:, rows].argmax(axis=1), minlength=len(rows)) / len(draws)
    return dict(zip(rows, wins.tolist(), strict=True))


def best(found: Sequence[Option], checkable: bool) -> Option | None:
    """The most accurate option whose answers are checked by a verifier, or need not be."""
    return next((o for o in found if (o.strategy == "verifier") == checkable), None)


def answering(strategy: str, n: int) -> str:
    """How a question is answered, in words.

    >>> answering("verifier", 8)
    'take 8 samples, keep one the verifier accepts'
    """
    return {
        "greedy": "one greedy answer",
        "verifier": f"take {n} samples, keep one the verifier accepts",
        "majority": "one sample" if n == 1 else f"take {n} samples, answer with the most frequent",
        "reward_model": f"take {n} samples, answer with the one the reward model prefers",
        "logprob": f"take {n} samples, answer with the most probable",
    }[strategy]


def make_plan(
    systems: Sequence[System], predicted: Sequence[Predicted], how: dict[str, str],
    budget: float, questions: float, seed: int = 0, keep: int = 12,
) -> dict[str, Any]:  # fmt: skip
    """The best options for a budget in FLOPs and a number of questions, and for other numbers of questions.

    Raises:
        FlopwiseError: the budget affords nothing; the message says what the cheapest needs.
    """
    if not (budget > 0 and math.isfinite(budget)) or not (questions >= 0 and math.isfinite(questions)):
        raise FlopwiseError(f"plan: budget is {budget} and questions {questions}; both must be above 0")
    found = options(systems, predicted, how, questions, budget, seed)
    if not found:
        least = min([s.total_flops(questions) for s in systems] or [math.inf])
        raise FlopwiseError(
            f"plan: {budget:.3g} FLOPs afford no known system for {questions:.3g} questions; "
            f"the cheapest needs {least:.3g}"
        )
    tops = {name: best(found, name == "checkable") for name in ("checkable", "uncheckable")}
    by_questions = []
    for q in QUESTIONS:
        again = options(systems, predicted, how, q, budget, seed)
        by_questions.append(
            {
                "questions": q,
                **{name: _row(best(again, name == "checkable")) for name in ("checkable", "uncheckable")},
            }
        )
    shown = list({(o.model, o.strategy): o for o in reversed(found)}.values())
    shown.sort(key=lambda o: (-o.accuracy, o.total_flops))
    return {
        "budget_flops": budget, "questions": questions, **{name: _row(o) for name, o in tops.items()},
        "options": [_row(o) for o in shown[:keep]], "by_questions": by_questions,
        "reasons": reasons(tops, found, budget, questions),
    }  # fmt: skip


def reasons(
    tops: dict[str, Option | None], found: Sequence[Option], budget: float, questions: float
) -> list[str]:
    """Why these options, and how sure that is, in sentences."""
    out = []
    for name, top in tops.items():
        if top is None:
            continue
        kind = "Where answers can be checked" if name == "checkable" else "Where answers cannot be checked"
        share = top.one_off_flops / top.total_flops
        out.append(
            f"{kind}: {top.how}. "
            f"Expected {top.accuracy:.1%} ({top.low:.1%} to {top.high:.1%}, {top.origin}); "
            f"{share:.0%} of its {top.total_flops:.2g} FLOPs make the model, the rest answers."
        )
        rivals = [o for o in found if (o.strategy == "verifier") == (top.strategy == "verifier")]
        measured = next((o for o in rivals if o.origin == "measured" and o.model != top.model), None)
        if measured is not None:
            sure = f"the choice is best in {top.chance_best:.0%} of resamples"
            if top.origin == "predicted":
                sure = "the choice itself is a forecast, to be checked on a few questions first"
            out.append(
                f"The best other measured model, {measured.model}, is expected at {measured.accuracy:.1%}; "
                f"{sure}."
            )
        made = {o.model for o in found if o.origin == "measured"}
        hoped = next((o for o in rivals if o.model not in made and o is not top), None)
        if hoped is not None and hoped.high > top.high:
            out.append(
                f"A model nobody has made might do better: {hoped.how}; {hoped.accuracy:.1%} by the fitted "
                f"laws, but anything from {hoped.low:.0%} to {hoped.high:.0%}. Making it would tell."
            )
        if top.total_flops < 0.5 * budget:
            out.append(
                f"It leaves {1 - top.total_flops / budget:.0%} of the budget: "
                "nothing measured turns more into accuracy."
            )
    return out


def _row(option: Option | None) -> dict[str, Any] | None:
    return None if option is None else vars(option).copy()

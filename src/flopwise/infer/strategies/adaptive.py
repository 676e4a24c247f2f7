"""Sample in rounds, and stop each prompt by itself once a rule has seen enough (`infer.policies.rules`).

Prompts that go on are sampled together; those that stop cost nothing more. With n = 64 an easy prompt may
take two samples and a hard one all of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from flopwise.errors import FlopwiseError
from flopwise.infer.policies.rules import Rule, ScoreValue, make_rule
from flopwise.infer.policies.walk import Walk
from flopwise.infer.scorers import chance, need, scorer_of
from flopwise.infer.strategies.base import Candidate, Named, Outcome, TraceStep, trace_of
from flopwise.infer.strategies.best_of_n import FREE, BestOfN
from flopwise.infer.strategies.self_consistency import SelfConsistency
from flopwise.infer.votes import cast_votes

if TYPE_CHECKING:
    from flopwise.infer.room import Room

LOG_ODDS = ("reward",)
"""Scores that are log-odds; for `score` they must be chances."""


@dataclass(frozen=True)
class Adaptive(Named):
    """Takes up to n samples of each prompt, `every` at a time, until the rule says stop.

    Args:
        rule: beta, window or votes, which answer by majority; score or accept, which give the best-scored.
        dial: the rule's setting: confidence, window, price of a sample in accuracy, threshold.
        by: whose scores, for score and accept.
        every: samples in a round. `window` looks at the ends of its windows, so let it be a divisor of those.

    Raises:
        FlopwiseError: a setting out of range.
    """

    kind: ClassVar[str] = "adaptive"
    rule: str = "beta"
    dial: float | None = None
    by: str = "verifier"
    every: int = 1

    def __post_init__(self) -> None:
        BestOfN(self.by)
        if self.every < 1:
            raise FlopwiseError(f"adaptive: every is {self.every}, must be at least 1")
        if self.rule == "score" and self.by in FREE[1:]:
            raise FlopwiseError(
                f"adaptive: {self.by} is no chance to be right; take score by a learned judge"
            )
        self.made()

    @property
    def name(self) -> str:
        """As `make` takes it; the judge is there where the rule has one."""
        return super().name if self.made().choice == "score" else super().name.replace(f":{self.by}", "", 1)

    @property
    def judges(self) -> tuple[str, ...]:
        """The scorer of the rule's judge."""
        return (scorer_of(self.by),) if self.made().choice == "score" and self.by not in FREE else ()

    def made(self) -> Rule:
        """The rule."""
        return make_rule(self.rule, self.dial, self.by)

    def run(self, room: Room, problems: list[int], n: int, seed: int) -> list[Outcome]:
        """Answer the room's problems at these places with at most n samples each.

        Raises:
            FlopwiseError: n below 1, or a judge that is not in the room.
        """
        if n < 1:
            raise FlopwiseError(f"adaptive: n is {n}, must be at least 1")
        for judge in self.judges:
            need(room.scorers, judge, "adaptive")
        rule = self.made()
        found: dict[int, list[Candidate]] = {p: [] for p in problems}
        going, taken = list(found), 0
        scores = (self.by,) if self.judges else ()
        while going and taken < n:
            count = min(self.every, n - taken)
            rows = room.sample([(p, ()) for p in going], count, seed=seed * 1_000_003 + taken)
            places = [(r.problem, r.tokens) for r in rows]
            candidates = room.candidates(places, [r.logprob for r in rows], scores)
            for row, candidate in zip(rows, candidates, strict=True):
                found[row.problem].append(candidate)
            taken += count
            if isinstance(rule, ScoreValue) and taken == count:
                rule = self._learned(rule, [c for each in found.values() for c in each])
            unit = float(np.mean([c.tokens for each in found.values() for c in each])) or 1.0
            stops = self._stops(rule, [found[p] for p in going], n, unit)
            going = [p for p, stop in zip(going, stops, strict=True) if not stop]
        chooser = SelfConsistency() if rule.choice == "votes" else BestOfN(self.by)
        out = []
        for p in problems:
            rng = np.random.default_rng((abs(seed), room.keys[p]))
            choice = chooser.choose(found[p], rng)
            trace = trace_of(found[p], choice)
            why = f"{rule.name} after {len(found[p])} of {n}" if p not in going else f"all {n} samples taken"
            trace.append(TraceStep(len(trace), trace[-1].id, "stop", "", None, why))
            out.append(room.outcome(p, found[p], choice, trace))
        return out

    def _stops(self, rule: Rule, rows: list[list[Candidate]], n: int, unit: float) -> np.ndarray:
        """Whether each prompt [R] has enough; all have equally many samples so far, of `unit` mean tokens."""
        R, t = len(rows), len(rows[0])
        votes = [cast_votes([c.answer for c in row], np.zeros(t))[0] for row in rows]
        # The horizon is n: samples that are not there yet abstain, and their columns are not looked at.
        codes = np.full((R, n), -1)
        codes[:, :t] = votes
        value = np.full((R, n), np.nan)
        cost = np.full((R, n), unit)
        if rule.choice == "score":
            value[:, :t] = self._values(rule, rows)
        cost[:, :t] = [[max(c.tokens, 1) for c in row] for row in rows]
        none = np.zeros((R, n))
        walk = Walk(codes, none, none, {self.by: value}, cost, unit)
        stops = rule.stops(walk)[:, :t]
        return np.asarray(stops.any(axis=1) if rule.kind == "window" else stops[:, -1])

    def _values(self, rule: Rule, rows: list[list[Candidate]]) -> np.ndarray:
        """Scores [R, t] in the rule's measure."""
        scores = np.array([[_score(c, self.by) for c in row] for row in rows])
        return chance(scores) if rule.kind == "score" and self.by in LOG_ODDS else scores

    def _learned(self, rule: ScoreValue, first: list[Candidate]) -> ScoreValue:
        """Belief about scores from all prompts' first samples, as heavy as one sample of a prompt's own."""
        values = self._values(rule, [first]).ravel()
        known = np.sort(rule.value(values[~np.isnan(values)]))
        return replace(rule, base=tuple(known.tolist())) if len(first) > 1 and len(known) else rule


def _score(candidate: Candidate, judge: str) -> float:
    value = candidate.score(judge)
    return float("nan") if value is None else float(value)

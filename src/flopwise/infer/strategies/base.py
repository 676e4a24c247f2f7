"""What a strategy sees of each sample, what it decides, and the two kinds there are.

A strategy that chooses (`Choosing`) decides between finished samples, so its whole curve over n replays from
one set of them. One that acts (`Acting`) says itself what is to be written next, so each budget is a run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np

from flopwise.errors import FlopwiseError

if TYPE_CHECKING:
    from flopwise.infer.room import Room
    from flopwise.infer.samples import Samples

Kind = Literal["sample", "step", "score", "vote", "revise", "extend", "cut", "stop"]


@dataclass(frozen=True)
class Candidate:
    """One sample of a prompt, with what there is to judge it by."""

    text: str
    answer: str | None
    """In canonical form, so that equal answers are one vote; None abstains."""
    logprob: float
    """Of the whole completion under the model, in nats; NaN where unknown."""
    tokens: int = 0
    """Written, the stop token included."""
    correct: bool | None = None
    """The verifier's word; None where there is no verifier."""
    scores: dict[str, float] = field(default_factory=dict)
    """By judge: reward (log-odds), process_min, process_last, process_product, probe, judge."""
    steps: tuple[float, ...] = ()
    """What a process reward model thinks after each step, in [0, 1]."""

    def score(self, judge: str) -> float | None:
        """By which a judge ranks: verifier, logprob, logprob_mean (per token) or a name in `scores`."""
        if judge == "verifier":
            return None if self.correct is None else float(self.correct)
        if judge == "logprob":
            return self.logprob
        if judge == "logprob_mean":
            return self.logprob / max(self.tokens, 1)
        return self.scores.get(judge)


@dataclass(frozen=True)
class Choice:
    """A decision and how it came about."""

    index: int | None
    """The chosen sample; None where the strategy abstains."""
    votes: dict[str, float] = field(default_factory=dict)
    """By answer, most first; weights where votes are weighted."""
    scores: list[float] = field(default_factory=list)
    """By sample."""
    tied: int = 1
    """How many answers or samples were level at the top; one of them was drawn."""


@dataclass(frozen=True)
class TraceStep:
    """One thing that a strategy did: a node of a tree (`parent` is another's id)."""

    id: int
    parent: int | None
    kind: Kind
    text: str
    value: float | None = None
    """Log-probability of what was written, a score, a vote's weight."""
    note: str = ""


@dataclass(frozen=True)
class Outcome:
    """What a strategy came to for one problem.

    `flops` is by purpose (prefill, decode, score); `tokens` were written; `candidates[choice.index]` is the
    answer.
    """

    candidates: list[Candidate]
    choice: Choice
    flops: dict[str, float]
    tokens: int
    trace: list[TraceStep] = field(default_factory=list)

    @property
    def chosen(self) -> Candidate | None:
        """The answer's sample; None where there is none."""
        return None if self.choice.index is None else self.candidates[self.choice.index]


@runtime_checkable
class Choosing(Protocol):
    """Decides between the samples of one prompt."""

    @property
    def name(self) -> str:
        """As it is written on the command line."""
        ...

    @property
    def temperature(self) -> float | None:
        """The one it needs, or None where it is the user's choice."""
        ...

    @property
    def judge(self) -> str | None:
        """Whose scores it needs beside the verifier's and the model's own: a name in `Samples.scores`."""
        ...

    def choose(self, candidates: Sequence[Candidate], rng: np.random.Generator) -> Choice:
        """Pick one of at least one candidate."""
        ...

    def replay(self, samples: Samples, k: int) -> np.ndarray:
        """Chance per problem [P] that its choice among k of the samples is right, over all subsets."""
        ...


@runtime_checkable
class Acting(Protocol):
    """Asks the engine itself: what it writes next depends on what came before."""

    @property
    def name(self) -> str:
        """As it is written on the command line."""
        ...

    @property
    def judges(self) -> tuple[str, ...]:
        """Scorers that must be in the room: process, reward, probe, judge; empty where it needs none."""
        ...

    def run(self, room: Room, problems: list[int], n: int, seed: int) -> list[Outcome]:
        """Answer the room's problems at these places, each with a budget of n full-length samples."""
        ...


class Named:
    """A strategy that is a frozen dataclass: its name is its kind, and what of it is not as by default."""

    kind: ClassVar[str]

    @property
    def name(self) -> str:
        """As `strategies.make` takes it."""
        parts = [self.kind]
        for f in fields(self):  # type: ignore[arg-type]
            value = getattr(self, f.name)
            if f.name == "by":
                parts.insert(1, str(value))
            elif value != f.default:
                parts.append(f"{f.name}={_written(value)}")
        return ":".join(parts)


def plain(value: Any) -> Any:
    """A dataclass, or what is made of them, as JSON takes it: a number that is none (NaN) becomes null."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _written(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def one_of_the_best(scores: Sequence[float], rng: np.random.Generator) -> tuple[int, int]:
    """Place of the highest score, drawn evenly where several are level, and how many are. NaN ranks last.

    >>> one_of_the_best([1.0, 3.0, 2.0], np.random.default_rng(0))
    (1, 1)
    """
    values = np.asarray(scores, dtype=float)
    values = np.where(np.isnan(values), -np.inf, values)
    best = np.flatnonzero(values == values.max())
    return int(rng.choice(best)), len(best)


def scores_of(candidates: Sequence[Candidate], judge: str, who: str) -> list[float]:
    """Every candidate's score by a judge.

    Raises:
        FlopwiseError: a candidate has none.
    """
    found = [c.score(judge) for c in candidates]
    if any(value is None for value in found):
        raise FlopwiseError(f"{who}: the samples have no {judge} to go by; choose another judge")
    return [float(value) for value in found if value is not None]


def trace_of(candidates: Sequence[Candidate], choice: Choice) -> list[TraceStep]:
    """Samples, their scores, votes for answers, and the decision, as a tree with the samples as roots."""
    trace = [
        TraceStep(i, None, "sample", c.text, c.logprob, "abstains" if c.answer is None else c.answer)
        for i, c in enumerate(candidates)
    ]
    for i, value in enumerate(choice.scores):
        trace.append(TraceStep(len(trace), i, "score", "", value))
    for answer, weight in choice.votes.items():
        first = next(i for i, c in enumerate(candidates) if c.answer == answer)
        trace.append(TraceStep(len(trace), first, "vote", answer, weight))
    level = f"{choice.tied} were level, one was drawn" if choice.tied > 1 else ""
    text = "" if choice.index is None else candidates[choice.index].answer or ""
    note = "abstains" if choice.index is None else level
    trace.append(TraceStep(len(trace), choice.index, "stop", text, None, note))
    return trace

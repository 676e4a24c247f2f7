"""Judges of what a model wrote and what their word costs: reward models of answers and steps, a rubric."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from flopwise.errors import FlopwiseError, one_line
from flopwise.flops.count import score_flops
from flopwise.infer.steps import HOW, aggregate, score_answers, step_ends

if TYPE_CHECKING:
    from flopwise.data.tasks import Task
    from flopwise.infer.local import LocalEngine
    from flopwise.models.config import ModelConfig
    from flopwise.posttrain.judge import Judge

NAMES = ("reward", "process", "probe", "judge")
"""Scorers that a room may hold. `process` gives the scores process_min, process_last and process_product."""


@dataclass(frozen=True)
class Written:
    """What was written for a problem: its prompt's and the completion's token ids, the text (without the stop
    token), and whether it came to its end."""

    problem: Any
    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    text: str
    finished: bool


@dataclass(frozen=True)
class Scores:
    """By judge [N], the FLOPs of each [N], and what a process reward model thinks after each step [0, 1]."""

    by: dict[str, np.ndarray]
    flops: np.ndarray
    steps: list[tuple[float, ...]] = field(default_factory=list)


class Scorer(Protocol):
    """Gives answers scores, and partial answers a value."""

    def score(self, written: Sequence[Written]) -> Scores:
        """Of whole answers."""
        ...

    def values(self, written: Sequence[Written]) -> tuple[np.ndarray, np.ndarray]:
        """Of partial answers [N] in [0, 1], and the FLOPs of each [N], read whole."""
        ...


def reads_on(scorer: Scorer) -> bool:
    """Whether `values` reads of a text only what is new, as the scorer keeps keys and values."""
    return getattr(getattr(scorer, "engine", None), "reader", None) is not None


def scorer_of(score: str) -> str:
    """Which scorer gives a score.

    >>> scorer_of("process_min")
    'process'
    """
    return score.partition("_")[0]


def chance(log_odds: np.ndarray) -> np.ndarray:
    """The logistic function."""
    return np.exp(-np.logaddexp(0.0, -np.asarray(log_odds, dtype=float)))


@dataclass
class OutcomeScorer:
    """A reward model of whole answers: log-odds that the answer is right, at its last token."""

    engine: LocalEngine
    kind: ClassVar[str] = "reward"

    def score(self, written: Sequence[Written]) -> Scores:
        """As score `reward`."""
        values, _ = self.engine.reward(_sequences(written))
        return Scores({"reward": values.astype(float)}, read_flops(self.engine.cfg, written))

    def values(self, written: Sequence[Written]) -> tuple[np.ndarray, np.ndarray]:
        """What it says of a part, though it has only learned whole answers."""
        return _last_values(self.engine, written)


@dataclass
class ProcessScorer:
    """A process reward model: log-odds after each step; an answer's score is their least, last or product."""

    engine: LocalEngine
    task: Task[Any]
    tokenizer: Any
    kind: ClassVar[str] = "process"

    def score(self, written: Sequence[Written]) -> Scores:
        """As scores `process_min`, `process_last`, `process_product`, and the steps' chances."""
        ends = [step_ends(self.task, w.tokens, self.tokenizer, w.finished) for w in written]
        each, _ = score_answers(self.engine, [w.prompt for w in written], [w.tokens for w in written], ends)
        by = {f"process_{how}": aggregate(each, how) for how in HOW}
        flops = read_flops(self.engine.cfg, written, head=True)
        return Scores(by, flops, [tuple(chance(e).tolist()) for e in each])

    def values(self, written: Sequence[Written]) -> tuple[np.ndarray, np.ndarray]:
        """The chance that the answer will be right, at the last token of the part."""
        return _last_values(self.engine, written)


@dataclass
class JudgeScorer:
    """A model with a rubric (`posttrain.judge`), here or behind a server; its score is in [0, 1]."""

    judge: Judge
    kind: ClassVar[str] = "judge"

    def score(self, written: Sequence[Written]) -> Scores:
        """As score `judge`; the cost is shared out evenly."""
        found, usage = self.judge.score([w.problem for w in written], [w.text for w in written])
        return Scores({"judge": found}, np.full(len(written), usage.flops / max(len(written), 1)))

    def values(self, written: Sequence[Written]) -> tuple[np.ndarray, np.ndarray]:
        """A part is judged as an answer is."""
        found = self.score(written)
        return found.by["judge"], found.flops


@dataclass
class StepChecker:
    """The task's own checker of steps: halves the value for each written step that is wrong. No model."""

    task: Task[Any]
    kind: ClassVar[str] = "checker"

    def score(self, written: Sequence[Written]) -> Scores:
        """As score `checker`."""
        return Scores({"checker": self.values(written)[0]}, np.zeros(len(written)))

    def values(self, written: Sequence[Written]) -> tuple[np.ndarray, np.ndarray]:
        """2 to the minus number of wrong steps."""
        wrong = [sum(not s.ok for s in self.task.steps(w.text.rstrip(",; \n"), w.problem)) for w in written]
        return np.exp2(-np.array(wrong, dtype=float)), np.zeros(len(written))


def need(scorers: dict[str, Scorer], name: str, who: str) -> Scorer:
    """A scorer by name.

    Raises:
        FlopwiseError: there is none; says how to bring one.
    """
    if name in scorers:
        return scorers[name]
    how = {"reward": "--reward RUN", "process": "--process RUN", "probe": "--probe FOLDER",
           "judge": "--judge MODEL"}.get(name)  # fmt: skip
    raise FlopwiseError(
        f"{one_line(who, 60)} goes by {one_line(name, 40)}, which is not there; "
        + (f"name it with {how}" if how else f"scorers are {', '.join(NAMES)}")
    )


def _last_values(engine: LocalEngine, written: Sequence[Written]) -> tuple[np.ndarray, np.ndarray]:
    found, _ = engine.values_after(_sequences(written))
    return chance(found), read_flops(engine.cfg, written)


def _sequences(written: Sequence[Written]) -> list[list[int]]:
    return [[*w.prompt, *w.tokens] for w in written]


def read_flops(cfg: ModelConfig, written: Sequence[Written], head: bool = False) -> np.ndarray:
    """Of a scorer reading each whole sequence [N]; with a score at every token or at the last alone."""

    @cache
    def one(length: int) -> float:
        return score_flops(cfg, length, head=1).total if head else score_flops(cfg, length, n_logits=0).total

    return np.array([one(len(w.prompt) + len(w.tokens)) for w in written], dtype=float)

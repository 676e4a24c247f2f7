"""`fw.solve`: prompts in, answers out, with how they came about and what they cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flopwise.data.tasks import Problem, Step, Task
from flopwise.data.tasks import task as task_of
from flopwise.errors import FlopwiseError
from flopwise.flops.spend import Spend, Stopwatch
from flopwise.infer import strategies
from flopwise.infer.opening import Setting, check_scorers, open_model, open_room
from flopwise.infer.resolve import Found, find_model
from flopwise.infer.room import Room
from flopwise.infer.strategies import Acting, Candidate, Choice, Choosing, Outcome, TraceStep, trace_of
from flopwise.infer.strategies.base import plain
from flopwise.infer.strategies.voting import candidates_of

MOST_SAMPLES = 500_000
"""Per call, so that what is kept of each fits into memory."""
UNSEEN_SEED = 20_260
"""Seed of problems for a model whose own held-out ones are not at hand."""
DEFAULT_TASK = "countdown"


@dataclass(frozen=True)
class Answer:
    """What one prompt got.

    `answer` is the chosen sample's, in canonical form, None where the strategy abstains; `correct` is the
    verifier's word on it; `steps` are its steps, each judged; `trace` is all that the strategy did; `flops`
    is by purpose, `tokens` were written.
    """

    prompt: str
    answer: str | None
    correct: bool
    completion: str
    steps: list[Step]
    choice: Choice
    candidates: list[Candidate]
    flops: dict[str, float]
    tokens: int
    trace: list[TraceStep]

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        found: dict[str, Any] = plain(self)
        return found


@dataclass(frozen=True)
class Solution:
    """Answers in the order of the prompts; `flops` of all by purpose (prefill, decode, score); the spend; by
    which strategy, of which task, asked in which style."""

    answers: list[Answer]
    flops: dict[str, float]
    spend: Spend
    task: str
    style: str
    strategy: str

    @property
    def flops_known(self) -> bool:
        """False where the model is behind a server that says nothing of itself."""
        return any(self.flops.values())

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {
            "answers": [a.to_dict() for a in self.answers],
            "flops": self.flops | {"total": sum(self.flops.values())},
            "spend": self.spend.to_dict(),
            "task": self.task,
            "style": self.style,
            "strategy": self.strategy,
        }


def solve(
    model: str | Path,
    prompts: str | Problem | Sequence[str | Problem],
    strategy: str = "best_of_n",
    n: int = 16,
    by: str | None = None,
    *,
    task: str | None = None,
    seed: int = 0,
    on_progress: Callable[[float], None] | None = None,
    **setting: Any,
) -> Solution:
    """Answer problems of a task by a strategy.

    Args:
        model: a Hugging Face folder, a run's folder, or a run by name (`infer.resolve.find_model`); with
            `endpoint` its name for a server.
        prompts: problems as people type them, "7, 3, 3 = 24"; one or several.
        strategy: NAME, NAME:JUDGE or NAME:key=value (`infer.strategies`; `flopwise strategies` lists them).
        n: samples per prompt; for strategies that search, a budget of as many.
        by: the strategy's judge, if its name does not say: verifier (exact, no model), reward, logprob, ...
        task: which task's problems they are (`data.tasks`); by default the one of the model's data, or
            countdown.
        setting: style, shots, temperature, max_tokens, scorers (reward, process, probe, judge), endpoint,
            store and so on: the fields of `infer.opening.Setting`.

    Raises:
        FlopwiseError: a prompt, model or setting that cannot be used.
    """
    watch, how = Stopwatch(), settings(setting)
    chosen = strategies.make(f"{strategy}:{by}" if by is not None else strategy)
    check_scorers([chosen], how)
    n = 1 if isinstance(chosen, Choosing) and chosen.temperature == 0 else n
    listed = _listed(prompts)
    if not listed:
        raise FlopwiseError("solve: there is no prompt; give one, for example '7 3 3 = 24'")
    check_size(len(listed), n, "prompts")
    # Without a name the task is that of the model's data; with one, mistakes are told before a model is read.
    local = how.endpoint is None
    found = find_model(model, how.runs) if task is None and local else None
    exercise = task_of(task or (found and own_task(found)) or DEFAULT_TASK)
    problems = [exercise.parse(p) if isinstance(p, str) else p for p in listed]
    room = open_room(open_model(model, how, [chosen]), exercise, problems, how)
    outcomes = answer(room, chosen, n, seed, on_progress)
    answers = [_answer(exercise, problem, o) for problem, o in zip(problems, outcomes, strict=True)]
    total = {key: sum(a.flops[key] for a in answers) for key in ("prefill", "decode", "score")}
    spend = watch.spend(
        generate_flops=total["prefill"] + total["decode"], score_flops=total["score"],
        tokens=room.usage.prefill_tokens + room.usage.decode_tokens,
    )  # fmt: skip
    return Solution(answers, total, spend, exercise.name, room.asked.style, chosen.name)


def answer(
    room: Room, strategy: Choosing | Acting, n: int, seed: int = 0,
    on_progress: Callable[[float], None] | None = None,
) -> list[Outcome]:  # fmt: skip
    """Every problem of a fresh room answered by one strategy."""
    places = range(len(room.problems))
    if not isinstance(strategy, Choosing):
        return strategy.run(room, list(places), n, seed)
    needed = (strategy.judge,) if strategy.judge else ()
    samples = room.samples(n, seed, needed, strategy.temperature, on_progress)
    outcomes = []
    for p in places:
        candidates = candidates_of(samples, p)
        choice = strategy.choose(candidates, np.random.default_rng((abs(seed), room.keys[p])))
        outcomes.append(room.outcome(p, candidates, choice, trace_of(candidates, choice)))
    return outcomes


def check_size(problems: int, n: int, what: str) -> None:
    """Raises FlopwiseError for more samples than fit into memory."""
    if problems * n > MOST_SAMPLES:
        raise FlopwiseError(
            f"solve: {problems} {what} x {n:,} samples exceed {MOST_SAMPLES:,}; lower n or ask in parts"
        )


def own_task(found: Found) -> str | None:
    """The task of the data that a model was made from."""
    return None if found.data is None else task_name(found.data)


def task_name(folder: Path) -> str | None:
    """The task of a data folder."""
    from flopwise.data.prepare import PreparedData

    return PreparedData(folder).task


def settings(given: dict[str, Any]) -> Setting:
    """A setting by its fields.

    Raises:
        FlopwiseError: there is no such field.
    """
    try:
        return Setting(**given)
    except TypeError as e:
        raise FlopwiseError(f"solve: {e}; settings are {', '.join(Setting.__dataclass_fields__)}") from None


def _listed(prompts: str | Problem | Sequence[str | Problem]) -> list[str | Problem]:
    return [prompts] if isinstance(prompts, str) or hasattr(prompts, "prompt") else list(prompts)  # type: ignore


def _answer(task: Task[Any], problem: Any, o: Outcome) -> Answer:
    best = o.chosen
    return Answer(
        problem.prompt, None if best is None else best.answer, best is not None and bool(best.correct),
        "" if best is None else best.text, [] if best is None else task.steps(best.text, problem),
        o.choice, o.candidates, o.flops, o.tokens, o.trace,
    )  # fmt: skip

"""Where synthetic rows come from: a program, a model's own samples, or answers that look for their
problem."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator
from dataclasses import dataclass
from typing import Any

from flopwise.data.instructions import InstructProblem
from flopwise.data.tasks import Task
from flopwise.data.tasks.table import PREFIX
from flopwise.errors import FlopwiseError
from flopwise.flops.ledger import Ledger
from flopwise.posttrain.bench import Bench, completion_ids, own_rows
from flopwise.posttrain.rejection import sample_blocks

SOURCES = ("program", "self", "back-translation")


@dataclass(frozen=True)
class Row:
    """A candidate: a problem with a completion, and where both come from."""

    problem: Any
    completion: str
    source: str
    slice: str
    right: bool | None = None
    """The verifier's word, where it was asked already."""


@dataclass
class Sources:
    """What the sources need: the bench of the model that samples, what must not be shown, where to post.

    `slices` are the slices to fill, None for problems as they come; `held_out` the keys of validation and
    test problems.
    """

    bench: Bench
    slices: list[str] | None
    held_out: Collection[Hashable]
    ledger: Ledger
    model_id: str
    progress: Callable[[float], None] = lambda fraction: None

    @property
    def task(self) -> Task[Any]:
        """The task that judges."""
        return self.bench.asked.open_task()

    def judged(self, problem: Any) -> Any:
        """A problem as its task knows it: somebody's own row is a prompt with an answer until then."""
        if isinstance(problem, InstructProblem):
            return self.task.from_row({"prompt": problem.prompt, "answer": problem.answer})
        return problem

    @property
    def makes_problems(self) -> bool:
        """Whether a program makes new problems: of somebody's own rows there are those and no more."""
        return own_rows(self.bench.asked) is None and not self.task.name.startswith(PREFIX)

    def rows(self, source: str, n: int) -> Iterator[Row]:
        """Candidates of a source: for n problems by program, for the spec's `problems` else.

        Raises:
            FlopwiseError: the source cannot serve this task.
        """
        if source == "program":
            yield from self.program(n)
        elif source == "self":
            yield from self.sampled("self")
        else:
            yield from self.back_translated()

    def problems(self, n: int, salt: int) -> list[tuple[Any, str]]:
        """n new problems, spread evenly over the slices, each with its slice: the task makes them, or they
        are taken from the training problems where it cannot (a user's rows)."""
        task, seed = self.task, self.bench.folder.seed * 1_000_003 + salt
        given = self.bench.problems("rl")
        wanted: list[str | None] = list(self.slices) if self.slices else [None]
        out: list[tuple[Any, str]] = []
        for i, name in enumerate(wanted):
            size = n // len(wanted) + (i < n % len(wanted))
            if self.makes_problems:
                taken = {*self.held_out, *(p.key for p, _ in out)}
                found = task.generate(size, seed + i, taken, slice=name)
            else:
                there = [p for p in given if name is None or task.slice_of(self.judged(p)) == name]
                found = there[:size]
            out += [(p, name or task.slice_of(self.judged(p))) for p in found]
        if not out:
            raise FlopwiseError(
                f"synthetic: there is no training problem of slice {', '.join(self.slices or ['all'])}; add "
                "some"
            )
        return out

    def program(self, n: int) -> Iterator[Row]:
        """Worked solutions by the task's own program."""
        task, seed = self.task, self.bench.folder.seed
        if not self.makes_problems:
            raise FlopwiseError(
                f"synthetic: no program makes problems of {task.name}; use source self, which samples a model"
            )
        for problem, name in self.problems(n, 41):
            completion = task.demonstration(problem, seed, self.held_out)
            yield Row(problem, completion, "program", name)

    def sampled(self, source: str) -> Iterator[Row]:
        """The model's samples of new problems, right or wrong: the verifier comes next."""
        asked = self.problems(self.bench.spec["problems"], 42)
        names = {p.key: name for p, name in asked}
        blocks = sample_blocks(self.bench, [p for p, _ in asked], self.ledger, self.model_id, self.progress)
        for part, samples in blocks:
            texts = self.bench.tokenizer.decode_batch(completion_ids(samples, strip_stop=True))
            right = self.bench.verify(part, samples).tolist()
            for i, text, ok, done in zip(
                samples.prompt_index.tolist(), texts, right, samples.finished.tolist(), strict=True
            ):
                if done:
                    yield Row(part[i], text, source, names[part[i].key], ok)

    def back_translated(self) -> Iterator[Row]:
        """The problem that each of the model's wrong samples does solve, with the sample as its solution.

        Hindsight relabelling (Andrychowicz et al., arXiv 1707.01495) of answers, as instruction
        back-translation (Li et al., arXiv 2308.06259) finds the question to a given text.
        """
        task = self.task
        restate = restater(task)
        for row in self.sampled("back-translation"):
            found = None if row.right else restate(row.problem, row.completion)
            if found is not None:
                problem, completion = found
                name = task.slice_of(problem)
                if self.slices is None or name in self.slices:
                    yield Row(problem, completion, "back-translation", name)


def restater(task: Task[Any]) -> Callable[[Any, str], tuple[Any, str] | None]:
    """The function that finds what a completion solves: (problem asked, completion) to (problem solved, its
    solution), or None.

    Raises:
        FlopwiseError: the task's answers do not say what they solve.
    """
    from flopwise.data.tasks.searches import Countdown

    if isinstance(task, Countdown):
        return restated_countdown
    raise FlopwiseError(
        f"synthetic: an answer of {task.name} does not say which problem it solves (countdown's do); use "
        "source program or self"
    )


def restated_countdown(problem: Any, completion: str) -> tuple[Any, str] | None:
    """The problem that a search's last attempt solves, and that attempt.

    >>> from flopwise.data.tasks.countdown import Problem
    >>> restated_countdown(Problem((25, 3, 7), 40), "25+7=32?25+3=28,28+7=35!")
    (Problem(numbers=(25, 3, 7), target=35), '25+3=28,28+7=35!')
    """
    from flopwise.data.tasks.countdown import LARGEST_TARGET, Problem, worked_key

    attempt = completion.strip().removesuffix("!").rpartition("?")[2]
    if not completion.strip().endswith("!") or (key := worked_key(attempt)) is None:
        return None
    numbers, target = key
    if len(numbers) != 3 or not 1 <= target <= LARGEST_TARGET:
        return None
    # In the order in which they were asked for, where they are the same: models see them in any order.
    order = problem.numbers if tuple(sorted(problem.numbers)) == numbers else numbers
    return Problem(tuple(order), target), f"{attempt}!"

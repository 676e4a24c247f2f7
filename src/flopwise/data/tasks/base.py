"""What every verifiable task offers: problems, worked solutions, an exact verifier, prompts in styles.

A task is the one place that knows how its problems are written and what a right answer is. Nothing here or in
a task may raise on what a model writes, or take longer than a bounded time over it.
"""

from __future__ import annotations

import itertools
import random
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeVar

from flopwise.errors import FlopwiseError

STYLES = ("plain", "few_shot", "chat")
MAX_CHARS = 4096
"""A longer completion is no answer: nothing a person or model sends may cost more than a bounded time."""
SHOTS = 4
"""Worked problems before the question in the style few_shot, unless another number is asked for."""

PATIENCE = 5000
"""Draws in a row without a new problem, after which there are none."""

_WORD = re.compile(r"\w+|[^\w\s]")


class Problem(Protocol):
    """A frozen, hashable problem."""

    @property
    def prompt(self) -> str:
        """As models read it."""
        ...

    @property
    def key(self) -> Hashable:
        """Equal keys are one problem to every split."""
        ...


@dataclass(frozen=True)
class Item:
    """A problem with one right answer: prompt, the answer in canonical form, key, and the slice it is in."""

    prompt: str
    gold: str
    key: str
    slice: str = ""


@dataclass(frozen=True)
class Step:
    """One written step, whether it holds, and a remark: why it does not, or that it ends a dead end."""

    text: str
    ok: bool
    why: str = ""


@dataclass(frozen=True)
class Demonstration:
    """A prompt with its worked solution."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class Passage:
    """Part of a text that states a problem (`prompt`) or solves one (`worked`); `hit`: a held-out one."""

    text: str
    kind: Literal["prompt", "worked"]
    hit: bool


P = TypeVar("P", bound=Problem)
T = TypeVar("T")


class Task(ABC, Generic[P]):
    """One family of problems that a program can judge.

    Attributes:
        name: what recipes, records and the command line call it; it says all there is to say.
        about: one line, with the source where there is one.
        slices: every name that `slice_of` gives.
        max_tokens: enough for a worked solution, if each letter were a token.
        continuation: what takes the place of an answer's end to make its writer think on, as "Wait" does for
            models that think aloud (Muennighoff et al., s1, arXiv 2501.19393); None where nothing does.
        early_answer: what opens or closes the answer where thinking is cut short; None where nothing does.
    """

    name: str
    about: str
    slices: tuple[str, ...] = ("all",)
    max_tokens: int = 64
    continuation: str | None = None
    early_answer: str | None = None
    letters: ClassVar[str] = "problem"
    """What `parse` expects, in words."""

    @property
    @abstractmethod
    def example(self) -> str:
        """A problem as people type it."""

    @abstractmethod
    def generate(
        self, n: int, seed: int, exclude: Collection[Hashable] = (), slice: str | None = None
    ) -> list[P]:
        """n distinct problems, none with a key in `exclude`; of one slice, or of all as they come.

        Raises:
            FlopwiseError: an unknown slice, or so many do not exist.
        """

    @abstractmethod
    def parse(self, text: str) -> P:
        """A problem as people type it.

        Raises:
            FlopwiseError: it is none.
        """

    @abstractmethod
    def demonstration(self, problem: P, seed: int, avoid: Collection[Hashable] = ()) -> str:
        """A worked solution that `verify` accepts; depends on problem and seed alone.

        It never shows a way to a problem with a key in `avoid`.
        """

    @abstractmethod
    def verify(self, problem: P, completion: str) -> bool:
        """Whether a completion is right. Of two completions with one `answer`, both are or neither is."""

    @abstractmethod
    def answer(self, completion: str) -> str | None:
        """The answer in canonical form, which votes are counted by; None is an abstention."""

    def steps(self, completion: str, problem: P | None = None) -> list[Step]:
        """Each written step, judged; none where the task knows no steps."""
        return []

    def think_on(self, completion: str) -> str | None:
        """A completion that has come to its end, or to that of a step, so changed that its writer thinks on;
        None where it cannot be."""
        return None if self.continuation is None else completion.rstrip() + self.continuation

    def answer_now(self, completion: str) -> str | None:
        """A completion cut short, so changed that its writer answers next, or that it has answered; None
        where it cannot be."""
        return None if self.early_answer is None else completion.rstrip() + self.early_answer

    def slice_of(self, problem: P) -> str:
        """The named part of the task that a problem is in, so that rare parts can be found and filled."""
        return self.slices[0]

    @abstractmethod
    def to_row(self, problem: P) -> dict[str, Any]:
        """As JSON takes it."""

    @abstractmethod
    def from_row(self, row: dict[str, Any]) -> P:
        """What `to_row` gave.

        Raises:
            FlopwiseError: it did not give this.
        """

    def split(self, seed: int, **sizes: int) -> dict[str, list[P]]:
        """Disjoint sets of problems by name; no key occurs in two of them."""
        pool = iter(self.generate(sum(sizes.values()), seed))
        return {name: list(itertools.islice(pool, size)) for name, size in sizes.items()}

    def few_shot(self, k: int, seed: int, exclude: Collection[Hashable] = ()) -> list[Demonstration]:
        """k worked problems, none with a key in `exclude`."""
        # One more than needed, so that the same examples stand before every question but those it is among.
        problems = [p for p in _examples(self, k + len(exclude), seed) if p.key not in exclude]
        return [Demonstration(p.prompt, self.demonstration(p, seed)) for p in problems[:k]]

    def prompt_for(self, problem: P, style: str = "plain", k: int = SHOTS, seed: int = 0) -> str:
        """The problem as a kind of model is asked: `plain` as it stands; `few_shot` after `k` worked ones;
        `chat` as the message of a user, which the model's own template goes around.

        Raises:
            FlopwiseError: an unknown style.
        """
        if style == "plain":
            return problem.prompt
        if style == "few_shot":
            shown = self.few_shot(k, seed, exclude=(problem.key,))
            return "".join(f"{d.prompt}{d.completion}\n\n" for d in shown) + problem.prompt
        if style == "chat":
            return self.question(problem)
        raise FlopwiseError(f"prompt style is {style!r:.40}, must be one of {', '.join(STYLES)}")

    def question(self, problem: P) -> str:
        """The problem in words, for a model that is talked to."""
        return problem.prompt

    def messages_for(self, problem: P) -> list[dict[str, str]]:
        """The chat that asks for the problem, as templates take it."""
        return [{"role": "user", "content": self.question(problem)}]

    def completion_ends(self, style: str) -> str | None:
        """Text that closes a completion as the end-of-text token does: after worked examples a model goes on
        with one more, and what it then writes is no part of its answer."""
        return "\n" if style == "few_shot" else None

    def same(self, problem: P) -> tuple[str, ...]:
        """Texts that ask for this very problem: a training text that holds one gives it away."""
        return (problem.prompt,)

    def detector(self, held_out: Iterable[P]) -> Callable[[str], list[Passage]]:
        """A function that finds, in a text, what gives held-out problems away.

        Runs of words and signs are compared, so that case, blanks and line breaks hide nothing.
        """
        known: dict[tuple[str, ...], set[tuple[str, ...]]] = {}
        for problem in held_out:
            for text in self.same(problem):
                words = tuple(_WORD.findall(text.lower()))
                while words and words[-1] in (":", "=", "?"):
                    words = words[:-1]
                if words:
                    known.setdefault(words[:3], set()).add(words)
        lengths = sorted({len(start) for start in known})

        def find(text: str) -> list[Passage]:
            words = _WORD.findall(text.lower()) if lengths else []
            found = []
            for i, n in itertools.product(range(len(words)), lengths):
                for whole in known.get(tuple(words[i : i + n]), ()):
                    if tuple(words[i : i + len(whole)]) == whole:
                        found.append(Passage(" ".join(whole), "prompt", True))
            return found

        return find

    def check_slice(self, slice: str | None) -> None:
        """Raises FlopwiseError for a slice that the task has not."""
        if slice is not None and slice not in self.slices:
            raise FlopwiseError(
                f"{self.name}: slice {slice!r:.60} is unknown; there are {', '.join(self.slices)}"
            )


@lru_cache(maxsize=64)
def _examples(task: Task[Any], n: int, seed: int) -> list[Any]:
    """Problems to be shown worked; drawn once, asked for at every prompt."""
    return task.generate(n, seed)


class ItemTask(Task[Item]):
    """A task whose problems have one right answer each."""

    def to_row(self, problem: Item) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(problem)

    def from_row(self, row: dict[str, Any]) -> Item:
        """What `to_row` gave."""
        fields = ("prompt", "gold", "key", "slice")
        if not (
            isinstance(row, dict)
            and set(row) == set(fields)
            and all(isinstance(v, str) for v in row.values())
        ):
            raise FlopwiseError(
                f"{self.name}: a row is {row!s:.80}, must have the texts {', '.join(fields)}; "
                "run the data step again"
            )
        return Item(**row)

    def slice_of(self, problem: Item) -> str:
        """The slice noted in the problem."""
        return problem.slice

    def verify(self, problem: Item, completion: str) -> bool:
        """Whether the completion's answer is the right one."""
        return self.answer(completion) == problem.gold


def from_pool(name: str, pool: Sequence[T], n: int, rng: random.Random) -> list[T]:
    """n of a pool, none twice.

    Raises:
        FlopwiseError: it holds fewer.
    """
    if not 0 <= n <= len(pool):
        raise FlopwiseError(f"{name}: {n:,} problems asked for, {len(pool):,} exist; ask for fewer")
    return rng.sample(pool, n)


def distinct(name: str, draw: Callable[[], P], n: int, exclude: Collection[Hashable]) -> list[P]:
    """Draw until there are n problems of different keys, none in `exclude`.

    Raises:
        FlopwiseError: thousands of draws in a row brought nothing new, so there is hardly any more.
    """
    if n < 0:
        raise FlopwiseError(f"{name}: {n:,} problems asked for, must be 0 or more")
    seen = set(exclude)
    found: list[P] = []
    misses = 0
    while len(found) < n:
        problem = draw()
        if problem.key not in seen:
            seen.add(problem.key)
            found.append(problem)
            misses = 0
        elif (misses := misses + 1) > PATIENCE:
            raise FlopwiseError(
                f"{name}: {n:,} problems asked for, hardly more than {len(found):,} exist; ask for fewer"
            )
    return found

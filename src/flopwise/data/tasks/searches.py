"""Countdown as tasks: the whole of it, a small one, one with a rare slice, and one searched at length."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable, Collection, Hashable, Iterable
from functools import cache
from typing import Any

from flopwise.data.tasks import countdown
from flopwise.data.tasks.base import Passage, Step, Task, from_pool
from flopwise.data.tasks.countdown import DEAD_ENDS, LARGEST_NUMBER, LARGEST_TARGET, Key, Problem
from flopwise.data.tasks.named import Option, options
from flopwise.errors import FlopwiseError

SMALL_LARGEST = 9
OPTIONS = {
    "search": Option(1, countdown.MOST_DEAD_ENDS, 12, whole=True),
    "largest": Option(SMALL_LARGEST, 99, LARGEST_NUMBER, whole=True),
}
RARE_NUMBERS = range(21, 31)
RARE_SHARE = 0.01
"""Of all problems as they come: one in a hundred has a number that the others never have."""

# Spaces, commas or line breaks between the numbers, a final colon or none: other clothes hide nothing.
_PROMPT = re.compile(
    r"(?<![0-9])([0-9]{1,3})[\s,;]{1,4}([0-9]{1,3})[\s,;]{1,4}([0-9]{1,3})\s{0,3}=>?\s{0,3}([0-9]{1,4})(?![0-9])",
    re.ASCII,
)
_STEP = r"[0-9]{1,6}[-+*][0-9]{1,6}=[0-9]{1,9}"
# A look-ahead, so that of three steps in a row both pairs are read.
_WORKED = re.compile(rf"(?<![0-9])(?=({_STEP},{_STEP})(?![0-9]))", re.ASCII)


class Countdown(Task[Problem]):
    """Three numbers up to `largest` and a target within reach (`data.tasks.countdown`).

    The slices are problems that sums and differences solve, and those that need a product.
    """

    slices: tuple[str, ...] = ("sums", "product")
    continuation = "?"
    early_answer = "!"

    def __init__(self, name: str, about: str, largest: int, dead_ends: tuple[float, ...]):
        self.name, self.about = name, about
        self.largest, self.dead_ends = largest, dead_ends

    @property
    def example(self) -> str:
        """A problem as people type it."""
        return "7 3 3 = 24"

    def generate(
        self, n: int, seed: int, exclude: Collection[Hashable] = (), slice: str | None = None
    ) -> list[Problem]:
        """n distinct problems drawn evenly."""
        self.check_slice(slice)
        if slice is not None:
            others = {p.key for p in _problems(self.largest) if self.slice_of(p) != slice}
            exclude = others | set(exclude)
        return countdown.generate(n, seed, exclude, self.largest)  # type: ignore[arg-type]

    def parse(self, text: str) -> Problem:
        """A problem as people type it."""
        return Problem.parse(text)

    def demonstration(self, problem: Problem, seed: int, avoid: Collection[Hashable] = ()) -> str:
        """A worked search, now and then with a dead end before the way that works."""
        return countdown.demonstration(problem, seed, avoid, self.dead_ends)  # type: ignore[arg-type]

    def verify(self, problem: Problem, completion: str) -> bool:
        """Whether the completion ends in a right way to the target."""
        return countdown.verify(problem, completion)

    def answer(self, completion: str) -> str | None:
        """The final way as one expression."""
        return countdown.answer(completion)

    def steps(self, completion: str, problem: Problem | None = None) -> list[Step]:
        """Every step with its verdict, dead ends included."""
        return countdown.steps(completion, problem)

    def think_on(self, completion: str) -> str | None:
        """The last way is a dead end."""
        return countdown.think_on(completion)

    def answer_now(self, completion: str) -> str:
        """The last way is the answer."""
        return countdown.answer_now(completion)

    def slice_of(self, problem: Problem) -> str:
        """Whether a way without a product exists."""
        return "sums" if any("*" not in way for way in problem.solutions) else "product"

    def question(self, problem: Problem) -> str:
        """The rules in words."""
        a, b, c = problem.numbers
        return (
            f"Combine the numbers {a}, {b} and {c}, each used exactly once, with + - * in two steps to reach "
            f"{problem.target}. Write the steps like 7*3=21,21+3=24! and nothing else."
        )

    def to_row(self, problem: Problem) -> dict[str, Any]:
        """As JSON takes it."""
        return {"numbers": problem.numbers, "target": problem.target}

    def from_row(self, row: dict[str, Any]) -> Problem:
        """What `to_row` gave."""
        try:
            return Problem(tuple(row["numbers"]), row["target"])
        except (KeyError, TypeError):
            raise FlopwiseError(
                f"{self.name}: a row is {row!s:.80}, must have numbers and target; run the data step again"
            ) from None

    def detector(self, held_out: Iterable[Problem]) -> Callable[[str], list[Passage]]:
        """Finds prompts, the numbers in any order, and worked attempts, even those marked as dead ends."""
        forbidden = {p.key for p in held_out}

        def find(text: str) -> list[Passage]:
            found = []
            for match in _PROMPT.finditer(text):
                *numbers, target = map(int, match.groups())
                hit = (tuple(sorted(numbers)), target) in forbidden
                found.append(Passage(match[0], "prompt", hit))
            for match in _WORKED.finditer(text):
                hit = countdown.worked_key(match[1]) in forbidden
                found.append(Passage(match[1], "worked", hit))
            return found

        return find


class SearchedCountdown(Countdown):
    """Countdown whose demonstrations search at length, however many dead ends it takes.

    Args:
        name: `countdown:` and some of `OPTIONS`: `search` is the number of dead ends shown at most.
    """

    def __init__(self, name: str):
        found = options(name, OPTIONS)
        self.most = int(found["search"])
        super().__init__(
            name, f"{_ABOUT} at length, with 0 to {self.most} dead ends", int(found["largest"]), ()
        )
        self.max_tokens = 20 * (self.most + 1)

    def demonstration(self, problem: Problem, seed: int, avoid: Collection[Hashable] = ()) -> str:
        """Some of the ways that do not work, then one that does."""
        return countdown.searched(problem, seed, avoid, self.most)  # type: ignore[arg-type]

    def think_on(self, completion: str) -> str | None:
        """A search that ended has found what it sought: its dead ends are marked as such, so a budget only
        cuts it short."""
        return None


class RareCountdown(Countdown):
    """Countdown where one problem in a hundred has a number from 21 to 30, which the others never have.

    A model that trains on problems as they come sees hardly any of that slice: what synthetic data can fill.
    """

    slices = ("common", "rare")

    @property
    def example(self) -> str:
        """A problem of the rare slice."""
        return "25 7 3 = 46"

    def generate(
        self, n: int, seed: int, exclude: Collection[Hashable] = (), slice: str | None = None
    ) -> list[Problem]:
        """n distinct problems, drawn evenly within a slice; `RARE_SHARE` of them rare where none is named."""
        self.check_slice(slice)
        rng = random.Random(f"{self.name}:{seed}")
        forbidden = frozenset(exclude)
        rare = n if slice == "rare" else 0 if slice == "common" else round(RARE_SHARE * n)
        drawn: list[Key] = []
        for size, keys in ((n - rare, countdown.universe(self.largest)), (rare, _rare_keys(self.largest))):
            drawn += from_pool(self.name, [k for k in keys if k not in forbidden], size, rng)
        rng.shuffle(drawn)
        return [Problem(tuple(rng.sample(numbers, 3)), target) for numbers, target in drawn]

    def slice_of(self, problem: Problem) -> str:
        """Whether a number is among the rare ones."""
        return "rare" if any(v in RARE_NUMBERS for v in problem.numbers) else "common"


@cache
def _problems(largest: int) -> tuple[Problem, ...]:
    """All problems with numbers up to `largest`, kept because finding a problem's ways takes the time."""
    return tuple(Problem(*key) for key in countdown.universe(largest))


@cache
def _rare_keys(largest: int) -> tuple[Key, ...]:
    """Keys of the problems with exactly one rare number."""
    keys: list[Key] = []
    for low, high in itertools.combinations_with_replacement(range(1, largest + 1), 2):
        for rare in RARE_NUMBERS:
            numbers = (low, high, rare)
            targets = {value for _, value in countdown.attempts(numbers) if 1 <= value <= LARGEST_TARGET}
            keys += [(numbers, target) for target in sorted(targets)]
    return tuple(keys)


_ABOUT = "combine three numbers with + - * to reach a target, the search written out"

TASKS: tuple[Countdown, ...] = (
    Countdown("countdown", f"{_ABOUT}; numbers up to {LARGEST_NUMBER}", LARGEST_NUMBER, DEAD_ENDS),
    # For tests and short runs: a model of 60,000 parameters solves some of it after seconds.
    Countdown("countdown-small", f"{_ABOUT}; numbers up to {SMALL_LARGEST}", SMALL_LARGEST, (1.0,)),
    RareCountdown(
        "countdown-rare",
        f"{_ABOUT}; 1% with a number of 21 to 30, the rare slice",
        LARGEST_NUMBER,
        DEAD_ENDS,
    ),
)

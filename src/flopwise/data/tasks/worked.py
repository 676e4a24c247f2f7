"""Algorithms written out: long multiplication, insertion sort, conversion of a number to another base.

Steps have commas or semicolons between them and `!` ends the solution, whose last part is the answer. Only
the answer decides whether a completion is right; `steps` says which of the way there holds.
"""

from __future__ import annotations

import random
import re
from abc import abstractmethod
from collections.abc import Callable, Collection, Hashable, Iterable

from flopwise.data.tasks.answers import closed
from flopwise.data.tasks.base import MAX_CHARS, Item, ItemTask, Passage, Step, distinct, from_pool
from flopwise.errors import FlopwiseError

_V = "(0|[1-9][0-9]{0,8})"
_SUM = re.compile(rf"{_V}([+*]){_V}={_V}")
_DIVISION = re.compile(rf"{_V}/{_V}={_V}r{_V}")
_LIST = re.compile(r"[0-9]{1,2}(?: [0-9]{1,2}){0,11}")
DIGITS = "0123456789abcdef"


class Worked(ItemTask):
    """A task with steps of one form and an answer at the end."""

    separator: str = ","

    @abstractmethod
    def solution(self, problem: Item) -> list[str]:
        """The parts of the worked solution; the last one ends in the answer."""

    @abstractmethod
    def read_answer(self, parts: list[str]) -> str | None:
        """The canonical answer of a closed solution's parts; None unless each part is well formed."""

    @abstractmethod
    def fault(self, parts: list[str], i: int, problem: Item | None) -> str:
        """Why part i does not hold; empty if it does."""

    def demonstration(self, problem: Item, seed: int, avoid: Collection[Hashable] = ()) -> str:
        """The algorithm's steps; there is one way only, so the seed changes nothing."""
        return self.separator.join(self.solution(problem)) + "!"

    def answer(self, completion: str) -> str | None:
        """The last part of a closed solution."""
        text = closed(completion)
        return None if text is None else self.read_answer(text.split(self.separator))

    def steps(self, completion: str, problem: Item | None = None) -> list[Step]:
        """Each step with its verdict."""
        text = completion.strip()[:MAX_CHARS]
        parts = text.removesuffix("!").split(self.separator) if text else []
        out = []
        for i, part in enumerate(parts):
            last = i == len(parts) - 1 and text.endswith("!")
            why = self.fault(parts, i, problem)
            if last and not why and problem is not None and self.answer(completion) != problem.gold:
                why = f"does not solve {problem.prompt.rstrip(':')}"
            out.append(Step(part + ("!" if last else ""), not why, why))
        return out


class Multiplication(Worked):
    """Products of two- and three-digit numbers by partial products; slices by the numbers of digits.

    No number ends in 0: `37*40=1480`, a step of 37*46, would be a problem of its own.
    """

    name = "multiplication"
    about = "long multiplication, 37*46: partial products and their sums, written out"
    slices = ("2x2", "3x2", "3x3")
    max_tokens = 96

    @property
    def example(self) -> str:
        """A problem as people type it."""
        return "37*46"

    def generate(
        self, n: int, seed: int, exclude: Collection[Hashable] = (), slice: str | None = None
    ) -> list[Item]:
        """n distinct products; 3x2 twice as often as each of the others."""
        self.check_slice(slice)
        rng = random.Random(f"{self.name}:{seed}")

        def draw() -> Item:
            a, b = slice.split("x") if slice else rng.choice(("2x2", "3x2", "3x2", "3x3")).split("x")
            factors = [_factor(rng, int(a)), _factor(rng, int(b))]
            rng.shuffle(factors)
            return _product(*factors)

        return distinct(self.name, draw, n, exclude)

    def parse(self, text: str) -> Item:
        """A problem as people type it."""
        match = re.fullmatch(
            r"([1-9][0-9]{1,2})\s?[*x×]\s?([1-9][0-9]{1,2})\s?[=:]?", text.strip()[:40], re.ASCII
        )
        if not match or match[1].endswith("0") or match[2].endswith("0"):
            raise FlopwiseError(
                f"{self.name}: {text[:40]!r} is no problem; write two numbers of 2 or 3 digits that do not "
                f"end in 0, as {self.example}"
            )
        return _product(int(match[1]), int(match[2]))

    def solution(self, problem: Item) -> list[str]:
        """A partial product per digit other than 0, from the last digit on, and the running sum."""
        a, b = map(int, problem.prompt.rstrip(":").split("*"))
        parts, total = [], 0
        for place, digit in enumerate(reversed(str(b))):
            if digit == "0":
                continue
            by = int(digit) * 10**place
            parts.append(f"{a}*{by}={a * by}")
            if total:
                parts.append(f"{total}+{a * by}={total + a * by}")
            total += a * by
        return parts

    def read_answer(self, parts: list[str]) -> str | None:
        """The last result."""
        found = [_SUM.fullmatch(part) for part in parts]
        last = found[-1]
        return None if last is None or None in found else last[4]

    def fault(self, parts: list[str], i: int, problem: Item | None) -> str:
        """A wrong product or sum."""
        match = _SUM.fullmatch(parts[i])
        if not match:
            return "not a step"
        a, b, result = int(match[1]), int(match[3]), int(match[4])
        true = a + b if match[2] == "+" else a * b
        return "" if true == result else f"{a}{match[2]}{b} is {true}"

    def same(self, problem: Item) -> tuple[str, ...]:
        """Either order."""
        a, b = problem.prompt.rstrip(":").split("*")
        return (f"{a}*{b}", f"{b}*{a}")

    def question(self, problem: Item) -> str:
        """The problem in words."""
        return (
            f"Multiply {problem.prompt.rstrip(':')} by partial products. Write the steps like "
            "37*6=222,37*40=1480,222+1480=1702! and nothing else."
        )


class Sorting(Worked):
    """Insertion sort, the sorted part after each number; slices by how many numbers there are."""

    name = "sorting"
    about = "3 to 8 numbers sorted by insertion, the list after each number written out"
    slices = tuple(f"{n}-numbers" for n in range(3, 9))
    max_tokens = 160
    separator = ";"

    @property
    def example(self) -> str:
        """A problem as people type it."""
        return "sort 40 7 93 12"

    def generate(
        self, n: int, seed: int, exclude: Collection[Hashable] = (), slice: str | None = None
    ) -> list[Item]:
        """n distinct sets of numbers up to 99 in random order, all lengths alike."""
        self.check_slice(slice)
        rng = random.Random(f"{self.name}:{seed}")

        def draw() -> Item:
            length = rng.randint(3, 8) if slice is None else int(slice.partition("-")[0])
            return _unsorted(rng.sample(range(100), length))

        return distinct(self.name, draw, n, exclude)

    def parse(self, text: str) -> Item:
        """A problem as people type it."""
        match = re.fullmatch(
            r"(?:sort )?([0-9]{1,2}(?:[ ,]{1,2}[0-9]{1,2}){2,7}):?", text.strip()[:60], re.ASCII
        )
        numbers = [int(v) for v in re.findall("[0-9]+", match[1])] if match else []
        if len(set(numbers)) != len(numbers) or not numbers:
            raise FlopwiseError(
                f"{self.name}: {text[:40]!r} is no problem; write 3 to 8 different numbers up to 99, as "
                f"{self.example!r}"
            )
        return _unsorted(numbers)

    def solution(self, problem: Item) -> list[str]:
        """The sorted list of the first number, of the first two, and so on."""
        numbers = _numbers(problem)
        return [" ".join(map(str, sorted(numbers[:i]))) for i in range(1, len(numbers) + 1)]

    def read_answer(self, parts: list[str]) -> str | None:
        """The last list."""
        if not all(_LIST.fullmatch(part) for part in parts):
            return None
        return " ".join(str(int(v)) for v in parts[-1].split(" "))

    def fault(self, parts: list[str], i: int, problem: Item | None) -> str:
        """A list out of order, or of other numbers than came so far."""
        if not _LIST.fullmatch(parts[i]):
            return "not a list"
        numbers = [int(v) for v in parts[i].split(" ")]
        if numbers != sorted(numbers):
            return "not in order"
        if problem is not None and numbers != sorted(_numbers(problem)[: i + 1]):
            return "not the numbers so far"
        return ""

    def detector(self, held_out: Iterable[Item]) -> Callable[[str], list[Passage]]:
        """Finds the same numbers asked for in any order."""
        known = {p.key for p in held_out}

        def find(text: str) -> list[Passage]:
            found = []
            for match in re.finditer(
                r"sort\s((?:[0-9]{1,2}[\s,]{1,3}){2,8}[0-9]{1,2})", text, re.ASCII | re.I
            ):
                key = " ".join(map(str, sorted(int(v) for v in re.findall("[0-9]+", match[1]))))
                found.append(Passage(match[0], "prompt", key in known))
            return found

        return find

    def question(self, problem: Item) -> str:
        """The problem in words."""
        numbers = " ".join(map(str, _numbers(problem)))
        return (
            f"Sort these numbers by insertion: {numbers}. Write the sorted list after each number, with ; "
            "between the lists and ! at the end, like 40;7 40;7 40 93! and nothing else."
        )


class Bases(Worked):
    """Numbers from 1000 to 1999 to bases 2 to 16 by repeated division; slices by the base.

    A quotient lies below 1000, so the rest of a worked conversion is never that of another problem.
    """

    name = "bases"
    about = "a number written in base 2 to 16 by repeated division, each remainder written out"
    slices = tuple(f"base-{b}" for b in range(2, 17))
    max_tokens = 224
    numbers = range(1000, 2000)

    @property
    def example(self) -> str:
        """A problem as people type it."""
        return "1234 in base 7"

    def generate(
        self, n: int, seed: int, exclude: Collection[Hashable] = (), slice: str | None = None
    ) -> list[Item]:
        """n distinct pairs of number and base, drawn evenly."""
        self.check_slice(slice)
        bases = range(2, 17) if slice is None else [int(slice.partition("-")[2])]
        forbidden = frozenset(exclude)
        pool = [(v, b) for v in self.numbers for b in bases if f"{v}:{b}" not in forbidden]
        rng = random.Random(f"{self.name}:{seed}")
        return [_conversion(v, b) for v, b in from_pool(self.name, pool, n, rng)]

    def parse(self, text: str) -> Item:
        """A problem as people type it."""
        match = re.fullmatch(r"([0-9]{4}) (?:in|to) base ([0-9]{1,2}):?", text.strip()[:40].lower(), re.ASCII)
        if not match or int(match[1]) not in self.numbers or not 2 <= int(match[2]) <= 16:
            raise FlopwiseError(
                f"{self.name}: {text[:40]!r} is no problem; write a number from 1000 to 1999 and a base "
                f"from 2 to 16, as {self.example!r}"
            )
        return _conversion(int(match[1]), int(match[2]))

    def solution(self, problem: Item) -> list[str]:
        """Divisions until nothing is left, then the remainders backwards."""
        value, base = map(int, problem.key.split(":"))
        parts = []
        while value:
            parts.append(f"{value}/{base}={value // base}r{value % base}")
            value //= base
        return [*parts, problem.gold]

    def read_answer(self, parts: list[str]) -> str | None:
        """The digits at the end."""
        *divisions, last = parts
        if not all(_DIVISION.fullmatch(part) for part in divisions) or not re.fullmatch(
            "[0-9a-f]{1,16}", last
        ):
            return None
        return last.lstrip("0") or "0"

    def fault(self, parts: list[str], i: int, problem: Item | None) -> str:
        """A wrong division, or digits that are not the remainders."""
        match = _DIVISION.fullmatch(parts[i])
        if match:
            value, base, quotient, rest = map(int, match.groups())
            if base == 0:
                return "division by 0"
            true = f"{value // base}r{value % base}"
            return "" if (quotient, rest) == divmod(value, base) else f"{value}/{base} is {true}"
        if not re.fullmatch("[0-9a-f]{1,16}", parts[i]) or i < len(parts) - 1:
            return "not a step"
        found = [_DIVISION.fullmatch(p) for p in parts[:i]]
        rests = [int(m[4]) for m in found if m]
        written = "".join(DIGITS[r] for r in reversed(rests) if r < len(DIGITS))
        return "" if parts[i] == written else f"the remainders backwards are {written or 'none'}"

    def question(self, problem: Item) -> str:
        """The problem in words."""
        value, base = problem.key.split(":")
        return (
            f"Write {value} in base {base} by repeated division. Write the steps like 10/2=5r0,5/2=2r1,"
            "2/2=1r0,1/2=0r1,1010! and nothing else."
        )


def _factor(rng: random.Random, digits: int) -> int:
    """A number of so many digits that does not end in 0."""
    return rng.randrange(10 ** (digits - 1), 10**digits) // 10 * 10 + rng.randint(1, 9)


def _product(a: int, b: int) -> Item:
    high, low = max(a, b), min(a, b)
    return Item(f"{a}*{b}:", str(a * b), f"{high}*{low}", f"{len(str(high))}x{len(str(low))}")


def _unsorted(numbers: list[int]) -> Item:
    gold = " ".join(map(str, sorted(numbers)))
    return Item(f"sort {' '.join(map(str, numbers))}:", gold, gold, f"{len(numbers)}-numbers")


def _numbers(problem: Item) -> list[int]:
    """In the order they are given in."""
    return [int(v) for v in problem.prompt.removeprefix("sort ").rstrip(":").split(" ")]


def _conversion(value: int, base: int) -> Item:
    digits, rest = "", value
    while rest:
        digits, rest = DIGITS[rest % base] + digits, rest // base
    return Item(f"{value} in base {base}:", digits, f"{value}:{base}", f"base-{base}")

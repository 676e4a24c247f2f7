"""Questions in words with a number as the answer, for models that follow instructions: sums, products, gcd.

The prompt ends in `Answer:`, so that a model without a chat template can go on; the answer is read by
`answers.final_number`, which abstains where a text does not name one number beyond doubt.
"""

from __future__ import annotations

import itertools
import math
import random
import re
from abc import abstractmethod
from collections.abc import Collection, Hashable
from functools import cached_property

from flopwise.data.tasks.answers import equations, final_number
from flopwise.data.tasks.base import Item, ItemTask, Step, from_pool
from flopwise.errors import FlopwiseError

CUE = "\nAnswer:"


class Spoken(ItemTask):
    """A question in words, answered with a number."""

    max_tokens = 48

    def answer(self, completion: str) -> str | None:
        """The one number that the completion gives as its answer."""
        return final_number(completion)

    def steps(self, completion: str, problem: Item | None = None) -> list[Step]:
        """Each equation in the completion, judged."""
        return equations(completion)

    def question(self, problem: Item) -> str:
        """The question alone, and how to answer it."""
        return f"{problem.prompt.removesuffix(CUE)} Reply with the number only."

    @abstractmethod
    def parse(self, text: str) -> Item:
        """A problem as people type it."""


class Sum(Spoken):
    """Some numbers joined by one sign, in any order: sums and products.

    Args:
        numbers: which numbers occur.
        count: how many are joined.
        sign: + or *.
    """

    def __init__(self, name: str, about: str, numbers: range, count: int, sign: str):
        self.name, self.about = name, about
        self.numbers, self.count, self.sign = numbers, count, sign

    @property
    def example(self) -> str:
        """A problem as people type it."""
        return f" {self.sign} ".join(map(str, [self.numbers[-2], *[self.numbers[3]] * (self.count - 1)]))

    @cached_property
    def _keys(self) -> list[tuple[int, ...]]:
        """All problems, the numbers in order."""
        return list(itertools.combinations_with_replacement(self.numbers, self.count))

    def generate(
        self, n: int, seed: int, exclude: Collection[Hashable] = (), slice: str | None = None
    ) -> list[Item]:
        """n distinct problems drawn evenly."""
        self.check_slice(slice)
        forbidden = frozenset(exclude)
        pool = [key for key in self._keys if self._key(key) not in forbidden]
        rng = random.Random(f"{self.name}:{seed}")
        return [self._item(rng.sample(key, len(key))) for key in from_pool(self.name, pool, n, rng)]

    def parse(self, text: str) -> Item:
        """A problem as people type it, with or without words around it."""
        sign = re.escape(self.sign)
        pattern = rf"(?:what is )?([0-9]{{1,2}}(?:\s?{sign}\s?[0-9]{{1,2}}){{{self.count - 1}}})\s?[?=:]?"
        match = re.fullmatch(pattern, text.strip()[:60].lower().removesuffix(CUE.lower()), re.ASCII)
        numbers = [int(v) for v in re.findall("[0-9]+", match[1])] if match else []
        if not numbers or not all(v in self.numbers for v in numbers):
            raise FlopwiseError(
                f"{self.name}: {text[:40]!r} is no problem; write {self.count} numbers from "
                f"{self.numbers[0]} to {self.numbers[-1]}, as {self.example!r}"
            )
        return self._item(numbers)

    def demonstration(self, problem: Item, seed: int, avoid: Collection[Hashable] = ()) -> str:
        """The number."""
        return f" {problem.gold}"

    def same(self, problem: Item) -> tuple[str, ...]:
        """The question with the numbers in any order."""
        orders = set(itertools.permutations(problem.key.split(self.sign)))
        return tuple(f"What is {f' {self.sign} '.join(order)}?" for order in sorted(orders))

    def _key(self, numbers: Collection[int]) -> str:
        return self.sign.join(map(str, sorted(numbers)))

    def _item(self, numbers: list[int]) -> Item:
        value = sum(numbers) if self.sign == "+" else math.prod(numbers)
        text = f" {self.sign} ".join(map(str, numbers))
        return Item(f"What is {text}?{CUE}", str(value), self._key(numbers), "all")


class Gcd(Spoken):
    """Greatest common divisors of two numbers up to 30; slices: whether they have one above 1."""

    name = "gcd"
    about = "greatest common divisor of two numbers up to 30"
    slices = ("coprime", "common")
    largest = 30

    @property
    def example(self) -> str:
        """A problem as people type it."""
        return "gcd 12 18"

    def generate(
        self, n: int, seed: int, exclude: Collection[Hashable] = (), slice: str | None = None
    ) -> list[Item]:
        """n distinct pairs drawn evenly."""
        self.check_slice(slice)
        forbidden = frozenset(exclude)
        rng = random.Random(f"{self.name}:{seed}")
        items = [_gcd(a, b) for a, b in itertools.combinations(range(2, self.largest + 1), 2)]
        pool = [p for p in items if p.key not in forbidden and slice in (None, p.slice)]
        return [
            _gcd(*rng.sample([int(v) for v in p.key.split(" ")], 2))
            for p in from_pool(self.name, pool, n, rng)
        ]

    def parse(self, text: str) -> Item:
        """A problem as people type it."""
        words = text.strip()[:120].lower().removesuffix(CUE.lower())
        match = re.fullmatch(
            r"(?:gcd|what is the greatest common divisor of) ?\(?([0-9]{1,2})(?:,| and)? ?([0-9]{1,2})\)?\??",
            words, re.ASCII,
        )  # fmt: skip
        a, b = (int(match[1]), int(match[2])) if match else (0, 0)
        if a == b or not (2 <= a <= self.largest and 2 <= b <= self.largest):
            raise FlopwiseError(
                f"{self.name}: {text[:40]!r} is no problem; write two different numbers from 2 to "
                f"{self.largest}, as {self.example!r}"
            )
        return _gcd(a, b)

    def demonstration(self, problem: Item, seed: int, avoid: Collection[Hashable] = ()) -> str:
        """The number."""
        return f" {problem.gold}"

    def same(self, problem: Item) -> tuple[str, ...]:
        """The question with the numbers in either order."""
        a, b = map(int, problem.key.split(" "))
        return _gcd(a, b).prompt.removesuffix(CUE), _gcd(b, a).prompt.removesuffix(CUE)


def _gcd(a: int, b: int) -> Item:
    value = math.gcd(a, b)
    prompt = f"What is the greatest common divisor of {a} and {b}?{CUE}"
    return Item(prompt, str(value), f"{min(a, b)} {max(a, b)}", "common" if value > 1 else "coprime")


TASKS: tuple[Spoken, ...] = (
    Sum("sum-1digit", "sums of two one-digit numbers, asked in words", range(10), 2, "+"),
    Sum("sum-2digit", "sums of two two-digit numbers, asked in words", range(10, 100), 2, "+"),
    Sum("sum-3terms", "sums of three one-digit numbers, asked in words", range(10), 3, "+"),
    Sum("product-1digit", "products of two one-digit numbers, asked in words", range(10), 2, "*"),
    Gcd(),
)

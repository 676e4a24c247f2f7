"""Word problems of one and two steps, from stories with slots for names, things and numbers.

The key of a problem is its operation with its numbers: another name or another thing makes no new problem.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable, Collection, Hashable, Iterator

from flopwise.data.tasks.base import Item, from_pool
from flopwise.data.tasks.spoken import CUE, Spoken
from flopwise.errors import FlopwiseError


class Kind:
    """One operation of word problems.

    Args:
        ranges: of each number.
        fits: which combinations make sense.
        solve: answer and worked equations.
        stories: texts with the slots a, b, c, name and things.
    """

    def __init__(
        self, ranges: tuple[range, ...], fits: Callable[..., bool], solve: Callable[..., tuple[int, str]],
        stories: tuple[str, ...],
    ):  # fmt: skip
        self.ranges, self.fits, self.solve, self.stories = ranges, fits, solve, stories

    def numbers(self) -> Iterator[tuple[int, ...]]:
        """Every combination, in a fixed order."""
        return (v for v in itertools.product(*self.ranges) if self.fits(*v))

    def holds(self, numbers: tuple[int, ...]) -> bool:
        """Whether it is one of the combinations."""
        return all(v in r for v, r in zip(numbers, self.ranges, strict=True)) and self.fits(*numbers)


NAMES = ("Ann", "Ben", "Cora", "Dan", "Eva", "Finn", "Gina", "Hugo", "Ida", "Jon", "Kira", "Leo")
THINGS = ("apples", "books", "coins", "eggs", "keys", "lamps", "nuts", "pens", "plates", "shells", "stamps")
_FEW, _SOME = range(2, 13), range(2, 61)

ONE_STEP = {
    "add": Kind(
        (_SOME, _SOME), lambda a, b: True, lambda a, b: (a + b, f"{a} + {b} = {a + b}"),
        (
            "{name} has {a} {things} and buys {b} more. How many {things} does {name} have now?",
            "One shelf holds {a} {things} and another {b} {things}. How many {things} are there in all?",
        ),
    ),
    "subtract": Kind(
        (_SOME, _SOME), lambda a, b: a > b, lambda a, b: (a - b, f"{a} - {b} = {a - b}"),
        (
            "{name} has {a} {things} and gives {b} away. How many {things} does {name} have left?",
            "A box holds {a} {things}. {name} takes {b} out of it. How many {things} are left in the box?",
        ),
    ),
    "multiply": Kind(
        (_FEW, _SOME), lambda a, b: True, lambda a, b: (a * b, f"{a} * {b} = {a * b}"),
        (
            "{name} fills {a} bags with {b} {things} each. How many {things} are in the bags?",
            "Each of {a} boxes holds {b} {things}. How many {things} do the boxes hold in all?",
        ),
    ),
    "divide": Kind(
        (range(4, 241), _FEW), lambda a, b: a % b == 0 and a > b,
        lambda a, b: (a // b, f"{a} / {b} = {a // b}"),
        (
            "{name} shares {a} {things} evenly among {b} friends. How many {things} does each friend get?",
            "{a} {things} are packed into {b} equal boxes. How many {things} are in each box?",
        ),
    ),
}  # fmt: skip

TWO_STEPS = {
    "add-subtract": Kind(
        (range(5, 21), range(2, 21), _FEW), lambda a, b, c: c < a + b,
        lambda a, b, c: (a + b - c, f"{a} + {b} = {a + b}, {a + b} - {c} = {a + b - c}"),
        (
            "{name} has {a} {things}, buys {b} more and gives {c} away. How many {things} does {name} have "
            "now?",
        ),
    ),
    "multiply-add": Kind(
        (_FEW, _FEW, range(2, 21)), lambda a, b, c: True,
        lambda a, b, c: (a * b + c, f"{a} * {b} = {a * b}, {a * b} + {c} = {a * b + c}"),
        (
            "{name} buys {a} packs of {b} {things} and already had {c} {things}. How many {things} does "
            "{name} have now?",
        ),
    ),
    "multiply-subtract": Kind(
        (_FEW, _FEW, range(2, 21)), lambda a, b, c: c < a * b,
        lambda a, b, c: (a * b - c, f"{a} * {b} = {a * b}, {a * b} - {c} = {a * b - c}"),
        (
            "{a} crates hold {b} {things} each. {name} takes {c} of the {things} away. How many {things} are "
            "left?",
        ),
    ),
    "divide-add": Kind(
        (range(4, 121), _FEW, range(2, 21)), lambda a, b, c: a % b == 0 and a > b,
        lambda a, b, c: (a // b + c, f"{a} / {b} = {a // b}, {a // b} + {c} = {a // b + c}"),
        (
            "{a} {things} are shared evenly among {b} people, and {name} is one of them. Then {name} finds "
            "{c} more. How many {things} does {name} have now?",
        ),
    ),
}  # fmt: skip


class Story(Spoken):
    """Word problems of one or two steps; the slices are the operations.

    Args:
        kinds: per slice, a function that draws numbers and gives the answer and the worked equation, and
            the stories that fit.
    """

    max_tokens = 64

    def __init__(self, name: str, about: str, kinds: dict[str, Kind]):
        self.name, self.about, self.kinds = name, about, kinds
        self.slices = tuple(kinds)

    @property
    def example(self) -> str:
        """A problem as people type it."""
        kind = self.slices[0]
        return self._item(kind, next(iter(self.kinds[kind].numbers())), random.Random(0)).prompt.removesuffix(
            CUE
        )

    def generate(
        self, n: int, seed: int, exclude: Collection[Hashable] = (), slice: str | None = None
    ) -> list[Item]:
        """n distinct combinations of operation and numbers, even over the operations as far as they go."""
        self.check_slice(slice)
        forbidden = frozenset(exclude)
        rng = random.Random(f"{self.name}:{seed}")
        kinds = self.slices if slice is None else (slice,)
        drawn: list[tuple[str, tuple[int, ...]]] = []
        pools = {k: [v for v in self.kinds[k].numbers() if _key(k, v) not in forbidden] for k in kinds}
        left = n
        # The smallest first: what it lacks to an even share, the larger ones give.
        for i, kind in enumerate(sorted(kinds, key=lambda k: len(pools[k]))):
            even = -(-left // (len(kinds) - i))
            share = even if i == len(kinds) - 1 else min(even, len(pools[kind]))
            drawn += [(kind, v) for v in from_pool(f"{self.name}, {kind}", pools[kind], share, rng)]
            left -= share
        rng.shuffle(drawn)
        return [self._item(kind, numbers, rng) for kind, numbers in drawn]

    def parse(self, text: str) -> Item:
        """A problem in the words of one of the stories, whoever it is about."""
        words = " ".join(text.strip()[:400].removesuffix(CUE).split())
        for kind, of_kind in self.kinds.items():
            for story in of_kind.stories:
                match = re.fullmatch(_pattern(story), words)
                if match:
                    numbers = tuple(int(match[slot]) for slot in "abc" if slot in match.groupdict())
                    if of_kind.holds(numbers):
                        return Item(
                            f"{words}{CUE}", str(of_kind.solve(*numbers)[0]), _key(kind, numbers), kind
                        )
        raise FlopwiseError(
            f"{self.name}: {text[:40]!r} is none of its stories; write one as {self.example!r}"
        )

    def demonstration(self, problem: Item, seed: int, avoid: Collection[Hashable] = ()) -> str:
        """The equations, of which the last gives the answer."""
        kind, *numbers = problem.key.split(" ")
        return f" {self.kinds[kind].solve(*map(int, numbers))[1]}"

    def question(self, problem: Item) -> str:
        """The question alone, and how to answer it."""
        return f"{problem.prompt.removesuffix(CUE)} Work it out in one line and end with the number."

    def _item(self, kind: str, numbers: tuple[int, ...], rng: random.Random) -> Item:
        of_kind = self.kinds[kind]
        slots = dict(zip("abc", numbers, strict=False))
        story = rng.choice(of_kind.stories).format(name=rng.choice(NAMES), things=rng.choice(THINGS), **slots)
        return Item(f"{story}{CUE}", str(of_kind.solve(*numbers)[0]), _key(kind, numbers), kind)


def _key(kind: str, numbers: tuple[int, ...]) -> str:
    return " ".join(map(str, (kind, *numbers)))


def _pattern(story: str) -> str:
    """The story as a pattern: its slots stand for names, things and numbers, each the same throughout."""
    out, seen = "", set()
    for part in re.split(r"(\{\w+\})", story):
        slot = part.strip("{}")
        if not part.startswith("{"):
            out += re.escape(part)
        elif slot in seen:
            out += f"(?P={slot})"
        else:
            seen.add(slot)
            out += f"(?P<{slot}>{'[0-9]{1,3}' if slot in 'abc' else '[A-Za-z]{1,20}'})"
    return out


TASKS = (
    Story("word-1step", "word problems with one operation on small numbers", ONE_STEP),
    Story("word-2step", "word problems with two operations on small numbers", TWO_STEPS),
)

"""Countdown: reach a target with three numbers, the search written out; the verifier is exact.

A prompt is `7 3 3=24:`. A solution is a search: attempts of two steps each, a dead end closed by `?`, the
success by `!`. `7+3=10,10+3=13?7*3=21,21+3=24!` tries one way, sees that 13 is not 24, and finds another.
Numbers are natural throughout: no negative differences.
"""

from __future__ import annotations

import itertools
import random
import re
from dataclasses import dataclass
from functools import cached_property

from flopwise.errors import FlopwiseError

LARGEST_NUMBER, LARGEST_TARGET = 20, 100
DEAD_ENDS = (0.5, 0.3, 0.2)
"""Chances of 0, 1 and 2 dead ends in a demonstration."""

PROMPT_PATTERN = re.compile(r"(\d{1,3}) (\d{1,3}) (\d{1,3})=(\d{1,4}):")
_STEP = re.compile(r"(\d{1,6})([-+*])(\d{1,6})=(\d{1,9})")

Key = tuple[tuple[int, ...], int]


@dataclass(frozen=True)
class Problem:
    """Three numbers and a target.

    >>> p = Problem((7, 3, 3), 24)
    >>> p.prompt, p.key
    ('7 3 3=24:', ((3, 3, 7), 24))
    """

    numbers: tuple[int, ...]
    target: int

    @property
    def prompt(self) -> str:
        """As the models read it."""
        return f"{' '.join(map(str, self.numbers))}={self.target}:"

    @property
    def key(self) -> Key:
        """What makes two problems the same for splits: the numbers in any order, and the target."""
        return tuple(sorted(self.numbers)), self.target

    @cached_property
    def solutions(self) -> list[str]:
        """All two-step attempts that reach the target; their number is a measure of easiness."""
        return [text for text, value in attempts(self.numbers) if value == self.target]


@dataclass(frozen=True)
class Step:
    """One written step, whether it holds, and why not."""

    text: str
    ok: bool
    why: str = ""


def _results(a: int, b: int) -> list[tuple[str, int]]:
    """Steps from two numbers; for + and * the larger comes first, so that each is written one way."""
    out = [(f"{max(a, b)}+{min(a, b)}", a + b), (f"{max(a, b)}*{min(a, b)}", a * b)]
    if a >= b:
        out.append((f"{a}-{b}", a - b))
    return out


def attempts(numbers: tuple[int, ...]) -> list[tuple[str, int]]:
    """Every way to combine the three numbers in two steps: text and result, sorted, each once."""
    found = set()
    for i, j in itertools.permutations(range(3), 2):
        rest = numbers[3 - i - j]
        for left, first in _results(numbers[i], numbers[j]):
            for x, y in ((first, rest), (rest, first)):
                for right, second in _results(x, y):
                    found.add((f"{left}={first},{right}={second}", second))
    return sorted(found)


def generate(n: int, seed: int, exclude: set[Key] | None = None) -> list[Problem]:
    """n distinct solvable problems, none with a key in `exclude`.

    Raises:
        FlopwiseError: so many do not exist.
    """
    rng = random.Random(seed)
    seen = set(exclude or ())
    out: list[Problem] = []
    tries = 0
    while len(out) < n:
        tries += 1
        if tries > 50 * n + 10_000:
            raise FlopwiseError(f"countdown: {n} distinct problems do not exist beside {len(exclude or ())}; ask for fewer")
        numbers = tuple(rng.randint(1, LARGEST_NUMBER) for _ in range(3))
        targets = sorted({v for _, v in attempts(numbers) if 1 <= v <= LARGEST_TARGET})
        problem = Problem(numbers, rng.choice(targets)) if targets else None
        if problem is not None and problem.key not in seen:
            seen.add(problem.key)
            out.append(problem)
    return out


def split(seed: int, **sizes: int) -> dict[str, list[Problem]]:
    """Disjoint sets of problems by name, in the order given; no key occurs in two of them.

    >>> parts = split(0, demos=5, test=5)
    >>> len({p.key for part in parts.values() for p in part})
    10
    """
    pool = generate(sum(sizes.values()), seed)
    out, start = {}, 0
    for name, size in sizes.items():
        out[name] = pool[start : start + size]
        start += size
    return out


def demonstration(problem: Problem, seed: int) -> str:
    """A worked search: up to two dead ends, nearer misses preferred, then a way that works.

    >>> demonstration(Problem((7, 3, 3), 24), 5).endswith("=24!")
    True
    """
    rng = random.Random(f"{seed}:{problem.prompt}")
    misses = sorted((abs(v - problem.target), text) for text, v in attempts(problem.numbers) if v != problem.target)
    near = [text for _, text in misses[: max(4, len(misses) // 2)]]
    count = rng.choices(range(len(DEAD_ENDS)), DEAD_ENDS)[0]
    tried = rng.sample(near, min(count, len(near)))
    return "".join(f"{text}?" for text in tried) + rng.choice(problem.solutions) + "!"


def _final_attempt(completion: str) -> str | None:
    """The attempt closed by `!`, which must end the completion; None if there is none."""
    text = completion.strip()[:4096]
    if not text.endswith("!"):
        return None
    return text[:-1].rpartition("?")[2]


def _check(attempt: str, problem: Problem) -> list[Step]:
    """Check an attempt step by step: sums right, each number at hand, each used once."""
    at_hand = list(problem.numbers)
    out = []
    for text in attempt.split(","):
        match = _STEP.fullmatch(text)
        if not match:
            out.append(Step(text, False, "not a step"))
            continue
        a, sign, b, result = int(match[1]), match[2], int(match[3]), int(match[4])
        true = a + b if sign == "+" else a - b if sign == "-" else a * b
        why = ""
        for value in (a, b):
            if value in at_hand:
                at_hand.remove(value)
            else:
                why = f"{value} is not at hand"
        if true != result:
            why = f"{a}{sign}{b} is {true}"
        at_hand.append(result)
        out.append(Step(text, not why, why))
    return out


def _reaches(attempt: str, problem: Problem) -> bool:
    """Whether the attempt is right in every step, uses all numbers, and ends at the target."""
    checked = _check(attempt, problem)
    return (
        len(checked) == len(problem.numbers) - 1
        and all(s.ok for s in checked)
        and int(attempt.rpartition("=")[2]) == problem.target
    )


def verify(problem: Problem, completion: str) -> bool:
    """Whether the completion ends in a right way to the target. Dead ends before it are free.

    >>> p = Problem((7, 3, 3), 24)
    >>> verify(p, "7+3=10,10+3=13?7*3=21,21+3=24!"), verify(p, "7*3=21,21+4=25!"), verify(p, "24!")
    (True, False, False)
    """
    attempt = _final_attempt(completion)
    return attempt is not None and _reaches(attempt, problem)


def answer(completion: str) -> str | None:
    """What self-consistency votes on: the final attempt as written, None if there is none (an abstention).

    The target is given, so the way to it is the answer; each step is written in one order only, so equal
    ways are equal texts.
    """
    attempt = _final_attempt(completion)
    if attempt is None or not all(_STEP.fullmatch(s) for s in attempt.split(",")):
        return None
    return attempt


def steps(problem: Problem, completion: str) -> list[Step]:
    """Every step with its verdict, dead ends included, for showing to people."""
    out: list[Step] = []
    for attempt, mark in re.findall(r"([^?!]*)([?!]?)", completion.strip()[:4096]):
        if not attempt and not mark:
            continue
        checked = _check(attempt, problem)
        reached = _reaches(attempt, problem)
        last = checked[-1]
        if mark == "!" and last.ok and not reached:
            last = Step(last.text, False, f"does not reach {problem.target}")
        out += [*checked[:-1], Step(last.text + mark, last.ok, last.why or ("dead end" if mark == "?" else ""))]
    return out

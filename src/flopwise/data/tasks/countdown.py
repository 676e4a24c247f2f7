"""Countdown with three numbers: reach a target, the search written out; the verifier is exact.

A prompt is `7 3 3=24:`. A solution is a search: attempts of two steps each, a dead end closed by `?`, the
success by `!`. `7+3=10,10+3=13?7*3=21,21+3=24!` tries one way, sees that 13 is not 24, and finds another.
The signs are + - *, all values are natural numbers. There are `len(universe())` = 13,301 problems, so test
problems are few enough to be memorised: keep splits disjoint by `Problem.key`.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache, cached_property

from flopwise.data.tasks.base import MAX_CHARS, Step
from flopwise.errors import FlopwiseError

LARGEST_NUMBER, LARGEST_TARGET = 20, 100
DEAD_ENDS = (0.8, 0.15, 0.05)
"""Chances of 0, 1 and 2 dead ends in a demonstration."""
MOST_DEAD_ENDS = 26
"""Of the ways to combine three numbers (three pairs, three signs, three signs), all but one."""

_VALUE = "(0|[1-9][0-9]{0,5})"
_STEP = re.compile(rf"{_VALUE}([-+*]){_VALUE}=(0|[1-9][0-9]{{0,8}})")
_PROMPT = re.compile(r"([0-9]{1,3})[ ,]+([0-9]{1,3})[ ,]+([0-9]{1,3}) *= *([0-9]{1,4}) *:?")

Key = tuple[tuple[int, ...], int]
"""Sorted numbers and target: what makes two problems the same."""


@dataclass(frozen=True)
class Problem:
    """Three numbers and a target.

    >>> p = Problem((7, 3, 3), 24)
    >>> p.prompt, p.key, p.n_solutions
    ('7 3 3=24:', ((3, 3, 7), 24), 1)
    """

    numbers: tuple[int, ...]
    target: int

    def __post_init__(self) -> None:
        if len(self.numbers) != 3 or not all(
            isinstance(v, int) and 0 <= v <= 9999 for v in (*self.numbers, self.target)
        ):
            raise FlopwiseError(
                "countdown: a problem is three natural numbers and a target, all up to 9999, "
                f"not {self.numbers!s:.60} and {self.target!s:.20}"
            )

    @classmethod
    def parse(cls, text: str) -> Problem:
        """Read a prompt as people type it.

        >>> Problem.parse("7, 3, 3 = 24").prompt
        '7 3 3=24:'
        """
        match = _PROMPT.fullmatch(text.strip()[:100])
        if not match:
            raise FlopwiseError(
                f"countdown: {text[:40]!r} is no problem; write three numbers and a target, '7 3 3=24'"
            )
        *numbers, target = map(int, match.groups())
        return cls(tuple(numbers), target)

    @property
    def prompt(self) -> str:
        """As the models read it."""
        return f"{' '.join(map(str, self.numbers))}={self.target}:"

    @property
    def key(self) -> Key:
        """Numbers in any order, and the target: equal keys are one problem to every split."""
        return tuple(sorted(self.numbers)), self.target

    @cached_property
    def solutions(self) -> tuple[str, ...]:
        """All attempts (`7*3=21,21+3=24`) that reach the target."""
        return tuple(text for text, value in attempts(self.key[0]) if value == self.target)

    @property
    def n_solutions(self) -> int:
        """Distinct ways to the target (`canonical`): the fewer, the harder; 0 if it cannot be reached."""
        return len({canonical(text) for text in self.solutions})


@cache
def attempts(numbers: tuple[int, ...]) -> tuple[tuple[str, int], ...]:
    """Every way to combine three numbers in two steps: text and result, sorted, each once.

    The larger operand of + and * comes first, so that a step is written one way only.
    """
    found = set()
    for i, j in itertools.combinations(range(3), 2):
        for left, first in _results(numbers[i], numbers[j]):
            for right, second in _results(first, numbers[3 - i - j]):
                found.add((f"{left}={first},{right}={second}", second))
    return tuple(sorted(found))


def _results(a: int, b: int) -> list[tuple[str, int]]:
    """The steps two numbers allow."""
    high, low = max(a, b), min(a, b)
    return [(f"{high}+{low}", high + low), (f"{high}*{low}", high * low), (f"{high}-{low}", high - low)]


@cache
def universe(largest: int = LARGEST_NUMBER) -> tuple[Key, ...]:
    """Sorted keys of all problems with numbers up to `largest` and a target of 1 to 100 within reach."""
    keys = []
    for numbers in itertools.combinations_with_replacement(range(1, largest + 1), 3):
        targets = {value for _, value in attempts(numbers) if 1 <= value <= LARGEST_TARGET}
        keys += [(numbers, target) for target in sorted(targets)]
    return tuple(keys)


def generate(
    n: int, seed: int, exclude: Collection[Key] = (), largest: int = LARGEST_NUMBER
) -> list[Problem]:
    """n distinct problems drawn evenly from `universe(largest)`, none with a key in `exclude`.

    Raises:
        FlopwiseError: so many do not exist.
    """
    forbidden = frozenset(exclude)
    pool = [key for key in universe(largest) if key not in forbidden]
    if not 0 <= n <= len(pool):
        raise FlopwiseError(f"countdown: {n:,} problems asked for, {len(pool):,} exist; ask for fewer")
    rng = random.Random(seed)
    return [Problem(tuple(rng.sample(numbers, 3)), target) for numbers, target in rng.sample(pool, n)]


def split(seed: int, *, largest: int = LARGEST_NUMBER, **sizes: int) -> dict[str, list[Problem]]:
    """Disjoint sets of problems by name; no key occurs in two of them.

    >>> parts = split(0, demos=5, test=5)
    >>> len({p.key for part in parts.values() for p in part})
    10
    """
    pool = iter(generate(sum(sizes.values()), seed, largest=largest))
    return {name: list(itertools.islice(pool, size)) for name, size in sizes.items()}


def demonstration(
    problem: Problem, seed: int, avoid: Collection[Key] = (), dead_ends: tuple[float, ...] = DEAD_ENDS
) -> str:
    """A worked search: some dead ends, near misses rather than far ones, then a way that works.

    Depends on the problem and the seed alone. A dead end with a key in `avoid` is never shown: an attempt
    that misses 24 at 13 is a worked solution of the problem with target 13, which may be a test problem.

    >>> demonstration(Problem((7, 3, 3), 24), 5).endswith("7*3=21,21+3=24!")
    True
    """
    if not problem.solutions:
        raise FlopwiseError(
            f"countdown: {problem.prompt} has no solution to demonstrate; take problems from generate()"
        )
    rng = random.Random(f"{seed}:{problem.prompt}")
    numbers = problem.key[0]
    misses = sorted(
        (abs(value - problem.target), text)
        for text, value in attempts(numbers)
        if value != problem.target and (numbers, value) not in avoid
    )
    near = [text for _, text in misses[: max(4, len(misses) // 2)]]
    count = rng.choices(range(len(dead_ends)), dead_ends)[0]
    tried = rng.sample(near, min(count, len(near)))
    return "".join(f"{text}?" for text in tried) + rng.choice(problem.solutions) + "!"


def searched(problem: Problem, seed: int, avoid: Collection[Key] = (), most: int = 12) -> str:
    """A long search: 0 to `most` dead ends, each number as likely, drawn from all ways without an idea of
    where to look, then a way that works.

    What is learned from such traces (Gandhi et al., Stream of Search, arXiv 2404.03683) is to try, compare
    with the target, and go on, so a longer search finds more; short ones among them teach to aim well.
    Depends and avoids as `demonstration` does.

    >>> searched(Problem((7, 3, 3), 24), 1, most=2).count("?") <= 2
    True
    """
    if not problem.solutions:
        raise FlopwiseError(
            f"countdown: {problem.prompt} has no solution to demonstrate; take problems from generate()"
        )
    rng = random.Random(f"{seed}:{problem.prompt}")
    numbers = problem.key[0]
    misses = [text for text, value in attempts(numbers)
              if value != problem.target and (numbers, value) not in avoid]  # fmt: skip
    tried = rng.sample(misses, min(rng.randint(0, most), len(misses)))
    return "".join(f"{text}?" for text in tried) + rng.choice(problem.solutions) + "!"


def think_on(completion: str) -> str | None:
    """A search that has ended, its last way marked as a dead end, so that another is tried; None for a part.

    >>> [think_on(text) for text in ("7+3=10,10+3=13!", "7+3=10,", "7+3=10,10+3=13?")]
    ['7+3=10,10+3=13?', None, None]
    """
    text = completion.strip()
    return None if text.endswith((",", "?")) else text.rstrip("!") + "?"


def answer_now(completion: str) -> str:
    """A search cut short: its last way closed as the answer if it has two steps, else taken back so that
    another can be written.

    >>> [answer_now(t) for t in ("7+3=10,10+3=13", "7+3=10,10+3=13?7*3=21,21", "7+3=10,10+3=13?7*")]
    ['7+3=10,10+3=13!', '7+3=10,10+3=13?7*3=21,', '7+3=10,10+3=13?']
    """
    text = completion.strip().rstrip("!")
    if text.endswith("?"):  # the last way, given up or not, is all there is
        text = text.rstrip("?")
    head = text[: text.rfind("?") + 1]
    steps = text[len(head) :].split(",")
    if len(steps) == 2 and all(_STEP.fullmatch(step) for step in steps):
        return text + "!"
    return head + (steps[0] + "," if len(steps) > 1 and _STEP.fullmatch(steps[0]) else "")


def verify(problem: Problem, completion: str) -> bool:
    """Whether the completion ends in a right way to the target; dead ends before it are free.

    Right means: two steps, each correct, that use each number once and end at the target. A second `!` makes
    a completion wrong, so guessing twice does not pay.

    >>> p = Problem((7, 3, 3), 24)
    >>> verify(p, "7+3=10,10+3=13?7*3=21,21+3=24!"), verify(p, "7*3=21,21+4=25!"), verify(p, "24!")
    (True, False, False)
    """
    attempt = _final_attempt(completion)
    return attempt is not None and _reaches(attempt, problem)


def answer(completion: str) -> str | None:
    """What self-consistency votes on: the final way as one expression, `3*7+3=24`; None is an abstention.

    The prompt gives the target away, so nearly all samples end at the same number and a vote on it would say
    nothing: the way there is the answer. Ways that differ only in the order of sums or products are one vote
    (`canonical`). A way that does not hold together is a vote for what is written, so for any one problem,
    equal answers are either all right or all wrong.

    >>> answer("7+3=10?7*3=21,21+3=24!"), answer("3*7=21,3+21=24!")
    ('3*7+3=24', '3*7+3=24')
    >>> answer("7*3=22,22+2=24!"), answer("7*3=21,")
    ('7*3=22,22+2=24', None)
    """
    attempt = _final_attempt(completion)
    if attempt is None or not all(_STEP.fullmatch(s) for s in attempt.split(",")):
        return None
    return canonical(attempt) or attempt


def canonical(attempt: str) -> str | None:
    """An attempt as one expression and its value, sums and products flattened and sorted.

    None unless every step is correct and every result but the last is used further on.

    >>> canonical("7+3=10,10+3=13") == canonical("3+3=6,7+6=13") == "3+3+7=13"
    True
    """
    worked = _work_out(attempt)
    return None if worked is None else f"{worked.expression}={worked.value}"


def worked_key(attempt: str) -> Key | None:
    """The problem that an attempt solves, whatever it was meant for; None if it does not hold together.

    >>> worked_key("7+3=10,10+3=13")
    ((3, 3, 7), 13)
    """
    worked = _work_out(attempt)
    return None if worked is None else (tuple(sorted(worked.numbers)), worked.value)


def steps(completion: str, problem: Problem | None = None) -> list[Step]:
    """Every step with its verdict, dead ends included, for showing to people.

    Without the problem only the arithmetic is judged; with it, also whether the numbers were at hand and the
    target was reached.

    >>> [(s.text, s.ok, s.why) for s in steps("7+3=10,10+3=13?7*3=22,22+3=24!")][1:]
    [('10+3=13?', True, 'dead end'), ('7*3=22', False, '7*3 is 21'), ('22+3=24!', False, '22+3 is 25')]
    """
    out: list[Step] = []
    for attempt, mark in re.findall(r"([^?!]*)([?!]?)", completion.strip()[:MAX_CHARS]):
        if not attempt and not mark:
            continue
        *first, last = _check(attempt, problem)
        why = last.why
        ok = last.ok
        if mark == "!" and ok and problem is not None and not _reaches(attempt, problem):
            ok, why = False, f"does not solve {problem.prompt.rstrip(':')}"
        elif mark == "?" and ok:
            why = "dead end"
        out += [*first, Step(last.text + mark, ok, why)]
    return out


def _final_attempt(completion: str) -> str | None:
    """The attempt closed by `!`, which must end the completion; None if there is none."""
    if len(completion) > MAX_CHARS:
        return None
    text = completion.strip()
    return text[:-1].rpartition("?")[2] if text.endswith("!") else None


def _apply(a: int, sign: str, b: int) -> int:
    return a + b if sign == "+" else a - b if sign == "-" else a * b


def _check(attempt: str, problem: Problem | None) -> list[Step]:
    """Judge an attempt step by step: sums right and, given the problem, each number at hand and used once."""
    at_hand = None if problem is None else list(problem.numbers)
    out = []
    for text in attempt.split(","):
        match = _STEP.fullmatch(text)
        if not match:
            out.append(Step(text, False, "not a step"))
            continue
        a, sign, b, result = int(match[1]), match[2], int(match[3]), int(match[4])
        why = "" if _apply(a, sign, b) == result else f"{a}{sign}{b} is {_apply(a, sign, b)}"
        if at_hand is not None:
            for value in (a, b):
                if value in at_hand:
                    at_hand.remove(value)
                else:
                    why = why or f"{value} is not at hand"
            at_hand.append(result)
        out.append(Step(text, not why, why))
    return out


def _reaches(attempt: str, problem: Problem) -> bool:
    """Whether an attempt is right in every step, uses all numbers, and ends at the target."""
    # Two good steps take four values of three numbers and one result, so all numbers are used.
    checked = _check(attempt, problem)
    return (
        len(checked) == len(problem.numbers) - 1
        and all(s.ok for s in checked)
        and int(attempt.rpartition("=")[2]) == problem.target
    )


@dataclass(frozen=True)
class _Worked:
    """A value with the expression that made it, as signed terms; a product is one term of several factors."""

    value: int
    numbers: tuple[int, ...]
    terms: tuple[tuple[int, str], ...]
    factors: tuple[str, ...]

    @classmethod
    def of(cls, value: int) -> _Worked:
        return cls(value, (value,), ((1, str(value)),), (str(value),))

    @property
    def expression(self) -> str:
        ordered = sorted(self.terms, key=lambda t: (-t[0], -len(t[1]), t[1]))
        return "".join(("-" if s < 0 else "+") + text for s, text in ordered).removeprefix("+")

    def combine(self, sign: str, other: _Worked, value: int) -> _Worked:
        numbers = self.numbers + other.numbers
        if sign == "*":
            factors = tuple(sorted(self.factors + other.factors, key=lambda f: (-len(f), f)))
            return _Worked(value, numbers, ((1, "*".join(factors)),), factors)
        flip = -1 if sign == "-" else 1
        terms = self.terms + tuple((flip * s, text) for s, text in other.terms)
        out = _Worked(value, numbers, terms, ())
        return _Worked(value, numbers, terms, (f"({out.expression})",))


def _work_out(attempt: str) -> _Worked | None:
    """Follow the steps; None if one is wrong or a result is left unused."""
    open_results: list[_Worked] = []
    for text in attempt.split(","):
        match = _STEP.fullmatch(text)
        if not match or _apply(int(match[1]), match[2], int(match[3])) != int(match[4]):
            return None
        operands = []
        for value in (int(match[1]), int(match[3])):
            used = next((w for w in open_results if w.value == value), None)
            if used is not None:
                open_results.remove(used)
            operands.append(used or _Worked.of(value))
        open_results.append(operands[0].combine(match[2], operands[1], int(match[4])))
    return open_results[0] if len(open_results) == 1 else None

"""Chained arithmetic with checks and retries: a trace whose length the writer chooses.

A prompt is `47,+8,-31,*2:`, worked from left to right; all values lie in 0 to 99. A line of the trace is a
step, perhaps its check by the inverse, and a mark: `;` goes on, `?` tries the step again, `!` ends. So
`47+8=54>54-8=46?47+8=55;55-31=24>24+31=55;24*2=48!` makes a slip, finds it by checking, and mends it.
More compute at test time has a use here: a check costs tokens and saves answers. The format is our own; the
idea, slips that are mended at once in training data, is that of Ye et al., arXiv 2408.16293.

`chain:checks=0.9,slips=0.2,shortest=4,longest=8` is a chain whose demonstrations check nine steps in ten.
"""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Hashable

from flopwise.data.tasks.answers import closed
from flopwise.data.tasks.base import MAX_CHARS, Item, ItemTask, Step, distinct
from flopwise.data.tasks.named import Option, options
from flopwise.errors import FlopwiseError

SHORTEST, LONGEST = 2, 8
LIMIT = 99
"""The largest value."""
CHECKED, SLIPS = 0.4, 0.12
"""Chances, per step of a demonstration, of a check, and of a slip that a check then finds."""
OPTIONS = {
    "checks": Option(0, 1, CHECKED),
    "slips": Option(0, 0.9, SLIPS),
    "shortest": Option(SHORTEST, LONGEST, SHORTEST, whole=True),
    "longest": Option(SHORTEST, LONGEST, LONGEST, whole=True),
}

_V = "(0|[1-9][0-9]{0,5})"
_LINE = re.compile(rf"{_V}([-+*]){_V}={_V}(?:>{_V}([-+/]){_V}={_V}(?:r{_V})?)?")
_OPENED = re.compile(rf"{_V}[-+*]{_V}={_V}")
_PROMPT = re.compile(r"([0-9]{1,2})((?:\s?,?\s?[-+*]\s?[0-9]{1,2}){2,8})\s?:?", re.ASCII)
_OPERATION = re.compile(r"([-+*])\s?([0-9]{1,2})", re.ASCII)
_INVERSE = {"+": "-", "-": "+", "*": "/"}


class Chain(ItemTask):
    """A chain of 2 to 8 operations; its slices are the lengths.

    Args:
        name: `chain`, or `chain:` and some of `OPTIONS`.

    Raises:
        FlopwiseError: an unknown option, or a shortest chain above the longest.
    """

    about = f"chained + - * within 0 to {LIMIT}, worked step by step with checks and retries"
    max_tokens = 320
    continuation = ">"
    early_answer = "!"

    def __init__(self, name: str = "chain"):
        self.name = name
        if ":" in name:
            found = options(name, OPTIONS)
        else:
            found = {key: option.default for key, option in OPTIONS.items()}
        self.checks, self.slips = found["checks"], found["slips"]
        self.lengths = range(int(found["shortest"]), int(found["longest"]) + 1)
        if not self.lengths:
            raise FlopwiseError(
                f"task {name!r}: shortest {found['shortest']:g} is above longest {found['longest']:g}"
            )
        self.slices = tuple(f"{n}-ops" for n in self.lengths)

    @property
    def example(self) -> str:
        """A problem as people type it."""
        return "47,+8,-31,*2"

    def generate(
        self, n: int, seed: int, exclude: Collection[Hashable] = (), slice: str | None = None
    ) -> list[Item]:
        """n distinct chains, all lengths alike."""
        self.check_slice(slice)
        rng = random.Random(f"{self.name}:{seed}")

        def draw() -> Item:
            length = rng.choice(self.lengths) if slice is None else int(slice.partition("-")[0])
            start = value = rng.randint(1, LIMIT)
            operations = []
            for _ in range(length):
                sign, by, value = _next(value, rng)
                operations.append((sign, by))
            return _item(start, operations)

        return distinct(self.name, draw, n, exclude)

    def parse(self, text: str) -> Item:
        """A problem as people type it."""
        match = _PROMPT.fullmatch(text.strip()[:80])
        if match:
            operations = [(s, int(v)) for s, v in _OPERATION.findall(match[2])]
            values = _values(int(match[1]), operations)
            if all(0 <= v <= LIMIT for v in values):
                return _item(int(match[1]), operations)
        raise FlopwiseError(
            f"{self.name}: {text[:40]!r} is no problem; write 2 to 8 operations, worked from left to "
            f"right, with all values in 0 to {LIMIT}, as {self.example!r}"
        )

    def demonstration(self, problem: Item, seed: int, avoid: Collection[Hashable] = ()) -> str:
        """The steps in order; some are checked, some go wrong first, are found out and tried again."""
        rng = random.Random(f"{seed}:{problem.prompt}")
        start, operations = _read(problem)
        text, a = "", start
        for i, (sign, b) in enumerate(operations):
            result = _apply(a, sign, b)
            if rng.random() < self.slips:
                wrong = rng.choice([v for d in (1, 2, 10) for v in (result - d, result + d) if v >= 0])
                text += f"{a}{sign}{b}={wrong}>{_check(wrong, sign, b)}?"
            text += f"{a}{sign}{b}={result}"
            if rng.random() < self.checks:
                text += f">{_check(result, sign, b)}"
            text += "!" if i == len(operations) - 1 else ";"
            a = result
        return text

    def answer(self, completion: str) -> str | None:
        """The result of the line that ends the trace; None unless every line is one."""
        lines = _lines(completion)
        return None if lines is None else lines[-1][0][4]

    def steps(self, completion: str, problem: Item | None = None) -> list[Step]:
        """Each line judged: the sum, its check, and, given the problem, whether it is the next step."""
        start, operations = (None, []) if problem is None else _read(problem)
        out: list[Step] = []
        done = 0
        for text, mark in re.findall(r"([^;?!]*)([;?!]?)", completion.strip()[:MAX_CHARS]):
            if not text and not mark:
                continue
            match = _LINE.fullmatch(text)
            if match is None:
                out.append(Step(text + mark, False, "not a step"))
                continue
            why = _fault(match)
            if problem is not None and not why:
                ahead = operations[done] if done < len(operations) else None
                if ahead is None or (int(match[1]), match[2], int(match[3])) != (start, *ahead):
                    why = "not the next step"
            true = _apply(int(match[1]), match[2], int(match[3])) == int(match[4])
            if mark == "?":
                # A step given up for good reason is no error, whatever it said.
                out.append(
                    Step(text + mark, not true, "right, but given up" if true else "a slip, tried again")
                )
                continue
            if not why and mark == "!" and problem is not None and done + 1 < len(operations):
                why = f"{len(operations) - done - 1} more to do"
            out.append(Step(text + mark, not why, why))
            start, done = int(match[4]), done + 1
        return out

    def think_on(self, completion: str) -> str | None:
        """The last line is to be checked; one that was is tried again if it is the last of the trace.

        >>> [Chain().think_on(t) for t in ("1+2=3!", "1+2=3;", "1+2=3>3-2=1!", "1+2=3>3-2=1;", "1+2=4?")]
        ['1+2=3>', '1+2=3>', '1+2=3>3-2=1?', None, None]
        """
        text = completion.strip()
        body = text[:-1] if text[-1:] in ("!", ";") else text
        line = _last_line(body)
        if line and ">" not in line:
            return body + self.continuation
        return None if text.endswith((";", "?")) else body + "?"

    def answer_now(self, completion: str) -> str | None:
        """Closed after the last result there is; None before the first.

        >>> [Chain().answer_now(t) for t in ("1+2=3;3+4=7>7-", "1+2=3;3+", "1+2=3;3+4=8>8-4=4?", "1+")]
        ['1+2=3;3+4=7!', '1+2=3!', '1+2=3!', None]
        """
        line = _last_line(completion)
        match = _OPENED.match(line)
        if match:
            return completion[: len(completion) - len(line)] + match[0] + self.early_answer
        at = completion.rfind(";")
        return completion[:at] + self.early_answer if at > 0 else None

    def question(self, problem: Item) -> str:
        """The problem in words."""
        start, operations = _read(problem)
        words = {"+": "add", "-": "subtract", "*": "multiply by"}
        chain = ", ".join(f"{words[sign]} {by}" for sign, by in operations)
        return (
            f"Start with {start}, {chain}. Write each step as "
            f"{start}{operations[0][0]}{operations[0][1]}=..., with ; after it and ! after "
            "the last, and nothing else."
        )


def _last_line(text: str) -> str:
    """What stands after the last mark."""
    return text[max(text.rfind(";"), text.rfind("?")) + 1 :]


def _apply(a: int, sign: str, b: int) -> int:
    return a + b if sign == "+" else a - b if sign == "-" else a * b


def _values(start: int, operations: list[tuple[str, int]]) -> list[int]:
    """The start and every result."""
    values = [start]
    for sign, by in operations:
        values.append(_apply(values[-1], sign, by))
    return values


def _next(value: int, rng: random.Random) -> tuple[str, int, int]:
    """An operation that stays within the limits, and its result."""
    signs = ["+"] * (value < LIMIT) + ["-"] * (value > 1) + ["*"] * (1 <= value <= LIMIT // 2)
    sign = rng.choice(signs)
    if sign == "*":
        by = rng.randint(2, min(9, LIMIT // value))
    else:
        by = rng.randint(1, LIMIT - value if sign == "+" else value - 1)
    return sign, by, _apply(value, sign, by)


def _item(start: int, operations: list[tuple[str, int]]) -> Item:
    text = ",".join([str(start), *(f"{sign}{by}" for sign, by in operations)])
    return Item(f"{text}:", str(_values(start, operations)[-1]), text, f"{len(operations)}-ops")


def _read(problem: Item) -> tuple[int, list[tuple[str, int]]]:
    """Start and operations of a problem."""
    start, *rest = problem.key.split(",")
    return int(start), [(part[0], int(part[1:])) for part in rest]


def _check(result: int, sign: str, b: int) -> str:
    """The inverse of a step, which gives the value it started from if the step is right."""
    if sign == "*":
        over = f"r{result % b}" if result % b else ""
        return f"{result}/{b}={result // b}{over}"
    back = _INVERSE[sign]
    value = _apply(result, back, b)
    # Below zero nothing is written: that it cannot be subtracted says as much as a wrong value.
    return f"{result}{back}{b}={value}" if value >= 0 else f"{b}{back}{result}={-value}"


def _fault(line: re.Match[str]) -> str:
    """What is wrong with a line: its sum or its check; empty if nothing."""
    a, sign, b, result = int(line[1]), line[2], int(line[3]), int(line[4])
    if _apply(a, sign, b) != result:
        return f"{a}{sign}{b} is {_apply(a, sign, b)}"
    if line[5] is None:
        return ""
    return "" if line[0].partition(">")[2] == _check(result, sign, b) else "the check is not the inverse"


def _lines(completion: str) -> list[tuple[re.Match[str], str]] | None:
    """Lines with their marks; None unless all are well formed and the last alone ends with `!`."""
    text = closed(completion)
    if text is None:
        return None
    out = []
    for line, mark in re.findall(r"([^;?]*)([;?]?)", text):
        if not line and not mark:
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            return None
        out.append((match, mark or "!"))
    return out if out and out[-1][1] == "!" else None

"""What a completion answers, read so that nothing is guessed: a number, a choice, or nothing.

A text that names several answers, or hides one among others, abstains: a verifier that picks the right one
out of two rewards naming both. All patterns are linear and see at most `MAX_CHARS` letters; digits are ASCII.
"""

from __future__ import annotations

import re
from fractions import Fraction

from flopwise.data.tasks.base import MAX_CHARS, Step

MAX_FORMULA = 300
"""Letters of the longest formula that is an answer."""
MAX_DIGITS = 30
"""A number with more is no answer to any task here."""

_NUMBER = r"[-+]?[0-9]{1,3}(?:,[0-9]{3}){1,9}(?:\.[0-9]{1,30})?|[-+]?[0-9]{1,30}(?:\.[0-9]{1,30})?"
# Alone: no part of a word, a longer number, a power, a fraction or a percentage.
_ALONE = re.compile(rf"(?<![\w.,^/\\–—])({_NUMBER})(?![\w^/%\\]|[.,][0-9])", re.ASCII)
_ANY_DIGIT = re.compile(r"[0-9]")
_NEGATION = re.compile(r"\b(?:not|never|neither|nor|wrong|incorrect|cannot|no)\b|n['’]t\b", re.IGNORECASE)
_LOOSE_SIGN = re.compile(r"[-–—]\s{1,9}[0-9]")
"""A dash before a number that may be its sign, or a bullet."""
_RELATION = re.compile(r"(?:<|(?:^|\s)>|[≤≥≠≈~√±∓]|\\neq?\b|\\sqrt)\s{0,3}[0-9]|[0-9]\s?[π√∞]")
"""A number that is a bound, a part of another or what the answer is not; arrows and tags are none."""
_NOT_EQUAL = re.compile(r"≠|\\neq?\b")
_TAKEN_BACK = re.compile(
    r"^[\s.;!?*$}]{0,9}(?:no|not|or)\b|\b(?:wrong|incorrect|mistake|actually|wait|sorry|correction|instead)\b",
    re.IGNORECASE,
)
"""What follows an answer that is not the last word."""
_MARK = re.compile(r"####|\\boxed\{|\banswer(?: is|:| =)|\banswer\s{0,3}[:=]", re.IGNORECASE)
_SENTENCE = re.compile(r"\n|[.;!?](?=\s|$)")
_EQUATION = re.compile(
    r"(?<![\w.])([0-9]{1,12})\s{0,2}([-+*/x×])\s{0,2}([0-9]{1,12})\s{0,2}=\s{0,2}(-?[0-9]{1,12})(?![\w.]*[0-9]|\s?[%^/])",
    re.ASCII,
)
_CHOICE = re.compile(r"(?<![A-Za-z0-9])\(?([A-Za-z])\)?(?![A-Za-z0-9'])")
_ALONE_CHOICE = re.compile(r"\s*\(?([A-Za-z])(?:[).:]|\s*$)")


def canonical_number(text: str) -> str | None:
    """One way to write a number; None if it is none.

    >>> [canonical_number(t) for t in ("1,234", "+7", "8.50", "-0", "1e3", "٧")]
    ['1234', '7', '8.5', '0', None, None]
    """
    text = text.strip()
    if len(text) > 2 * MAX_DIGITS + 12 or not re.fullmatch(_NUMBER, text, re.ASCII):
        return None
    value = Fraction(text.replace(",", ""))
    if value.denominator == 1:
        return str(value.numerator)
    whole, _, decimals = text.replace(",", "").lstrip("+").rpartition(".")
    sign, digits = ("-", whole[1:]) if whole.startswith("-") else ("", whole)
    return f"{sign}{int(digits)}.{decimals.rstrip('0')}"


def final_number(text: str) -> str | None:
    """The one number a text gives as its answer, in canonical form; None where that is not beyond doubt.

    Marked answers (`#### 8`, `\\boxed{8}`, `the answer is 8`) go before all else and must agree. Without one,
    the text must hold a single number, or end in an equation (`3*4 = 12, 12+5 = 17`), of which the last
    result counts.

    >>> [final_number(t) for t in (" 8", "3 + 5 = 8.", "The answer is 12 apples.", "8 or 9", "18th", "5, 8")]
    ['8', '8', '12', None, None, None]
    """
    if len(text) > MAX_CHARS or any(c.isnumeric() and not c.isascii() for c in text):
        return None
    marks = list(_MARK.finditer(text))
    if not marks:
        return _value(text)
    values: set[str | None] = set()
    for mark, following in zip(marks, [*marks[1:], None], strict=True):
        clause = text[mark.end() : following.start() if following else len(text)]
        if following and not mark[0].endswith("{") and not clause.strip(" \t$*:"):
            continue  # "the answer is \\boxed{8}" is one mark
        if mark[0].endswith("{"):
            inside, closing, rest = clause.partition("}")
            values.add(canonical_number(inside.strip("$ ")) if closing else None)
            if following is None and (_ANY_DIGIT.search(_sentence(rest)) or _TAKEN_BACK.search(rest)):
                return None
            continue
        values.add(_value(_stated(clause, following is None)))
    return values.pop() if len(values) == 1 else None


def _sentence(text: str) -> str:
    """Up to where the sentence or line ends."""
    end = _SENTENCE.search(text)
    return text[: end.start()] if end else text


def _stated(clause: str, last: bool) -> str:
    """The sentence after a mark; empty if it asks, or if what follows the last one takes it back."""
    clause = clause.lstrip(" \t*:\n")
    said = _sentence(clause)
    asks = clause[len(said) : len(said) + 1] == "?"
    return "" if asks or (last and _TAKEN_BACK.search(clause[len(said) :])) else said


def _value(text: str) -> str | None:
    """The only number of a text, or the result of the equation that it ends in."""
    text = text.replace("$", " ").replace("**", " ").replace("\u2212", "-").rstrip(" \n\t.!")
    if text.endswith("?") or _RELATION.search(text):
        return None
    equation = None
    for equation in _EQUATION.finditer(text):  # noqa: B007
        pass
    if equation is not None and not _ANY_DIGIT.search(text[equation.end() :]):
        return None if _NEGATION.search(text) else canonical_number(equation[4])
    numbers = _ALONE.findall(text)
    if len(numbers) != 1 or _NEGATION.search(text) or _LOOSE_SIGN.search(text):
        return None
    if len(_ANY_DIGIT.findall(text)) != len(_ANY_DIGIT.findall(numbers[0])):
        return None
    return canonical_number(numbers[0])


def final_choice(text: str) -> str | None:
    """The one option, a capital letter, that a text gives as its answer; None where it gives none or several.

    >>> [final_choice(t) for t in ("B", " (b)", "The answer is C.", "A or B", "Answer: A. Answer: B.")]
    ['B', 'B', 'C', None, None]
    """
    if len(text) > MAX_CHARS:
        return None
    marks = list(_MARK.finditer(text))
    if marks:
        clauses = [
            text[m.end() : following.start() if following else len(text)]
            for m, following in zip(marks, [*marks[1:], None], strict=True)
        ]
        found = {_only_choice(_stated(clause.replace("}", " "), clause is clauses[-1])) for clause in clauses}
        return found.pop() if len(found) == 1 else None
    start = _ALONE_CHOICE.match(text)
    return _only_choice(_sentence(text.strip())) if start else None


def _only_choice(clause: str) -> str | None:
    """The letter at the start of a clause, if no other stands alone in it."""
    start = _CHOICE.match(clause.strip())
    letters = {c.upper() for c in _CHOICE.findall(clause) if c not in "aI" or (start and c == start[1])}
    return start[1].upper() if start and letters <= {start[1].upper()} else None


def equations(text: str) -> list[Step]:
    """Every `a + b = c` in a text, judged, for showing to people.

    >>> [(s.text, s.ok, s.why) for s in equations("3 * 4 = 12, then 12 + 5 = 18")]
    [('3 * 4 = 12', True, ''), ('12 + 5 = 18', False, '12 + 5 is 17')]
    """
    out = []
    for match in _EQUATION.finditer(text[:MAX_CHARS]):
        a, sign, b, claimed = int(match[1]), match[2], int(match[3]), int(match[4])
        true = _apply(a, sign, b)
        right = true is not None and true == claimed
        shown = "no whole number" if true is None else f"{true}"
        out.append(Step(match[0], right, "" if right else f"{a} {sign} {b} is {shown}"))
    return out


def _apply(a: int, sign: str, b: int) -> int | None:
    """The result as a whole number; None where it is none."""
    if sign == "/":
        return a // b if b and a % b == 0 else None
    return a + b if sign == "+" else a - b if sign == "-" else a * b


def closed(completion: str) -> str | None:
    """A worked solution up to the `!` that closes it; None if it is not closed, closed twice or too long.

    >>> closed("7*3=21!"), closed("7*3=21"), closed("7!8!")
    ('7*3=21', None, None)
    """
    if len(completion) > MAX_CHARS:
        return None
    text = completion.strip()
    return text[:-1] if text.endswith("!") and text.count("!") == 1 else None


def final_expression(text: str) -> str | None:
    """The one formula a text gives as its answer, as it is written; None where it gives none or several.

    What stands in `\\boxed{...}` counts, or after a mark, or else the text if it is a single line.

    >>> [final_expression(t) for t in ("it is \\\\boxed{x^{2}}.", " x + 1", "x = 1\\ny = 2")]
    ['x^{2}', 'x + 1', None]
    """
    if len(text) > MAX_CHARS:
        return None
    marks = list(_MARK.finditer(text))
    found: set[str | None] = set()
    boxed = [m for m in marks if m[0].endswith("{")]
    for mark in boxed:
        found.add(_in_braces(text[mark.end() :]))
    if boxed and _TAKEN_BACK.search(text[boxed[-1].end() :].partition("}")[2]):
        return None
    if not boxed:
        for mark in marks:
            found.add(_bare(_stated(text[mark.end() :], mark is marks[-1])))
    if not marks:
        found = {_bare(text) if len(text.strip().splitlines()) == 1 else None}
    formula = found.pop() if len(found) == 1 else None
    if formula is None or len(formula) > MAX_FORMULA or formula.endswith("?"):
        return None
    denied = _NEGATION.search(formula) and _ANY_DIGIT.search(formula)  # "no solution" is an answer
    return None if denied or _NOT_EQUAL.search(formula) or _two(formula) else formula


def _two(formula: str) -> bool:
    """Whether it equates what differs: two numbers, or more than two things."""
    sides = [canonical_number(side.strip(" $")) for side in formula.split("=")]
    return len(sides) > 2 or (len(sides) == 2 and sides[0] is not None and sides[0] != sides[1])


def _in_braces(text: str) -> str | None:
    """Up to the brace that closes; None if none does."""
    depth = 1
    for i, letter in enumerate(text):
        depth += (letter == "{") - (letter == "}")
        if depth == 0:
            return _bare(text[:i])
    return None


def _bare(text: str) -> str | None:
    """Without dollar signs, blanks and a full stop around it."""
    return " ".join(text.strip(" \t\n$").rstrip(".").strip("$ ").split()) or None

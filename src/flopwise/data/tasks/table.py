"""`table:FILE`: a person's own questions and answers as a task, judged by one of a few safe rules.

The name says all: `table:sums.jsonl,rule=number,prompt=question,answer=result`. Rules: `exact` (the text,
blanks aside), `number` (the one number the completion gives), `choice` (the one option, a letter), `regex`
(the answer column holds patterns that the whole completion must match; RE2, by way of DuckDB, which is linear
in the text and has no backreferences), `math` (equal by computer algebra: math-verify, in a process with a
limit).
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Collection, Hashable, Iterator
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from flopwise.data.tasks.answers import (
    canonical_number,
    equations,
    final_choice,
    final_expression,
    final_number,
)
from flopwise.data.tasks.base import MAX_CHARS, Item, ItemTask, Step, from_pool
from flopwise.data.tasks.bounded import Judge
from flopwise.errors import FlopwiseError, MissingExtra, one_line

PREFIX = "table:"
RULES = ("exact", "number", "choice", "regex", "math")
OPTIONS = ("rule", "prompt", "answer", "solution", "slice", "sha256")
MOST_ROWS = 1_000_000


class Table(ItemTask):
    """Rows of a file as problems.

    The file is read when problems are asked for, not before: what a data step wrote is judged without it.

    Args:
        name: `table:FILE`, then options as `,rule=number`; columns are `prompt` and `answer` unless told
            otherwise, `solution` names a column with worked solutions, `slice` one that names slices, and
            with `sha256` the file must be the one with that sum.

    Raises:
        FlopwiseError: an unknown option or rule.
    """

    max_tokens = 256

    def __init__(self, name: str):
        self.name = name
        path, self.options = _read_name(name)
        self.path = Path(path)
        self.rule = self.options["rule"]
        self.about = f"rows of {self.path.name}, judged by the rule {self.rule}"

    @cached_property
    def slices(self) -> tuple[str, ...]:  # type: ignore[override]
        """What the slice column holds."""
        return tuple(sorted({item.slice for item, _ in self._rows}))

    @property
    def example(self) -> str:
        """The first prompt."""
        return self._rows[0][0].prompt

    def generate(
        self, n: int, seed: int, exclude: Collection[Hashable] = (), slice: str | None = None
    ) -> list[Item]:
        """n of the rows, drawn evenly."""
        if slice is not None:
            self.check_slice(slice)
        forbidden = frozenset(exclude)
        pool = [p for p, _ in self._rows if p.key not in forbidden and slice in (None, p.slice)]
        return from_pool(self.name, pool, n, random.Random(f"{self.path.name}:{seed}"))

    def parse(self, text: str) -> Item:
        """One of the prompts."""
        key = _collapsed(text)
        found = next((p for p, _ in self._rows if p.key == key), None)
        if found is None:
            raise FlopwiseError(f"{self.name}: {text[:40]!r} is no prompt of the file, so no answer is known")
        return found

    def demonstration(self, problem: Item, seed: int, avoid: Collection[Hashable] = ()) -> str:
        """The solution column's text, else the answer.

        Raises:
            FlopwiseError: the answer is a pattern and there is no solution column, or the solution is wrong.
        """
        solution = self._solutions.get(problem.key) if "solution" in self.options else None
        if solution is None and self.rule == "regex":
            raise FlopwiseError(
                f"{self.name}: the answers are patterns, which show no solution; name a column of "
                "worked ones with solution=COLUMN"
            )
        text = problem.gold if solution is None else solution
        text = text if problem.prompt[-1:].isspace() or text[:1].isspace() else f" {text}"
        if solution is not None and not self.verify(problem, text):
            raise FlopwiseError(
                f"{self.name}: the solution of {problem.prompt[:40]!r} does not give its answer "
                f"{problem.gold[:40]!r} by the rule {self.rule}; mend the row"
            )
        return text

    def answer(self, completion: str) -> str | None:
        """The answer, as the rule reads it."""
        if len(completion) > MAX_CHARS:
            return None
        if self.rule == "number":
            return final_number(completion)
        if self.rule == "choice":
            return final_choice(completion)
        if self.rule == "math":
            return final_expression(completion)
        return _collapsed(completion) or None

    def verify(self, problem: Item, completion: str) -> bool:
        """Whether the answer is right by the rule."""
        answer = self.answer(completion)
        if answer is None:
            return False
        if self.rule == "regex":
            return _matches(answer, problem.gold)
        if self.rule == "math":
            return answer == problem.gold or _math()(gold=problem.gold, answer=answer) is True
        return answer == problem.gold

    def steps(self, completion: str, problem: Item | None = None) -> list[Step]:
        """Each equation in a completion whose answer is a number, judged."""
        return equations(completion) if self.rule == "number" else []

    @cached_property
    def sha256(self) -> str:
        """Sum of the file's bytes."""
        try:
            with self.path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as e:
            raise FlopwiseError(f"{self.name}: {self.path} cannot be read ({e.strerror})") from e

    @cached_property
    def _rows(self) -> list[tuple[Item, str | None]]:
        """Problems in the order of the file, each with its worked solution if there is a column of them."""
        expected = self.options.get("sha256")
        if expected not in (None, self.sha256):
            raise FlopwiseError(
                f"{self.name}: the file's sum is {self.sha256}; it is another file than was meant"
            )
        if self.rule == "math":
            _math()
        found: dict[str, tuple[Item, str | None]] = {}
        for where, row in self._read():
            item = self._item(where, row)
            before = found.get(item.key)
            if before is not None and before[0].gold != item.gold:
                raise FlopwiseError(
                    f"{self.name}: {where} asks what an earlier row asks, with another answer "
                    f"({before[0].gold[:30]!r} and {item.gold[:30]!r}); leave one out"
                )
            found.setdefault(item.key, (item, self._text(where, row, "solution")))
            if len(found) > MOST_ROWS:
                raise FlopwiseError(f"{self.name}: more than {MOST_ROWS:,} rows; split the file")
        if not found:
            raise FlopwiseError(f"{self.name}: {self.path} holds no rows")
        return list(found.values())

    @cached_property
    def _solutions(self) -> dict[str, str | None]:
        return {item.key: solution for item, solution in self._rows}

    def _read(self) -> Iterator[tuple[str, dict[str, Any]]]:
        from flopwise.data.files import Bad, values

        for path, number, row in values([self.path], None):
            where = f"{path.name} row {number}"
            if isinstance(row, Bad):
                raise FlopwiseError(f"{self.name}: {where}: {row.reason}, {row.detail or 'no row of fields'}")
            yield where, row

    def _item(self, where: str, row: dict[str, Any]) -> Item:
        prompt, gold = self._text(where, row, "prompt"), self._text(where, row, "answer")
        assert prompt is not None and gold is not None
        return self._made(where, prompt, gold, self._text(where, row, "slice") or "all")

    def from_row(self, row: dict[str, Any]) -> Item:
        """What `to_row` gave; or prompt and answer of a row of somebody's dataset, as they stand there."""
        if isinstance(row, dict) and set(row) == {"prompt", "answer"}:
            return self._made("a row", str(row["prompt"]), str(row["answer"]), "all")
        return super().from_row(row)

    def _made(self, where: str, prompt: str, gold: str, slice: str) -> Item:
        canonical = self._gold(gold)
        if canonical is None:
            expected = {
                "number": "one number", "choice": "one letter", "regex": "a pattern that RE2 reads",
                "math": "one expression", "exact": f"a text of up to {MAX_CHARS:,} letters",
            }[self.rule]  # fmt: skip
            raise FlopwiseError(f"{self.name}: {where}: the answer is {gold[:40]!r}, must be {expected}")
        return Item(prompt, canonical, _collapsed(prompt), slice)

    def _text(self, where: str, row: dict[str, Any], role: str) -> str | None:
        """A column as text; None where the role has no column."""
        column = self.options.get(role)
        if column is None:
            return None
        if column not in row:
            there = one_line(", ".join(map(str, row)), 120)
            raise FlopwiseError(
                f"{self.name}: {where} has no column {column!r:.60}; it has {there}; "
                f"name it with {role}=COLUMN"
            )
        value = row[column]
        if isinstance(value, bool) or not isinstance(value, str | int | float) or not str(value).strip():
            raise FlopwiseError(
                f"{self.name}: {where}: {column} is {one_line(repr(value), 40)}, must be a text or a number"
            )
        return str(value)

    def _gold(self, text: str) -> str | None:
        """The right answer in the form that answers have; None if the rule cannot use it."""
        if self.rule == "number":
            return canonical_number(text)
        if self.rule == "regex":
            return text if _is_pattern(text) else None
        return self.answer(text)


def is_name(name: str) -> bool:
    """Whether a task's name is a well-formed one of this family."""
    try:
        return name.startswith(PREFIX) and bool(_read_name(name))
    except FlopwiseError:
        return False


def _read_name(name: str) -> tuple[str, dict[str, str]]:
    """File and options of a name."""
    path, *parts = name.removeprefix(PREFIX).split(",")
    options = {"rule": "exact", "prompt": "prompt", "answer": "answer"}
    for part in parts:
        key, sign, value = part.partition("=")
        if not (sign and value) or key not in OPTIONS:
            raise FlopwiseError(
                f"task {one_line(name, 60)!r}: {part[:40]!r} must be OPTION=VALUE, the option one of "
                f"{', '.join(OPTIONS)}"
            )
        options[key] = value
    if options["rule"] not in RULES:
        raise FlopwiseError(
            f"task {one_line(name, 60)!r}: rule is {options['rule'][:40]!r}, must be one of "
            f"{', '.join(RULES)}"
        )
    if not path:
        raise FlopwiseError(f"task {one_line(name, 60)!r}: no file is named; write table:FILE")
    return path, options


def _collapsed(text: str) -> str:
    """One blank between words, none around them."""
    return " ".join(text.split())


@lru_cache(maxsize=1)
def _re2() -> Any:
    """RE2 by way of DuckDB: time linear in the text, memory bounded, whatever the pattern."""
    import duckdb

    return duckdb.connect(":memory:", config={"threads": 1, "enable_external_access": False})


@lru_cache(maxsize=65_536)
def _matches(text: str, pattern: str) -> bool:
    return bool(_re2().cursor().execute("SELECT regexp_full_match(?, ?)", [text, pattern]).fetchone()[0])


def _is_pattern(pattern: str) -> bool:
    import duckdb

    try:
        _matches("", pattern)
    except duckdb.Error:
        return False
    return len(pattern) <= MAX_CHARS


@lru_cache(maxsize=1)
def _math() -> Judge:
    from importlib.util import find_spec

    if find_spec("math_verify") is None:
        raise MissingExtra("math-verify", "reasoning", "the rule math")
    return Judge("flopwise.data.tasks.table:equal")


def equal(gold: str = "(x+1)^2", answer: str = "x^2+2x+1", warm: bool = False) -> bool:
    """Whether two expressions are equal by math-verify; runs in the judge's process, which has the limits.

    Called to warm up, it compares the defaults: the first comparison loads most of the algebra.
    """
    from math_verify import parse, verify

    # In braces, as the package expects LaTeX; its own alarms are off, since the process is ended instead.
    read = [parse(f"\\boxed{{{text}}}", parsing_timeout=None) for text in (gold, answer)]
    return bool(read[0] and read[1] and verify(read[0], read[1], timeout_seconds=None))

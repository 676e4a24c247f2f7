"""`gym:NAME`: the procedural data sets of reasoning-gym (Stojanovski et al., arXiv 2505.24760) as tasks.

Each has a scorer of its own, which is asked in a process with a limit (`bounded`). Only a full score is
right. Not every scorer accepts its own reference answers: a problem whose reference is refused is left out,
and a data set of nothing else is refused (with reasoning-gym 0.1.25 these are boxnet, graph_color,
propositional_logic, rubiks_cube and rush_hour, which give no reference answer at all).
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Hashable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from flopwise.data.tasks.base import MAX_CHARS, Task
from flopwise.data.tasks.bounded import Judge
from flopwise.errors import FlopwiseError, MissingExtra, one_line

PREFIX = "gym:"
EXTRA = "reasoning"
TRIALS = 20
"""Problems in a row without a good reference answer, after which the data set is refused."""
_TAGGED = re.compile(r"<answer>([^<]*)</answer>")
_NAME = re.compile(r"[a-z0-9_]{1,60}")


@dataclass(frozen=True)
class GymProblem:
    """A question, its reference answer, and the whole entry as JSON, which the scorer reads."""

    prompt: str
    gold: str
    entry: str

    @property
    def key(self) -> str:
        """The question."""
        return self.prompt


class Gym(Task[GymProblem]):
    """One data set of reasoning-gym."""

    max_tokens = 256

    def __init__(self, name: str):
        self.dataset = name
        self.name = f"{PREFIX}{name}"
        self.about = f"reasoning-gym's {name} (arXiv 2505.24760)"

    @property
    def example(self) -> str:
        """A question of the data set."""
        return self.generate(1, 0)[0].prompt

    def generate(
        self, n: int, seed: int, exclude: Collection[Hashable] = (), slice: str | None = None
    ) -> list[GymProblem]:
        """n distinct problems whose reference answers the scorer accepts.

        Raises:
            FlopwiseError: the data set is unknown, gives no good answers, or has not so many problems.
            MissingExtra: reasoning-gym is not installed.
        """
        self.check_slice(slice)
        # The package makes entry i from seed + i: seeds far apart share no entries.
        entries = self._entries((seed * 1_000_003 + 12_345) % 2**31, max(1, 4 * n + TRIALS))
        seen, misses = set(exclude), 0
        found: list[GymProblem] = []
        for i in range(len(entries)):
            if len(found) == n:
                break
            problem = self._problem(entries, i)
            if problem is not None and problem.key not in seen:
                seen.add(problem.key)
                found.append(problem)
                misses = 0
            elif (misses := misses + 1) >= TRIALS and not found:
                why = "they are excluded" if problem else "its scorer accepts no reference answer of its own"
                raise FlopwiseError(
                    f"{self.name}: {misses} problems in a row are of no use, {why}; take another"
                )
        if len(found) < n:
            raise FlopwiseError(f"{self.name}: {n:,} problems asked for, {len(found):,} found; ask for fewer")
        return found

    def parse(self, text: str) -> GymProblem:
        """A question alone has no reference answer, so none can be judged."""
        raise FlopwiseError(
            f"{self.name}: {text[:40]!r} cannot be judged; its problems are generated, not typed"
        )

    def demonstration(self, problem: GymProblem, seed: int, avoid: Collection[Hashable] = ()) -> str:
        """The reference answer."""
        return f" {problem.gold}"

    def answer(self, completion: str) -> str | None:
        """What stands in `<answer>` tags, which must agree; without tags, all of it."""
        if len(completion) > MAX_CHARS:
            return None
        tagged = {text.strip() for text in _TAGGED.findall(completion)}
        if len(tagged) > 1 or (not tagged and "<answer>" in completion):
            return None
        return (tagged.pop() if tagged else completion.strip()) or None

    def verify(self, problem: GymProblem, completion: str) -> bool:
        """Whether the data set's scorer gives the answer full marks, within its limit."""
        answer = self.answer(completion)
        return (
            answer is not None and self._judge(name=self.dataset, answer=answer, entry=problem.entry) is True
        )

    def question(self, problem: GymProblem) -> str:
        """The question, and where the answer goes."""
        return f"{problem.prompt}\nWrite the answer between <answer> and </answer>."

    def to_row(self, problem: GymProblem) -> dict[str, Any]:
        """As JSON takes it."""
        return {"entry": problem.entry}

    def from_row(self, row: dict[str, Any]) -> GymProblem:
        """What `to_row` gave."""
        try:
            entry = json.loads(row["entry"])
            return GymProblem(entry["question"], entry["answer"], row["entry"])
        except (KeyError, TypeError, ValueError):
            raise FlopwiseError(
                f"{self.name}: a row is {row!s:.60}, must hold an entry; run the data step again"
            ) from None

    @cached_property
    def _judge(self) -> Judge:
        _package()
        return Judge("flopwise.data.tasks.gym:score")

    def _entries(self, seed: int, size: int) -> Any:
        gym = _package()
        try:
            return gym.create_dataset(self.dataset, seed=seed, size=size)
        except Exception as e:  # unknown names, and settings that some demand
            raise FlopwiseError(
                f"{self.name}: reasoning-gym does not make it ({one_line(e, 100)}); see reasoning_gym's list"
            ) from e

    def _problem(self, entries: Any, i: int) -> GymProblem | None:
        """Entry i, if it can be written to a file and its reference answer is accepted."""
        try:
            entry = entries[i]
            text = json.dumps({key: entry[key] for key in ("question", "answer", "metadata")})
        except (TypeError, ValueError, KeyError, RecursionError):
            return None
        if not isinstance(entry["answer"], str) or not entry["answer"]:
            return None
        problem = GymProblem(entry["question"], entry["answer"], text)
        return problem if self.verify(problem, self.demonstration(problem, 0)) else None


def is_name(name: str) -> bool:
    """Whether a task's name is one of this family."""
    return name.startswith(PREFIX) and bool(_NAME.fullmatch(name.removeprefix(PREFIX)))


def score(name: str = "", answer: str = "", entry: str = "", warm: bool = False) -> bool:
    """Whether the data set's scorer gives full marks; runs in the judge's process."""
    gym = _package()
    if warm:
        return True
    if name not in _scorers:
        _scorers[name] = gym.create_dataset(name, seed=0, size=1)
    return bool(_scorers[name].score_answer(answer, json.loads(entry)) >= 1.0)


_scorers: dict[str, Any] = {}


def _package() -> Any:
    try:
        import reasoning_gym
    except ModuleNotFoundError:
        raise MissingExtra("reasoning-gym", EXTRA, "a task of reasoning-gym") from None
    return reasoning_gym

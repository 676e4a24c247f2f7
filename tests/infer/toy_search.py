"""A task, an engine and a scorer that are written down: what may follow each text, and what each is worth."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flopwise.data.tasks import Item, Step
from flopwise.data.tasks.base import ItemTask
from flopwise.data.tokenizer import ByteTokenizer
from flopwise.infer.asking import Asked
from flopwise.infer.engine import SampleBatch, Usage
from flopwise.infer.room import Room
from flopwise.infer.scorers import Scores, Written
from flopwise.models.config import ModelConfig

TOKENIZER = ByteTokenizer()
CFG = ModelConfig.from_width(32, 2, TOKENIZER.vocab_size, 400)


class Letters(ItemTask):
    """Steps are letters with `;` after them, the last has `!`: the answer is the last letter. Small letters
    are wrong."""

    name, about = "letters", "letters"

    @property
    def example(self) -> str:
        return "q"

    def generate(
        self, n: int, seed: int, exclude: Collection[Hashable] = (), slice: str | None = None
    ) -> list[Item]:
        return [Item(f"{i}:", "Z", str(i)) for i in range(n)]

    def parse(self, text: str) -> Item:
        return Item(f"{text}:", "Z", text)

    def demonstration(self, problem: Item, seed: int, avoid: Collection[Hashable] = ()) -> str:
        return "Z!"

    def answer(self, completion: str) -> str | None:
        return completion[-2:-1] if completion.endswith("!") else None

    def steps(self, completion: str, problem: Item | None = None) -> list[Step]:
        return [Step(part, part.isupper()) for part in completion.rstrip("!").split(";") if part]


class ThinkingLetters(Letters):
    """A trace is gone on from after `?`, and cut after the last letter."""

    continuation, early_answer = "?", "!"

    def think_on(self, completion: str) -> str | None:
        return completion.rstrip("!") + "?"

    def answer_now(self, completion: str) -> str | None:
        return completion.rstrip(";?!") + "!" if completion else None


@dataclass
class Scripted:
    """In place of an engine: after each text, the i-th row that is asked for is the i-th of what may follow,
    over and over; `$` ends the text. Each token has log-probability -1."""

    follow: dict[str, list[str]]
    temperatures: list[float] = field(default_factory=list)
    asked: list[list[str]] = field(default_factory=list)
    """By call, the texts that were gone on from, prompts left out."""
    cfg: ModelConfig = CFG

    def __post_init__(self) -> None:
        self.given: dict[str, int] = {}

    def sample(
        self, prompts: Sequence[Sequence[int]], n: int = 1, max_tokens: int = 64, stop: Sequence[int] = (),
        temperature: float = 1.0, **rest: Any,
    ) -> SampleBatch:  # fmt: skip
        rows = []
        self.asked.append([])
        self.temperatures.append(temperature)
        for prompt in prompts:
            whole = TOKENIZER.decode(prompt)
            text = whole.partition(":")[2]
            self.asked[-1] += [text] * n
            rows += [self.write(whole, text, max_tokens, set(stop)) for _ in range(n)]
        lengths = np.array([len(r) for r in rows])
        ids = np.full((len(rows), lengths.max()), -1, dtype=np.int32)
        for row, written in zip(ids, rows, strict=True):
            row[: len(written)] = written
        return SampleBatch(
            ids, lengths, np.where(ids >= 0, -1.0, 0.0).astype(np.float32),
            np.repeat(np.arange(len(prompts)), n), np.tile(np.arange(n), len(prompts)),
            np.array([r[-1] in stop for r in rows]), Usage(),
        )  # fmt: skip

    def write(self, whole: str, text: str, limit: int, stop: set[int]) -> list[int]:
        ids: list[int] = []
        while len(ids) < limit and not (ids and ids[-1] in stop):
            so_far = text + TOKENIZER.decode(ids)
            options = self.follow.get(so_far) or self.follow["*"]
            time_ = self.given.get(whole + TOKENIZER.decode(ids), 0)
            self.given[whole + TOKENIZER.decode(ids)] = time_ + 1
            step = options[time_ % len(options)]
            for char in step:
                ids.append(TOKENIZER.eos_id if char == "$" else TOKENIZER.encode(char)[0])
                if ids[-1] in stop or len(ids) == limit:
                    break
        return ids


@dataclass
class Worth:
    """In place of a process reward model: a text's value, 0.5 if it is not listed; 10 FLOPs each."""

    values_of: dict[str, float]
    seen: list[str] = field(default_factory=list)

    def value(self, text: str) -> float:
        return self.values_of.get(text, 0.5)

    def values(self, written: Sequence[Written]) -> tuple[np.ndarray, np.ndarray]:
        self.seen += [w.text for w in written]
        return np.array([self.value(w.text) for w in written]), np.full(len(written), 10.0)

    def score(self, written: Sequence[Written]) -> Scores:
        steps = []
        for w in written:
            ends = [i + 1 for i, c in enumerate(w.text) if c in ";!"]
            steps.append(tuple(self.value(w.text[:e]) for e in ends))
        return Scores({"process_last": np.array([s[-1] for s in steps])}, np.full(len(written), 10.0), steps)


def make_room(
    follow: dict[str, list[str]], values: dict[str, float] | None = None, problems: int = 1,
    max_tokens: int = 40, task: ItemTask | None = None, style: str = "plain",
) -> Room:  # fmt: skip
    task = task or Letters()
    listed = task.generate(problems, 0)
    asked = Asked(TOKENIZER.encode_batch([p.prompt for p in listed]), [TOKENIZER.eos_id], style)
    scorers: dict[str, Any] = {} if values is None else {"process": Worth(values)}
    return Room(Scripted(follow), TOKENIZER, task, listed, asked, max_tokens, scorers=scorers)

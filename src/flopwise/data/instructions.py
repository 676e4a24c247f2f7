"""A tokenised dataset, opened for reading: examples, pairs, judged rows, steps, problems."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

import numpy as np

from flopwise.data.build import ABOUT_FILE
from flopwise.data.chat import ChatTemplate
from flopwise.data.instruct_tokens import STEP_END, Stored
from flopwise.data.messages import Text
from flopwise.data.tasks import Demonstration, Task, task
from flopwise.data.tokenizer import Tokenizer, hub_tokenizer
from flopwise.errors import FlopwiseError

if TYPE_CHECKING:
    from flopwise.posttrain.examples import Example

SPLITS = ("train", "heldout")
T = TypeVar("T")


@dataclass(frozen=True)
class InstructProblem:
    """A prompt with the answer that a verifier compares with; `prompt_ids` are what a model is given: the
    prompt of a chat holds special tokens, which `prompt` as text does not give back."""

    prompt: str
    answer: str | None
    prompt_ids: tuple[int, ...]

    @property
    def key(self) -> Hashable:
        """Equal keys are one problem."""
        return self.prompt_ids


@dataclass(frozen=True)
class Pair:
    """Two completions of one prompt."""

    chosen: Example
    rejected: Example


@dataclass(frozen=True)
class Judged:
    """A completion and whether it is wanted."""

    example: Example
    label: bool


@dataclass(frozen=True)
class Stepwise:
    """A completion in steps: the place of each one's last token in prompt and completion together, and
    whether it is right."""

    example: Example
    ends: tuple[int, ...]
    labels: tuple[bool, ...]


class Lazy(Sequence[T]):
    """A sequence whose items are made when they are asked for. `lengths` [n]: tokens of each."""

    def __init__(self, lengths: np.ndarray, make: Callable[[int], T]):
        self.lengths, self._make = lengths, make

    def __len__(self) -> int:
        return len(self.lengths)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            return [self._make(i) for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self._make(int(index) % len(self))


class Instructions:
    """What the step left, opened for reading. A split is `train` or `heldout`.

    Attributes:
        about: content of about.json.
        kind: how its rows were read, one of `instruct_layouts.KINDS`.
        task: name of the task whose verifier judges answers, if any.
        vocab_size, eos_id, pad_id: of the tokenizer.
        stop_ids: where sampling stops.

    Raises:
        FlopwiseError: the folder holds no finished dataset.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            self.about: dict[str, Any] = json.loads((path / ABOUT_FILE).read_bytes())
            self.kind: str = self.about["kind"]
            self.task: str | None = self.about["task"]
            self.stop_ids: list[int] = self.about["stop_ids"]
            self.vocab_size, self.eos_id, self.pad_id = (
                int(self.about[name]) for name in ("vocab_size", "eos_id", "pad_id")
            )
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise FlopwiseError(
                f"dataset folder {path} has no readable {ABOUT_FILE}; run its step again"
            ) from e

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The model's own."""
        return hub_tokenizer(str(self.path))

    @cached_property
    def chat(self) -> ChatTemplate:
        """Its template; `save` keeps it beside a model that is trained on these data."""
        return ChatTemplate.load(self.path, self.tokenizer)

    def open_task(self) -> Task[Any]:
        """The task whose verifier judges answers.

        Raises:
            FlopwiseError: none was named, or one that this version has not.
        """
        if self.task is None:
            raise FlopwiseError(
                f"{self.about['source']} was prepared without a task; set task in its options"
            )
        return task(self.task)

    def examples(self, split: str = "train") -> Lazy[Example]:
        """What language-model training learns: completions, the assistant's turns, whole texts; of pairs what
        was chosen, of judged rows those with label true, of steps the rows that are right throughout.

        Raises:
            FlopwiseError: the rows are problems, which have no completion; or an unknown split.
        """
        stored, kind = self._stored(split), self.kind
        if kind == "problems":
            raise self._wrong("completions to learn from")
        which = np.arange(len(stored))
        if kind == "pairs":
            which = which[::2]
        if kind in ("unpaired", "steps"):
            which = np.array([i for i in which if all(stored.labels_of(int(i)))], dtype=int)
        return Lazy(stored.lengths[which], lambda i: _example(stored, int(which[i])))

    def pairs(self, split: str = "train") -> Lazy[Pair]:
        """Chosen and rejected. Raises FlopwiseError where the rows are no pairs."""
        stored = self._stored(split, "pairs")
        return Lazy(
            stored.lengths.reshape(-1, 2).sum(1),
            lambda i: Pair(_example(stored, 2 * i), _example(stored, 2 * i + 1)),
        )

    def unpaired(self, split: str = "train") -> Lazy[Judged]:
        """Completions with their labels. Raises FlopwiseError where the rows have none."""
        stored = self._stored(split, "unpaired")
        return Lazy(stored.lengths, lambda i: Judged(_example(stored, i), stored.labels_of(i)[0]))

    def steps(self, split: str = "train") -> Lazy[Stepwise]:
        """Completions with a label for each step. Raises FlopwiseError where the rows have none."""
        stored = self._stored(split, "steps")
        return Lazy(
            stored.lengths,
            lambda i: Stepwise(_example(stored, i), stored.ends_of(i), stored.labels_of(i)),
        )

    def demos(self, split: str = "train") -> list[Demonstration]:
        """Prompts and completions of `examples` as texts; a chat is as its template writes it."""
        if self.kind == "text":
            raise self._wrong("prompts")
        out = []
        for row in self._rows(split):
            if not row["answers"]:
                raise self._wrong("completions to learn from")
            if all(row["labels"]):
                out.append(Demonstration(self._text(row["prompt"]), self._said(row)))
        return out

    def problems(self, name: str) -> list[InstructProblem]:
        """Prompts, each once, with answers where the rows have them.

        Args:
            name: train (or rl), heldout, or its disjoint halves val and test.

        Raises:
            FlopwiseError: the rows have no prompts; or an unknown name.
        """
        parts = {"rl": ("train", 0, 1), "val": ("heldout", 0, 2), "test": ("heldout", 1, 2)}
        split, first, every = parts.get(name, (name, 0, 1))
        if self.kind == "text":
            raise self._wrong("prompts")
        stored, per_row = self._stored(split), 2 if self.kind == "pairs" else 1
        found: dict[tuple[int, ...], InstructProblem] = {}
        for i, row in enumerate(self._rows(split)):
            ids = tuple(stored[per_row * i][0])
            found.setdefault(ids, InstructProblem(self._question(row["prompt"]), row["answer"], ids))
        return list(found.values())[first::every]

    def _stored(self, split: str, kind: str | None = None) -> Stored:
        if split not in SPLITS:
            raise FlopwiseError(f"dataset: split {split!r:.40} is unknown; there are {', '.join(SPLITS)}")
        if kind is not None and self.kind != kind:
            raise self._wrong(kind)
        return Stored(self.path / f"{split}.safetensors")

    def _rows(self, split: str) -> list[dict[str, Any]]:
        if split not in SPLITS:
            raise FlopwiseError(
                f"dataset: problem set {split!r:.40} is unknown; there are train, rl, heldout, val, test"
            )
        path = self.path / f"{split}.jsonl"
        try:
            with open(path, encoding="utf-8") as f:
                return [json.loads(line) for line in f]
        except (OSError, ValueError) as e:
            raise FlopwiseError(f"{path} cannot be read ({type(e).__name__}); run the data step again") from e

    def _wrong(self, wanted: str) -> FlopwiseError:
        return FlopwiseError(
            f"dataset: the rows of {self.about['source']} are {self.kind}, which have no {wanted}; give "
            "others, or set format"
        )

    def _text(self, text: Text) -> str:
        return text if isinstance(text, str) else self.chat.render(text, answer=True)

    def _question(self, prompt: Text) -> str:
        """What is asked, for verifiers and people: the user's words, where there is but one turn."""
        if not isinstance(prompt, str) and len(prompt) == 1:
            return str(prompt[0]["content"])
        return self._text(prompt)

    def _said(self, row: dict[str, Any]) -> str:
        if self.kind == "steps":
            return "".join(step + STEP_END for step in row["answers"])
        answer = row["answers"][0]
        if isinstance(answer, str):
            return answer
        if len(answer) == 1:
            return str(answer[0]["content"])
        whole = [*row["prompt"], *answer]
        return self.chat.render(whole)[len(self.chat.render(row["prompt"], answer=True)) :]


def _example(stored: Stored, index: int) -> Example:
    from flopwise.posttrain.examples import Example

    prompt, completion, weights = stored[index]
    return Example(tuple(prompt), tuple(completion), weights)


def is_dataset(path: Path) -> bool:
    """Whether a data run's folder is one of these (and not `data.prepared`'s)."""
    try:
        return "rows_sha256" in json.loads((path / ABOUT_FILE).read_bytes())
    except (OSError, ValueError):
        return False

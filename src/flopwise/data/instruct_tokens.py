"""Rows of a dataset as token ids, with what is learned of them, in flat arrays that are read as they lie."""

from __future__ import annotations

import os
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flopwise.data.instruct_layouts import Row
from flopwise.data.messages import BadRow, Text
from flopwise.errors import DamagedFile, FlopwiseError

if TYPE_CHECKING:
    from flopwise.data.chat import ChatTemplate

STEP_END = "\n"
"""Closes each step of a stepwise row: the score of a step is read at this token (as in TRL's PRM data)."""


@dataclass(frozen=True)
class Sequence:
    """Prompt and completion as ids, `n_prompt` of them the prompt. `said` [n]: what is learned; None is all
    of the completion."""

    ids: list[int]
    n_prompt: int
    said: list[bool] | None = None


@dataclass(frozen=True)
class Tokens:
    """A row's sequences: one; chosen and rejected; the windows of a text. `labels` and `ends` (the last token
    of each step) as the kind has them; `cut`: something was cut off."""

    sequences: list[Sequence]
    labels: tuple[bool, ...] = ()
    ends: tuple[int, ...] = ()
    cut: bool = False


class TooLong(Exception):
    """A row longer than is allowed: not to be cut, or nothing to learn is left of it."""

    def __init__(self, length: int):
        super().__init__(length)
        self.length = length


class Encoder:
    """Rows to ids.

    Args:
        chat: tokenizer and template.
        max_length: tokens of a sequence.
        truncate: longer ones are cut at their end, else they raise.
        as_chat: plain prompts and completions are turned into a chat.
    """

    def __init__(self, chat: ChatTemplate, max_length: int, truncate: bool = False, as_chat: bool = False):
        self.chat, self.max_length, self.truncate, self.as_chat = chat, max_length, truncate, as_chat
        self.tokenizer = chat.tokenizer

    def encode(self, row: Row, kind: str) -> Tokens:
        """A row of `kind`.

        Raises:
            BadRow: the template refuses the chat, or a message spells a special token.
            TooLong: it is too long and not to be cut, or nothing is left to learn when it is.
        """
        if kind == "text":
            return Tokens(self._windows(str(row.answers[0])))
        if kind == "steps":
            return self._steps(row)
        prompt = self._as_chat(row.prompt, "user")
        if kind == "problems":
            ids = self._prompt(prompt)
            if len(ids) >= self.max_length:
                raise TooLong(len(ids))
            return Tokens([Sequence(ids, len(ids))])
        found = [self._pair(prompt, self._as_chat(a, "assistant")) for a in row.answers]
        fitted = [self._fit(s) for s in found]
        return Tokens(fitted, row.labels, cut=fitted != found)

    def _as_chat(self, text: Text, role: str) -> Text:
        return ({"role": role, "content": text},) if self.as_chat and isinstance(text, str) else text

    def _prompt(self, prompt: Text) -> list[int]:
        """Of an empty prompt the end-of-text token, behind which a text begins."""
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt) or [self.tokenizer.eos_id]
        self._check(prompt)
        try:
            return self.chat.prompt_ids(prompt)
        except FlopwiseError as e:
            raise BadRow("chat template", str(e)) from e

    def _pair(self, prompt: Text, answer: Text) -> Sequence:
        if isinstance(prompt, str):
            ids = self._prompt(prompt)
            return Sequence([*ids, *self.tokenizer.encode(str(answer)), self.tokenizer.eos_id], len(ids))
        whole = (*prompt, *(answer if isinstance(answer, tuple) else ()))
        self._check(whole)
        try:
            encoded = self.chat.encode(whole, first=len(prompt))
        except FlopwiseError as e:
            raise BadRow("chat template", str(e)) from e
        places = [i for i, said in enumerate(encoded.said) if said]
        if not places:
            raise BadRow("chat template", "the template gives the assistant no token, must show what it says")
        ids, said = encoded.ids[: places[-1] + 1], encoded.said[: places[-1] + 1]
        if ids[-1] not in self.chat.stop_ids:  # or sampling would never stop
            ids, said = [*ids, self.tokenizer.eos_id], [*said, True]
        if not places[0]:
            ids, said, places = [self.tokenizer.eos_id, *ids], [False, *said], [1]
        return Sequence(ids, places[0], None if all(said[places[0] :]) else said)

    def _check(self, messages: tuple[dict[str, object], ...]) -> None:
        for number, message in enumerate(messages, 1):
            if token := self.chat.spelled(str(message["content"])):
                raise BadRow(
                    "special token", f"message {number} spells the special token {token}, must be text alone"
                )

    def _steps(self, row: Row) -> Tokens:
        ids = self._prompt(row.prompt)
        n_prompt, ends = len(ids), []
        for step in row.answers:
            more = self.tokenizer.encode(str(step) + STEP_END)
            if len(ids) + len(more) > self.max_length:
                break
            ids += more
            ends.append(len(ids) - 1)
        cut = len(ends) < len(row.answers)
        if cut and not (self.truncate and ends):
            raise TooLong(sum(len(self.tokenizer.encode(str(s) + STEP_END)) for s in row.answers) + n_prompt)
        return Tokens([Sequence(ids, n_prompt)], row.labels[: len(ends)], tuple(ends), cut)

    def _fit(self, sequence: Sequence) -> Sequence:
        if len(sequence.ids) <= self.max_length:
            return sequence
        if not self.truncate or sequence.n_prompt >= self.max_length:
            raise TooLong(len(sequence.ids))
        said = sequence.said[: self.max_length] if sequence.said else None
        return Sequence(sequence.ids[: self.max_length], sequence.n_prompt, said)

    def _windows(self, text: str) -> list[Sequence]:
        """A document in windows of `max_length` tokens. Each of its tokens is predicted once: the first from
        the end-of-text token, that of a later window from the last one of the window before."""
        eos = self.tokenizer.eos_id
        whole = [eos, *self.tokenizer.encode(text), eos]
        step = self.max_length - 1
        return [Sequence(whole[a : a + step + 1], 1) for a in range(0, len(whole) - 1, step)]


@dataclass
class Table:
    """Sequences of many rows in flat arrays. `rows`: of which row each is."""

    ids: array[int] = field(default_factory=lambda: array("I"))
    said: array[int] = field(default_factory=lambda: array("B"))
    sizes: array[int] = field(default_factory=lambda: array("I"))
    prompts: array[int] = field(default_factory=lambda: array("I"))
    rows: array[int] = field(default_factory=lambda: array("Q"))
    labels: array[int] = field(default_factory=lambda: array("B"))
    ends: array[int] = field(default_factory=lambda: array("I"))
    n_marks: array[int] = field(default_factory=lambda: array("I"))
    """Labels of each sequence."""

    def add(self, row: int, tokens: Tokens) -> None:
        """Append a row's sequences."""
        for s in tokens.sequences:
            self.ids.extend(s.ids)
            self.said.extend(s.said or [*[False] * s.n_prompt, *[True] * (len(s.ids) - s.n_prompt)])
            self.sizes.append(len(s.ids))
            self.prompts.append(s.n_prompt)
            self.rows.append(row)
            self.n_marks.append(len(tokens.labels))
            self.labels.extend(tokens.labels)
        self.ends.extend(tokens.ends)

    def arrays(self, which: np.ndarray) -> dict[str, np.ndarray]:
        """Of the rows whose place in `which` [rows] bool is true, in order."""
        mine = which[np.frombuffer(self.rows, np.uint64).astype(np.int64)]
        sizes = np.frombuffer(self.sizes, np.uint32).astype(np.int64)
        marks = np.frombuffer(self.n_marks, np.uint32).astype(np.int64)
        tokens, marked = np.repeat(mine, sizes), np.repeat(mine, marks)
        ends = np.frombuffer(self.ends, np.uint32)
        return {
            "ids": np.frombuffer(self.ids, np.uint32)[tokens],
            "said": np.frombuffer(self.said, np.uint8)[tokens],
            "starts": np.concatenate([[0], np.cumsum(sizes[mine])]),
            "prompts": np.frombuffer(self.prompts, np.uint32)[mine],
            "labels": np.frombuffer(self.labels, np.uint8)[marked],
            "marks": np.concatenate([[0], np.cumsum(marks[mine])]),
            "ends": ends[marked] if len(ends) else ends,
        }


def write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays as safetensors, whole or not at all."""
    from safetensors.numpy import save_file

    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file({name: np.ascontiguousarray(a) for name, a in arrays.items()}, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class Stored:
    """Sequences that `write` left, read from the file as they are asked for."""

    def __init__(self, path: Path):
        """Raises DamagedFile where the file is cut, garbled or absent."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "np") as f:
                found = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
            self.ids, self.said, self.labels, self.ends = (
                found[n] for n in ("ids", "said", "labels", "ends")
            )
            self.starts, self.marks = (found[n].astype(np.int64) for n in ("starts", "marks"))
            self.prompts = found["prompts"].astype(np.int64)
        except (SafetensorError, OSError, KeyError) as e:
            raise DamagedFile(
                path, f"{path} cannot be read ({type(e).__name__}); run the data step again"
            ) from e
        self.lengths = np.diff(self.starts)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> tuple[list[int], list[int], tuple[float, ...] | None]:
        """Prompt ids, completion ids, and weights where they are not all 1."""
        a, b = self.starts[index], self.starts[index + 1]
        n = a + self.prompts[index]
        said = self.said[n:b]
        weights = None if said.all() else tuple(said.astype(float).tolist())
        return self.ids[a:n].tolist(), self.ids[n:b].tolist(), weights

    def labels_of(self, index: int) -> tuple[bool, ...]:
        """Labels of a sequence."""
        return tuple(self.labels[self.marks[index] : self.marks[index + 1]].astype(bool).tolist())

    def ends_of(self, index: int) -> tuple[int, ...]:
        """Where its steps end."""
        return tuple(self.ends[self.marks[index] : self.marks[index + 1]].tolist())


def held_out(keys: np.ndarray, fraction: float) -> np.ndarray:
    """Which rows are held out [n] bool: those whose key [n] uint64, a hash of the prompt, lies in the lowest
    `fraction`. Rows with one prompt stay together; with any fraction at least one prompt is on each side."""
    if not fraction or not len(keys):
        return np.zeros(len(keys), dtype=bool)
    distinct = np.unique(keys)
    n = min(max(int((distinct < np.uint64(int(fraction * 2**64))).sum()), 1), len(distinct) - 1)
    return keys <= distinct[n - 1] if n else np.zeros(len(keys), dtype=bool)

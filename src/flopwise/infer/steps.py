"""Where steps end in what a model writes, and what a process reward model says of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from flopwise.errors import FlopwiseError

if TYPE_CHECKING:
    from flopwise.data.tasks import Task
    from flopwise.infer.local import LocalEngine

HOW = ("min", "last", "product")
"""Ways to sum up an answer's steps."""
STEP_ENDS = ",;?\n"
"""Characters that close a step, in all tasks with steps."""


def text_ends(task: Task | None, completion: str) -> list[int]:
    """How many characters have been written when each step is through; the last ends the completion.

    Steps are the task's, each with the comma, semicolon or line end after it; without a task, lines.
    """
    steps = [s.text for s in task.steps(completion)] if task else completion.splitlines()
    ends, at = [], 0
    for text in steps:
        found = completion.find(text, at)
        if not text or found < 0:
            continue
        at = found + len(text)
        at += completion[at : at + 1] in (",", ";", "\n")
        ends.append(at)
    return [end for end in ends if end < len(completion)] + [len(completion)]


def step_ends(task: Task | None, ids: Sequence[int], tokenizer: Any, finished: bool = True) -> list[int]:
    """Places in a completion's token ids at which its steps end; the last token always ends one."""
    body = ids[:-1] if finished else ids
    text = tokenizer.decode(body)
    written = np.cumsum([len(tokenizer.decode([i])) for i in body])
    if len(body) and written[-1] != len(text):  # characters of several tokens
        written = np.array([len(tokenizer.decode(body[: i + 1])) for i in range(len(body))])
    inner = np.searchsorted(written, text_ends(task, text)[:-1])
    return [*sorted(set(inner.tolist()) - {len(ids) - 1}), len(ids) - 1]


def aggregate(values: Sequence[np.ndarray], how: str) -> np.ndarray:
    """One score [N] of each answer from the log-odds of its steps; products are sums of log chances.

    >>> aggregate([np.array([2.0, -1.0, 0.5])], "min").tolist()
    [-1.0]
    """
    if how == "last":
        return np.array([v[-1] for v in values], dtype=float)
    if how == "min":
        return np.array([v.min() for v in values], dtype=float)
    if how == "product":
        return np.array([-np.logaddexp(0.0, -v.astype(float)).sum() for v in values])
    raise FlopwiseError(f"process reward: {how[:40]!r} must be one of {', '.join(HOW)}")


def score_answers(
    engine: LocalEngine, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]],
    ends: Sequence[Sequence[int]],
) -> tuple[list[np.ndarray], float]:  # fmt: skip
    """Log-odds after each step of each completion, and the FLOPs that took."""
    whole = [[*p, *c] for p, c in zip(prompts, completions, strict=True)]
    places = [[len(p) + e for e in each] for p, each in zip(prompts, ends, strict=True)]
    return engine.rewards_at(whole, places)


def step_tokens(tokenizer: Any, ends: str) -> list[int]:
    """Ids of the tokens that end in one of the characters `ends`, spaces after it aside.

    Raises:
        FlopwiseError: there is none.
    """
    texts = tokenizer.decode_batch([[i] for i in range(tokenizer.vocab_size)])
    found = [
        i for i, text in enumerate(texts) if (text.rstrip(" ") or text)[-1:] in set(ends) and text
    ]  # fmt: skip
    if not found:
        raise FlopwiseError(
            f"steps: no token ends in any of {ends!r:.40}; give step_ends, the characters that "
            "close a step of this task"
        )
    return found

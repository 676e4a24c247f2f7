"""Problems as a model is asked them: token ids of prompts in a style, and tokens that end an answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flopwise.data.tasks import STYLES, Task
from flopwise.errors import FlopwiseError

if TYPE_CHECKING:
    from flopwise.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class Asked:
    """Prompts of problems as token ids, the ids that end a completion, and the style as a record names it."""

    ids: list[list[int]]
    stop: list[int]
    style: str

    @classmethod
    def of(
        cls, task: Task[Any], problems: Sequence[Any], style: str, shots: int, tokenizer: Tokenizer,
        folder: Path,
    ) -> Asked:  # fmt: skip
        """Ask problems of a task in a style: `plain`; `few_shot`, after `shots` worked ones; `chat`, by the
        template in the model's folder, or ChatML where it has none.

        Raises:
            FlopwiseError: an unknown style, or fewer than one shot.
        """
        if style not in STYLES:
            raise FlopwiseError(f"prompt style is {style!r:.40}, must be one of {', '.join(STYLES)}")
        if style == "few_shot" and shots < 1:
            raise FlopwiseError(f"few_shot: {shots} worked problems asked for, must be at least 1")
        if style == "chat":
            from flopwise.data.chat import ChatTemplate

            template = ChatTemplate.load(folder, tokenizer)
            ids = [template.prompt_ids(task.messages_for(problem)) for problem in problems]
            return cls(ids, template.stop_ids, style)
        texts = [task.prompt_for(problem, style, shots) for problem in problems]
        ends = task.completion_ends(style)
        stop = [tokenizer.eos_id] + ([] if ends is None else tokens_with(tokenizer, ends))
        named = f"{style}:{shots}" if style == "few_shot" else style
        return cls(tokenizer.encode_batch(texts), stop, named)


def tokens_with(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of all tokens that hold a text: it may come as part of a longer one, as a full stop and a break."""
    rows = tokenizer.decode_batch([i] for i in range(tokenizer.vocab_size))
    return [i for i, row in enumerate(rows) if text in row]

"""Chats as tokens: the model's own template, what the assistant says told from what it is told.

A template is a Jinja program out of a model's folder, so somebody else's code: it runs in Jinja's sandbox and
sees no file and no Python object but the chat. `transformers` renders templates in the same way (trimmed
blocks, `raise_exception`, `strftime_now`, loop controls); `tests/data/test_instruct_chat.py` compares ids.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flopwise.data.messages import shared
from flopwise.errors import FlopwiseError, one_line

if TYPE_CHECKING:
    from tokenizers import Tokenizer as HFTokenizer

    from flopwise.data.tokenizer import Tokenizer

FILE = "chat_template.jinja"
CONFIG_FILE = "tokenizer_config.json"
END = "<|im_end|>"
CHATML = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + turn_end + '\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
"""ChatML, for models that bring no template. Where `<|im_end|>` is no token of theirs, a turn ends with the
end-of-text token: samples then stop there."""
SPECIALS = ("bos_token", "eos_token", "unk_token", "pad_token")

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Encoded:
    """Token ids of a chat, and which of them the assistant said [n]: the end of a turn included."""

    ids: list[int]
    said: list[bool]


class ChatTemplate:
    """A tokenizer with the template of its model.

    Args:
        tokenizer: what makes ids of text.
        source: the template, as Jinja text; None is `CHATML`.
        names: special tokens that templates may name (`bos_token`, ...).

    Raises:
        FlopwiseError: the template is no Jinja.
    """

    def __init__(
        self, tokenizer: Tokenizer, source: str | None = None, names: Mapping[str, str] | None = None
    ):
        self.tokenizer = tokenizer
        self.own = source is not None
        self.source = CHATML if source is None else source
        self.names = {"eos_token": tokenizer.eos, "pad_token": tokenizer.pad, **(names or {})}
        self._turn_end = END if self._inner.token_to_id(END) is not None else tokenizer.eos
        self._template = _compiled(self.source)

    @classmethod
    def load(cls, folder: Path, tokenizer: Tokenizer) -> ChatTemplate:
        """The template beside a tokenizer: chat_template.jinja, else `chat_template` of tokenizer_config.json
        (of several, the one called default), else ChatML.

        Raises:
            FlopwiseError: a file is damaged, or the template is no Jinja.
        """
        config = _config(folder)
        source = config.get("chat_template")
        if isinstance(source, list):
            named = {t.get("name"): t.get("template") for t in source if isinstance(t, dict)}
            source = named.get("default") or next(iter(named.values()), None)
        with suppress(FileNotFoundError):
            source = (folder / FILE).read_text(encoding="utf-8")
        names = {}
        for key in SPECIALS:
            value = config.get(key)
            value = value.get("content") if isinstance(value, dict) else value
            if isinstance(value, str):
                names[key] = value
        return cls(tokenizer, source if isinstance(source, str) else None, names)

    def save(self, folder: Path) -> None:
        """Write the template beside a tokenizer, and the special tokens it may name into its configuration;
        the fallback is written as what it is for this tokenizer."""
        from flopwise.records.folder import atomic_write

        source = self.source if self.own else self.source.replace("turn_end", json.dumps(self._turn_end))
        atomic_write(folder / FILE, source)
        config = _config(folder)
        atomic_write(folder / CONFIG_FILE, json.dumps({**self.names, **config}, indent=1) + "\n")

    def render(self, messages: Sequence[Message], answer: bool = False) -> str:
        """The chat as text; with `answer`, up to where the assistant begins to speak.

        Raises:
            FlopwiseError: the template refuses the chat, or fails.
        """
        try:
            return str(
                self._template.render(
                    messages=messages, add_generation_prompt=answer, tools=None, documents=None,
                    turn_end=self._turn_end, **self.names,
                )
            )  # fmt: skip
        except Exception as e:  # whatever the template's program raises
            raise FlopwiseError(f"chat template: {one_line(e, 160) or type(e).__name__}") from e

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Ids up to where the assistant begins to speak."""
        return self._inner.encode(self.render(messages, answer=True), add_special_tokens=False).ids

    def encode(self, messages: Sequence[Message], first: int = 0) -> Encoded:
        """Ids of a whole chat, as `transformers` gives them, and which the assistant said from message
        `first` on.

        What the assistant said is what rendering one more turn adds to the text that invites it. That holds
        for templates whose text of a chat begins with the text of its first turns; others (which cut the
        reasoning out of earlier turns, say) are refused. A token that begins before a turn is not learned.

        Raises:
            FlopwiseError: the template fails, or its text of some first turns is no beginning of the whole.
        """
        whole = self.render(messages)
        encoding = self._inner.encode(whole, add_special_tokens=False)
        said = [False] * len(encoding.ids)
        for i, message in enumerate(messages):
            if message["role"] != "assistant" or i < first:
                continue
            begin = len(self._beginning(whole, messages[:i], i, answer=True))
            end = len(self._beginning(whole, messages[: i + 1], i, answer=False))
            mine = [t for t, (a, b) in enumerate(encoding.offsets) if begin <= a < end and b <= end]
            # The turn ends where the model stops: a line break that the template puts behind is not learned.
            stops = [t for t in mine if encoding.ids[t] in self.stop_ids]
            for t in mine:
                said[t] = not stops or t <= stops[-1]
        return Encoded(encoding.ids, said)

    def _beginning(self, whole: str, messages: Sequence[Message], i: int, answer: bool) -> str:
        part = self.render(messages, answer)
        if not whole.startswith(part):
            place = shared(part, whole)
            raise FlopwiseError(
                f"chat template: the text up to message {i + 1} is no beginning of the whole chat's (they "
                f"part at {one_line(part[place : place + 30], 30)!r}), so what the assistant says cannot be "
                "told; use a template that leaves earlier turns as they are"
            )
        return part

    @cached_property
    def stop_ids(self) -> list[int]:
        """Where sampling stops: end of text, and what ends the assistant's turn if it is another token."""
        found = [self.tokenizer.eos_id]
        mark = "\u241f"
        with suppress(FlopwiseError):
            turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": mark}]
            after = self.render(turns).rpartition(mark)[2]
            ids = self._inner.encode(after, add_special_tokens=False).ids
            if ids and ids[0] in self.special_ids.values() and ids[0] not in found:
                found.append(ids[0])
        return found

    @cached_property
    def special_ids(self) -> dict[str, int]:
        """Tokens that stand for themselves wherever their name is spelled."""
        added = self._inner.get_added_tokens_decoder()
        return {token.content: i for i, token in added.items() if token.special}

    def spelled(self, text: str) -> str | None:
        """The special token that a text spells, if any: in a chat it would pass for the template's own."""
        return next((name for name in self.special_ids if name in text), None)

    @cached_property
    def _inner(self) -> HFTokenizer:
        """The tokenizer once more, for which special tokens in a text are what they are: those of a template
        mean them. `data.tokenizer.Tokenizer` takes them for text."""
        from tokenizers import Tokenizer as HFTokenizer

        return HFTokenizer.from_str(self.tokenizer.to_str())


def _config(folder: Path) -> dict[str, Any]:
    """The tokenizer's configuration; empty where there is none."""
    try:
        found = json.loads((folder / CONFIG_FILE).read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise FlopwiseError(f"{folder / CONFIG_FILE} is no JSON object; fetch the model again")
    return found


def _compiled(source: str) -> Any:
    """The template's program."""
    from jinja2 import TemplateError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Said(Extension):
        """`{% generation %}`, by which some templates mark what the assistant says: nothing to the text."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            """The body alone."""
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> None:
        raise TemplateError(message)

    def as_json(value: Any, **options: Any) -> str:
        """As JSON, without the HTML quoting of Jinja's own filter."""
        allowed = {k: v for k, v in options.items() if k in ("indent", "separators", "sort_keys")}
        return json.dumps(value, ensure_ascii=bool(options.get("ensure_ascii", False)), **allowed)

    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Said, loopcontrols])
    env.filters["tojson"] = as_json
    env.globals["raise_exception"] = refuse
    env.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
    try:
        return env.from_string(source)
    except TemplateError as e:
        raise FlopwiseError(f"chat template is no Jinja ({one_line(e, 120)}); mend or remove it") from e

"""Texts and chats out of other people's rows: checked, and what is wrong is named with what is expected."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from flopwise.errors import one_line

ROLES = ("system", "developer", "user", "assistant", "tool")
FIRST = ("system", "developer")
SHAREGPT = {"human": "user", "gpt": "assistant", "model": "assistant", "chatgpt": "assistant"}
"""Roles of the `conversations` layout; others are called as in `ROLES`."""

Text = str | tuple[dict[str, Any], ...]
"""Plain text, or the messages of a chat."""


class BadRow(Exception):
    """A row that is not as its layout says: `reason` is counted, `detail` what was found and expected."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason, self.detail = reason, detail


@dataclass
class Reading:
    """How a dataset is read: `notes` in the order in which they came up; `text_only`: its values can be text
    alone (CSV), so that true and false are words."""

    text_only: bool = False
    notes: dict[str, None] = field(default_factory=dict)

    def note(self, text: str) -> None:
        """Say once how something is read."""
        self.notes.setdefault(text)


def plain(value: Any, name: str, empty: bool = False) -> str:
    """A text.

    Raises:
        BadRow: it is none, is empty where that is not allowed, or holds bytes that are no UTF-8.
    """
    if not isinstance(value, str):
        raise BadRow("no text", f"{name} is {shown(value)}, must be text")
    try:
        value.encode()
    except UnicodeEncodeError as e:
        raise BadRow(
            "broken UTF-8", f"{name} has broken UTF-8 at character {e.start}, must be text"
        ) from None
    if not empty and not value.strip():
        raise BadRow(f"empty {name}", f"{name} is empty, must hold text")
    return value


def chat(
    value: Sequence[Any], name: str, reading: Reading, after: str = "", last: str = ""
) -> tuple[dict[str, Any], ...]:
    """The messages of a chat, checked. `after`: the role before the first; `last`: the one that must be last.

    Raises:
        BadRow: a message is none, has another role than can stand there, or has no content.
    """
    out: list[dict[str, Any]] = []
    for number, item in enumerate(value, 1):
        what = f"message {number} of {name}"
        if not isinstance(item, Mapping):
            raise BadRow("no message", f"{what} is {shown(item)}, must be a role and a content")
        message = {k: v for k, v in item.items() if v is not None}
        if "from" in message and "role" not in message:
            role = message.pop("from")
            message = {"role": SHAREGPT.get(role, role), "content": message.pop("value", None), **message}
            reading.note("from and value are read as role and content (human: user, gpt: assistant)")
        role = message.get("role")
        if role not in ROLES:
            raise BadRow("wrong role", f"{what} has role {shown(role)}, must be one of {', '.join(ROLES)}")
        before = out[-1]["role"] if out else after
        if role not in (allowed := _may_follow(before)):
            where = f"after {before}" if before else "first"
            raise BadRow("wrong order of roles", f"{what} is {role} {where}, must be {' or '.join(allowed)}")
        message["content"] = _content(message, what, reading)
        out.append(message)
    if not out:
        raise BadRow(f"empty {name}", f"{name} is empty, must be a list of messages")
    if last and out[-1]["role"] != last:
        raise BadRow("wrong order of roles", f"{name} ends with {out[-1]['role']}, must end with {last}")
    return tuple(out)


def _may_follow(role: str) -> tuple[str, ...]:
    return {
        "": (*FIRST, "user"), "system": ("user",), "developer": ("user",), "user": ("assistant",),
        "assistant": ("user", "tool"), "tool": ("assistant", "tool"),
    }[role]  # fmt: skip


def _content(message: dict[str, Any], what: str, reading: Reading) -> str:
    content = message.get("content")
    if isinstance(content, list | tuple) and all(isinstance(p, Mapping) and "text" in p for p in content):
        reading.note("parts of a message are put together")
        content = "".join(str(p["text"]) for p in content)
    if not content and message["role"] == "assistant" and message.get("tool_calls"):
        return ""
    if content is None:
        raise BadRow("no content", f"{what} has no content, must hold text")
    return plain(content, f"content of {what}", empty=message["role"] in (*FIRST, "tool"))


def shown(value: Any) -> str:
    """A value in an error."""
    if isinstance(value, str):
        return one_line(repr(value), 60)
    if value is None or isinstance(value, bool | int | float):
        return f"{json.dumps(value)}"
    return f"a {type(value).__name__}"


def is_chat(value: Any) -> bool:
    return isinstance(value, list | tuple)


def shared(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many items two sequences begin with alike."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))

"""Layouts of datasets: which columns hold what, and a row of each as one kind of record.

The layouts are those of TRL (https://huggingface.co/docs/trl/dataset_formats), plain or conversational, and a
few that are as common; a layout is told by its columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flopwise.data.messages import BadRow, Reading, Text, chat, is_chat, plain, shared, shown

KINDS = ("text", "demos", "pairs", "unpaired", "problems", "steps")


@dataclass(frozen=True)
class Layout:
    """Which columns hold what: `columns` and `optional` by what they are here, of `kind`."""

    kind: str
    columns: Mapping[str, str]
    optional: Mapping[str, str] = field(default_factory=dict)

    def fits(self, names: Sequence[str]) -> bool:
        """Whether a row with these columns can be read so."""
        return all(column in names for column in self.columns.values())

    def note(self, names: Sequence[str]) -> str:
        """How columns with other names than TRL's are read."""
        used = dict(self.columns) | {k: c for k, c in self.optional.items() if c in names}
        return ", ".join(f"{c} is read as {k}" for k, c in used.items() if c != k)


def _layout(kind: str, *same: str, optional: Sequence[str] = (), **columns: str) -> Layout:
    return Layout(kind, {name: name for name in same} | columns, {name: name for name in optional})


LAYOUTS = (
    _layout("pairs", "chosen", "rejected", optional=["prompt"]),
    _layout("steps", "prompt", "completions", "labels"),
    _layout("unpaired", "prompt", "completion", "label"),
    _layout("demos", "messages", optional=["answer"]),
    _layout("demos", "prompt", "completion", optional=["answer"]),
    _layout("demos", messages="conversations"),
    _layout("demos", prompt="instruction", completion="output", optional=["input"]),
    _layout("demos", prompt="instruction", completion="response", optional=["input"]),
    _layout("demos", "prompt", completion="response"),
    _layout("demos", prompt="query", completion="response"),
    _layout("demos", prompt="problem", completion="solution", optional=["answer"]),
    _layout("demos", prompt="question", completion="answer"),
    _layout("problems", "prompt", optional=["answer"]),
    _layout("problems", prompt="question", optional=["answer"]),
    _layout("problems", prompt="problem", optional=["answer"]),
    _layout("text", "text"),
    _layout("text", text="content"),
)
"""The first that fits is it."""


@dataclass(frozen=True)
class Row:
    """One row: `answers` is one completion, the chosen and the rejected, or the steps; `labels` go with one
    completion or with steps; `answer` is what a verifier compares with. A text is its one answer."""

    place: str
    prompt: Text = ""
    answers: tuple[Text, ...] = ()
    labels: tuple[bool, ...] = ()
    answer: str | None = None


def _either(value: Any, name: str, reading: Reading, prompt: Text = "", is_prompt: bool = False) -> Text:
    """A prompt or a completion, plain or a chat; a completion goes with its prompt."""
    if not is_chat(value):
        if not is_prompt and not isinstance(prompt, str):
            raise BadRow("plain and chat mixed", f"{name} is {shown(value)}, must be a chat as prompt is")
        return plain(value, name, empty=is_prompt)
    if is_prompt:
        found = chat(value, name, reading)
        if found[-1]["role"] not in ("user", "tool"):
            raise BadRow("wrong order of roles", f"{name} ends with {found[-1]['role']}, must end with user")
        return found
    if isinstance(prompt, str):
        raise BadRow("plain and chat mixed", f"{name} is a chat, must be text as prompt is")
    return chat(value, name, reading, after=prompt[-1]["role"], last="assistant")


def _label(value: Any, name: str, reading: Reading) -> bool:
    if reading.text_only and isinstance(value, str) and value.strip().lower() in ("true", "false"):
        return value.strip().lower() == "true"
    if not isinstance(value, bool):
        raise BadRow("wrong label", f"{name} is {shown(value)}, must be true or false")
    return value


def _text(place: str, value: dict[str, Any], reading: Reading) -> Row:
    return Row(place, answers=(plain(value["text"], "text"),))


def _answer(value: dict[str, Any]) -> str | None:
    """What a verifier compares with; a number is as good as its digits."""
    found = value.get("answer")
    return str(found) if isinstance(found, int | float | str) and not isinstance(found, bool) else None


def _demo(place: str, value: dict[str, Any], reading: Reading) -> Row:
    if "messages" in value:
        if not is_chat(value["messages"]):
            raise BadRow("no message", f"messages is {shown(value['messages'])}, must be a list of messages")
        whole = chat(value["messages"], "messages", reading, last="assistant")
        first = next(i for i, m in enumerate(whole) if m["role"] == "assistant")
        return Row(place, whole[:first], (whole[first:],), answer=_answer(value))
    prompt = _either(value["prompt"], "prompt", reading, is_prompt=True)
    if isinstance(prompt, str) and value.get("input"):
        prompt = f"{prompt}\n\n{plain(value['input'], 'input', empty=True)}"
        reading.note("input is put behind instruction after an empty line")
    return Row(
        place, prompt, (_either(value["completion"], "completion", reading, prompt),), answer=_answer(value)
    )


def _unpaired(place: str, value: dict[str, Any], reading: Reading) -> Row:
    label = _label(value["label"], "label", reading)
    prompt = _either(value["prompt"], "prompt", reading, is_prompt=True)
    return Row(place, prompt, (_either(value["completion"], "completion", reading, prompt),), (label,))


def _problem(place: str, value: dict[str, Any], reading: Reading) -> Row:
    prompt = _either(value["prompt"], "prompt", reading, is_prompt=True)
    if isinstance(prompt, str) and not prompt.strip():
        raise BadRow("empty prompt", "prompt is empty, must hold text")
    return Row(place, prompt, answer=_answer(value))


def _steps(place: str, value: dict[str, Any], reading: Reading) -> Row:
    prompt = plain(value["prompt"], "prompt", empty=True)
    steps, labels = value["completions"], value["labels"]
    for name, found in (("completions", steps), ("labels", labels)):
        if not is_chat(found) or not found:
            raise BadRow(f"empty {name}", f"{name} is {shown(found)}, must be a list with a value per step")
    if len(steps) != len(labels):
        raise BadRow("wrong label", f"{len(steps)} completions have {len(labels)} labels, must be as many")
    return Row(
        place, prompt, tuple(plain(s, f"step {i}") for i, s in enumerate(steps, 1)),
        tuple(_label(x, f"label {i}", reading) for i, x in enumerate(labels, 1)),
    )  # fmt: skip


def _pair(place: str, value: dict[str, Any], reading: Reading) -> Row:
    chosen, rejected = value["chosen"], value["rejected"]
    if is_chat(chosen) != is_chat(rejected):
        raise BadRow("plain and chat mixed", f"rejected is {shown(rejected)}, must be as chosen is")
    if is_chat(chosen) and _begins_with_prompt(chosen):
        if "prompt" in value:
            reading.note("chosen and rejected hold the prompt; the column prompt is not read")
        prompt, chosen, rejected = _shared_messages(chosen, rejected, reading)
    elif "prompt" in value:
        prompt = _either(value["prompt"], "prompt", reading, is_prompt=True)
        chosen = _either(chosen, "chosen", reading, prompt)
        rejected = _either(rejected, "rejected", reading, prompt)
    elif is_chat(chosen):
        raise BadRow("no prompt", "chosen begins with the assistant and there is no prompt, must be given")
    else:
        prompt, chosen, rejected = _shared_text(plain(chosen, "chosen"), plain(rejected, "rejected"), reading)
    if chosen == rejected:
        raise BadRow("chosen is rejected", "chosen and rejected are the same, must differ")
    return Row(place, prompt, (chosen, rejected))


def _begins_with_prompt(value: Sequence[Any]) -> bool:
    first = value[0] if value else None
    return isinstance(first, Mapping) and first.get("role", first.get("from")) not in ("assistant", "gpt")


def _shared_messages(chosen: Any, rejected: Any, reading: Reading) -> tuple[Text, Text, Text]:
    one, other = (
        chat(v, name, reading, last="assistant") for name, v in (("chosen", chosen), ("rejected", rejected))
    )
    n = min(shared(one, other), len(one) - 1, len(other) - 1)
    while n and one[n - 1]["role"] == "assistant":
        n -= 1
    if not n:
        raise BadRow("no shared prompt", "chosen and rejected share no first message, must share the prompt")
    reading.note("the prompt is the messages that chosen and rejected share")
    return one[:n], one[n:], other[n:]


def _shared_text(chosen: str, rejected: str, reading: Reading) -> tuple[Text, Text, Text]:
    """The shared beginning up to its last space or line break, so that no word is cut."""
    n = shared(chosen, rejected)
    while n and not chosen[n - 1].isspace():
        n -= 1
    while n and chosen[n - 1].isspace():  # the space belongs to the word behind it
        n -= 1
    if not chosen[n:].strip() or not rejected[n:].strip():
        raise BadRow("empty completion", "chosen is the beginning of rejected or the other way round")
    reading.note("the prompt is the words with which chosen and rejected begin")
    return chosen[:n], chosen[n:], rejected[n:]


READERS: dict[str, Callable[[str, dict[str, Any], Reading], Row]] = {
    "text": _text, "demos": _demo, "pairs": _pair, "unpaired": _unpaired, "problems": _problem,
    "steps": _steps,
}  # fmt: skip

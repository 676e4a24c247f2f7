"""Chats by a model's own template: the ids of `transformers`, and what the assistant says is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tokenizers")

from flopwise.data.chat import ChatTemplate
from flopwise.data.tokenizer import ByteTokenizer, Tokenizer, hub_tokenizer
from flopwise.errors import FlopwiseError

SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n' }}"
    "{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""Of HuggingFaceTB/SmolLM2-135M-Instruct, tokenizer_config.json."""
INST = (
    "{{ bos_token }}{%- for message in messages %}\n"
    "    {%- if message['role'] == 'user' %}{{ '[INST] ' + message['content'] | trim + ' [/INST]' }}\n"
    "    {%- elif message['role'] == 'assistant' %}"
    "{% generation %}{{ ' ' + message['content'] + eos_token }}{% endgeneration %}\n"
    "    {%- else %}{{ raise_exception('only user and assistant, not ' + message.role) }}\n"
    "    {%- endif %}\n{%- endfor %}"
)
"""Of the kind that begins with a token, marks what is generated, and refuses roles."""
ODD = (
    "{% for message in messages %}{% if loop.index > 3 %}{% break %}{% endif %}"
    "<|im_start|>{{ message | tojson }}<|im_end|>\n{% endfor %}"
)
"""With a filter and a loop control."""
CHATS = [
    [("user", "What is 2 + 3?"), ("assistant", "5")],
    [
        ("system", "Be brief."), ("user", "hi"), ("assistant", "yo"), ("user", "ünï ♞?"),
        ("assistant", "\nno\n\n"),
    ],
    [("user", " spaced "), ("assistant", "a\nb")],
]  # fmt: skip


def chat(turns: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Path:
    """A tokenizer with the special tokens of chat models, as `transformers` reads it."""
    from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as HF

    inner = HF(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    inner.train_from_iterator(["user\nassistant\nsystem\n\nhelpful AI"] * 3, trainer)
    names = ["<s>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    inner.add_special_tokens([AddedToken(n, special=True) for n in names])
    path = tmp_path_factory.mktemp("chat")
    inner.save(str(path / "tokenizer.json"))
    return path


def made(folder: Path, tmp_path: Path, template: Any, **config: Any) -> ChatTemplate:
    """A model's folder with that template in its tokenizer_config.json, opened."""
    said = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>", "chat_template": template, **config,
    }  # fmt: skip
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(said))
    return ChatTemplate.load(tmp_path, hub_tokenizer(str(tmp_path)))


@pytest.mark.parametrize("turns", CHATS)
@pytest.mark.parametrize("template", [SMOLLM2, INST, ODD])
def test_ids_are_those_of_transformers(folder: Path, tmp_path: Path, template: str, turns: Any) -> None:
    transformers = pytest.importorskip("transformers")
    ours, messages = made(folder, tmp_path, template), chat(turns)
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    if template == INST and turns[0][0] == "system":
        with pytest.raises(FlopwiseError, match="chat template: only user and assistant, not system"):
            ours.render(messages)
        return
    for part, answer in ((messages, False), (messages[:-1], True)):
        assert ours.render(part, answer) == theirs.apply_chat_template(
            part, tokenize=False, add_generation_prompt=answer
        )
        expected = theirs.apply_chat_template(part, add_generation_prompt=answer, return_dict=True)[
            "input_ids"
        ]
        if answer:
            assert ours.prompt_ids(part) == expected
        elif template != ODD:
            assert ours.encode(part).ids == expected


def test_the_assistants_turns_are_learned_with_their_ends_and_nothing_else(
    folder: Path, tmp_path: Path
) -> None:
    ours = made(folder, tmp_path, SMOLLM2)
    end = ours.special_ids["<|im_end|>"]
    assert ours.stop_ids == [end]
    for turns in CHATS:
        encoded = ours.encode(chat(turns))
        runs: list[list[int]] = []
        for i, said in enumerate(encoded.said):
            if said and not (i and encoded.said[i - 1]):
                runs.append([])
            if said:
                runs[-1].append(encoded.ids[i])
        spoken = [content for role, content in turns if role == "assistant"]
        assert all(run[-1] == end and end not in run[:-1] for run in runs) and len(runs) == len(spoken)
        # "\n" at a turn's start is one token with the line break of the template, which is not learned.
        assert [ours.tokenizer.decode(run).lstrip("\n") for run in runs] == [s.lstrip("\n") for s in spoken]
    last = ours.encode(chat(CHATS[1]), first=4)
    assert sum(last.said) < sum(ours.encode(chat(CHATS[1])).said)
    assert not any(last.said[: len(ours.prompt_ids(chat(CHATS[1])[:2]))])


def test_a_template_that_marks_what_is_generated_agrees(folder: Path, tmp_path: Path) -> None:
    """`transformers` gives a mask for templates with {% generation %}: the same one."""
    transformers = pytest.importorskip("transformers")
    ours, messages = made(folder, tmp_path, INST), chat(CHATS[0] + CHATS[2])
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path)).apply_chat_template(
        messages, return_dict=True, return_assistant_tokens_mask=True
    )
    encoded = ours.encode(messages)
    assert encoded.ids == theirs["input_ids"] and list(map(int, encoded.said)) == theirs["assistant_masks"]


def test_templates_that_rewrite_earlier_turns_are_refused(folder: Path, tmp_path: Path) -> None:
    forgets = "{% for m in messages[-2:] %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    with pytest.raises(FlopwiseError, match=r"up to message 2 is no beginning .*cannot be told"):
        made(folder, tmp_path, forgets).encode(chat(CHATS[1][1:]))


def test_without_a_template_chatml_is_used_and_a_turn_ends_where_sampling_does(
    folder: Path, tmp_path: Path
) -> None:
    ours = made(folder, tmp_path, None, eos_token="<|endoftext|>")
    assert not ours.own and ours.render(chat(CHATS[0]), answer=True) == (
        "<|im_start|>user\nWhat is 2 + 3?<|im_end|>\n<|im_start|>assistant\n5<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert ours.stop_ids == [ours.special_ids["<|endoftext|>"], ours.special_ids["<|im_end|>"]]
    small = ChatTemplate(ByteTokenizer())
    assert small.render(chat(CHATS[0])).endswith("assistant\n5<eos>\n") and small.stop_ids == [0]
    encoded = small.encode(chat(CHATS[0]))
    assert [i for i, said in zip(encoded.ids, encoded.said, strict=True) if said] == [ord("5") + 2, 0]
    small.tokenizer.save(tmp_path)
    small.save(tmp_path)
    again = ChatTemplate.load(tmp_path, Tokenizer.load(tmp_path))
    assert again.own and again.encode(chat(CHATS[1])) == small.encode(chat(CHATS[1]))


def test_templates_are_found_and_kept(folder: Path, tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "{{ bos_token }}yes"}]
    ours = made(folder, tmp_path, named)
    assert ours.render(chat(CHATS[0])) == "<s>yes"
    (tmp_path / "other").mkdir()
    ours.tokenizer.save(tmp_path / "other")
    ours.save(tmp_path / "other")
    kept = ChatTemplate.load(tmp_path / "other", hub_tokenizer(str(tmp_path / "other")))
    assert kept.render(chat(CHATS[0])) == "<s>yes"
    (tmp_path / "chat_template.jinja").write_text("file")
    assert ChatTemplate.load(tmp_path, ours.tokenizer).render([]) == "file"
    (tmp_path / "tokenizer_config.json").write_text("[")
    with pytest.raises(FlopwiseError, match="is no JSON object"):
        ChatTemplate.load(tmp_path, ours.tokenizer)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for %}", "is no Jinja"),
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ nothing.at.all }}", "nothing"),
    ],
)
def test_templates_are_somebody_elses_code(folder: Path, tmp_path: Path, template: str, message: str) -> None:
    with pytest.raises(FlopwiseError, match=message) as error:
        made(folder, tmp_path, template).render(chat(CHATS[0]))
    assert "\n" not in str(error.value)


def test_texts_that_spell_special_tokens_are_noticed(folder: Path, tmp_path: Path) -> None:
    ours = made(folder, tmp_path, SMOLLM2)
    assert ours.spelled("a <|im_end|> b") == "<|im_end|>" and ours.spelled("a < b") is None

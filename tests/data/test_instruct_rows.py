"""Rows of TRL's layouts and their relatives; what is wrong with a row is one line that names it."""

from __future__ import annotations

import gzip
import io
import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from flopwise.data.instruct_rows import Row, Rows, source_files, source_sha256
from flopwise.errors import FlopwiseError

ASK = [{"role": "user", "content": "What color is the sky?"}]
BLUE = [{"role": "assistant", "content": "It is blue."}]
GREEN = [{"role": "assistant", "content": "It is green."}]
"""The examples of TRL's page are these."""

GOOD: list[tuple[dict[str, Any], str, Any, Any]] = [
    ({"text": "The sky is blue."}, "text", "", ("The sky is blue.",)),
    ({"messages": ASK + BLUE}, "demos", tuple(ASK), (tuple(BLUE),)),
    ({"prompt": "The sky is", "completion": " blue."}, "demos", "The sky is", (" blue.",)),
    ({"prompt": ASK, "completion": BLUE}, "demos", tuple(ASK), (tuple(BLUE),)),
    ({"prompt": "a", "chosen": " b", "rejected": " c"}, "pairs", "a", (" b", " c")),
    ({"prompt": ASK, "chosen": BLUE, "rejected": GREEN}, "pairs", tuple(ASK), (tuple(BLUE), tuple(GREEN))),
    (
        {"chosen": "The sky is blue.", "rejected": "The sky is black."},
        "pairs", "The sky is", (" blue.", " black."),
    ),
    ({"chosen": ASK + BLUE, "rejected": ASK + GREEN}, "pairs", tuple(ASK), (tuple(BLUE), tuple(GREEN))),
    ({"prompt": "a", "completion": "b", "label": False}, "unpaired", "a", ("b",)),
    ({"prompt": ASK, "completion": BLUE, "label": True}, "unpaired", tuple(ASK), (tuple(BLUE),)),
    ({"prompt": "The sky is"}, "problems", "The sky is", ()),
    ({"prompt": ASK, "answer": 12}, "problems", tuple(ASK), ()),
    ({"prompt": "p", "completions": ["a", "b"], "labels": [True, False]}, "steps", "p", ("a", "b")),
    ({"instruction": "add", "input": "1 2", "output": "3"}, "demos", "add\n\n1 2", ("3",)),
    ({"instruction": "add", "input": "", "output": "3"}, "demos", "add", ("3",)),
    ({"question": "1+1?", "answer": "2"}, "demos", "1+1?", ("2",)),
    ({"problem": "1+1?", "solution": "1+1=2", "answer": "2"}, "demos", "1+1?", ("1+1=2",)),
    (
        {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}]},
        "demos", ({"role": "user", "content": "hi"},), (({"role": "assistant", "content": "yo"},),),
    ),
    (
        {"prompt": "What", "chosen": ASK + BLUE, "rejected": ASK + GREEN},
        "pairs", tuple(ASK), (tuple(BLUE), tuple(GREEN)),
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}, *BLUE]},
        "demos", ({"role": "user", "content": "hi"},), (tuple(BLUE),),
    ),
]  # fmt: skip


def write(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(("row", "kind", "prompt", "answers"), GOOD)
def test_layouts(tmp_path: Path, row: dict[str, Any], kind: str, prompt: Any, answers: Any) -> None:
    path = write(tmp_path / "a.jsonl", row, row)
    rows = Rows(path)
    found = list(rows)
    assert rows.kind == kind and rows.n_rows == 2 and found[0].place == f"{path}:1"
    assert (found[0].prompt, found[0].answers) == (prompt, answers)


def test_what_else_a_row_says(tmp_path: Path) -> None:
    def one(row: dict[str, Any]) -> tuple[Row, Rows]:
        rows = Rows(write(tmp_path / "a.jsonl", row))
        return next(iter(rows)), rows

    assert one({"prompt": "a", "completion": "b", "label": False})[0].labels == (False,)
    assert one({"prompt": "p", "completions": ["a", "b"], "labels": [True, False]})[0].labels == (True, False)
    assert one({"prompt": ASK, "answer": 12})[0].answer == "12"
    row, rows = one({"question": "1+1?", "answer": "2", "source": "x", "id": 3})
    assert list(rows.reading.notes) == ["question is read as prompt, answer is read as completion"]
    assert rows.ignored == ["source", "id"] and row.answer is None
    notes = list(
        one({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]})[
            1
        ].reading.notes
    )
    assert notes[0] == "conversations is read as messages" and "human: user" in notes[1]
    row = next(iter(Rows(write(tmp_path / "q.jsonl", {"question": "1+1?", "answer": 2}), "problems")))
    assert row == Row(row.place, "1+1?", answer="2")


BAD: list[tuple[dict[str, Any], Any, str]] = [
    (
        {"prompt": "a", "completion": "b"},
        {"prompt": "a"},
        "has no column completion, only prompt; demos need prompt, completion",
    ),
    (
        {"prompt": "a", "completion": "b"},
        {"prompt": "a", "completion": " \n"},
        "completion is empty, must hold text",
    ),
    (
        {"prompt": "a", "completion": "b"},
        {"prompt": "a", "completion": None},
        "completion is null, must hold a value",
    ),
    ({"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": 3}, "completion is 3, must be text"),
    (
        {"prompt": "a", "completion": "b"},
        {"prompt": "a", "completion": BLUE},
        "completion is a chat, must be text as prompt is",
    ),
    (
        {"prompt": "a", "completion": "b"},
        {"prompt": ASK, "completion": "b"},
        "completion is 'b', must be a chat as prompt is",
    ),
    (
        {"prompt": "a", "completion": "b"},
        {"prompt": "a", "completion": "b\udcff"},
        "completion has broken UTF-8 at character 1",
    ),
    ({"prompt": "a", "completion": "b"}, ["a", "b"], "no field .a list, no row of fields., must be a row"),
    (
        {"prompt": "a", "completion": "b", "label": True},
        {"prompt": "a", "completion": "b", "label": "good"},
        "label is 'good', must be true or false",
    ),
    (
        {"prompt": "a", "completion": "b", "label": True},
        {"prompt": "a", "completion": "b", "label": 1},
        "label is 1, must be true or false",
    ),
    (
        {"messages": ASK + BLUE},
        {"messages": [{"role": "asistant", "content": "x"}]},
        "message 1 of messages has role 'asistant', must be one of system",
    ),
    (
        {"messages": ASK + BLUE},
        {"messages": ASK + ASK},
        "message 2 of messages is user after user, must be assistant",
    ),
    (
        {"messages": ASK + BLUE},
        {"messages": BLUE},
        "message 1 of messages is assistant first, must be system or developer or user",
    ),
    (
        {"messages": ASK + BLUE},
        {"messages": [*ASK, {"role": "system", "content": "x"}]},
        "message 2 of messages is system after user",
    ),
    ({"messages": ASK + BLUE}, {"messages": ASK}, "messages ends with user, must end with assistant"),
    ({"messages": ASK + BLUE}, {"messages": []}, "messages is empty, must be a list of messages"),
    ({"messages": ASK + BLUE}, {"messages": "hi"}, "messages is 'hi', must be a list of messages"),
    (
        {"messages": ASK + BLUE},
        {"messages": ["hi"]},
        "message 1 of messages is 'hi', must be a role and a content",
    ),
    (
        {"messages": ASK + BLUE},
        {"messages": [*ASK, {"role": "assistant"}]},
        "message 2 of messages has no content",
    ),
    (
        {"messages": ASK + BLUE},
        {"messages": [*ASK, {"role": "assistant", "content": ""}]},
        "content of message 2 of messages is empty",
    ),
    ({"prompt": ASK}, {"prompt": ASK + BLUE}, "prompt ends with assistant, must end with user"),
    ({"prompt": "a"}, {"prompt": " "}, "prompt is empty, must hold text"),
    (
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        {"prompt": "a", "chosen": "b", "rejected": "b"},
        "chosen and rejected are the same, must differ",
    ),
    (
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        {"prompt": "a", "chosen": "b", "rejected": BLUE},
        "rejected is a list, must be as chosen is",
    ),
    ({"chosen": "b", "rejected": "c"}, {"chosen": "b ", "rejected": "b c"}, "is the beginning of"),
    (
        {"chosen": ASK + BLUE, "rejected": ASK + GREEN},
        {"chosen": BLUE, "rejected": GREEN},
        "there is no prompt, must be given",
    ),
    (
        {"chosen": ASK + BLUE, "rejected": ASK + GREEN},
        {"chosen": ASK + BLUE, "rejected": [{"role": "user", "content": "?"}, *BLUE]},
        "share no first message",
    ),
    (
        {"prompt": "p", "completions": ["a"], "labels": [True]},
        {"prompt": "p", "completions": ["a"], "labels": [True, False]},
        "1 completions have 2 labels, must be as many",
    ),
    (
        {"prompt": "p", "completions": ["a"], "labels": [True]},
        {"prompt": "p", "completions": ["a"], "labels": [1]},
        "label 1 is 1, must be true or false",
    ),
    (
        {"prompt": "p", "completions": ["a"], "labels": [True]},
        {"prompt": "p", "completions": [], "labels": []},
        "completions is a list, must be a list with a value per step",
    ),
    (
        {"prompt": "p", "completions": ["a"], "labels": [True]},
        {"prompt": "p", "completions": ["a", ""], "labels": [True, True]},
        "step 2 is empty, must hold text",
    ),
]


@pytest.mark.parametrize(("good", "bad", "message"), BAD)
def test_bad_rows_name_file_row_finding_and_expectation(
    tmp_path: Path, good: Any, bad: Any, message: str
) -> None:
    path = write(tmp_path / "a.jsonl", good, bad, good)
    with pytest.raises(FlopwiseError, match=message) as error:
        list(Rows(path))
    assert f"{path}:2: " in str(error.value) and "\n" not in str(error.value)
    rows = Rows(path, drop=True)
    assert len(list(rows)) == 2 and sum(rows.skipped.counts.values()) == 1 and rows.n_rows == 3
    assert f"{path}:2" in next(iter(rows.skipped.first.values()))


def test_broken_bytes_and_broken_json_are_rows_too(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'{"prompt": "a", "completion": "b"}\n{"prompt": "a", "completion": "\xff"}\n{"prompt"\n'
    )
    with pytest.raises(FlopwiseError, match=r"a.jsonl:2: completion has broken UTF-8"):
        list(Rows(str(path)))
    rows = Rows(str(path), drop=True)
    assert len(list(rows)) == 1 and rows.skipped.counts == {"broken UTF-8": 1, "broken JSON": 1}


def test_nothing_that_can_be_read_is_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"foo": 1})
    with pytest.raises(
        FlopwiseError, match=r"has columns foo, which are no layout; rename them to one of: chosen"
    ):
        list(Rows(path))
    with pytest.raises(FlopwiseError, match=r"no layout of pairs; rename them to one of: chosen\+rejected$"):
        list(Rows(write(tmp_path / "b.jsonl", {"text": "a"}), "pairs"))
    with pytest.raises(
        FlopwiseError, match=r"has no good row in 2: 2 times empty completion, first .*c.jsonl:1"
    ):
        list(Rows(write(tmp_path / "c.jsonl", *[{"prompt": "a", "completion": ""}] * 2), drop=True))
    (tmp_path / "d.jsonl").write_text("")
    with pytest.raises(FlopwiseError, match="has no good row in 0: no rows"):
        list(Rows(str(tmp_path / "d.jsonl")))
    with pytest.raises(FlopwiseError, match=r"options .split. are for datasets of the hub"):
        list(Rows(path, options={"split": "train"}))


def test_every_kind_of_file(tmp_path: Path) -> None:
    import duckdb

    rows = [{"prompt": f"p{i}", "completion": 'c, "d"\n', "label": bool(i % 2)} for i in range(5)]
    lines = "".join(json.dumps(r) + "\n" for r in rows)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=1))
    out = io.StringIO()
    import csv

    writer = csv.DictWriter(out, ["prompt", "completion", "label"])
    writer.writeheader()
    writer.writerows(rows)
    (tmp_path / "a.csv").write_text(out.getvalue())
    (tmp_path / "a.jsonl").write_text(lines)
    duckdb.sql(f"COPY (FROM '{tmp_path}/a.jsonl') TO '{tmp_path}/a.parquet'")
    for name in ("a.jsonl.gz", "a.json", "a.csv", "a.parquet", "a.jsonl"):
        found = list(Rows(str(tmp_path / name)))
        assert [(r.prompt, r.answers, r.labels) for r in found] == [
            (r["prompt"], (r["completion"],), (r["label"],)) for r in rows
        ], name
    (tmp_path / "b.csv").write_text("prompt,completion,label\na,b,yes\n")
    with pytest.raises(FlopwiseError, match="label is 'yes', must be true or false"):
        list(Rows(str(tmp_path / "b.csv")))
    (tmp_path / "c.csv").write_text("prompt,completion\na\nb,c\n")
    with pytest.raises(FlopwiseError, match=r"c.csv:2: .*1 fields, 2 columns"):
        list(Rows(str(tmp_path / "c.csv")))


def test_chats_in_parquet(tmp_path: Path) -> None:
    import duckdb

    write(tmp_path / "a.jsonl", {"messages": ASK + BLUE}, {"messages": ASK + GREEN})
    duckdb.sql(f"COPY (FROM '{tmp_path}/a.jsonl') TO '{tmp_path}/a.parquet'")
    found = list(Rows(str(tmp_path / "a.parquet")))
    assert [r.answers for r in found] == [(tuple(BLUE),), (tuple(GREEN),)]


def test_saved_datasets_and_the_hub(tmp_path: Path, monkeypatch: Any) -> None:
    """With a stand-in for `datasets`, which gives its rows as mappings by split."""
    rows = [{"prompt": ASK, "completion": BLUE}, {"prompt": ASK, "completion": GREEN}]
    fake = types.SimpleNamespace(
        load_from_disk=lambda path: {"train": rows, "test": rows[:1]},
        load_dataset=lambda name, config, streaming: {"train": rows},
    )
    monkeypatch.setitem(sys.modules, "datasets", fake)
    monkeypatch.setattr("flopwise.data.hub.reached", lambda: True)
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "dataset_dict.json").write_text("{}")
    path = str(tmp_path / "saved")
    assert [r.answers for r in Rows(path)] == [(tuple(BLUE),), (tuple(GREEN),)]
    assert len(list(Rows(path, options={"split": "test"}))) == 1
    assert next(iter(Rows("hub:org/name"))).place == "org/name:1"
    assert source_sha256("hub:org/name") is None and source_sha256(path) is not None


def test_hashes_tell_a_changed_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"text": "one"})
    before = source_sha256(path)
    assert source_files(path)[0]["bytes"] == 16
    rows = Rows(path)
    list(rows)
    write(tmp_path / "a.jsonl", {"text": "two"})
    assert source_sha256(path) != before
    again = Rows(path)
    list(again)
    assert again.digest != rows.digest

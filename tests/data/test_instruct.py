"""The data step of a dataset: tokens for one model, splits by prompt, everything left out is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tokenizers")
pytest.importorskip("torch")

from flopwise.data.chat import CHATML
from flopwise.data.instruct import Instructions, is_dataset, run_step
from flopwise.data.instruct_rows import source_sha256
from flopwise.data.tokenizer import ByteTokenizer
from flopwise.errors import FlopwiseError
from flopwise.models import families
from flopwise.models.config import ModelConfig
from flopwise.records.folder import RunFolder
from flopwise.records.store import RunStore

CONTEXT = 64


@pytest.fixture
def init(tmp_path: Path) -> RunFolder:
    """A run whose model reads bytes, with a context of 64."""
    folder = RunStore(tmp_path / "runs").prepare("pretrain", "m", {"x": 1}, {}, 0, "base")
    (folder.path / "model").mkdir(exist_ok=True)
    ByteTokenizer().save(folder.path / "model")
    cfg = ModelConfig(258, 16, 1, 2, 1, 16, max_seq_len=CONTEXT)
    (folder.path / "model" / "config.json").write_text(json.dumps(families.to_hf(cfg)))
    return folder


class Prepare:
    """Run the step on rows; opened."""

    def __init__(self, tmp_path: Path, init: RunFolder):
        self.tmp_path, self.init = tmp_path, init
        self.n = 0

    def __call__(self, rows: list[dict[str, Any]], seed: int = 0, **spec: Any) -> Instructions:
        self.path = self.tmp_path / "rows.jsonl"
        self.path.write_text("".join(json.dumps(r) + "\n" for r in rows))
        self.n += 1
        spec = {"path": str(self.path), **spec}
        self.folder = RunStore(self.tmp_path / "runs").prepare(
            "data", "dataset", spec, {}, seed, f"d{self.n}"
        )
        run_step(self.folder, {"init": self.init}, lambda share: None)
        return Instructions(self.folder.path)


@pytest.fixture
def prepare(tmp_path: Path, init: RunFolder) -> Prepare:
    return Prepare(tmp_path, init)


DEMOS = [{"prompt": f"{i}+1=", "completion": f"{i + 1}", "answer": str(i + 1)} for i in range(40)]


def text_of(ids: tuple[int, ...]) -> str:
    return ByteTokenizer().decode(ids)


def test_prompts_and_completions(prepare: Prepare) -> None:
    data = prepare(DEMOS, heldout_fraction=0.25)
    train, held = data.examples("train"), data.examples("heldout")
    assert len(train) + len(held) == 40 and 3 <= len(held) <= 17
    for e in train:
        assert text_of(e.completion) == str(int(text_of(e.prompt)[:-3]) + 1)
        assert e.completion[-1] == data.eos_id and e.weights is None
    assert train.lengths.tolist() == [len(e) for e in train] and train[:2] == [train[0], train[1]]
    assert train[-1] == train[len(train) - 1]
    assert {d.prompt for d in data.demos()} == {text_of(e.prompt) for e in train}
    val, test, both = (data.problems(n) for n in ("val", "test", "heldout"))
    assert {p.key for p in val} | {p.key for p in test} == {p.key for p in both}
    assert not {p.key for p in val} & {p.key for p in test}
    assert all(text_of(p.prompt_ids) == p.prompt and p.answer == str(int(p.prompt[:-3]) + 1) for p in both)
    assert data.problems("rl") == data.problems("train")
    with pytest.raises(
        FlopwiseError, match=r"rows.jsonl was prepared without a task; set task in its options"
    ):
        data.open_task()
    assert is_dataset(data.path) and data.kind == "demos" and data.tokenizer.vocab_size == 258
    record = prepare.folder.record()
    assert record.status == "done" and record.metrics["train_rows"].value == len(train)
    assert data.about["files"][0]["name"] == "rows.jsonl" and len(data.about["files"][0]["sha256"]) == 64


def test_the_same_rows_are_held_out_whatever_else_is_there(prepare: Prepare) -> None:
    few = {p.prompt for p in prepare(DEMOS[:30], heldout_fraction=0.3).problems("heldout")}
    again = {p.prompt for p in prepare(DEMOS[:30], heldout_fraction=0.3).problems("heldout")}
    more = {p.prompt for p in prepare(DEMOS, heldout_fraction=0.3).problems("heldout")}
    other = {p.prompt for p in prepare(DEMOS, seed=1, heldout_fraction=0.3).problems("heldout")}
    assert few == again and few <= more and more != other


def test_one_prompt_is_on_one_side_and_duplicates_are_told(prepare: Prepare) -> None:
    rows = [{"prompt": f"p{i % 10}", "completion": f"c{i % 20}"} for i in range(60)]
    data = prepare(rows, heldout_fraction=0.3)
    sides = [{text_of(e.prompt) for e in data.examples(s)} for s in ("train", "heldout")]
    assert not sides[0] & sides[1] and all(sides) and data.about["duplicates"] == 40
    assert len(data.problems("train")) == len(sides[0])
    assert not len(prepare(rows, heldout_fraction=0).examples("heldout"))


def test_chats_learn_each_of_the_assistants_turns(prepare: Prepare) -> None:
    turns = [("user", "a"), ("assistant", "bc"), ("user", "d"), ("assistant", "e")]
    row = {"messages": [{"role": r, "content": c} for r, c in turns]}
    data = prepare([row], heldout_fraction=0, max_length=None, over_long="truncate")
    assert data.about["cut"] == 1  # 64 bytes are not all of it
    (e,) = data.examples()
    assert e.weights is not None and len(e) == CONTEXT
    learned = [i for i, w in zip(e.completion, e.weights, strict=True) if w]
    assert text_of(tuple(learned)) == "bc" and learned[-1] == data.eos_id
    assert text_of(e.prompt).endswith("<|im_start|>assistant\n")
    assert data.stop_ids == [0] and data.chat.render([]) == "" and "turn_end" in CHATML
    assert data.problems("train")[0].prompt == "a"


def test_plain_rows_can_be_made_a_chat(prepare: Prepare) -> None:
    data = prepare(DEMOS[:2], heldout_fraction=0, as_chat=True)
    e = data.examples()[0]
    assert e.prompt[-len("assistant\n") :] == tuple(ByteTokenizer().encode("assistant\n"))
    assert text_of(e.completion) == "1" and e.completion[-1] == 0
    assert data.problems("train")[0].prompt == "0+1=" and data.problems("train")[0].prompt_ids == e.prompt
    assert data.demos()[0].completion == "1"


def test_pairs_judged_rows_and_steps(prepare: Prepare) -> None:
    pairs = prepare([{"prompt": "p", "chosen": "yes", "rejected": "no"}] * 3, heldout_fraction=0)
    found = pairs.pairs()
    assert [(text_of(p.chosen.completion), text_of(p.rejected.completion)) for p in found] == [
        ("yes", "no")
    ] * 3
    assert found[0].chosen.prompt == found[0].rejected.prompt and found.lengths.tolist() == [9] * 3
    assert [text_of(e.completion) for e in pairs.examples()] == ["yes"] * 3
    assert pairs.demos()[0].completion == "yes" and len(pairs.problems("train")) == 1
    with pytest.raises(FlopwiseError, match="are pairs, which have no unpaired; give others, or set format"):
        pairs.unpaired()
    judged = prepare(
        [{"prompt": "p", "completion": c, "label": c == "yes"} for c in ("yes", "no")], heldout_fraction=0
    )
    assert [(text_of(j.example.completion), j.label) for j in judged.unpaired()] == [
        ("yes", True),
        ("no", False),
    ]
    assert [text_of(e.completion) for e in judged.examples()] == ["yes"] and len(judged.demos()) == 1
    steps = prepare(
        [
            {"prompt": "p", "completions": ["one", "two", "x"], "labels": [True, True, False]},
            {"prompt": "q", "completions": ["one"], "labels": [True]},
        ],
        heldout_fraction=0,
    ).steps()
    whole = steps[0].example.prompt + steps[0].example.completion
    assert text_of(whole) == "pone\ntwo\nx\n" and steps[0].labels == (True, True, False)
    assert [text_of(whole[: end + 1]) for end in steps[0].ends] == ["pone\n", "pone\ntwo\n", "pone\ntwo\nx\n"]
    assert steps[1].ends == (4,) and steps[1].labels == (True,)


def test_a_tasks_rule_judges_the_rows(prepare: Prepare) -> None:
    data = prepare(DEMOS, heldout_fraction=0.25, task="table:rows.jsonl,rule=number")
    judge = data.open_task()
    problem = data.problems("val")[0]
    row = judge.from_row({"prompt": problem.prompt, "answer": problem.answer})
    assert judge.verify(row, f" {problem.answer}") and not judge.verify(row, " 99")


def test_texts_become_windows_in_which_each_token_is_predicted_once(prepare: Prepare) -> None:
    texts = ["short", "long " * 60]
    data = prepare([{"text": t} for t in texts], heldout_fraction=0, max_length=50)
    said = ByteTokenizer().decode([i for e in data.examples() for i in e.completion])
    assert said == "".join(texts)
    assert all(len(e) <= 50 and len(e.prompt) == 1 and e.weights is None for e in data.examples())
    assert data.examples()[0].prompt == (data.eos_id,) and data.examples()[0].completion[-1] == data.eos_id
    with pytest.raises(FlopwiseError, match="are text, which have no prompts"):
        data.problems("train")


def test_too_long_rows_are_an_error_or_told(prepare: Prepare) -> None:
    rows = [*DEMOS[:4], {"prompt": "a", "completion": "b" * 80}, {"prompt": "c" * 70, "completion": "d"}]
    with pytest.raises(
        FlopwiseError, match=r"rows.jsonl:5: 82 tokens, must be at most 64 .max_length.; set over_long"
    ):
        prepare(rows)
    data = prepare(rows, heldout_fraction=0, over_long="drop")
    assert len(data.examples()) == 4 and data.about["skipped"]["too long"]["documents"] == 2
    assert "rows.jsonl:5, 82 tokens" in data.about["skipped"]["too long"]["first"]
    data = prepare(rows, heldout_fraction=0, over_long="truncate")
    assert len(data.examples()) == 5 and data.about["cut"] == 1
    assert len(data.examples()[4]) == 64 and data.examples()[4].completion[-1] != data.eos_id
    assert data.about["skipped"]["too long"]["documents"] == 1  # nothing of its completion fits
    assert prepare.folder.record().metrics["rows_left_out"].value == 1
    steps = [{"prompt": "p", "completions": ["a" * 30] * 3, "labels": [True] * 3}]
    found = prepare(steps, heldout_fraction=0, over_long="truncate").steps()[0]
    assert found.ends == (31, 62) and found.labels == (True, True)
    with pytest.raises(FlopwiseError, match=r"no row of .* is left of 1: 1 too long"):
        prepare([{"prompt": "c" * 70}], over_long="truncate")


def test_settings_and_rows_that_do_not_fit_are_one_line(prepare: Prepare, tmp_path: Path) -> None:
    for spec, message in (
        ({"max_length": 65}, "max_length is 65, the model's context is 64; must be at most that"),
        ({"max_length": 1}, "dataset: max_length is 1: input should be greater than or equal to 2; see docs"),
        ({"over_long": "cut"}, "dataset: over_long is 'cut'"),
        ({"colour": "red"}, "dataset: colour is 'red': extra inputs are not permitted"),
        ({"sha256": "0" * 64}, "has changed since it was asked for"),
        ({"path": "nowhere.jsonl"}, "is no file, folder or pattern"),
        ({"task": "countdown"}, "task countdown judges no rows with answers; give table:ROWS"),
    ):
        with pytest.raises(FlopwiseError, match=message) as error:
            prepare(DEMOS, **spec)
        assert "\n" not in str(error.value)
    assert len(prepare(DEMOS, sha256=source_sha256(str(prepare.path)), max_rows=7).examples()) <= 7
    with pytest.raises(FlopwiseError, match=r"rows.jsonl:2: has no answer, which the task's verifier needs"):
        prepare([{"prompt": "a", "answer": 1}, {"prompt": "b"}], task="table:rows,rule=exact")
    with pytest.raises(FlopwiseError, match=r"rows.jsonl:1: .*the answer is 'one', must be one number"):
        prepare([{"prompt": "a", "answer": "one"}], task="table:rows,rule=number")
    spelled = [{"messages": [{"role": "user", "content": "a<eos>"}, {"role": "assistant", "content": "b"}]}]
    with pytest.raises(FlopwiseError, match=r"rows.jsonl:1: message 1 spells the special token <eos>"):
        prepare(spelled)
    with pytest.raises(FlopwiseError, match=r"has no readable about.json"):
        Instructions(tmp_path)
    assert not is_dataset(tmp_path)


def test_a_killed_step_starts_over_and_damage_is_seen(prepare: Prepare) -> None:
    data = prepare(DEMOS)
    first = {f.name: f.read_bytes() for f in data.path.iterdir() if f.name not in ("run.json", "spec.yaml")}
    (data.path / ".rows.tmp").write_text("half")
    run_step(prepare.folder, {"init": prepare.init}, lambda share: None)
    assert first == {f.name: f.read_bytes() for f in data.path.iterdir() if f.name in first}
    assert not list(data.path.glob(".*"))
    path = data.path / "train.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(FlopwiseError, match=r"train.safetensors cannot be read .*; run the data step again"):
        data.examples()


def test_without_a_model_the_tokenizer_is_that_of_the_data(prepare: Prepare, tmp_path: Path) -> None:
    folder = RunStore(tmp_path / "runs").prepare("data", "corpus", {"y": 2}, {}, 0, "corpus")
    ByteTokenizer().save(folder.path)
    spec = {"path": str(tmp_path / "rows.jsonl")}
    prepare(DEMOS)
    for more, fails in (({}, True), ({"max_length": 30}, False)):
        step = RunStore(tmp_path / "runs").prepare("data", "dataset", spec | more, {}, 0, f"w{fails}")
        if fails:
            with pytest.raises(FlopwiseError, match="max_length must be given where no model"):
                run_step(step, {"data": folder}, lambda share: None)
        else:
            run_step(step, {"data": folder}, lambda share: None)
            assert len(Instructions(step.path).examples())

"""Tasks and prompt styles through solve and eval: what is asked, where an answer ends, what is noted."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("torch")

from flopwise import solve
from flopwise.cli import command_line
from flopwise.data.chat import ChatTemplate
from flopwise.data.prepare import run_step
from flopwise.data.prepared import PreparedData
from flopwise.data.tasks import TASKS, task
from flopwise.data.tokenizer import Tokenizer, train_bpe
from flopwise.errors import FlopwiseError
from flopwise.infer.asking import Asked, tokens_with
from flopwise.infer.assess import assess
from flopwise.models import hf
from flopwise.models.config import ModelConfig
from flopwise.models.transformer import Transformer
from flopwise.records.store import RunStore

SPEC = {
    "corpora": [], "max_chars": 1, "vocab_size": 300, "heldout_fraction": 0.1, "task": "countdown-rare",
    "demonstrations": 200, "rl_problems": 40, "val_problems": 20, "test_problems": 30, "slice_problems": 15,
}  # fmt: skip


def small_model(tokenizer: Tokenizer) -> Transformer:
    import torch

    torch.manual_seed(0)
    cfg = ModelConfig.from_width(16, 1, tokenizer.vocab_size, max_seq_len=512)
    return Transformer(cfg).eval()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A data run that is a task alone, and a random model made from it."""
    root = tmp_path_factory.mktemp("runs")
    store = RunStore(root)
    data = store.prepare("data", "countdown", SPEC, {}, 0, name="data")
    run_step(data, {}, lambda _: None)
    base = store.prepare("pretrain", "cooldown", {}, {"data": data.id}, name="base")
    tokenizer = Tokenizer.load(data.path)
    hf.save(small_model(tokenizer), base.path / "model", tokenizer)
    from flopwise.flops.spend import Spend
    from flopwise.records.record import Metric

    base.finish({"x": Metric(value=1.0)}, Spend())
    return root


def test_data_can_be_a_task_alone(runs):
    data = PreparedData(RunStore(runs).folder("data").path)
    assert data.corpora == [] and data.open_task() is TASKS["countdown-rare"]
    names = ("rl", "val", "test", "val_common", "test_common", "val_rare", "test_rare")
    sets = {name: {p.key for p in data.problems(name)} for name in names}
    assert [len(s) for s in sets.values()] == [40, 20, 30, 15, 15, 15, 15]
    assert len(set.union(*sets.values())) == 150
    assert all(data.open_task().slice_of(p) == "rare" for p in data.problems("test_rare"))
    held_out = set.union(*(s for name, s in sets.items() if name != "rl"))
    demos = data.demos()
    assert len(demos) == 200
    assert not held_out & {data.open_task().parse(d.prompt).key for d in demos}
    assert data.mixture({"task": 1.0}).batch(0, 4, 32, seed=0).shape == (4, 33)
    assert data.tokenizer.decode(data.tokenizer.encode("7 3 3=24:")) == "7 3 3=24:"


def test_a_task_alone_takes_the_tokenizer_of_the_model_it_is_for(runs, tmp_path):
    store = RunStore(tmp_path)
    folder = store.prepare("data", "countdown", {**SPEC, "task": "sum-2digit"}, {}, 0)
    init = RunStore(runs).folder("base")
    run_step(folder, {"init": init}, lambda _: None)
    mine = (folder.path / "tokenizer.json").read_bytes()
    assert mine == (init.path / "model" / "tokenizer.json").read_bytes()
    assert PreparedData(folder.path).problems("test")[0].prompt.endswith("Answer:")


def test_eval_asks_the_models_own_task_or_the_one_named(runs):
    own = assess(runs / "base", n_problems=20, max_tokens=8)
    assert own.task == "countdown-rare" and not own.maybe_seen and own.style == "plain"
    other = assess(runs / "base", n_problems=20, task="sum-2digit", max_tokens=8, style="few_shot")
    assert other.task == "sum-2digit" and other.maybe_seen and other.style == "few_shot:4"
    # Prompts with worked problems before them cost more to read.
    plain = assess(runs / "base", n_problems=20, task="sum-2digit", max_tokens=8)
    read = [a.comparison.samples.prefill_flops.mean() for a in (other, plain)]
    assert read[0] > 2 * read[1]
    with pytest.raises(FlopwiseError, match="holds problems of countdown-rare, not of gcd"):
        assess(runs / "base", n_problems=20, task="gcd", data=runs / "data")
    with pytest.raises(FlopwiseError, match="must be one of countdown"):
        assess(runs / "base", n_problems=20, task="chess")


@pytest.mark.parametrize("name", list(TASKS))
def test_every_task_can_be_solved_and_recorded(runs, name):
    one = task(name)
    solution = solve(runs / "base", one.example, n=2, task=name, max_tokens=6)
    out = json.loads(json.dumps(solution.to_dict()))
    assert out["task"] == name and out["style"] == "plain"
    assert out["answers"][0]["prompt"] == one.parse(one.example).prompt


def test_answers_end_where_the_style_says(runs):
    folder = RunStore(runs).folder("base").path / "model"
    tokenizer = train_bpe(["one line\nand another.\n\nMore."] * 20, 300)
    one = task("sum-1digit")
    problems = one.generate(3, 0)
    few = Asked.of(one, problems, "few_shot", 2, tokenizer, folder)
    assert few.stop[0] == tokenizer.eos_id and set(few.stop[1:]) == set(tokens_with(tokenizer, "\n"))
    assert all("\n" in tokenizer.decode([i]) for i in few.stop[1:]) and len(few.stop) > 1
    text = tokenizer.decode(few.ids[0])
    assert text.count("Answer:") == 3 and text.endswith(problems[0].prompt)
    assert Asked.of(one, problems, "plain", 2, tokenizer, folder).stop == [tokenizer.eos_id]
    for style, shots, message in (("opera", 4, "prompt style is 'opera'"), ("few_shot", 0, "at least 1")):
        with pytest.raises(FlopwiseError, match=message):
            Asked.of(one, problems, style, shots, tokenizer, folder)


def test_chat_goes_through_the_models_template(runs):
    folder = RunStore(runs).folder("base").path / "model"
    tokenizer = Tokenizer.load(folder)
    one = task("gcd")
    problem = one.generate(1, 0)[0]
    asked = Asked.of(one, [problem], "chat", 4, tokenizer, folder)
    template = ChatTemplate.load(folder, tokenizer)
    assert asked.ids == [template.prompt_ids(one.messages_for(problem))] and asked.stop == template.stop_ids
    assert "Reply with the number only." in tokenizer.decode(asked.ids[0])
    assert solve(runs / "base", "gcd 12 18", "greedy", task="gcd", style="chat", max_tokens=4).style == "chat"


def test_by_default_completions_may_be_as_long_as_the_context_allows(runs):
    solution = solve(runs / "base", "47,+8,-31,*2", "greedy", task="chain")
    assert len(solution.answers[0].candidates) == 1
    # The context is 512 tokens: three hundred fit beside the prompt.
    assert solution.flops["decode"] > 0


def test_the_command_line_lists_and_shows_tasks(capsys):
    command_line()(["tasks", "--json"], standalone_mode=False)
    listed = json.loads(capsys.readouterr().out)
    assert [row["task"] for row in listed] == list(TASKS)
    command_line()(["tasks", "multiplication", "-n", "2", "--json"], standalone_mode=False)
    shown = json.loads(capsys.readouterr().out)
    assert len(shown["problems"]) == 2 and shown["slices"] == ["2x2", "3x2", "3x3"]
    command_line()(["tasks"], standalone_mode=False)
    assert "countdown-rare" in capsys.readouterr().out
    command_line()(["tasks", "gcd"], standalone_mode=False)
    assert "greatest common divisor" in capsys.readouterr().out

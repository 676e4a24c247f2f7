import json

import numpy as np
import pytest
from tiny_models import make_model

import flopwise as fw
from flopwise.data.tasks import countdown
from flopwise.data.tasks.countdown import Problem
from flopwise.data.tokenizer import train_bpe
from flopwise.errors import FlopwiseError
from flopwise.flops.count import generate_flops, prefill_flops, score_flops
from flopwise.flops.spend import Spend
from flopwise.infer.assess import assess
from flopwise.infer.resolve import find_model
from flopwise.models import hf
from flopwise.records.record import Metric
from flopwise.records.store import RunStore

PROMPTS = ["7, 3, 3 = 24", "1 2 3=6"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder of runs: data, a random language model, a random reward model, one that made no model."""
    root = tmp_path_factory.mktemp("runs")
    store = RunStore(root)
    problems = countdown.split(1, test=30, demos=50)
    tokenizer = train_bpe((countdown.demonstration(p, 0) + p.prompt for p in problems["demos"]), 300)

    def finish(folder):
        folder.finish({"x": Metric(value=1.0)}, Spend())

    data = store.prepare("data", "data", {}, name="data")
    (data.path / "about.json").write_text(
        json.dumps(
            {"corpora": [], "task": "countdown", "vocab_size": tokenizer.vocab_size, "problems": {"test": 30}}
        )
    )
    rows = [json.dumps({"numbers": p.numbers, "target": p.target}) for p in problems["test"]]
    (data.path / "test.jsonl").write_text("\n".join(rows) + "\n")
    tokenizer.save(data.path)
    finish(data)
    base = store.prepare("pretrain", "cooldown", {}, {"data": data.id}, name="base")
    hf.save(make_model(vocab=tokenizer.vocab_size), base.path / "model", tokenizer)
    finish(base)
    tuned = store.prepare("grpo", "grpo", {}, {"init": base.id}, name="tuned")
    hf.save(make_model(vocab=tokenizer.vocab_size, seed=3), tuned.path / "model", tokenizer)
    finish(tuned)
    scorer = store.prepare("reward", "outcome", {}, {"init": base.id}, name="scorer")
    hf.save(make_model(1, vocab=tokenizer.vocab_size), scorer.path / "model", tokenizer)
    finish(scorer)
    finish(store.prepare("fit", "fit", {}, name="fit"))
    return root


def test_a_model_is_found_by_folder_run_and_name(runs):
    tuned = RunStore(runs).folder("tuned")
    for found in (
        find_model(tuned.path / "model"),
        find_model(tuned.path),
        find_model(runs / "tuned"),
        find_model("tuned", runs),
        find_model(tuned.id[:8], runs),
    ):
        assert found.folder.samefile(tuned.path / "model")
        assert found.run.id == tuned.id
        # The data of an ancestor, since its own parents name none.
        assert found.data.samefile(RunStore(runs).folder("data").path)


def test_a_folder_from_elsewhere_has_no_run(tmp_path):
    hf.save(make_model(), tmp_path / "m")
    found = find_model(tmp_path / "m")
    assert found.run is None and found.data is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "no folder with a config.json, no run"),
        ("{runs}/nothing", "matches no run"),
        ("{runs}/fit", "made no model"),
        ("", "no folder with a config.json"),
        ("\x1b[31m'; --", "no folder with a config.json"),
    ],
)
def test_a_model_that_is_not_there_is_one_line(runs, name, message):
    with pytest.raises(FlopwiseError, match=message) as caught:
        find_model(name.format(runs=runs))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("strategy", ["greedy", "self_consistency", "best_of_n"])
def test_answers_hold_together(runs, strategy):
    solution = fw.solve(runs / "tuned", PROMPTS, strategy, n=4, max_tokens=20)
    assert [a.prompt for a in solution.answers] == ["7 3 3=24:", "1 2 3=6:"]
    for answer, typed in zip(solution.answers, PROMPTS, strict=True):
        assert len(answer.candidates) == (1 if strategy == "greedy" else 4)
        problem = Problem.parse(typed)
        if answer.choice.index is not None:
            chosen = answer.candidates[answer.choice.index]
            assert answer.completion == chosen.text and answer.answer == chosen.answer
            assert answer.steps == countdown.steps(chosen.text, problem)
        assert not answer.correct or countdown.verify(problem, answer.completion)
    json.dumps(solution.to_dict())


def test_flops_are_counted_by_purpose(runs):
    solution = fw.solve(
        runs / "tuned", PROMPTS, "best_of_n", 3, "reward", reward=runs / "scorer", max_tokens=12
    )
    policy = hf.load(find_model("tuned", runs).folder).cfg
    tokenizer_folder = find_model("tuned", runs).folder
    from flopwise.data.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(tokenizer_folder)
    for answer in solution.answers:
        prompt = len(tokenizer.encode(answer.prompt))
        # A random model hardly ever stops, so all samples are of the full length; check by the total.
        full = generate_flops(policy, prompt, [12] * 3).total
        assert answer.flops["prefill"] == prefill_flops(policy, prompt).total
        assert answer.flops["prefill"] + answer.flops["decode"] <= full
        assert 0 < answer.flops["score"] <= 3 * score_flops(policy, prompt + 12, n_logits=0).total
        assert all("reward" in c.scores for c in answer.candidates)
        assert answer.choice.scores == [c.scores["reward"] for c in answer.candidates]
    assert solution.spend.generate_flops == solution.flops["prefill"] + solution.flops["decode"]
    assert solution.spend.score_flops == solution.flops["score"]
    assert fw.solve(runs / "tuned", PROMPTS, n=3, max_tokens=12).flops["score"] == 0


def test_the_same_seed_gives_the_same_answers(runs):
    def texts(seed):
        out = fw.solve(runs / "tuned", PROMPTS, "self_consistency", 4, max_tokens=16, seed=seed)
        return [(a.answer, [c.text for c in a.candidates]) for a in out.answers]

    assert texts(1) == texts(1)
    assert texts(1) != texts(2)


def test_greedy_ignores_n_and_temperature(runs):
    a = fw.solve(runs / "tuned", PROMPTS[0], "greedy", n=9, temperature=2.0, max_tokens=10)
    assert len(a.answers) == 1 and len(a.answers[0].candidates) == 1
    assert (
        a.answers[0].completion
        == fw.solve(runs / "tuned", PROMPTS[0], "greedy", seed=8, max_tokens=10).answers[0].completion
    )


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"prompts": []}, "there is no prompt"),
        ({"prompts": "what is 2 + 2?"}, "is no problem"),
        ({"strategy": "oracle"}, "strategy is 'oracle'"),
        ({"by": "reward"}, "goes by reward, which is not there; name it with --reward RUN"),
        ({"strategy": "weighted:process_min"}, "goes by process, which is not there"),
        ({"strategy": "best_of_n:size=3"}, "there is no setting 'size=3'; it has by"),
        ({"strategy": "self_consistency:threshold=much"}, "must be a number"),
        ({"colour": "red"}, "unexpected keyword argument 'colour'; settings are style"),
        ({"precision": "int3"}, "must be one of float32, bfloat16"),
        ({"by": "reward", "reward": "{runs}/tuned"}, "no score head"),
        ({"model": "{runs}/scorer"}, "is a reward model"),
        ({"max_tokens": 500}, "exceeds the model's context"),
        ({"n": 0}, "n=0"),
    ],
)
def test_bad_requests_are_one_line(runs, how, message):
    how = {k: v.format(runs=runs) if isinstance(v, str) else v for k, v in how.items()}
    arguments = {"model": runs / "tuned", "prompts": PROMPTS, "max_tokens": 8, "n": 2} | how
    with pytest.raises(FlopwiseError, match=message) as caught:
        fw.solve(**arguments)
    assert "\n" not in str(caught.value)


def test_a_judge_of_another_vocabulary_is_refused(runs, tmp_path):
    other = train_bpe(["quite another text, with words of its own " * 5], 280)
    hf.save(make_model(1, vocab=300), tmp_path / "judge", other)
    with pytest.raises(FlopwiseError, match="another tokenizer"):
        fw.solve(runs / "tuned", PROMPTS, by="reward", reward=tmp_path / "judge", n=2, max_tokens=8)


def test_held_out_problems_of_the_models_own_data_are_asked(runs):
    out = assess(runs / "tuned", n_problems=20, max_tokens=8)
    assert out.comparison.samples.P == 20 and not out.maybe_seen
    assert out.problems_from.endswith(RunStore(runs).folder("data").id)
    greedy = out.comparison.greedy
    assert 0 <= greedy.low <= greedy.value <= greedy.high <= 1
    with pytest.raises(FlopwiseError, match=r"31 problems asked for, .* has 30"):
        assess(runs / "tuned", n_problems=31)


def test_it_is_said_when_problems_may_have_been_seen(runs, tmp_path):
    found = find_model("tuned", runs)
    elsewhere = tmp_path / "copied"
    elsewhere.mkdir()
    for path in found.folder.iterdir():
        (elsewhere / path.name).write_bytes(path.read_bytes())
    out = assess(elsewhere, n_problems=10, max_tokens=8)
    assert out.maybe_seen and "seed" in out.problems_from
    assert not assess(elsewhere, n_problems=10, data=runs / "data", max_tokens=8).maybe_seen
    with pytest.raises(FlopwiseError, match="is no data run"):
        assess(elsewhere, n_problems=10, data=tmp_path / "no" / "where")


def test_accuracy_is_the_share_of_right_answers(runs, monkeypatch):
    """With a verifier that accepts every other problem, whatever is written."""
    monkeypatch.setattr(countdown, "verify", lambda problem, text: problem.target % 2 == 0)
    data = RunStore(runs).folder("data").path
    rows = [json.loads(line) for line in (data / "test.jsonl").read_text().splitlines()]
    out = assess(runs / "tuned", "best_of_n", 8, 30, max_tokens=30, seed=1).comparison.curves[0].points[-1]
    problems = [Problem(tuple(r["numbers"]), r["target"]) for r in rows]
    solution = fw.solve(runs / "tuned", problems, n=8, max_tokens=30, seed=1)
    assert out.value == np.mean([any(c.correct for c in a.candidates) for a in solution.answers])
    assert out.value > 0
    assert out.flops == pytest.approx(sum(solution.flops.values()) / 30)


def test_a_problem_gets_the_same_samples_whatever_is_asked_beside_it(runs):
    both = fw.solve(runs / "tuned", PROMPTS, n=3, max_tokens=12).answers
    alone = fw.solve(runs / "tuned", PROMPTS[1], n=3, max_tokens=12).answers
    assert [c.text for c in alone[0].candidates] == [c.text for c in both[1].candidates]
    assert alone[0].flops == both[1].flops


def test_a_trace_tells_what_was_done(runs):
    answer = fw.solve(runs / "tuned", PROMPTS[0], "best_of_n:logprob", n=3, max_tokens=8).answers[0]
    kinds = [step.kind for step in answer.trace]
    assert kinds == ["sample"] * 3 + ["score"] * 3 + ["stop"]
    assert [s.value for s in answer.trace[3:6]] == answer.choice.scores
    assert answer.trace[-1].parent == answer.choice.index

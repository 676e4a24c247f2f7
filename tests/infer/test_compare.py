"""Strategies beside each other: costs, differences, the frontier; as a step of a recipe; behind a server."""

import json

import numpy as np
import pytest
from test_remote import Server, choice
from tiny_models import make_model
from typer.testing import CliRunner

import flopwise as fw
from flopwise.cli import command_line
from flopwise.data.tasks import task
from flopwise.data.tokenizer import ByteTokenizer
from flopwise.errors import FlopwiseError
from flopwise.flops.spend import Spend
from flopwise.infer.asking import Asked
from flopwise.infer.compare import compare, run_step, write
from flopwise.infer.local import LocalEngine
from flopwise.infer.room import Room
from flopwise.infer.samples import Samples
from flopwise.infer.scorers import OutcomeScorer
from flopwise.infer.strategies import Choice, make, make_all
from flopwise.models import hf
from flopwise.records.record import Metric
from flopwise.records.store import RunStore

TASK, TOK = task("countdown"), ByteTokenizer()
PROBLEMS = TASK.generate(6, 1)


@pytest.fixture
def room(monkeypatch):
    """Answers are the last token's parity; even ones are right."""
    monkeypatch.setattr(Room, "_verdict", lambda self, w: (w.tokens[-1] % 2 == 0, str(w.tokens[-1] % 4)))
    asked = Asked.of(TASK, PROBLEMS, "plain", 4, TOK, None)
    scorer = OutcomeScorer(LocalEngine(make_model(1, vocab=TOK.vocab_size)))
    engine = LocalEngine(make_model(vocab=TOK.vocab_size))
    return Room(engine, TOK, TASK, PROBLEMS, asked, 6, scorers={"reward": scorer})


class Acts:
    """Writes n answers and takes the last."""

    name, judges, runs = "acts", (), 0

    def run(self, room, problems, n, seed):
        type(self).runs += 1
        rows = room.sample([(p, ()) for p in problems], n, seed=seed)
        out = []
        for p in problems:
            mine = [(r.problem, r.tokens) for r in rows if r.problem == p]
            out.append(room.outcome(p, room.candidates(mine), Choice(n - 1), []))
        return out


def test_points_are_replays_with_all_costs_and_paired_differences(room):
    names = "best_of_n:reward,self_consistency,best_of_n,greedy"
    found = compare(room, [*make_all(names), Acts()], 6, seed=2)
    samples = found.samples
    assert [[p.n for p in found.curves[i].points] for i in (0, 3)] == [[1, 2, 4, 6], [1]]
    by_reward, vote, best, greedy, acts = found.curves
    for curve, s in zip(found.curves[:3], make_all(names)[:3], strict=True):
        for point, values in zip(curve.points, curve.values, strict=True):
            assert np.allclose(values, s.replay(samples, point.n))
            assert point.flops == pytest.approx(samples.cost(point.n, s.judge).mean())
            assert point.value == pytest.approx(values.mean())
    assert by_reward.points[1].flops > vote.points[1].flops == best.points[1].flops
    assert by_reward.points[1].seconds > vote.points[1].seconds > 0
    d = best.points[2].difference
    assert d["value"] == pytest.approx(best.points[2].value - by_reward.points[2].value)
    assert d["low"] <= d["value"] <= d["high"] and by_reward.points[0].difference is None
    assert greedy.points[0].value == samples.greedy.mean() == found.greedy.value
    assert greedy.points[0].flops == samples.greedy_flops.mean()
    # What acts draws its own samples: its cost is theirs, and its prompt is read once.
    assert acts.acts and acts.points[3].tokens == pytest.approx(6 * samples.tokens.mean(), rel=0.5)
    assert acts.points[3].flops > 3 * acts.points[0].flops * 0.5
    assert all((row == 0).sum() + (row == 1).sum() == 6 for row in acts.values)


def test_the_frontier_holds_what_nothing_cheaper_matches(room):
    found = compare(room, make_all("self_consistency,best_of_n,best_of_n:reward"), 4)
    every = [(p.cost, p.value, p.frontier) for c in found.curves for p in c.points]
    for cost, value, marked in every:
        cheaper = [v for c, v, _ in every if c < cost and v >= value]
        level = [v for c, v, _ in every if c == cost and v > value]
        assert not (marked and (cheaper or level))
    front = found.frontier
    assert [f["flops"] for f in front] == sorted(f["flops"] for f in front) and front
    values = [f["value"] for f in front]
    assert values == sorted(set(values)) and max(v for _, v, _ in every) == values[-1]
    equal = found.at_equal_cost()
    assert [row["cost"] for row in equal] == [p.flops for p in found.curves[0].points]
    for row in equal:
        assert row["by"][row["best"]]["value"] == max(b["value"] for b in row["by"].values())


def test_greedy_alone_draws_nothing_else(room):
    found = compare(room, make_all("greedy"), 64)
    assert found.samples.n == 1 and len(found.curves[0].points) == 1


def test_what_was_kept_is_not_done_again(room, tmp_path):
    strategies = [make("self_consistency"), Acts()]
    Acts.runs = 0
    first = compare(room, strategies, 4, keep=tmp_path)
    assert Acts.runs == 3
    again = compare(room, strategies, 4, keep=tmp_path)
    assert Acts.runs == 3
    assert [c.points for c in again.curves] == [c.points for c in first.curves]
    next(tmp_path.glob("acted-*.npz")).unlink()
    compare(room, strategies, 4, keep=tmp_path)
    assert Acts.runs == 4


def test_what_is_written_can_be_read(room, tmp_path):
    found = compare(room, [make("best_of_n"), Acts()], 2)
    write(tmp_path, found, {"task": "countdown"})
    said = json.loads((tmp_path / "comparison.json").read_text())
    assert said["strategies"][0]["name"] == "best_of_n:verifier" and said["strategies"][0]["by"] == "verifier"
    assert said["unit"] == "FLOPs" and said["n_problems"] == 6 and said["task"] == "countdown"
    point = said["strategies"][0]["points"][0]
    assert {"n", "value", "low", "high", "se", "flops", "seconds", "tokens"} <= set(point)
    assert Samples.load(tmp_path / "samples.npz").P == 6
    with np.load(tmp_path / "samples.npz") as file:
        assert file["curve_acts"].shape == (2, 6)
    examples = json.loads((tmp_path / "examples.json").read_text())
    assert {e["n"] for e in examples} == {1, 2} and examples[0]["strategy"] == "acts"


def test_what_cannot_be_compared_is_one_line(room):
    with pytest.raises(FlopwiseError, match="0 strategies"):
        compare(room, [], 4)
    with pytest.raises(FlopwiseError, match="best_of_n:process_min goes by process, which is not there"):
        compare(room, make_all("greedy,best_of_n:process_min"), 4)


def test_the_step_of_a_recipe(tmp_path):
    store = RunStore(tmp_path)
    data = store.prepare("data", "data", {}, name="data")
    about = {"corpora": [], "task": "countdown", "vocab_size": TOK.vocab_size, "problems": {"test": 6}}
    (data.path / "about.json").write_text(json.dumps(about))
    (data.path / "test.jsonl").write_text("".join(json.dumps(TASK.to_row(p)) + "\n" for p in PROBLEMS))
    TOK.save(data.path)
    data.finish({"x": Metric(value=1.0)}, Spend())
    for name, n_scores in (("model", 0), ("scorer", 1)):
        run = store.prepare("sft", name, {}, {"data": data.id}, name=name)
        hf.save(make_model(n_scores, vocab=TOK.vocab_size), run.path / "model", TOK)
        run.finish({"x": Metric(value=1.0)}, Spend())
    spec = {
        "split": "test", "strategies": ["self_consistency", "best_of_n:process", "beam:width=2", "greedy"],
        "n": 2, "problems": 5, "max_tokens": 8, "temperature": 1.0, "precision": "float32",
    }  # fmt: skip
    parents = {"data": data.id, "model": store.folder("model").id, "process": store.folder("scorer").id}
    folder = store.prepare("evaluate", "compare", spec, parents, name="compare")
    seen = []
    run_step(folder, {role: store.folder(run) for role, run in parents.items()}, seen.append)
    said = json.loads((folder.path / "comparison.json").read_text())
    assert [s["name"] for s in said["strategies"]] == [
        "self_consistency", "best_of_n:process_last", "beam:process:width=2", "greedy",
    ]  # fmt: skip
    assert said["n_problems"] == 5 and said["task"] == "countdown" and said["style"] == "plain"
    record = folder.record()
    assert record.status == "done" and {"greedy", "self_consistency_at_2"} <= set(record.metrics)
    total = sum(record.spend.to_dict()[name] for name in ("generate_flops", "score_flops"))
    assert total > said["strategies"][2]["points"][1]["flops"] * 5
    assert seen == sorted(seen) and seen[-1] <= 1
    assert not list(folder.path.glob("acted-*")) and (folder.path / "samples.npz").is_file()


@pytest.fixture
def server():
    """Writes one of three answers to every question, by the question's seed; the first is right."""
    server = Server()
    right = TASK.demonstration(PROBLEMS[0], 0)
    texts = [right, right.replace("=", "=1", 1), ""]

    def answer(path, question):
        assert path == "/v1/completions" and isinstance(question["prompt"], str)
        place = 0 if question["temperature"] == 0 else question["seed"]
        body = [choice(texts[(place + i) % 3]) for i in range(question["n"])]
        return 200, {"choices": body, "usage": {"prompt_tokens": 9, "completion_tokens": 7 * question["n"]}}

    server.answer = answer
    yield server
    server.http.shutdown()


def test_strategies_behind_a_server(server):
    prompt = PROBLEMS[0].prompt
    for strategy in ("best_of_n", "self_consistency", "greedy", "beam:checker:width=2", "adaptive"):
        out = fw.solve("any", PROBLEMS[0], strategy, n=6, task="countdown", endpoint=server.url)
        assert out.answers[0].prompt == prompt and out.answers[0].tokens > 0 and not out.flops_known
        assert out.answers[0].correct or strategy != "best_of_n"
        json.loads(json.dumps(out.to_dict(), allow_nan=False))
    assert all(len(q.get("stop") or []) <= 4 for q in server.asked)
    assert not any("logprobs" in q for q in server.asked)
    fw.solve("any", PROBLEMS[0], "best_of_n:logprob", n=2, task="countdown", endpoint=server.url)
    assert server.asked[-1]["logprobs"] == 1


def test_a_server_is_compared_by_tokens(server, tmp_path):
    names = "self_consistency,best_of_n,greedy"
    arguments = ["eval", "any", "--endpoint", server.url, "--task", "countdown", "--problems", "4", "-n", "2",
                 "--strategy", names, "--store", tmp_path / "store"]  # fmt: skip
    out = CliRunner().invoke(command_line(), [*map(str, arguments), "--json"], catch_exceptions=False)
    said = json.loads(out.stdout[out.stdout.index("{") :])
    assert said["unit"] == "tokens" and said["strategies"][0]["points"][1]["flops"] is None
    assert said["strategies"][0]["points"][1]["tokens"] > 0 and said["frontier"]
    asked = len(server.asked)
    CliRunner().invoke(command_line(), [*map(str, arguments), "--json"], catch_exceptions=False)
    assert len(server.asked) == asked  # all of it is in the store
    text = CliRunner().invoke(command_line(), [*map(str, arguments)], catch_exceptions=False).output
    assert "fewer tokens a question" in text


def test_a_chat_cannot_be_searched(server):
    server.answer = lambda path, q: (200, {"choices": [choice("1+1=2,")] * q["n"]})
    how = {"task": "countdown", "endpoint": server.url, "style": "chat"}
    assert fw.solve("any", PROBLEMS[0], "self_consistency", n=2, **how).answers
    with pytest.raises(FlopwiseError, match="cannot go on from what was written"):
        fw.solve("any", PROBLEMS[0], "beam:checker", n=4, **how)
    with pytest.raises(FlopwiseError, match="a server shows no hidden states"):
        fw.solve("any", PROBLEMS[0], "best_of_n:probe", probe="x", **how)

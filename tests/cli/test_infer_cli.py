import json
import sys

import pytest
import typer
from invoking import invoking

from flopwise.cli import infer
from flopwise.cli.answers import printable
from flopwise.infer.samples import Samples

app = typer.Typer()
infer.register(app)


run, refused = invoking(app)


def test_solve_shows_answer_steps_votes_and_flops(tiny_run):
    out = run("solve", tiny_run / "sft", "-p", "2, 3, 4 = 24", "-p", "1 2 3 = 6",
              "--strategy", "self_consistency", "-n", 16, "--max-tokens", 24)  # fmt: skip
    assert "2 3 4=24:" in out and "1 2 3=6:" in out
    assert "FLOPs" in out and "prefill" in out
    assert "votes of 16" in out or "no answer from 16" in out


def test_solve_json_by_a_reward_model(tiny_run):
    out = json.loads(run("solve", "sft", "--runs", tiny_run, "-p", "2 3 4 = 24", "-n", 4,
                         "--reward", tiny_run / "reward", "--max-tokens", 24, "--json"))  # fmt: skip
    answer = out["answers"][0]
    assert len(answer["candidates"]) == len(answer["choice"]["scores"]) == 4
    assert out["flops"]["score"] > 0
    assert out["flops"]["total"] == pytest.approx(
        sum(out["flops"][k] for k in ("prefill", "decode", "score"))
    )


def test_eval_compares_strategies_on_the_test_split(tiny_run, tmp_path):
    names = "self_consistency,greedy,best_of_n"
    settings = ("--problems", 40, "--max-tokens", 24, "--strategy", names, "-n", 4)
    found = json.loads(run("eval", tiny_run / "sft", *settings, "--json"))
    assert found["n_problems"] == 40 and not found["maybe_seen"] and found["unit"] == "FLOPs"
    vote, greedy, best = found["strategies"]
    assert [p["n"] for p in best["points"]] == [1, 2, 4] and [p["n"] for p in greedy["points"]] == [1]
    assert all(p["low"] <= p["value"] <= p["high"] for s in found["strategies"] for p in s["points"])
    assert best["points"][2]["flops"] > 2 * greedy["points"][0]["flops"]
    assert best["points"][2]["difference"]["value"] == pytest.approx(
        best["points"][2]["value"] - vote["points"][2]["value"]
    )
    text = run("eval", tiny_run / "sft", *settings, "-o", tmp_path)
    assert "accuracy (95%)" in text and "best at no more FLOPs" in text and "test split of" in text
    assert Samples.load(tmp_path / "samples.npz").n == 4
    assert "<svg" in (tmp_path / "comparison.svg").read_text()
    assert json.loads((tmp_path / "comparison.json").read_text())["frontier"] == found["frontier"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["solve", "nowhere", "-p", "1 2 3 = 6"], "no folder with a config.json"),
        (["solve", "nowhere", "-p", "1 2 = 6", "--task", "countdown"], "is no problem"),
        (["solve", "nowhere", "-p", "1 2 3 = 6", "--strategy", "luck"], "strategy is 'luck'"),
        (["solve", "nowhere", "-p", "1 2 3 = 6", "--by", "luck"], "by is 'luck'"),
        (["solve", "nowhere", "-p", "1 2 3 = 6", "--by", "reward"], "is not there; name it with --reward"),
        (["solve", "nowhere", "-p", "1 2 3 = 6", "-n", "1000000000000"], "exceed 500,000"),
        (["eval", "nowhere", "--problems", "1"], "at least 2"),
        (["eval", "nowhere"], "no folder with a config.json"),
        (["eval", "nowhere", "--task", "chess"], "task is 'chess'"),
    ],
)
def test_bad_requests_are_one_line(arguments, message):
    assert message in refused(*arguments)


def test_what_a_model_writes_cannot_steer_the_terminal():
    assert printable("a\x1b[2Jb\r\nc") == "a\\x1b[2Jb\\r\\nc"


def test_importing_the_commands_loads_no_torch():
    import subprocess

    code = "import sys, flopwise.cli.infer; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

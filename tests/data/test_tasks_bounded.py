"""Judges in a process of their own: what hangs, dies or eats memory is ended, and the next call works."""

from __future__ import annotations

import json

import pytest

from flopwise.data.tasks import task
from flopwise.data.tasks.bounded import Judge
from flopwise.errors import FlopwiseError

PROGRAM = """
import os, time

def judge(what="", warm=False):
    print("noise on standard output")
    if what == "hang":
        time.sleep(60)
    if what == "die":
        os._exit(3)
    if what == "fail":
        raise ValueError("no")
    if what == "eat":
        return len(bytearray(1 << 40))
    return what.upper()

def broken(warm=False):
    raise RuntimeError("cannot start")
"""


@pytest.fixture
def judge(tmp_path, monkeypatch):
    (tmp_path / "odd_judge.py").write_text(PROGRAM)
    monkeypatch.syspath_prepend(str(tmp_path))
    judge = Judge("odd_judge:judge")
    yield judge
    judge.close()


def test_a_verdict_comes_back_and_what_goes_wrong_is_none(judge):
    assert judge(what="yes") == "YES"
    first = judge._process.pid
    assert judge(what="fail") is None and judge(what="eat") is None
    assert judge(what="still there") == "STILL THERE" and judge._process.pid == first
    assert judge(seconds=0.2, what="hang") is None
    assert judge(what="again") == "AGAIN" and judge._process.pid != first
    assert judge(what="die") is None
    assert judge(what="ü\n" * 10_000) == "Ü\n" * 10_000


def test_a_judge_that_does_not_start_is_one_line(judge):
    with pytest.raises(FlopwiseError, match=r"odd_judge:broken does not start.*cannot start"):
        Judge("odd_judge:broken")()


@pytest.mark.slow
def test_gym_problems_and_their_scorers():
    pytest.importorskip("reasoning_gym", reason="the extra `reasoning` is not installed")
    gcd = task("gym:gcd")
    problems = gcd.generate(5, 0)
    assert len({p.key for p in problems}) == 5 and gcd.generate(5, 0) == problems != gcd.generate(5, 1)
    p = gcd.from_row(json.loads(json.dumps(gcd.to_row(problems[0]))))
    assert p == problems[0]
    assert gcd.verify(p, gcd.demonstration(p, 0)) and gcd.verify(p, f"so <answer> {p.gold} </answer>")
    for wrong in (
        "",
        "no idea",
        f"{p.gold} or 7777",
        f"<answer>{p.gold}</answer><answer>0</answer>",
        "9" * 9999,
    ):
        assert not gcd.verify(p, wrong)
    assert gcd.split(1, demos=3, test=4)["test"][0].prompt


@pytest.mark.parametrize("name", ["boxnet", "graph_color", "propositional_logic", "rush_hour"])
def test_data_sets_that_reject_their_own_answers_are_refused(name):
    pytest.importorskip("reasoning_gym", reason="the extra `reasoning` is not installed")
    with pytest.raises(FlopwiseError, match="accepts no reference answer"):
        task(f"gym:{name}").generate(3, 0)


def test_unknown_gym_names():
    pytest.importorskip("reasoning_gym", reason="the extra `reasoning` is not installed")
    with pytest.raises(FlopwiseError, match="does not make it"):
        task("gym:no_such_thing").generate(1, 0)


@pytest.mark.slow
def test_formulas_are_equal_by_algebra(tmp_path):
    pytest.importorskip("math_verify", reason="the extra `reasoning` is not installed")
    path = tmp_path / "m.jsonl"
    rows = [{"prompt": "Half?", "answer": "\\frac{1}{2}"}, {"prompt": "Square?", "answer": "(x+1)^2"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    t = task(f"table:{path},rule=math")
    half, square = t.parse("Half?"), t.parse("Square?")
    assert t.verify(half, "0.5") and t.verify(half, "the answer is $2/4$.") and not t.verify(half, "2")
    assert t.verify(square, "so \\boxed{x^2 + 2x + 1}") and not t.verify(square, "x^2 + 1")
    for hostile in ("9" * 4000, "((" * 2000, "9^{9^{9^{9^9}}}", "\\boxed{" * 300, "\\int" * 70):
        assert t.verify(half, hostile) is False
    assert t.verify(half, "1/2")

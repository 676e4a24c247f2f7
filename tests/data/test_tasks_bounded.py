"""Judges in a process of their own: what hangs, dies or eats memory is ended, and the next call works."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flopwise.data.tasks import task
from flopwise.data.tasks.answers import equations, final_choice, final_expression, final_number
from flopwise.data.tasks.base import MAX_CHARS
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


READERS = (final_number, final_choice, final_expression, equations)
PIECES = (
    "8",
    " ",
    "\n",
    "answer is ",
    "answer: ",
    "Answer",
    "\\boxed{",
    "}",
    "{",
    "#### ",
    "$",
    "**",
    "(",
    ")",
    "-",
    ",",
    "1,000",
    "=",
    "+",
    "3 + 5 = 8",
    ".",
    "?",
    "!",
    "not ",
    "or ",
    "wait ",
    "no",
    "A",
    "b)",
    "\\frac{1}{2}",
    "\\sqrt",
    "<answer>",
    "</answer>",
    "9" * 40,
    "٨",
    "½",
    "\u202e",
    "\x00",
    "\x1b[31m",
    "(.*)+$",
    "^" * 9,
    "8e9",
)


@pytest.fixture(scope="module")
def ruled(tmp_path_factory):
    """One problem under each rule that needs no package: the answer is 8, or A."""
    folder = tmp_path_factory.mktemp("rules")
    found = []
    for rule, gold in (("exact", "8"), ("number", "8"), ("choice", "A"), ("regex", "(8|eight)+")):
        path = folder / f"{rule}.jsonl"
        path.write_text(json.dumps({"prompt": "?", "answer": gold}))
        one = task(f"table:{path},rule={rule}")
        found.append((one, one.parse("?")))
    return found


@settings(max_examples=150)
@given(st.lists(st.sampled_from(PIECES), max_size=25).map("".join))
def test_readers_take_anything_and_give_one_printable_answer_or_none(ruled, text):
    for reader in READERS[:3]:
        found = reader(text)
        assert found is None or (isinstance(found, str) and found and len(found) <= MAX_CHARS)
    for one, problem in ruled:
        answer, right = one.answer(text), one.verify(problem, text)
        assert right in (True, False) and not (right and answer is None)
        assert all(isinstance(step.ok, bool) for step in one.steps(text, problem))


@given(
    st.integers(0, 99),
    st.integers(0, 99),
    st.sampled_from(
        (
            "{a} or {b}",
            "{a} {b}",
            "{a}, {b}",
            "{a}/{b}",
            "{a}\n{b}",
            "between {a} and {b}",
            "[{a}, {b}]",
            "({a})({b})",
            "The answer is {a}. The answer is {b}.",
            "answer: {a} or {b}",
            "#### {a}\n#### {b}",
            "{a} = {b}",
            "\\boxed{{{a}}} \\boxed{{{b}}}",
            "\\boxed{{{a}, {b}}}",
            "\\boxed{{{a}\\text{{ or }}{b}}}",
            "The answer is {a}. No, {b}.",
            "The answer is {a}. Actually it is {b}.",
            "The answer is {a}? Or {b}?",
            "\\boxed{{{a}}} is wrong, it is {b}",
            "not {a} but {b}",
            "answer = {a} = {b}",
            "{a}-{b}",
            "{a}^{b}",
            "<answer>{a}</answer><answer>{b}</answer>",
            "answer is \\boxed{{{a}, {b}",
        )
    ),
)
def test_a_text_that_names_two_numbers_gives_neither(a, b, pattern):
    if a != b:
        assert final_number(pattern.format(a=a, b=b)) is None, pattern


@pytest.mark.parametrize(
    "text",
    [
        "The answer is not 8.",
        "Is the answer 8?",
        "8?",
        "x > 8",
        "<8",
        "≥ 8",
        "≠8",
        "~8",
        "√8",
        "\\sqrt 8",
        "8π",
        "8%",
        "\\boxed{8",
        "\\boxed{\\boxed{8}}",
        "8e0",
        "0x8",
        "8th",
        "８",
        "1 + 7",
        "The answer is 8. Wait, no.",
    ],
)
def test_what_is_no_answer_abstains(text):
    assert final_number(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "8",
        " 8.",
        "$8$",
        "**8**",
        "8.0",
        "+8",
        "3 + 5 = 8",
        "The answer is 8",
        "the answer is \\boxed{8}.",
        "#### \\boxed{8}",
        "So -> 8",
        "<answer>8</answer>",
        "Answer: 8\nThe sum of 3 and 5 is meant.",
        "It is 8 apples.",
    ],
)
def test_what_is_an_answer_is_read(text):
    assert final_number(text) == "8"


@pytest.mark.parametrize(
    "text", ["\\boxed{9=8}", "8 = 9 = 8", "\\neq 8", "not 8", "x = 8?", "\\boxed{8} no, 9"]
)
def test_formulas_that_say_two_things_abstain(text):
    assert final_expression(text) is None


def test_formulas_that_say_one_thing_are_read():
    assert final_expression("x = 8") == "x = 8" and final_expression("\\boxed{8=8}") == "8=8"
    assert final_expression("\\boxed{\\text{no solution}}") == "\\text{no solution}"


FUZZ = """
import json
from flopwise.data.tasks import TASKS
from flopwise.data.tasks.answers import equations, final_choice, final_expression, final_number

PROBLEMS = [(one, one.generate(1, 0)[0]) for one in TASKS.values()]

def read(what="", times=1, warm=False):
    text = what * times
    for reader in (final_number, final_choice, final_expression):
        assert reader(text) is None or len(text) <= 4096
    equations(text)
    for one, problem in PROBLEMS:
        assert not (len(text) > 4096 and one.verify(problem, text))
        assert one.answer(text) is None or len(text) <= 4096
        one.steps(text, problem), one.steps(text)
    return True
"""


def test_bombs_are_read_within_the_limit_by_every_task(tmp_path, monkeypatch):
    """In a process that would be ended: a pattern that backtracks would never come back."""
    (tmp_path / "fuzz_reader.py").write_text(FUZZ)
    monkeypatch.syspath_prepend(str(tmp_path))
    judge = Judge("fuzz_reader:read")
    try:
        for what in (
            "answer is ",
            "\\boxed{",
            "{",
            "(",
            "1,",
            "9",
            "1 + 1 = ",
            "$",
            "a) ",
            "1+1=2,",
            "!",
            "n't ",
            "####",
            "wait ",
            "\n",
            ">",
            "(1+",
            "check ",
        ):
            for times in (4096 // len(what), 60_000):
                assert judge(seconds=60, what=what, times=times) is True, (what, times)
    finally:
        judge.close()

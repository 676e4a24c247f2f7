"""What every task promises, checked on each: problems, splits, worked solutions, verdicts, rows, prompts."""

from __future__ import annotations

import json
import random
import re
import sys
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flopwise.data import contamination
from flopwise.data.tasks import STYLES, TASKS, is_task, task
from flopwise.errors import FlopwiseError

NAMES = list(TASKS)
SOME = {name: t.generate(10, 1) for name, t in TASKS.items()}
HOSTILE = [
    "", " ", "!", "\0", "9" * 100_000 + "!", "(" * 20_000 + ")" * 20_000, "?" * 50_000, ";" * 5000 + "!",
    "1+1=2," * 20_000, "answer is " * 10_000, "\\boxed{" * 5000, "#### " * 5000, "٣٤!", "１２", "½", "八",
    "nan", "inf", "1e999", "-", "-" * 4000, "0" * 4000, "1," * 2000, "a" * 4096, "7" * 4095 + "!",
    "__import__('os').system('true')!", "${jndi:x}", "\u202e24!", "None", "[]", "{}", "1/0=0r0,0!", "5/0=1!",
]  # fmt: skip


@pytest.fixture(params=NAMES)
def one(request):
    return TASKS[request.param]


@contextmanager
def calls():
    """Counts calls of functions, Python's own among them: cost without a clock."""
    count = [0]

    def called(frame, event, argument):
        count[0] += event in ("call", "c_call")

    sys.setprofile(called)
    try:
        yield count
    finally:
        sys.setprofile(None)


def some(one, n=30, seed=0, **how):
    return one.generate(n, seed, **how)


def test_names_are_what_the_registry_calls_them():
    assert all(t.name == name and t.about and "\n" not in t.about for name, t in TASKS.items())
    assert all(re.fullmatch(r"[a-z0-9-]+", s) for t in TASKS.values() for s in t.slices)


def test_problems_are_distinct_reproducible_and_leave_out_what_is_excluded(one):
    problems = some(one)
    keys = {p.key for p in problems}
    assert len(keys) == 30 and some(one) == problems
    assert some(one, seed=1) != problems
    assert not keys & {p.key for p in one.generate(5, 0, exclude=keys)}
    assert one.generate(0, 0) == []


def test_splits_are_disjoint(one):
    parts = one.split(3, demos=10, test=15)
    assert [len(part) for part in parts.values()] == [10, 15]
    assert len({p.key for part in parts.values() for p in part}) == 25


def test_worked_solutions_are_right_and_fit(one):
    for problem in some(one):
        shown = one.demonstration(problem, seed=4)
        assert shown == one.demonstration(problem, seed=4)
        assert one.verify(problem, shown), (problem, shown)
        assert one.answer(shown) is not None
        assert len(shown) <= one.max_tokens
        assert all(step.ok for step in one.steps(shown, problem)), one.steps(shown, problem)


def test_another_problems_solution_is_wrong(one):
    problems = some(one)
    solved = {one.answer(one.demonstration(p, 0)): p for p in problems}
    for problem in problems:
        for answer, other in solved.items():
            if one.answer(one.demonstration(problem, 0)) != answer:
                assert not one.verify(problem, one.demonstration(other, 0))


def test_problems_survive_a_file(one):
    for problem in some(one):
        assert one.from_row(json.loads(json.dumps(one.to_row(problem)))) == problem
    for bad in ({}, {"prompt": 3}, [], {"numbers": None, "target": 1}):
        with pytest.raises(FlopwiseError, match="run the data step again"):
            one.from_row(bad)


def test_prompts_and_examples_are_read_as_people_type_them(one):
    assert one.parse(one.example).key
    for problem in some(one):
        read = one.parse(problem.prompt)
        assert read.key == problem.key and read.prompt == problem.prompt
    for text in ("", "write a poem", "1" * 5000, "7 7 7 7 7 7 7 7 7 7 7 7", "\x1b[31m"):
        with pytest.raises(FlopwiseError, match=one.name.partition("-")[0]) as caught:
            one.parse(text)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_every_problem_is_in_a_slice_and_each_slice_can_be_asked_for(one):
    assert {one.slice_of(p) for p in some(one)} <= set(one.slices)
    for name in one.slices:
        problems = one.generate(8, 5, slice=name)
        assert [one.slice_of(p) for p in problems] == [name] * 8
        assert not {p.key for p in problems} & {
            p.key for p in one.generate(8, 5, exclude=[p.key for p in problems], slice=name)
        }
    with pytest.raises(FlopwiseError, match="slice 'no such'"):
        one.generate(1, 0, slice="no such")


def test_styles_say_the_same_in_other_ways(one):
    problem = some(one)[0]
    assert one.prompt_for(problem) == problem.prompt
    shots = one.prompt_for(problem, "few_shot", k=3)
    assert shots.endswith(problem.prompt) and shots.count("\n\n") == 3
    shown = one.few_shot(3, 0, exclude=[problem.key])
    assert all(d.prompt + d.completion + "\n\n" in shots for d in shown)
    assert problem.key not in {one.parse(d.prompt).key for d in shown}
    # Examples do not change from question to question, so their prefix can be shared.
    others = [one.prompt_for(p, "few_shot", k=3).removesuffix(p.prompt) for p in some(one)]
    assert max(others.count(text) for text in others) >= 24
    assert one.completion_ends("few_shot") == "\n" and one.completion_ends("plain") is None
    asked = one.messages_for(problem)
    assert asked == [{"role": "user", "content": one.prompt_for(problem, "chat")}]
    assert "Answer:" not in asked[0]["content"] and len(asked[0]["content"]) < 400
    with pytest.raises(FlopwiseError, match=", ".join(STYLES)):
        one.prompt_for(problem, "opera")


def test_one_shot_never_shows_the_question(one):
    for problem in one.generate(25, 0):
        for d in one.few_shot(2, 0, exclude=[problem.key]):
            assert one.parse(d.prompt).key != problem.key


def test_hostile_text_costs_little_and_is_never_right(one):
    problem = some(one)[0]
    for text in HOSTILE:
        with calls() as count:
            assert one.verify(problem, text) in (False, True)
            one.steps(text, problem)
            one.steps(text)
        assert count[0] < 200_000, (text[:20], count)
        assert one.answer(text) is None or not one.verify(problem, text) or len(text) < 5
    assert not any(one.verify(problem, text) for text in HOSTILE if len(text) > 4096)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_text_is_judged_without_an_error(data):
    """Random text, and solutions with letters dropped, doubled or exchanged: the worst is a wrong verdict of
    another kind than this: equal answers have one verdict, and no answer is never right."""
    one = TASKS[data.draw(st.sampled_from(NAMES))]
    problem = data.draw(st.sampled_from(SOME[one.name]))
    text = one.demonstration(problem, 0)
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, max(0, len(text) - 1)))
        put = data.draw(
            st.text(max_size=3) | st.sampled_from(["!", "?", ";", "=", "\n", "0", "8", " answer is "])
        )
        text = text[:at] + put + text[at + data.draw(st.integers(0, 2)) :]
    answer, right = one.answer(text), one.verify(problem, text)
    assert isinstance(right, bool) and (answer is None or isinstance(answer, str))
    assert not (answer is None and right)
    if answer is not None and answer == one.answer(one.demonstration(problem, 0)):
        assert right
    assert all(isinstance(s.ok, bool) for s in (*one.steps(text, problem), *one.steps(text)))


def test_held_out_problems_are_found_in_training_text(one):
    held_out = some(one, 20)
    rng = random.Random(0)
    for problem in held_out[:8]:
        for asked in one.same(problem):
            text = f"Some prose before. {asked}  and after it {rng.random()}"
            report = contamination.check(["clean text", text], held_out, one)
            assert report.n_hits >= 1 and report.n_texts == 2
    others = one.generate(20, 9, exclude=[p.key for p in held_out])
    clean = [p.prompt + one.demonstration(p, 0, {q.key for q in held_out}) for p in others]
    assert contamination.check(clean, held_out, one).n_hits == 0


def test_unknown_tasks_are_one_line():
    assert is_task("countdown") and not is_task("chess")
    with pytest.raises(FlopwiseError, match="must be one of countdown, ") as caught:
        task("chess\x1b[31m\n")
    assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value)


def test_more_problems_than_exist():
    with pytest.raises(FlopwiseError, match="55 exist"):
        TASKS["sum-1digit"].generate(56, 0)
    with pytest.raises(FlopwiseError, match="hardly more"):
        TASKS["multiplication"].generate(4000, 0, slice="2x2")
    for name in ("chain", "bases", "countdown"):
        with pytest.raises(FlopwiseError, match="asked for"):
            TASKS[name].generate(-1, 0)

"""Traces forced longer or cut short: what results is a trace of the task."""

from __future__ import annotations

import pytest

from flopwise.data.tasks import Item, task


@pytest.mark.parametrize("name", ["chain", "countdown"])
def test_what_is_forced_on_can_still_be_right(name: str) -> None:
    """A right trace, its last line tried again, and written again as it was, is right."""
    exercise = task(name)
    for seed, problem in enumerate(exercise.generate(40, 3)):
        text = exercise.demonstration(problem, seed)
        forced = exercise.think_on(text)
        assert forced is not None and forced != text and not exercise.verify(problem, forced)
        if forced.endswith("?"):
            last = text[max(text[:-1].rfind(m) for m in ";?") + 1 :]
            assert exercise.verify(problem, forced + last)
        assert exercise.think_on(forced[:-1] + "?") is None  # a step given up is gone on from as it is


def test_a_check_is_asked_for_where_there_is_none() -> None:
    exercise = task("chain")
    problem = exercise.parse("12,+3,*2")
    assert exercise.think_on("12+3=15;15*2=30!") == "12+3=15;15*2=30>"
    assert exercise.verify(problem, "12+3=15;15*2=30>" + "30/2=15!")


@pytest.mark.parametrize("name", ["chain", "countdown"])
def test_a_trace_can_be_cut_anywhere(name: str) -> None:
    exercise = task(name)
    for seed, problem in enumerate(exercise.generate(10, 5)):
        text = exercise.demonstration(problem, seed)
        assert exercise.answer(exercise.answer_now(text) or "") == exercise.answer(text)
        for at in range(len(text)):
            now = exercise.answer_now(text[:at])
            if now is not None and now.endswith("!"):
                assert exercise.answer(now) is not None
                assert now[:-1] in text
            elif now is not None:
                assert text.startswith(now)


def test_a_chain_cut_at_its_last_result_is_right() -> None:
    exercise = task("chain")
    problem = exercise.parse("12,+3,*2")
    assert exercise.answer_now("12+3=15;15*2=30>30/") == "12+3=15;15*2=30!"
    assert exercise.answer_now("12+3=15;15*") == "12+3=15!"
    assert not exercise.verify(problem, "12+3=15!")


def test_tasks_that_say_nothing_are_left_alone() -> None:
    exercise = task("sum-1digit")
    assert isinstance(exercise.generate(1, 0)[0], Item)
    assert exercise.think_on("5") is None and exercise.answer_now("5") is None

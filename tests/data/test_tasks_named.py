"""Tasks with settings in their names: what the name says holds for problems and demonstrations."""

from __future__ import annotations

import re

import pytest

from flopwise.data.tasks import is_task, task
from flopwise.data.tasks.countdown import MOST_DEAD_ENDS, attempts
from flopwise.errors import FlopwiseError


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("chain:checks=2", "checks is '2', must be a number from 0 to 1"),
        ("chain:checks=nan", "checks is 'nan'"),
        ("chain:checks=0.50", "checks is '0.50'"),
        ("chain:shortest=4.5", "must be a whole number from 2 to 8"),
        ("chain:shortest=5,longest=4", "shortest 5 is above longest 4"),
        ("chain:slow=1", "the option one of checks, slips, shortest, longest"),
        ("chain:checks=0.5,checks=0.5", "checks is named twice"),
        ("chain:", "'' must be OPTION=NUMBER"),
        ("countdown:search=0", "must be a whole number from 1 to 26"),
    ],
)
def test_a_mistake_in_a_name_is_one_line(name: str, says: str) -> None:
    with pytest.raises(FlopwiseError) as caught:
        task(name)
    assert says in str(caught.value) and "\n" not in str(caught.value) and not is_task(name)


def test_checks_slips_and_lengths_are_as_named() -> None:
    varied = task("chain:checks=0.9,slips=0.3,shortest=4,longest=6")
    problems = varied.generate(400, 0)
    texts = [varied.demonstration(p, 0) for p in problems]
    assert all(varied.verify(p, t) for p, t in zip(problems, texts, strict=True))
    assert varied.slices == ("4-ops", "5-ops", "6-ops") == tuple(sorted({p.slice for p in problems}))
    lines = [line for t in texts for line in re.findall(r"[^;?!]+[;?!]", t)]
    kept = [line for line in lines if line[-1] != "?"]
    assert sum(">" in line for line in kept) / len(kept) == pytest.approx(0.9, abs=0.02)
    assert (len(lines) - len(kept)) / len(kept) == pytest.approx(0.3, abs=0.03)
    assert is_task(varied.name) and task(varied.name).from_row(varied.to_row(problems[0])) == problems[0]


def test_the_old_name_is_the_old_task() -> None:
    plain, named = task("chain"), task("chain:checks=0.4,slips=0.12")
    problem = plain.generate(1, 0)[0]
    assert plain.demonstration(problem, 3) == named.demonstration(problem, 3)


def test_a_search_tries_distinct_ways_until_one_works() -> None:
    searched = task("countdown:search=8")
    problems = searched.generate(300, 0)
    avoid = {q.key for q in searched.generate(2000, 1)} - {p.key for p in problems}
    counts = []
    for p in problems:
        text = searched.demonstration(p, 0, avoid)
        *dead, last = text.rstrip("!").split("?")
        ways = dict(attempts(p.key[0]))
        assert ways[last] == p.target and len(set(dead)) == len(dead)
        assert all(ways[d] != p.target and (p.key[0], ways[d]) not in avoid for d in dead)
        assert searched.verify(p, text) and searched.think_on(text) is None
        assert searched.answer_now(text[:-1]) == text
        counts.append(len(dead))
    assert set(counts) == set(range(9)) and max(map(counts.count, range(9))) < 2 * 300 / 9
    assert max(len(attempts(p.key[0])) for p in problems) <= MOST_DEAD_ENDS + 1

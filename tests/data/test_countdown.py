"""The verifiable task: the verifier is exact, splits are disjoint, hostile text is harmless."""

from __future__ import annotations

import itertools
import re
import time
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flopwise.data.tasks import countdown
from flopwise.data.tasks.countdown import Problem, answer, demonstration, generate, split, steps, verify
from flopwise.errors import FlopwiseError

P = Problem((7, 3, 3), 24)


def brute_force(numbers: tuple[int, ...]) -> set[int]:
    """Values reachable with all three numbers, natural throughout, by another route: expression trees."""
    ops = [lambda a, b: a + b, lambda a, b: a * b, lambda a, b: a - b]
    out = set()
    for a, b, c in itertools.permutations(numbers):
        for f, g in itertools.product(ops, ops):
            left, right = f(a, b), f(b, c)
            if left >= 0 and g(left, c) >= 0:
                out.add(g(left, c))
            if right >= 0 and g(a, right) >= 0:
                out.add(g(a, right))
    return out


def test_attempts_reach_exactly_what_brute_force_reaches():
    for numbers in [(1, 1, 1), (3, 3, 7), (2, 5, 20), (9, 14, 17), (20, 20, 20)]:
        assert {value for _, value in countdown.attempts(numbers)} == brute_force(numbers)


def test_universe_is_all_solvable_problems():
    keys = countdown.universe()
    assert len(keys) == len(set(keys)) == 13_301
    assert all(1 <= target <= 100 and target in brute_force(numbers) for numbers, target in keys[::97])


@pytest.mark.parametrize(
    ("completion", "right"),
    [
        ("7*3=21,21+3=24!", True),
        ("3*7=21,3+21=24!", True),
        ("7+3=10,10+3=13?7*3=21,21+3=24!", True),
        ("  7*3=21,21+3=24!\n", True),
        ("9*9=1?7*3=21,21+3=24!", True),  # dead ends are not judged
        ("7*3=21,21+3=24", False),  # not accepted by its own author
        ("7*3=21,21+3=24?", False),
        ("7*3=21,21+3=25!", False),
        ("7*3=22,22+2=24!", False),
        ("7*3=21,21+4=25!", False),
        ("21+3=24!", False),  # 21 is not at hand
        ("8*3=24!", False),
        ("7*3=21,7*3=21,21+3=24!", False),  # 7 used twice
        ("3+3=6,7+6=13!", False),  # right, but not the target
        ("7*3=21,21+3=24!!", False),
        ("3+3=6,6+7=13!7*3=21,21+3=24!", False),  # two final answers
        ("7*3=21,21+3=24!x", False),
        ("7 * 3 = 21, 21 + 3 = 24!", False),
        ("07*3=21,21+3=24!", False),
        ("٧*3=21,21+3=24!", False),  # a digit to Unicode, not to the task
        ("__import__('os').system('true')!", False),
        ("!", False),
        ("", False),
    ],
)
def test_verify(completion, right):
    assert verify(P, completion) is right


def test_negative_results_are_no_steps():
    assert not verify(Problem((3, 7, 5), 1), "3-7=-4,5-4=1!")
    assert verify(Problem((3, 7, 5), 1), "7-3=4,5-4=1!")


def test_a_number_needed_twice_must_be_there_twice():
    assert verify(Problem((4, 4, 2), 10), "4+4=8,8+2=10!")
    assert not verify(Problem((4, 3, 2), 10), "4+4=8,8+2=10!")


@pytest.mark.parametrize(
    "hostile", ["9" * 100_000 + "!", "7*3=21," * 50_000 + "!", "?" * 100_000, "(" * 5000, "\0!" * 3000]
)
def test_hostile_completions_cost_little(hostile):
    start = time.perf_counter()
    assert verify(P, hostile) is False
    assert answer(hostile) is None
    steps(hostile, P)
    assert time.perf_counter() - start < 0.5


def test_demonstrations_solve_their_problems_and_search_as_often_as_said():
    problems = generate(2000, seed=3)
    shown = [demonstration(p, seed=1) for p in problems]
    assert all(verify(p, text) for p, text in zip(problems, shown, strict=True))
    counts = Counter(text.count("?") for text in shown)
    for n, share in enumerate(countdown.DEAD_ENDS):
        assert counts[n] / len(shown) == pytest.approx(share, abs=0.04)
    # Dead ends are honest: every step right, the numbers at hand, the target missed.
    for p, text in zip(problems[:300], shown, strict=False):
        assert all(step.ok for step in steps(text, p))
        assert max(map(len, re.split(r"[?!]", text))) < 30


def test_demonstration_depends_on_problem_and_seed_alone():
    problems = generate(50, seed=0)
    forward = [demonstration(p, 7) for p in problems]
    assert [demonstration(p, 7) for p in reversed(problems)] == forward[::-1]
    assert [demonstration(p, 8) for p in problems] != forward
    # A fixed example: datasets of different versions must not differ in silence.
    assert demonstration(Problem((7, 3, 3), 24), 5) == "7*3=21,21+3=24!"


def test_demonstration_never_shows_a_way_to_a_problem_to_be_avoided():
    problems = generate(300, seed=2)
    forbidden = {
        (p.key[0], value) for p in problems for _, value in countdown.attempts(p.key[0]) if value % 2
    }
    for p in problems:
        for dead_end in demonstration(p, 0, forbidden).split("?")[:-1]:
            assert countdown.worked_key(dead_end) not in forbidden


def test_unsolvable_problem_cannot_be_demonstrated():
    with pytest.raises(FlopwiseError, match="no solution"):
        demonstration(Problem((1, 1, 1), 99), 0)


def test_split_is_disjoint_and_reproducible():
    sizes = {"demos": 4000, "rl": 6000, "val": 512, "test": 1000}
    parts = split(0, **sizes)
    assert {name: len(part) for name, part in parts.items()} == sizes
    keys = [p.key for part in parts.values() for p in part]
    assert len(set(keys)) == sum(sizes.values())
    assert split(0, **sizes) == parts != split(1, **sizes)
    assert not {p.key for p in generate(1000, 5, exclude=keys)} & set(keys)


def test_more_problems_than_exist_is_an_error_that_says_how_many():
    with pytest.raises(FlopwiseError, match="13,301 exist"):
        generate(20_000, 0)


def test_answers_are_one_vote_when_only_the_order_differs():
    same = ["7*3=21,21+3=24!", "3*7=21,3+21=24!", "9+9=18?3*7=21,21+3=24!"]
    assert {answer(text) for text in same} == {"3*7+3=24"}
    sums = ["7+3=10,10+3=13!", "3+3=6,7+6=13!", "3+3=6,6+7=13!"]
    assert {answer(text) for text in sums} == {"3+3+7=13"}
    assert answer("10-3=7,12-7=5!") == answer("12-10=2,2+3=5!") == answer("12+3=15,15-10=5!") == "12+3-10=5"
    assert answer("7-3=4,4*3=12!") == "(7-3)*3=12"
    assert answer("7*3=21,21+3=24") is None and answer("no idea!") is None


_value = st.integers(0, 24)
_step = st.tuples(_value, st.sampled_from("+-*"), _value, st.none() | st.integers(0, 60))


def _write(parts) -> str:
    text = []
    for a, sign, b, claimed in parts:
        true = {"+": a + b, "-": a - b, "*": a * b}[sign]
        text.append(f"{a}{sign}{b}={max(true, 0) if claimed is None else claimed}")
    return ",".join(text) + "!"


@settings(max_examples=400, deadline=None)
@given(st.lists(_step, min_size=1, max_size=3), st.sampled_from(countdown.universe()))
def test_any_written_completion_is_judged_without_an_error(parts, key):
    text = _write(parts)
    problem = Problem(*key)
    assert isinstance(verify(problem, text), bool)
    assert answer(text) is not None
    judged = steps(text, problem)
    assert [s.text for s in judged] == text.split(",")
    assert verify(problem, text) == (all(s.ok for s in judged) and len(judged) == 2)


def test_equal_answers_are_all_right_or_all_wrong():
    """Votes are counted by answer, so a class of equal answers must have one truth."""
    for problem in generate(40, seed=11):
        verdicts: dict[str, set[bool]] = {}
        for text, _ in countdown.attempts(problem.key[0]):
            for variant in (text, _swap(text), text.replace("=", "=1", 1)):
                verdict = verify(problem, variant + "!")
                verdicts.setdefault(str(answer(variant + "!")), set()).add(verdict)
        assert all(len(v) == 1 for v in verdicts.values())


def _swap(attempt: str) -> str:
    return re.sub(r"(\d+)([+*])(\d+)=", r"\3\2\1=", attempt)


def test_steps_say_what_is_wrong():
    assert [(s.ok, s.why) for s in steps("7+3=10,10+3=13?7*3=22,5+3=8!", P)] == [
        (True, ""), (True, "dead end"), (False, "7*3 is 21"), (False, "5 is not at hand"),
    ]  # fmt: skip
    assert steps("7+3=10,10+3=13!", P)[-1].why == "does not solve 7 3 3=24"
    assert steps("7+3=10,10+3=13!")[-1].ok  # without the problem, the arithmetic alone is judged
    assert steps("gibberish", P)[0].why == "not a step"
    assert steps("") == []


@pytest.mark.parametrize(
    "text", ["7 3=24", "7 3 3", "a b c=d", "7 3 3=24; drop table runs", "", "1 2 3=99999"]
)
def test_parse_refuses_what_is_no_problem(text):
    with pytest.raises(FlopwiseError, match="countdown"):
        Problem.parse(text)


def test_problem_refuses_other_shapes():
    for numbers, target in [((1, 2), 3), ((1, 2, -3), 3), (("1", 2, 3), 3), ((1, 2, 3), 10**9)]:
        with pytest.raises(FlopwiseError, match="three natural numbers"):
            Problem(numbers, target)

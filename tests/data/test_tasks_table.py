"""A person's own rows as a task: rules that abstain rather than guess, bad rows named, no pattern hangs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flopwise.data.tasks import is_task, task
from flopwise.data.tasks.answers import final_choice, final_expression, final_number
from flopwise.errors import FlopwiseError, MissingExtra


def table(folder: Path, rows: list, options: str = "", name: str = "t.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(r) + "\n" if not isinstance(r, str) else r + "\n" for r in rows))
    return task(f"table:{path}{options}")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        (" 8", "8"), ("8.", "8"), ("8.0", "8"), ("+8", "8"), ("-8", "-8"), ("\u22128", "-8"),
        ("1,234", "1234"),
        ("$12", "12"), ("**12**", "12"), ("12 apples", "12"), ("The total is 12 apples.", "12"),
        ("#### 12", "12"), ("\\boxed{12}", "12"), ("so \\boxed{12}.", "12"), ("the answer is 12.", "12"),
        ("Answer: 12", "12"), ("3 + 5 = 8", "8"), ("3*4 = 12, 12+5 = 17.", "17"), ("3 + 5 = 9, no: 8", None),
        ("First 3, then 5. The answer is 8.", "8"), ("3 + 5 = 8 apples", "8"), ("0.50", "0.5"), ("007", "7"),
        ("", None), ("eight", None), ("8 or 9", None), ("8, 9", None), ("5..8", None), ("8-9", None),
        ("18th", None), ("8e3", None), ("0x8", None), ("8/2", None), ("50%", None), ("2^8", None),
        ("8 9", None),
        ("the answer is 8. The answer is 9.", None), ("the answer is 8 or 9", None), ("not 8", None),
        ("It isn't 8", None), ("the answer is not 8", None), ("Answer: 8, but 9 is possible", None),
        ("\\boxed{8} or \\boxed{9}", None), ("\\boxed{8} or 9", None), ("\\boxed{\\frac{1}{2}}", None),
        ("\\boxed{8", None), ("٨", None), ("１２", None), ("8²", None), ("½", None), ("3 - 11 = - 8", None),
        ("- 8", None), ("8" * 31, None), ("3 + 5 = 8/1", None), ("12:30", None), ("1,23", None),
        ("1.2.3", None),
        ("(" * 3000 + "8", "8"), ("8" + " " * 5000, None),
    ],
)  # fmt: skip
def test_a_number_is_read_or_nothing_is(text, number):
    assert final_number(text) == number


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"), (" (b)", "B"), ("B) Paris", "B"), ("B. Paris", "B"), ("The answer is C.", "C"),
        ("Answer: (D)", "D"), ("Answer: A) a dog", "A"), ("the answer is A, a dog", "A"), ("\\boxed{C}", "C"),
        ("A or B", None), ("A and B", None), ("Answer: A. Answer: B.", None), ("Paris", None), ("", None),
        ("Bob", None), ("the answer is not B", None), ("Answer: A or B", None), ("B" * 5000, None),
    ],
)  # fmt: skip
def test_a_choice_is_read_or_nothing_is(text, letter):
    assert final_choice(text) == letter


@pytest.mark.parametrize(
    ("text", "formula"),
    [
        ("x+1", "x+1"), ("$x+1$.", "x+1"), ("so \\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed{1} and \\boxed{2}", None), ("\\boxed{{{{", None), ("one\ntwo", None), ("", None),
        ("long\nbut the answer is x^2.", "x^2"),
    ],
)  # fmt: skip
def test_a_formula_is_read_or_nothing_is(text, formula):
    assert final_expression(text) == formula


def test_rules_judge(tmp_path):
    exact = table(tmp_path, [{"prompt": "Capital of France?", "answer": "Paris"}], name="a.jsonl")
    (p,) = exact.generate(1, 0)
    assert (
        exact.verify(p, "  Paris\n") and not exact.verify(p, "paris") and not exact.verify(p, "Paris or Rome")
    )
    assert exact.demonstration(p, 0) == " Paris"

    number = table(
        tmp_path, [{"q": "Three and five?", "a": 8.0}], ",rule=number,prompt=q,answer=a", "b.jsonl"
    )
    (p,) = number.generate(1, 0)
    assert p.gold == "8" and number.verify(p, "3 + 5 = 8") and not number.verify(p, "8 or 9")
    assert [s.ok for s in number.steps("3 + 5 = 9")] == [False]

    choice = table(tmp_path, [{"prompt": "A) 1 B) 2", "answer": "b"}], ",rule=choice", "c.jsonl")
    (p,) = choice.generate(1, 0)
    assert choice.verify(p, " B") and not choice.verify(p, "A or B")

    pattern = table(
        tmp_path, [{"prompt": "A date?", "answer": "[0-9]{4}-[0-9]{2}"}], ",rule=regex", "d.jsonl"
    )
    (p,) = pattern.generate(1, 0)
    assert pattern.verify(p, "2024-05") and not pattern.verify(p, "in 2024-05, I think")
    with pytest.raises(FlopwiseError, match="solution=COLUMN"):
        pattern.demonstration(p, 0)


def test_a_pattern_that_would_hang_python_is_linear_here(tmp_path):
    rows = [{"prompt": "Letters?", "answer": "(a+)+(a|aa)*b"}]
    t = table(tmp_path, rows, ",rule=regex")
    (p,) = t.generate(1, 0)
    assert t.verify(p, "a" * 4000) is False  # exponential in a matcher that backtracks: it would not end
    assert t.verify(p, "a" * 4000 + "b") is True
    for bad in ("(a)\\1", "(", "(?=a)b", "a{5000}"):
        with pytest.raises(FlopwiseError, match="a pattern that RE2 reads"):
            table(tmp_path, [{"prompt": "x", "answer": bad}], ",rule=regex", f"bad{len(bad)}.jsonl").generate(
                1, 0
            )


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([{"prompt": "a"}], "", "row 1 has no column 'answer'; it has prompt; name it with answer=COLUMN"),
        ([{"prompt": "a", "answer": "x"}, {"prompt": "b", "answer": None}], "", "row 2: answer is None"),
        ([{"prompt": "", "answer": "x"}], "", "row 1: prompt is ''"),
        ([{"prompt": "a", "answer": True}], "", "row 1: answer is True"),
        ([{"prompt": "a", "answer": "eight"}], ",rule=number", "the answer is 'eight', must be one number"),
        ([{"prompt": "a", "answer": "AB"}], ",rule=choice", "must be one letter"),
        ([{"prompt": "a", "answer": "x"}, {"prompt": " a ", "answer": "y"}], "", "asks what an earlier row"),
        (["[1, 2]"], "", "row 1: no field"),
        (["{broken"], "", "row 1: broken JSON"),
        ([], "", "holds no rows"),
        ([{"prompt": "a", "answer": "x"}], ",sha256=00", "another file than was meant"),
        ([{"prompt": "a", "answer": "4", "s": "5"}], ",rule=number,solution=s", "does not give its answer"),
    ],
)  # fmt: skip
def test_bad_rows_are_named(tmp_path, rows, options, message):
    with pytest.raises(FlopwiseError, match=message) as caught:
        t = table(tmp_path, rows, options)
        t.demonstration(t.generate(1, 0)[0], 0)
    assert "\n" not in str(caught.value)


def test_bad_names_are_one_line(tmp_path):
    for name, message in [
        ("table:", "no file is named"),
        ("table:x.jsonl,rule=guess", "must be one of exact, number"),
        ("table:x.jsonl,colour=red", "OPTION=VALUE"),
        ("table:x.jsonl,rule", "OPTION=VALUE"),
    ]:
        assert not is_task(name)
        with pytest.raises(FlopwiseError, match=message):
            task(name)
    assert is_task("table:nowhere.jsonl,rule=number")
    with pytest.raises(FlopwiseError, match="nowhere"):
        task(f"table:{tmp_path}/nowhere.jsonl").generate(1, 0)


def test_solutions_slices_and_csv(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("q,a,how,kind\n007 and 1?,8,7 + 1 = 8,easy\n12 and 5?,17,12 + 5 = 17,hard\n")
    t = task(f"table:{path},rule=number,prompt=q,answer=a,solution=how,slice=kind")
    assert t.slices == ("easy", "hard")
    (hard,) = t.generate(1, 0, slice="hard")
    assert hard.prompt == "12 and 5?" and t.demonstration(hard, 0) == " 12 + 5 = 17"
    assert t.parse("007  and 1?").gold == "8"
    with pytest.raises(FlopwiseError, match="is no prompt of the file"):
        t.parse("2 and 2?")
    with pytest.raises(FlopwiseError, match="2 exist"):
        t.generate(3, 0)
    again = t.from_row(json.loads(json.dumps(t.to_row(hard))))
    path.unlink()  # what a data step kept is judged without the file
    assert task(t.name + ",sha256=1").verify(again, "17")


def test_absent_packages_give_the_install_command(tmp_path, monkeypatch):
    import importlib.util

    from flopwise.data.tasks import gym
    from flopwise.data.tasks import table as tables

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    tables._math.cache_clear()
    with pytest.raises(MissingExtra, match=r"pip install 'flopwise\[reasoning\]'"):
        table(tmp_path, [{"prompt": "a", "answer": "1"}], ",rule=math").generate(1, 0)
    monkeypatch.setitem(__import__("sys").modules, "reasoning_gym", None)
    with pytest.raises(MissingExtra, match=r"pip install 'flopwise\[reasoning\]'"):
        gym.Gym("gcd").generate(1, 0)

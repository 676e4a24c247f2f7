"""Tables of samples in their three shapes, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from flopwise.errors import FlopwiseError
from flopwise.laws.coverage_table import read_counts


def test_a_row_per_problem_by_groups_in_order_of_appearance():
    table = {"model": ["b", "a", "b"], "problem": [1, 1, 2], "n": [10, 20, 30], "c": [1, 2, 0]}
    found = read_counts(table, ["model"])
    assert list(found) == [("b",), ("a",)]
    assert found["b",].n.tolist() == [10, 30] and found["a",].c.tolist() == [2]
    assert not found["b",].stopped.any()


def test_a_row_per_sample():
    table = {"problem": ["x", "y", "x", "x"], "correct": ["yes", "False", "no", "TRUE"]}
    counts = read_counts(table)[()]
    assert counts.n.tolist() == [3, 1] and counts.c.tolist() == [2, 0]


def test_tries_until_solved():
    counts = read_counts({"attempts": [3, 50], "solved": [1, 0]})[()]
    assert counts.c.tolist() == [1, 0] and counts.stopped.tolist() == [True, False]
    assert counts.pass_at(2).tolist() == [0.0, 0.0] and counts.pass_at(3)[0] == 1.0


def test_stops_at_the_third_success():
    counts = read_counts({"n": [9, 50], "c": [3, 2], "stopped": [True, False]})[()]
    assert counts.rates() == pytest.approx([2 / 8, 2 / 50])


@pytest.mark.parametrize(
    ("table", "by", "message"),
    [
        ({"n": [1], "right": [1]}, [], "needs columns n .*there are n, right; name others with --map"),
        ({"n": [1], "c": [1]}, ["model"], "no column 'model'"),
        ({"n": [5], "c": [7]}, [], "c must lie between 0 and n"),
        ({"n": [5.5], "c": [1]}, [], "samples n holds 5.5"),
        ({"n": [5, np.nan], "c": [1, 1]}, [], "column 'n' holds"),
        ({"problem": [1, 1], "n": [5, 5], "c": [1, 1]}, [], "problem '1' comes twice; name the column"),
        ({"problem": [1, 1], "m": ["a", "a"], "n": [5, 5], "c": [1, 1]}, ["m"], "'1' of a comes twice"),
        ({"attempts": [5], "solved": [2]}, [], "'solved' holds '2' in row 1, must be true or false"),
        ({"problem": [1], "correct": [0.5]}, [], "'correct' holds '0.5'"),
    ],
)  # fmt: skip
def test_bad_tables_are_refused_in_one_line(table, by, message):
    with pytest.raises(FlopwiseError, match=message) as e:
        read_counts({name: np.array(v) for name, v in table.items()}, by)
    assert "\n" not in str(e.value)

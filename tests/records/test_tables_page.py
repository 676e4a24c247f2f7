"""The page on tables: its example runs, and numbers are read as it says."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

from flopwise.records.quantities import parse

PAGE = Path(__file__).parents[2] / "docs" / "tables.md"


def test_the_example_runs():
    done = doctest.testfile(str(PAGE), module_relative=False)
    assert (done.attempted, done.failed) == (3, 0)


@pytest.mark.parametrize(
    ("first", "value"),
    [
        ("7B", 7e9), ("7G", 7e9), ("6.3×10²¹", 6.3e21), ("1 400 000", 1.4e6), ("300B tokens", 3e11),
        ("2,5", 2.5), ("1.2 ZFLOP", 1.2e21), ("5 PF-days", 4.32e20), ("37%", 0.37),
    ],
)  # fmt: skip
def test_its_numbers(first, value):
    text = re.sub(r"```.*?```", "", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert first in re.findall(r"`([^`]+)`", text)
    assert parse(first).value == value

"""The page on models: its examples run, and its table of families is the code's."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from flopwise.models.families import CLASSES

PAGE = Path(__file__).parents[2] / "docs" / "models.md"


def test_the_examples_run():
    done = doctest.testfile(str(PAGE), module_relative=False)
    assert done.attempted >= 15 and done.failed == 0


def test_all_families_are_named():
    named = re.findall(r"`([a-z0-9_]+)`", PAGE.read_text(encoding="utf-8"))
    assert set(CLASSES) <= set(named)

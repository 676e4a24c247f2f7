"""The page on laws is what the catalogue says, and its example runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "laws.md"


@pytest.fixture
def build(monkeypatch):
    monkeypatch.syspath_prepend(str(PAGE.parent))
    import build

    return build


def test_the_page_is_up_to_date(build):
    assert PAGE.read_text(encoding="utf-8") == build.laws_page(), "run `make docs`"


def test_the_law_of_ones_own_runs():
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "{'E': 1.7, 'A': 90.0, 'b': 0.3, 's': 2000000.0}" in done.stdout

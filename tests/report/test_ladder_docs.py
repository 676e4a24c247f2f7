"""The page of a ladder in the documentation is made from its numbers, with the figures they allow."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import ladder_maker
import pytest

from flopwise.report.collect import collect

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def generator() -> Any:
    pytest.importorskip("matplotlib")
    sys.path.insert(0, str(DOCS))
    try:
        import ladder_results
    finally:
        sys.path.remove(str(DOCS))
    return ladder_results


def test_page_says_what_the_results_say(
    generator: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = ladder_maker.make(tmp_path / "runs")
    results = collect(made.root)
    saved = tmp_path / "results.json"
    saved.write_text(json.dumps(results))
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(generator, "DOCS", tmp_path)
    generator.main(str(saved), "made", "flopwise run made.yaml")
    text = (tmp_path / "results" / "pretraining_made.md").read_text()
    test = results["ladders"][0]["verification"][0]
    assert f"| {test['predicted']:.4f} |" in text
    assert f"{test['measured']:.4f} ± 0.0100" in text
    assert "flopwise run made.yaml" in text
    assert text.count("\n| `") == len(results["rungs"]["points"])
    drawn = {p.name for p in (tmp_path / "img").iterdir()}
    assert drawn == {
        f"pretraining_made_{name}.png" for name in ("law_main", "variants", "isoflop", "corpora", "tuning")
    }
    assert all(f"../img/{name})" in text for name in drawn)
    assert "One held-out run, with one seed" in text
    for row in (line for line in text.splitlines() if line.startswith("|")):
        assert row.endswith("|")


def test_page_of_an_unfinished_ladder_claims_nothing(generator: Any, tmp_path: Path) -> None:
    m = ladder_maker.LadderMaker(tmp_path / "runs", {"dense": 1.0})
    m.data()
    m.rungs("dense", 32, ladder_maker.BUDGETS)
    text = generator.page(collect(m.made.root), "half", "", {})
    assert "Predicted" not in text
    assert "No rung was repeated with another seed" in text
    assert "| `w32-s0-3` | 32 |" in text

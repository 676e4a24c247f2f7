"""Comparisons in the report: a tiny recipe from end to end, differences and savings by hand."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.conftest import finished
from tests.report.test_html import Page

from flopwise.report import build
from flopwise.report.collect import collect
from flopwise.report.testtime import _reaches, _savings, _searches, findings

if importlib.util.find_spec("torch") is None:
    pytest.skip("makes models", allow_module_level=True)

COMPARED: dict[str, Any] = {"model": "small", "n": 2, "problems": 10, "max_tokens": 24}
WAYS = ["self_consistency", "best_of_n:verifier", "budget:tokens=8"]
RECIPE: dict[str, Any] = {
    "kind": "posttrain", "name": "tiny", "val_problems": 10,
    "data": {
        "corpora": ["stdlib"], "max_chars": 60_000, "heldout_fraction": 0.1, "vocab_size": 300,
        "task": "countdown:search=2,largest=9", "demonstrations": 100, "rl_problems": 20,
        "val_problems": 10, "test_problems": 20,
    },
    "bases": {
        name: {"width": width, "depth": 1, "tokens": 10_000, "seq_len": 96, "batch_size": 8,
               "mixture": {"text": 0.25, "task": 0.75}}
        for name, width in (("small", 16), ("middle", 24), ("large", 32))
    },
    "runs": {},
    "compare": [
        COMPARED | {"name": "ways", "strategies": WAYS},
        COMPARED | {"name": "middle", "model": "middle", "strategies": ["best_of_n:verifier"]},
        COMPARED | {"name": "large", "model": "large", "strategies": ["best_of_n:verifier"]},
        COMPARED | {"name": "sums", "task": "sum-1digit", "style": "few_shot", "shots": 1,
                    "strategies": ["greedy", "best_of_n:logprob"]},
    ],
    "laws": [
        {"name": "long", "method": "thinking", "runs": ["ways"]},
        {"name": "over", "method": "crossover", "runs": ["ways", "middle", "large"]},
        {"name": "none", "method": "crossover", "runs": ["ways", "middle", "sums"]},
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Only read it: all tests share it."""
    return finished(tmp_path_factory, "testtime", RECIPE, [])


def test_strategies_of_every_comparison_are_told_with_their_laws(tiny: Path, tmp_path: Path) -> None:
    results = collect(tiny)
    assert results["kind"] == "posttrain" and not results["problems"]
    section = results["comparisons"]
    entries = {e["name"]: e for e in section["entries"]}
    assert set(entries) == {"ways", "middle", "large", "sums"} and not section["missing"]
    ways = entries["ways"]
    assert ways["model"] == next(n for n in (e["model"] for e in entries.values()) if n.startswith("small"))
    assert [s["name"] for s in ways["strategies"]][:2] == ["self_consistency", "best_of_n:verifier"]
    assert [s["acts"] for s in ways["strategies"]] == [False, False, True]
    assert all([q["n"] for q in s["points"]] == [1, 2] for s in ways["strategies"])
    assert entries["sums"]["task"] == "sum-1digit" and entries["sums"]["style"] == "few_shot:1"
    laws = {law["name"]: law for law in section["laws"]}
    assert set(laws) == {"long", "over", "none"} and not results["methods"]["laws"]
    assert "tokens to" in laws["long"]["text"] and "measured" in laws["over"]["text"]
    assert laws["none"]["status"] == "refused" and "sums was not asked by" in laws["none"]["text"]
    page = build(tiny, tmp_path / "report.html").read_text()
    Page(page)
    assert "Strategies beside each other" in page and "budget:tokens=8" in page


def test_a_damaged_comparison_is_said_and_the_others_stand(tiny: Path, tmp_path: Path) -> None:
    import shutil

    root = tmp_path / "runs"
    shutil.copytree(tiny, root)
    found = [p for p in root.glob("*/comparison.json") if json.loads(p.read_text())["task"] == "sum-1digit"]
    found[0].write_text("[1]")
    entries = {e["name"] for e in collect(root)["comparisons"]["entries"]}
    assert entries == {"ways", "middle", "large"}


def strategy(name: str, by: str | None, acts: bool, points: list[tuple[int, float, float]]) -> dict[str, Any]:
    rows = [{"n": n, "value": v, "flops": c, "tokens": c, "low": v, "high": v} for n, v, c in points]
    return {"name": name, "by": by, "acts": acts, "points": rows}


def test_search_is_set_against_best_of_n_of_the_same_flops() -> None:
    values = {
        "best_of_n:reward": np.array([[0, 0, 1, 1], [0, 1, 1, 1]], dtype=float),
        "best_of_n:verifier": np.ones((2, 4)), "beam": np.array([[1, 1, 1, 1.0]]),
    }  # fmt: skip
    rows = [
        strategy("best_of_n:reward", "reward", False, [(1, 0.5, 10.0), (2, 0.75, 40.0)]),
        strategy("best_of_n:verifier", "verifier", False, [(1, 1.0, 10.0), (2, 1.0, 40.0)]),
        strategy("beam", "process", True, [(2, 1.0, 20.0)]),
    ]
    [found] = _searches(rows, values)
    # Half way from 10 to 40 by the logarithm: (0, 0.5, 1, 1).
    assert found["rival"] == "best_of_n:reward" and found["rival_value"] == pytest.approx(0.625)
    assert found["difference"] == pytest.approx(0.375)
    assert found["se"] == pytest.approx(np.std([1, 0.5, 0, 0], ddof=1) / 2)
    assert not found["clear"]
    # A rival need not spend all that a dearer search does.
    rows[-1] = strategy("beam", "process", True, [(2, 1.0, 400.0)])
    [found] = _searches(rows, values)
    assert found["rival_value"] == 0.75 and found["difference"] == 0.25


def test_what_a_strategy_saves_is_read_off_its_curve() -> None:
    even = strategy("self_consistency", None, False, [(1, 0.5, 10.0), (8, 0.8, 80.0)])
    stops = strategy("stop", None, True, [(4, 0.7, 10.0), (8, 0.9, 40.0)])
    [found] = _savings([even, stops])
    assert found["reached"] == pytest.approx(20.0) and found["share"] == pytest.approx(0.25)
    useless = strategy("best_of_n:logprob", "logprob", False, [(1, 0.5, 10.0), (8, 0.5, 80.0)])
    assert not _savings([useless, stops])  # more samples did not help, so there is nothing to save
    assert _reaches(stops["points"], 0.95) is None and _reaches(stops["points"], 0.1) == 10.0
    entry = {"name": "e", "searches": [], "savings": [found]}
    assert "for 25% of its FLOPs" in findings([entry])[0]

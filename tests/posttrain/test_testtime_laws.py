"""Laws of comparisons: a known crossover is found from the smaller models, points of thinking are read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from flopwise.errors import FlopwiseError
from flopwise.posttrain.testtime_laws import Side, crossover, thinking, thinking_rows

P, N = 400, 16
KS = (1, 2, 4, 8, 16)
PROBLEMS = [f"{i}:" for i in range(P)]


def side(name: str, size: float, flops: float, seed: int) -> Side:
    """A model whose error is 0.9 at size 1e4 and falls with the fourth root of size; problems are alike, and
    of n samples one that is right is found."""
    rng = np.random.default_rng(seed)
    p = 1 - 0.9 * (size / 1e4) ** -0.25
    right = rng.random((P, N)) < p
    values = np.array([right[:, :k].any(axis=1) for k in KS], dtype=float)
    costs = flops * np.array(KS, dtype=float)
    return Side(name, size, PROBLEMS, (rng.random(P) < p).astype(float), flops, costs, values)


def sides() -> list[Side]:
    return [side("large", 1.6e5, 16e6, 2), side("small", 1e4, 1e6, 0), side("middle", 4e4, 4e6, 1)]


def test_the_larger_ones_accuracy_and_the_crossing_are_predicted_from_the_smaller() -> None:
    found = crossover(sides(), "best_of_n:verifier", 0)
    truth = 1 - 0.9 / 2
    assert found["greedy"]["low"] < truth < found["greedy"]["high"] and found["greedy"]["inside"]
    assert found["greedy_flops"] == 16e6
    small, middle = found["entries"]
    assert (small["small"], middle["small"]) == ("small", "middle")
    # 1 - 0.9^k reaches 0.55 between 4 and 8 samples, 1 - (0.9 / sqrt 2)^k between 1 and 2.
    assert 4e6 < small["flops"]["value"] < 16e6 and 4e6 < middle["flops"]["value"] < 8e6
    assert small["inside"] and middle["inside"]
    assert middle["measured_gain"]["low"] > 0.2  # 1 - 0.636^4 = 0.84 for the larger one's FLOPs
    assert "inside" in found["text"] and "\n" not in found["text"]


def test_what_is_never_reached_is_said_and_not_invented() -> None:
    weak = [side("small", 1e4, 1e6, 0), side("middle", 1.2e4, 1e6, 1), side("large", 1e9, 1e6, 2)]
    for s in weak[:2]:
        s.values[:] = s.values[0]  # no gain from more samples
    found = crossover(weak, "best_of_n:verifier", 0)
    assert found["entries"][0]["measured"]["value"] == np.inf
    assert "measured more than was tried" in found["text"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: s[:2], "needs three sizes"),
        (lambda s: [*s[:2], replace(s[2], problems=PROBLEMS[::-1], size=5.0)], "ask other problems"),
    ],
)
def test_what_cannot_be_compared_is_refused(change: Any, says: str) -> None:
    with pytest.raises(FlopwiseError, match=says):
        crossover(change(sides()), "best_of_n:verifier", 0)


def comparison(folder: Path, points: dict[str, list[tuple[float, float]]]) -> Any:
    """A comparison's folder with such strategies: tokens and accuracy."""
    strategies = [
        {"name": name, "by": None,
         "points": [{"n": i, "value": v, "se": 0.01, "tokens": t, "flops": 1e6 * t}
                    for i, (t, v) in enumerate(rows, 1)]}
        for name, rows in points.items()
    ]  # fmt: skip
    folder.mkdir()
    (folder / "comparison.json").write_text(json.dumps({"strategies": strategies}))
    return SimpleNamespace(path=folder, id="c")


def test_accuracy_by_thinking_tokens_is_read_fitted_and_told(tmp_path: Path) -> None:
    top, b, T = 0.9, 0.25, 30.0
    truth = [(t, top - b * np.log(1 + T / t)) for t in (10, 20, 40, 80, 160, 320)]
    run = comparison(tmp_path / "c", {"budget:factor=2": truth[::-1], "greedy": [(30, 0.99)]})
    rows = thinking_rows([run], "budget")
    assert [r["tokens"] for r in rows] == [t for t, _ in truth]
    found = thinking(rows, {"candidates": ["thinking_length"]}, 0)
    assert found["status"] == "fitted" and found["factor"] == pytest.approx(32)
    assert found["params"]["top"] == pytest.approx(top, abs=0.02) and found["held_out"] == 1
    assert found["error"] < 0.01 and "32 times as many" in found["text"]


def test_a_comparison_without_budgets_is_refused(tmp_path: Path) -> None:
    run = comparison(tmp_path / "c", {"greedy": [(30, 0.99)]})
    with pytest.raises(FlopwiseError, match="compare budgets"):
        thinking_rows([run], "budget")

"""The laws of law 2: a known curve is found again, and what a curve does not show is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from flopwise.errors import FlopwiseError
from flopwise.posttrain.laws import answer, gather

MIDDLE, CEILING = 1e11, 0.5


def curves(most: float) -> list[dict[str, Any]]:
    """Rewards of three runs along a sigmoid in compute, with noise."""
    rng = np.random.default_rng(0)
    C = [c for c in np.geomspace(1e10, 1e12, 30) if c < most]
    return [
        {"run": f"r{seed}", "C": float(c), "y": 0.2 + 0.3 / (1 + (MIDDLE / c) ** 1.5) + rng.normal(0, 0.01)}
        for seed in range(3)
        for c in C
    ]


def test_a_sigmoid_is_found_and_predicts_what_it_has_not_seen() -> None:
    found = answer(curves(np.inf), {"candidates": ["rl_sigmoid"], "hold_out": 0.2}, 0)
    assert found["status"] == "fitted" and found["held_out"] == 18
    low, high = found["intervals"]["A"]
    assert low < CEILING < high
    assert found["intervals"]["Cmid"][0] < MIDDLE < found["intervals"]["Cmid"][1]
    assert found["error"] < 0.02  # the noise is 0.01
    assert "18 largest, which it had not seen" in found["text"]


def test_compute_that_has_not_passed_the_middle_is_refused() -> None:
    found = answer(curves(0.8 * MIDDLE), {"candidates": ["rl_sigmoid"]}, 0)
    assert found["status"] == "refused"
    assert "may not have passed the curve's midpoint" in found["text"]


def test_a_flat_curve_is_refused() -> None:
    rows = [row | {"y": 0.3 + 0.01 * (-1) ** i} for i, row in enumerate(curves(np.inf))]
    found = answer(rows, {"candidates": ["rl_sigmoid"]}, 0)
    assert found["status"] == "refused" and "too little to shape a curve" in found["text"]


def test_forms_compete_on_rows_that_none_has_seen() -> None:
    rng = np.random.default_rng(1)
    rows = [
        {"run": f"{D}-{s}", "N": N, "D": D, "C": 1.0, "y": 0.4 + 30 / (N**0.3 * D**0.4) + rng.normal(0, 1e-3)}
        for N in (1e4, 4e4, 1.6e5)
        for D in (100, 400, 1600, 6400)
        for s in range(2)
    ]
    options = {"candidates": ["chinchilla", "finetune_joint"], "hold_out": 0.25, "by": "D"}
    found = answer(rows, options, 0)
    assert found["law"] == "finetune_joint" and found["others"]["chinchilla"] > found["error"]


def test_what_cannot_be_asked_says_so() -> None:
    with pytest.raises(FlopwiseError, match="method is 'middle', must be one of final, curve, reward"):
        gather("middle", {}, "greedy")
    with pytest.raises(FlopwiseError, match="none of the runs has greedy"):
        gather("final", {}, "greedy")
    rows = [{"run": str(i), "C": 1.0 + i, "y": 0.5} for i in range(8)]
    with pytest.raises(FlopwiseError, match="the runs have no column D"):
        answer(rows, {"candidates": ["rectified"]}, 0)

"""Exchange rates: costs read off straight lines between measured systems, intervals over problems."""

from __future__ import annotations

import numpy as np
import pytest

from flopwise.errors import FlopwiseError
from flopwise.plan.exchange import Way, break_even, crossing, exchange_rates
from flopwise.plan.systems import System, paired_draws


def system(
    accuracy: float,
    *,
    once: float = 1e12,
    each: float = 1e6,
    n: int = 1,
    strategy: str = "greedy",
    size: int = 1000,
):
    right = np.zeros(size)
    right[: round(accuracy * size)] = 1.0
    return System("m", "id", strategy, n, right, once, each)


def test_crossing_reads_between_points_and_claims_nothing_beyond():
    costs, accuracies = np.array([0.0, 10.0, 40.0]), np.array([0.2, 0.4, 0.5])
    assert crossing(costs, accuracies, 0.3) == pytest.approx(5.0)
    assert crossing(costs, accuracies, 0.45) == pytest.approx(25.0)
    assert crossing(costs, accuracies, 0.45, log_after=True) == pytest.approx(20.0)
    assert crossing(costs, accuracies, 0.51) is None
    # A dip costs nothing more: the first time the target is reached counts.
    assert crossing(np.array([0.0, 1.0, 2.0]), np.array([0.2, 0.1, 0.3]), 0.2) == pytest.approx(1.5)


def test_rates_tell_one_off_from_per_question_and_where_they_meet():
    start = system(0.2)
    more = system(0.4, once=3e12)
    samples = [
        system(0.3, each=2e6, n=2, strategy="verifier"),
        system(0.5, each=8e6, n=8, strategy="verifier"),
    ]
    ways = [
        Way("post-training", "train", (start, more), per_question=False),
        Way("test time", "sample", (start, *samples), per_question=True),
    ]
    out = exchange_rates(ways, [0.1, 0.9])
    train, sample = out["rates"][0]["ways"]
    assert train["one_off_flops"] == pytest.approx(1e12) and train["per_question_flops"] is None
    assert sample["per_question_flops"] == pytest.approx(1e6) and sample["one_off_flops"] is None
    assert train["one_off_low"] <= train["one_off_flops"] <= train["one_off_high"]
    assert out["rates"][0]["break_even"] == [{"a": "train", "b": "sample", "questions": pytest.approx(1e6)}]
    unreached = out["rates"][1]["ways"]
    assert not any(w["reached"] for w in unreached) and "not reached" in unreached[0]["note"]
    assert out["rates"][1]["break_even"] == []
    assert out["reference"]["se"] == pytest.approx(np.sqrt(0.2 * 0.8 / 1000), rel=0.15)


def test_an_uncertain_gain_has_an_open_interval():
    rng = np.random.default_rng(0)
    a = System("m", "a", "greedy", 1, (rng.random(60) < 0.4).astype(float), 1e12, 1e6)
    b = System("m", "b", "greedy", 1, (rng.random(60) < 0.5).astype(float), 2e12, 1e6)
    gain = max(0.005, (b.accuracy - a.accuracy) * 0.9)
    row = exchange_rates([Way("post-training", "train", (a, b), per_question=False)], [gain])["rates"][0][
        "ways"
    ][0]
    # In some resamples the method gains less than that: no upper end can be named.
    assert row["one_off_high"] is None


def test_pairs_are_resampled_together():
    values = (np.arange(500) % 3 == 0).astype(float)
    a, b = (System("m", "x", "greedy", 1, v, 0.0, 1.0) for v in (values, np.minimum(1.0, values + 0.1)))
    draws = paired_draws([a, b], 200, 0)
    assert (draws[:, 1] - draws[:, 0]).std() < 0.01 < draws[:, 0].std()


def test_systems_of_different_problem_sets_are_refused():
    with pytest.raises(FlopwiseError, match="same ones"):
        paired_draws([system(0.5, size=10), system(0.5, size=20)], 10, 0)


def test_break_even_needs_both_kinds():
    assert break_even([{"how": "a", "one_off_flops": 1.0, "per_question_flops": None}]) == []

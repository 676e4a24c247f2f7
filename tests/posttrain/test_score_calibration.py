"""Calibration: measures that can be worked out by hand, temperatures that are known, errors over problems."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flopwise.infer import calibration as c


def drawn(temperature: float, n: int = 4000, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores whose log-odds are true when divided by `temperature`, four answers to a problem."""
    rng = np.random.default_rng(seed)
    true = rng.normal(0, 1.5, n)
    right = rng.random(n) < 1 / (1 + np.exp(-true))
    return true * temperature, right, np.arange(n) // 4


def test_measures_are_what_one_works_out_by_hand() -> None:
    scores = np.log([0.8 / 0.2, 0.8 / 0.2, 0.3 / 0.7, 0.3 / 0.7])
    right = np.array([True, False, False, False])
    assert c.brier(scores, right) == pytest.approx((0.04 + 0.64 + 0.09 + 0.09) / 4)
    assert c.log_loss(scores, right) == pytest.approx(-np.mean(np.log([0.8, 0.2, 0.7, 0.7])))
    table = c.reliability(scores, right)
    assert [(round(r["given"], 6), r["right"], r["n"]) for r in table] == [(0.3, 0.0, 2), (0.8, 0.5, 2)]
    assert c.expected_error(table) == pytest.approx(0.3)


@pytest.mark.parametrize("true", [0.5, 1.0, 3.0])
def test_the_temperature_is_found_and_mends_the_chances(true: float) -> None:
    scores, right, groups = drawn(true)
    assert c.temperature(scores, right) == pytest.approx(true, rel=0.1)
    mended = c.scaled(scores, right, groups)
    assert c.expected_error(c.reliability(mended, right)) < 2 * c.error_by_chance(mended)
    assert np.array_equal(
        np.argsort(mended[::8]), np.argsort(scores[::8])
    )  # no order is changed within a half
    if true == 3.0:
        assert c.expected_error(c.reliability(scores, right)) > 4 * c.error_by_chance(scores)


def test_scaling_is_cross_fitted_over_problems() -> None:
    scores, right, groups = drawn(2.0, 400)
    mended = c.scaled(scores, right, groups)
    other = right.copy()
    half = (groups % 2) == 0
    other[half] = ~other[half]
    # The verdicts on a problem change the temperature of the others alone.
    assert np.array_equal(c.scaled(scores, other, groups)[half], mended[half])
    assert not np.array_equal(c.scaled(scores, other, groups)[~half], mended[~half])
    assert np.array_equal(
        c.scaled(scores[:4], right[:4], groups[:4]), scores[:4]
    )  # one problem: nothing to fit


def test_errors_treat_problems_as_the_units() -> None:
    rng = np.random.default_rng(0)
    value = np.repeat(rng.random(100), 5)  # five copies say nothing new
    alone = c.cluster_error(value[::5], np.arange(100))
    assert alone == pytest.approx(value[::5].std(ddof=1) / 10)
    assert c.cluster_error(value, np.repeat(np.arange(100), 5)) == pytest.approx(alone)
    assert c.cluster_error(value[:5], np.zeros(5)) is None


def test_within_problems_easy_problems_do_not_help() -> None:
    groups = np.repeat(np.arange(40), 10)
    easy = np.repeat(np.random.default_rng(0).normal(0, 3, 40), 10)
    right = np.random.default_rng(1).random(400) < 1 / (1 + np.exp(-easy))
    found = c.within(easy, right, groups)
    assert found["auc_within"].value == 0.5 and (found["auc_pooled"].value or 0) > 0.8
    nothing = c.within(easy, np.ones(400, dtype=bool), groups)
    assert nothing["auc_within"].value is None and nothing["auc_pooled"].value is None


@settings(max_examples=15)
@given(st.lists(st.tuples(st.floats(-50, 50), st.booleans(), st.integers(0, 3)), min_size=2, max_size=30))
def test_whatever_is_judged_the_description_is_finite_and_in_range(
    rows: list[tuple[float, bool, int]],
) -> None:
    scores, right, groups = (np.array(column) for column in zip(*rows, strict=True))
    metrics, extra = c.describe(scores, right, groups)
    assert all(m.value is not None and 0 <= m.value <= 1 for m in metrics.values())
    assert math.isfinite(extra["temperature"]) and math.isfinite(extra["scaled"]["log_loss"])
    assert sum(row["n"] for row in extra["reliability"]) == len(rows)


def test_shares_count_as_they_are() -> None:
    scores, share = np.log([3.0, 1 / 3]), np.array([0.75, 0.25])
    metrics, extra = c.describe(scores, share, np.array([0, 1]))
    assert metrics["brier"].value == pytest.approx(0) and metrics["accuracy"].value == 1
    assert extra["brier_of_the_share"] == pytest.approx(0.0625)

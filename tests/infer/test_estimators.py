"""Every estimator against what it estimates: a strategy run on all subsets."""

import itertools

import numpy as np
import pytest

from flopwise.infer.estimators import (
    best_of_k,
    intervals,
    majority_at_k,
    mean_interval,
    paired,
    pass_at_k,
    pass_at_k_counts,
    resampled_means,
)
from flopwise.infer.strategies import make
from flopwise.infer.strategies.base import Candidate

RNG = np.random.default_rng(0)
P, N = 6, 7
ANSWERS = [[None if a == 4 else "abcd"[a] for a in row] for row in RNG.integers(0, 5, (P, N))]
ANSWERS[0] = [None] * N
ANSWERS[1] = ["a", "b"] * 3 + [None]
CORRECT = np.array([[a == "b" for a in row] for row in ANSWERS])
SCORES = RNG.integers(0, 4, (P, N)).astype(float)  # few values: many ties


def over_subsets(value, k):
    """Mean of value(problem, subset) over all subsets of size k."""
    return [np.mean([value(p, list(s)) for s in itertools.combinations(range(N), k)]) for p in range(P)]


@pytest.mark.parametrize("k", range(1, N + 1))
def test_pass_at_k_is_the_mean_over_all_subsets(k):
    expected = over_subsets(lambda p, s: CORRECT[p, s].any(), k)
    assert np.allclose(pass_at_k(CORRECT, k), expected, atol=1e-12)


@pytest.mark.parametrize("k", range(1, N + 1))
def test_best_of_k_is_the_mean_over_all_subsets_with_ties_shared(k):
    def value(p, s):
        top = SCORES[p, s].max()
        return CORRECT[p, s][SCORES[p, s] == top].mean()

    assert np.allclose(best_of_k(CORRECT, SCORES, k), over_subsets(value, k), atol=1e-12)


def majority_of(p, s):
    """Of one subset, ties by expectation."""
    votes = [ANSWERS[p][i] for i in s if ANSWERS[p][i] is not None]
    if not votes:
        return 0.0
    top = max(votes.count(v) for v in votes)
    winners = {v for v in votes if votes.count(v) == top}
    return ("b" in winners) / len(winners)


@pytest.mark.parametrize("k", range(1, N + 1))
def test_majority_at_k_is_the_mean_over_all_subsets(k):
    assert np.allclose(majority_at_k(CORRECT, ANSWERS, k), over_subsets(majority_of, k), atol=1e-12)


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("kind", ["verifier", "reward", "majority"])
def test_strategies_on_random_subsets_approach_the_estimators(k, kind):
    rng = np.random.default_rng(k)
    strategy = make("self_consistency" if kind == "majority" else f"best_of_n:{kind}")
    rounds = 400
    right = np.zeros(P)
    for p in range(P):
        for _ in range(rounds):
            picks = rng.choice(N, k, replace=False)
            candidates = [
                Candidate("", ANSWERS[p][i], 0.0, 1, bool(CORRECT[p, i]), {"reward": SCORES[p, i]})
                for i in picks
            ]
            chosen = strategy.choose(candidates, rng).index
            right[p] += chosen is not None and candidates[chosen].correct
    expected = {
        "verifier": pass_at_k(CORRECT, k),
        "reward": best_of_k(CORRECT, SCORES, k),
        "majority": majority_at_k(CORRECT, ANSWERS, k),
    }[kind]
    # Four standard errors of a proportion.
    assert np.abs(right / rounds - expected).max() < 4 * 0.5 / np.sqrt(rounds)


def test_too_large_a_k_is_not_a_number():
    for values in (
        pass_at_k(CORRECT, N + 1),
        best_of_k(CORRECT, SCORES, N + 1),
        majority_at_k(CORRECT, ANSWERS, N + 1),
    ):
        assert np.isnan(values).all() and len(values) == P


def test_counts_of_any_size_give_exact_and_finite_values():
    n, c = np.array([10_000, 10_000, 10_000, 50]), np.array([0, 1, 10_000, 2])
    assert np.allclose(pass_at_k_counts(n, c, 1), c / n, atol=1e-12)
    assert pass_at_k_counts(n, c, 10_000)[:3].tolist() == [0.0, 1.0, 1.0]
    assert np.allclose(pass_at_k_counts(n, c, 100)[:3], [0.0, 0.01, 1.0], atol=1e-9)
    assert np.isnan(pass_at_k_counts(n, c, 100)[3])


def test_best_of_k_of_many_samples_is_finite():
    correct = np.zeros((1, 10_000), dtype=bool)
    correct[0, :3] = True
    score = np.arange(10_000, 0, -1.0)[None]
    for k in (1, 10, 5000, 10_000):
        # The three best are the right ones: wrong only if none of them is drawn.
        assert best_of_k(correct, score, k)[0] == pytest.approx(pass_at_k(correct, k)[0], rel=1e-8)


def test_a_missing_score_ranks_last():
    assert best_of_k([[1, 0]], [[np.nan, 0.1]], 2).tolist() == [0.0]
    assert best_of_k([[1, 0]], [[np.nan, np.nan]], 2).tolist() == [0.5]


def test_interval_treats_problems_as_the_units():
    values = np.array([0.0, 0.5, 1.0, 0.5])
    entry = mean_interval(values)
    se = values.std(ddof=1) / 2
    assert entry["value"] == 0.5 and entry["se"] == pytest.approx(se)
    assert entry["low"] == pytest.approx(max(0, 0.5 - 3.18244630528 * se))
    assert mean_interval(np.array([0.3]))["low"] is None
    assert mean_interval(np.array([np.nan, 1.0]))["value"] is None


def test_all_right_is_not_certainty():
    entry = mean_interval(np.ones(30))
    assert entry["value"] == 1 and entry["high"] == 1
    assert entry["low"] == pytest.approx(0.025 ** (1 / 30))
    assert mean_interval(np.zeros(30))["high"] == pytest.approx(1 - 0.025 ** (1 / 30))


def test_bootstrap_intervals_agree_with_students_t_on_many_problems():
    values = np.random.default_rng(1).beta(2, 3, (2, 300))
    for found, row in zip(intervals(values), values, strict=True):
        by_t = mean_interval(row)
        assert found["value"] == by_t["value"] and found["se"] == by_t["se"]
        assert found["low"] == pytest.approx(by_t["low"], abs=0.25 * by_t["se"])
        assert found["high"] == pytest.approx(by_t["high"], abs=0.25 * by_t["se"])


def test_intervals_of_few_problems_are_wide_enough():
    """Of 12 problems drawn from a lopsided distribution, about 95% of intervals hold its mean."""
    rng = np.random.default_rng(2)
    inside = 0
    for i in range(300):
        found = intervals(rng.beta(0.6, 1.4, (1, 12)), draws=500, seed=i)[0]
        inside += found["low"] <= 0.3 <= found["high"]
    assert inside / 300 > 0.9


def test_intervals_of_absent_and_certain_curves():
    nothing, ones, half = intervals(np.array([[np.nan, 1.0, 0.0], [1.0] * 3, [0.5] * 3]))
    assert nothing["value"] is None and nothing["low"] is None
    assert ones["high"] == 1 and ones["low"] == pytest.approx(0.025 ** (1 / 3))
    assert (half["low"], half["high"]) == (0.5, 0.5)
    assert intervals(np.array([[0.3]]))[0]["low"] is None


def test_curves_share_the_problems_of_a_draw():
    values = np.random.default_rng(3).random(50)
    means = resampled_means(np.stack([values, values + 0.1]), 200)
    assert np.allclose(means[:, 1] - means[:, 0], 0.1) and means[:, 0].std() > 0.01


def test_a_paired_difference_is_surer_than_either_mean():
    rng = np.random.default_rng(4)
    before = rng.random(200)
    after = before + rng.normal(0.02, 0.02, 200)
    tight, loose = paired(before, after, True), paired(before, after, False)
    assert 0 < tight["low"] < tight["value"] < tight["high"]
    assert loose["low"] < 0 < loose["high"]
    assert paired(before, None, True)["low"] is None

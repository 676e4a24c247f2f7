"""Quality of judges: hand-made rankings, what pooling hides, turn-overs put in and found."""

import numpy as np
import pytest

from flopwise.infer import quality as q
from flopwise.infer.calibration import auc
from flopwise.infer.estimators import best_of_k
from flopwise.infer.turnover import distance, n_at, peak, sizes

N = sizes(64)


def samples(problems=300, n=64, fooled=0.0, seed=0):
    """Verdicts and scores: right samples score one higher; a share of the wrong ones fools the judge."""
    rng = np.random.default_rng(seed)
    right = rng.random((problems, n)) < rng.beta(2, 3, (problems, 1))
    score = rng.normal(0, 1, right.shape) + right
    score[~right & (rng.random(right.shape) < fooled)] += 4
    return right, score


def test_ranking_by_hand():
    scores = np.array([3.0, 1.0, 2.0, np.nan, 0.5, 0.5, 7.0])
    right = np.array([True, False, True, False, True, False, True])
    groups = np.array([0, 0, 0, 0, 1, 1, 2])
    found = q.ranking(scores, right, groups)
    assert found["problems"] == 2  # problem 2 has no wrong sample
    assert found["auc_within"]["value"] == pytest.approx((1.0 + 0.5) / 2)
    assert found["auc_pooled"] == pytest.approx((2 + 2 + 0.5 + 2) / 8)
    assert found["auc_within"]["low"] <= found["auc_within"]["value"] <= found["auc_within"]["high"]


def test_a_score_that_only_knows_easy_problems_is_worth_nothing_within_them():
    rng = np.random.default_rng(0)
    easy = rng.beta(0.5, 0.5, 200)
    right = rng.random((200, 16)) < easy[:, None]
    score = easy[:, None] + rng.normal(0, 0.05, right.shape)
    groups = np.repeat(np.arange(200), 16)
    found = q.ranking(score.ravel(), right.ravel(), groups)
    assert found["auc_pooled"] > 0.8
    assert found["auc_within"]["low"] < 0.5 < found["auc_within"]["high"]


def test_auc_of_many_samples_counts_every_pair():
    rng = np.random.default_rng(1)
    scores, right = rng.integers(0, 5, 200).astype(float), rng.random(200) < 0.4
    a, b = scores[right], scores[~right]
    by_pairs = (a[:, None] > b).mean() + (a[:, None] == b).mean() / 2
    assert auc(scores, right) == pytest.approx(by_pairs)


def test_no_problem_with_both_kinds():
    found = q.ranking(np.ones(4), np.array([1, 1, 0, 0], bool), np.array([0, 0, 1, 1]))
    assert found["auc_within"]["value"] is None and found["problems"] == 0
    assert found["auc_pooled"] == 0.5


def test_calibration_of_chances_and_log_odds_agree_and_log_probabilities_are_refused():
    right, odds = samples(100, 8)
    groups = np.repeat(np.arange(100), 8)
    chances = 1 / (1 + np.exp(-odds.ravel()))
    by_odds = q.calibrated(odds.ravel(), right.ravel(), groups)
    by_chance = q.calibrated(chances, right.ravel(), groups)
    assert by_odds["read_as"] == "log-odds" and by_chance["read_as"] == "a chance"
    assert by_odds["brier"] == pytest.approx(by_chance["brier"], abs=1e-6)
    assert by_odds["calibration_error"] > 0 and by_odds["temperature"] > 0
    assert set(q.calibrated(-np.abs(odds.ravel()), right.ravel(), groups)) == {"read_as"}
    assert "alike" in q.calibrated(chances, np.ones(800, bool), groups)["read_as"]


def test_a_turn_over_is_found_with_its_peak():
    right, score = samples(fooled=0.03)
    found = q.overoptimised(np.stack([best_of_k(right, score, k) for k in N]), N)
    assert "falls" in found["verdict"] and found["turn_over"]["fall"]["z"] > 4
    assert 1 < found["peak"]["n"] < 64 and found["peak"]["low"] <= found["peak"]["n"] <= found["peak"]["high"]
    assert found["law"]["peak_n_low"] < found["law"]["peak_n"] < found["law"]["peak_n_high"] < 64
    assert found["peak"]["inside"] > 0.95


def test_no_turn_over_where_the_judge_is_not_fooled():
    right, score = samples()
    found = q.overoptimised(np.stack([best_of_k(right, score, k) for k in N]), N)
    assert found["verdict"].startswith("rises up to") and found["peak"]["n"] >= 48
    assert "it takes 20 problems" in q.overoptimised(np.zeros((4, 5)), [1, 2, 4, 8])["verdict"]


def test_distances_invert():
    for n in (1, 2, 7, 64, 10_000):
        assert n_at(distance(n) ** 0.5) == pytest.approx(n, rel=1e-6)


def test_the_peak_of_a_known_curve():
    values = np.tile([[0.1], [0.5], [0.3]], (1, 30))
    assert peak(values, [1, 2, 4]) == {"n": 2, "low": 2, "high": 2, "value": 0.5, "inside": 1.0}

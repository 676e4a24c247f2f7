"""Majority@k and weighted votes against what they are: a vote in every subset."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flopwise.infer import votes as v

NAMES = st.lists(st.sampled_from(["a", "b", "c", "d", "e", None]), min_size=1, max_size=10)


def voted(answers, right, k, weights=None):
    """Mean over all subsets of the share of winners that are right."""
    weights = np.ones(len(answers)) if weights is None else weights
    values = []
    for picks in itertools.combinations(range(len(answers)), k):
        sums = {}
        for i in picks:
            if answers[i] is not None and weights[i] > 0:
                sums[answers[i]] = sums.get(answers[i], 0.0) + weights[i]
        winners = [a for a, s in sums.items() if s >= max(sums.values()) * (1 - 1e-9)]
        values.append(np.mean([right[a] for a in winners]) if winners else 0.0)
    return np.mean(values)


@settings(max_examples=40)
@given(NAMES, st.data())
def test_majority_is_the_mean_over_all_subsets(answers, data):
    correct = np.array(data.draw(st.lists(st.booleans(), min_size=len(answers), max_size=len(answers))))
    given_by = {a: [c for x, c in zip(answers, correct, strict=True) if x == a] for a in answers}
    right = {a: np.mean(marks) for a, marks in given_by.items()}
    ks = range(1, len(answers) + 1)
    found, variance = v.majority([v.cast_votes(answers, correct)], list(ks), draws=1)
    assert not variance.any()
    assert np.allclose(found[:, 0], [voted(answers, right, k) for k in ks], atol=1e-12, rtol=0)


@settings(max_examples=30)
@given(NAMES, st.data())
def test_weighted_votes_are_the_mean_over_all_subsets(answers, data):
    n = len(answers)
    weights = np.array(
        data.draw(st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.3, 1.0]), min_size=n, max_size=n))
    )
    votes = v.cast_votes(answers, np.array([a == "a" for a in answers]))
    right = {a: float(a == "a") for a in answers}
    found, variance = v.weighted([votes], weights[None], list(range(1, n + 1)), draws=252)
    assert not variance.any()
    assert np.allclose(found[:, 0], [voted(answers, right, k, weights) for k in range(1, n + 1)], atol=1e-12)


def many(rng, problems, n, answers=30, spread=0.3):
    """Votes of problems whose answers are spread as a Dirichlet distribution; answer 0 is right."""
    out = []
    for _ in range(problems):
        drawn = rng.choice(answers, n, p=rng.dirichlet(np.full(answers, spread)))
        texts = [None if rng.random() < 0.1 else str(a) for a in drawn]
        out.append(v.cast_votes(texts, drawn == 0))
    return out


def test_exact_majority_is_what_drawn_subsets_approach():
    votes, ks = many(np.random.default_rng(0), 40, 64, 6), [2, 3, 5, 8, 16, 33, 63]
    exact, none = v.majority(votes, ks)
    drawn, variance = v.weighted(votes, np.ones((40, 64)), ks, draws=400)
    assert not none.any() and variance.any()
    error = np.sqrt(variance.sum(axis=1)) / 40
    assert (np.abs(exact - drawn).mean(axis=1) < 0.03).all()
    assert (np.abs((exact - drawn).mean(axis=1)) < 4 * error + 1e-9).all()


def test_one_and_two_votes_in_closed_form_at_a_thousand_samples():
    """Two votes agree or tie, so that each counts alike wherever anybody votes."""
    votes = many(np.random.default_rng(1), 5, 1000)
    found, _ = v.majority(votes, [1, 2, 512, 999, 1000])
    for p, (codes, right) in enumerate(votes):
        m, one = int((codes >= 0).sum()), right[codes[codes >= 0]].mean()
        assert found[0, p] == pytest.approx(one * m / 1000, abs=1e-10)
        someone = 1 - (1000 - m) * (999 - m) / (1000 * 999)
        assert found[1, p] == pytest.approx(one * someone, abs=1e-10)
    assert np.isfinite(found).all() and found.min() >= 0 and found.max() <= 1


def test_two_answers_are_a_hypergeometric_tail():
    from scipy.stats import hypergeom

    votes = v.cast_votes(["a"] * 210 + ["b"] * 190, np.arange(400) < 210)
    found, variance = v.majority([votes], [9, 100, 399])
    for i, k in enumerate((9, 100, 399)):
        h = hypergeom(400, 210, k)
        tie = h.pmf(k // 2) / 2 if k % 2 == 0 else 0.0
        assert found[i, 0] == pytest.approx(h.sf(k // 2) + tie, abs=1e-9)
    assert not variance.any()


def test_where_nothing_is_exact_the_error_is_told(monkeypatch):
    votes = many(np.random.default_rng(2), 6, 40, 6)
    exact = v.majority(votes, [1, 5, 20, 40])[0]
    monkeypatch.setattr(v, "DEAREST", 0)
    found, variance = v.majority(votes, [1, 5, 20, 40], draws=300)
    assert not variance[0].any() and variance[1].any() and not variance[3].any()
    assert (np.abs(found - exact) <= 5 * np.sqrt(variance) + 1e-9).all()


def test_more_votes_than_samples_are_not_a_number():
    votes = many(np.random.default_rng(3), 3, 8)
    found, _ = v.majority(votes, [8, 9])
    assert np.isfinite(found[0]).all() and np.isnan(found[1]).all()
    assert np.isnan(v.weighted(votes, np.ones((3, 8)), [9])[0]).all()


def test_a_weight_that_trusts_the_right_answer_wins_against_the_majority():
    votes = [v.cast_votes(["b", "b", "b", "a"], np.array([0, 0, 0, 1]))]
    weights = np.array([[0.1, 0.1, 0.1, 0.9]])
    assert v.majority(votes, [4])[0][0, 0] == 0 and v.weighted(votes, weights, [4])[0][0, 0] == 1


def test_weights_from_scores_of_each_kind():
    chances = np.array([[0.2, 0.9, np.nan]])
    assert v.weights_from(chances)[0].tolist() == [[0.2, 0.9, 0.0]]
    logs, how = v.weights_from(np.array([[-700.0, -701.0, np.nan], [np.nan] * 3]))
    assert "log-probability" in how and logs[0].tolist() == pytest.approx([1, np.exp(-1), 0])
    odds, how = v.weights_from(np.array([[-3.0, 0.0, 1000.0]]))
    assert "log-odds" in how and odds[0].tolist() == pytest.approx([1 / (1 + np.e**3), 0.5, 1.0])

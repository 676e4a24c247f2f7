"""Laws of measured curves: chosen by held-out k; forecasts hold for problems whose truth is known."""

import warnings

import numpy as np
import pytest

from flopwise.errors import FlopwiseError
from flopwise.infer import laws
from flopwise.infer.estimators import best_of_k
from flopwise.infer.votes import majority
from flopwise.laws.counts import Counts


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def world(seed, problems=150):
    """Chances of answers per problem; the first answer is right."""
    rng = np.random.default_rng(seed)
    right = rng.beta(0.5, 1, problems)
    wrong = rng.dirichlet(np.full(100, 0.2), problems)
    return rng, np.concatenate([right[:, None], (1 - right[:, None]) * wrong], axis=1)


def voted(rng, chances, n):
    votes = []
    for row in chances:
        answers, codes = np.unique(rng.choice(len(row), n, p=row), return_inverse=True)
        votes.append((codes, (answers == 0).astype(float)))
    ks = laws.grid(n, True)
    return majority(votes, ks)[0], ks


def truth(rng, chances, k):
    shares = []
    for row in chances:
        counts = rng.multinomial(k, row, size=200)
        top = counts == counts.max(axis=1, keepdims=True)
        shares.append((top[:, 0] / top.sum(axis=1)).mean())
    return np.mean(shares)


def test_majority_is_forecast_to_a_hundred_times_the_samples():
    errors, stays, inside = [], [], 0
    for seed in range(3):
        rng, chances = world(seed)
        values, ks = voted(rng, chances, 32)
        found = laws.outlook("majority_at_k", values, ks, [16, 3200], seed=seed)
        true, last = truth(rng, chances, 3200), found.points[-1]
        errors.append(abs(last.value - true))
        stays.append(abs(values[-1].mean() - true))
        inside += last.low <= true <= last.high
        assert [p.measured for p in found.points] == [True, False]
    assert np.mean(errors) < 0.03 < np.mean(stays) and inside >= 2


def test_the_report_says_which_form_and_why():
    rng, chances = world(9)
    values, ks = voted(rng, chances, 32)
    found = laws.outlook("majority_at_k", values, ks, [3200], costs={"tokens": 50.0})
    assert found.form == min(found.held_out, key=found.held_out.get)
    assert sum(found.weights.values()) == pytest.approx(1) and set(found.forms) == set(found.held_out)
    assert any(found.form in line and "error" in line for line in found.why)
    assert found.points[0].costs == {"tokens": 160_000.0}
    assert found.samples_for(1000, "tokens") == 20
    with pytest.raises(FlopwiseError, match="what a sample costs in FLOPs"):
        found.samples_for(1e9, "FLOPs")
    assert found.to_dict()["points"][0]["k"] == 3200
    beyond = laws.outlook("majority_at_k", values, ks, [100_000])
    assert "times the samples drawn" in beyond.warnings[0]


def judged(fooled, seed=0, problems=200, n=64):
    rng = np.random.default_rng(seed)
    right = rng.random((problems, n)) < rng.beta(2, 3, (problems, 1))
    score = rng.normal(0, 1, right.shape) + right
    score[~right & (rng.random(right.shape) < fooled)] += 4
    ks = laws.grid(n, False)
    return np.stack([best_of_k(right, score, k) for k in ks]), ks


def test_a_judge_that_is_fooled_is_forecast_to_fall():
    values, ks = judged(0.03)
    found = laws.outlook("best_of_n", values, ks, [64, 256], "judge")
    assert found.form == "overoptimisation_best_of_n" and "falls" in found.why[0]
    assert found.points[1].value < found.points[0].value < values.mean(axis=1).max()


def test_a_judge_that_is_not_fooled_is_forecast_to_rise():
    values, ks = judged(0.0)
    found = laws.outlook("best_of_n", values, ks, [64, 1000], "judge")
    assert found.points[1].value > found.points[0].value
    assert found.points[1].high > found.points[1].low


def test_a_flat_curve_stays_flat():
    found = laws.outlook(
        "majority_at_k", np.tile(np.linspace(0, 1, 30), (8, 1)), [1, 3, 5, 7, 9, 11, 13, 15], [900]
    )
    assert found.form == "constant" and found.points[0].value == pytest.approx(0.5)
    assert found.points[0].low < 0.45 and found.points[0].high > 0.55


def test_coverage_by_its_own_machinery():
    rng = np.random.default_rng(0)
    counts = Counts.of(100, rng.binomial(100, rng.beta(0.3, 4, 200)))
    found = laws.coverage(counts, [10, 10_000], {"FLOPs": 2.0})
    assert found.strategy == "pass_at_k" and [p.measured for p in found.points] == [True, False]
    assert found.points[1].costs == {"FLOPs": 20_000.0} and found.points[1].high > 0.8


def test_too_few_samples_are_refused():
    with pytest.raises(FlopwiseError, match="12 samples of each"):
        laws.outlook("majority_at_k", np.zeros((4, 30)), [1, 3, 5, 7], [100])

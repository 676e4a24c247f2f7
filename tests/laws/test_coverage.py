"""Coverage forecasts: what was measured, intervals, the choice by held-out k, published counts, bad input."""

from __future__ import annotations

import json

import numpy as np
import pytest

from flopwise.errors import FlopwiseError
from flopwise.laws.counts import Counts
from flopwise.laws.coverage import Trial, choose, forecast, held_out
from flopwise.laws.coverage_forms import FORMS


def judged(a: float, b: float, n: int, problems: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.random((problems, n)) < rng.beta(a, b, problems)[:, None]


def test_what_was_measured_is_not_forecast():
    correct = judged(0.5, 3.0, 32, 60, 0)
    made = forecast(correct, [1, 8, 32, 64])
    assert [p.measured for p in made.points] == [True, True, True, False]
    counts = Counts.judged(correct)
    for p in made.points[:3]:
        assert p.value == pytest.approx(counts.pass_at(p.k).mean()) and p.low <= p.value <= p.high
    ends = [(p.low, p.high) for p in made.points]
    assert all(low < high for low, high in ends)
    assert ends == sorted(ends)  # pass@k rises with k: so must both ends, across the samples drawn as well
    assert made.points[3].value > made.points[2].value
    assert (made.k, made.value, made.low) == (64, made.points[3].value, made.points[3].low)


def test_forecast_sees_only_its_samples_and_covers_the_truth():
    inside = 0
    for seed in range(12):
        correct = judged(0.6, 2.0, 64, 200, seed)
        ahead = forecast(correct[:, :16], 64, seed=seed)
        assert ahead.n == 16 and ahead.low <= ahead.value <= ahead.high
        inside += ahead.low <= correct.any(axis=1).mean() <= ahead.high
    assert inside >= 11


def test_new_problems_are_less_certain_than_the_same_ones():
    correct = judged(0.5, 1.5, 100, 80, 4)
    same, new = (forecast(correct, [50, 400], over=over) for over in ("same", "new"))
    assert new.value == same.value
    for s, n in zip(same.points, new.points, strict=True):
        assert n.high - n.low > s.high - s.low


def test_intervals_widen_with_k_and_with_fewer_samples():
    correct = judged(0.3, 8.0, 400, 128, 5)
    far = forecast(correct[:, :50], [100, 400, 10_000])
    width = [p.high - p.low for p in far.points]
    assert width[0] < width[1]
    near = forecast(correct, 10_000)
    assert near.high - near.low < width[2]


def test_the_same_seed_gives_the_same_forecast():
    correct = judged(0.5, 1.5, 32, 50, 3)
    first, again, other = (forecast(correct, 512, seed=s).to_dict() for s in (1, 1, 2))
    assert first == again and first != other and first["value"] == pytest.approx(other["value"], abs=0.02)
    assert "draws" not in json.loads(json.dumps(first))


def test_held_out_scores_reject_the_power_form_where_problems_are_alike():
    # All problems alike: pass@k = 1 - (1 - p)^k, far from a power law.
    counts = Counts.of(200, np.random.default_rng(0).binomial(200, 0.004, 300))
    made = forecast(counts, 800)
    assert made.form != "power" and made.weights["power"] == 0 and made.held_out["power"] < -5
    assert made.value == pytest.approx(1 - 0.996**800, abs=0.06)
    assert forecast(Counts.judged(judged(0.4, 8.0, 100, 100, 1)), 1000).form == "power"


def test_the_choice_needs_more_than_luck():
    rng = np.random.default_rng(0)

    def trials(lead: float, solved: float) -> dict[str, Trial]:
        noise = rng.normal(0, 1, 100)
        noise -= noise.mean()
        return {
            name: Trial(0.0, lead * (name == "kumaraswamy") + noise * (name != "power"), 0.0, solved)
            for name in FORMS
        }

    assert choose(trials(0.1, 60.0))[0] == "power"
    form, weights = choose(trials(0.5, 60.0))
    assert form == "kumaraswamy" and weights["power"] == 0 and sum(weights.values()) == pytest.approx(1)
    assert choose(trials(0.5, 2.0))[0] == "power"  # two solved problems show nothing


def test_a_trial_forecasts_the_samples_held_out():
    counts = Counts.judged(judged(0.4, 4.0, 64, 4000, 2))
    trials = held_out(counts)
    assert abs(trials["beta_binomial"].error) < 0.006 < abs(trials["power"].error)
    assert sum(trials["beta_binomial"].score) > sum(trials["power"].score)
    solved = (counts.pass_at(64) - counts.pass_at(16)).sum()
    assert trials["power"].solved == pytest.approx(solved)


def test_adaptive_and_stopped_samples_agree_with_even_ones():
    rng = np.random.default_rng(8)
    p = rng.beta(0.5, 10.0, 1500)
    even = Counts.of(100, rng.binomial(100, p))
    early = rng.binomial(25, p)
    n = np.where(early > 0, 25, 150)
    adaptive = Counts.of(n, early + rng.binomial(n - 25, p))
    first = rng.geometric(p)
    stopped = Counts.of(np.minimum(first, 100), first <= 100, first <= 100)
    truth = (1 - (1 - p) ** 400).mean()
    for counts in (even, adaptive, stopped):
        made = forecast(counts, [100, 400])
        assert made.low <= truth <= made.high
        assert made.forms["beta_binomial"] == pytest.approx(truth, abs=0.02)
        assert made.points[0].value == pytest.approx((1 - (1 - p) ** 100).mean(), abs=0.03)


def test_problems_with_hundreds_of_different_n():
    rng = np.random.default_rng(9)
    p = rng.beta(0.5, 10.0, 400)
    n = rng.permutation(np.arange(100, 500))
    made = forecast(Counts.of(n, rng.binomial(n, p)), [50, 1000])
    assert made.points[0].measured and made.points[0].value == pytest.approx(
        (1 - (1 - p) ** 50).mean(), abs=0.02
    )
    assert made.low <= (1 - (1 - p) ** 1000).mean() <= made.high


def test_everything_solved_and_a_single_success():
    done = forecast(Counts.of(20, np.full(12, 5)), [1, 10_000])
    assert done.value == 1.0 and done.points[1].measured and done.points[0].value == pytest.approx(0.25)
    one = forecast(Counts.of(100, [1] + [0] * 49), 10_000)
    assert one.warnings and one.high - one.low > 0.3 and np.isfinite(one.value)
    far = forecast(Counts.of(100, [1] * 20 + [0] * 20), 10**6)
    assert 0.5 < far.value <= 1 and any("times the samples" in w for w in far.warnings)


@pytest.mark.parametrize("n", [100, 1000])
def test_pass_at_10000_of_pythia_on_math(published, n):
    table = published("monkeys_math_pythia/counts.csv")
    rng, errors, inside = np.random.default_rng(n), [], []
    for model in np.unique(table["model"]):
        rows = table["model"] == model
        counts = Counts.of(table["n"][rows], table["c"][rows])
        truth = counts.pass_at(10_000).mean()
        for draw in range(2):
            made = forecast(counts.thinned(n, rng), 10_000, seed=draw)
            errors.append(abs(made.value - truth))
            inside.append(made.low <= truth <= made.high)
    # The benchmark has enough draws for the limits of .03 and 85%; the mean of 14 is good to .01.
    assert np.mean(errors) < 0.045 and np.mean(inside) >= 0.85


@pytest.mark.parametrize(
    ("samples", "k", "message"),
    [
        (np.ones((5, 64), bool), 128, "needs 10 problems with 8 samples"),
        (np.ones((20, 4), bool), 128, "needs 10 problems with 8 samples"),
        (np.zeros((50, 16), bool), 64, "none of 800 samples is right"),
        (np.ones(20), 64, "must be \\[problems, samples\\]"),
        (np.ones((20, 16)), 0, "k is 0, must be whole numbers from 1"),
        (np.ones((20, 16)), [1, 2.5], "k is 2.5"),
    ],
)
def test_bad_input_is_refused_in_one_line(samples, k, message):
    with pytest.raises(FlopwiseError, match=message) as e:
        forecast(samples, k)
    assert "\n" not in str(e.value)


def test_bad_levels_are_refused():
    for bad in ({"level": 0.0}, {"level": 1.5}, {"draws": 1}):
        with pytest.raises(FlopwiseError, match="level is"):
            forecast(np.eye(20), 64, **bad)

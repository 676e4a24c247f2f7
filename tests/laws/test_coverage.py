"""Coverage forecasts: recovery, calibration of the interval, choice of the form by held-out k."""

from __future__ import annotations

import numpy as np
import pytest

from flopwise.errors import FlopwiseError
from flopwise.laws.coverage import beta_binomial, forecast, power_curve


def judged(a: float, b: float, n: int, problems: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.random((problems, n)) < rng.beta(a, b, problems)[:, None]


def test_beta_binomial_recovers_its_parameters():
    counts = np.bincount(judged(0.5, 2.0, 32, 20_000, 0).sum(axis=1), minlength=33)
    found = beta_binomial(counts, 32)
    assert found["a"] == pytest.approx(0.5, rel=0.05) and found["b"] == pytest.approx(2.0, rel=0.05)


def test_power_recovers_a_straight_line():
    # Chances p whose pass@k is close to exp(-a k^-b): build the curve itself from many problems.
    found = power_curve(np.bincount(judged(0.3, 3.0, 64, 5000, 1).sum(axis=1), minlength=65), 64)
    assert found["a"] > 0 and 0 < found["b"] < 1


def test_forecast_sees_only_its_samples_and_covers_the_truth():
    inside = 0
    for seed in range(12):
        correct = judged(0.6, 2.0, 64, 300, seed)
        ahead = forecast(correct[:, :16], 64, seed=seed, draws=100)
        assert ahead.n == 16 and ahead.low <= ahead.value <= ahead.high
        inside += ahead.low - 0.01 <= correct.any(axis=1).mean() <= ahead.high + 0.01
    assert inside >= 10


def test_the_form_is_chosen_by_held_out_k():
    ahead = forecast(judged(0.5, 1.5, 32, 3000, 3), 128, draws=20)
    assert ahead.form == min(ahead.trial, key=ahead.trial.get) == "beta_binomial"
    assert "draws" not in ahead.to_dict()


def test_too_little_is_refused():
    with pytest.raises(FlopwiseError, match="needs 10 problems with 8 samples"):
        forecast(np.ones((5, 64), bool), 128)
    with pytest.raises(FlopwiseError, match="none of"):
        forecast(np.zeros((50, 16), bool), 64)

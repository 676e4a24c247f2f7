"""Over-optimisation: fits find what was put in, turn-overs are no accident, distances are true."""

from __future__ import annotations

import math

import numpy as np
import pytest

from flopwise.infer.estimators import best_of_k
from flopwise.infer.turnover import distance, fit_best_of_n, peak_best_of_n, sizes, turn_over
from flopwise.laws.fitting import fit
from flopwise.posttrain.overoptimise import fit_rl, peak_rl, sample_distance

N = sizes(64)


def judged(hacks: float, problems: int = 300, seed: int = 0) -> np.ndarray:
    """Gold rewards [sizes, problems] of the best of n by a proxy that a share `hacks` of wrong ones fools."""
    rng = np.random.default_rng(seed)
    right = rng.random((problems, 64)) < rng.beta(2, 3, (problems, 1))
    proxy = rng.normal(0, 1, right.shape) + right
    proxy[~right & (rng.random(right.shape) < hacks)] += 4
    return np.stack([best_of_k(right, proxy, k) for k in N])


def test_the_fit_is_the_law_s_and_its_intervals_come_from_problems() -> None:
    gold = judged(0.03)
    found = fit_best_of_n(gold, N, 400)
    d = np.sqrt([distance(k) for k in N])
    same_errors = np.tile(np.random.default_rng(0).normal(0, 1, gold.shape[1]), (len(N), 1))
    level = gold.mean(axis=1, keepdims=True) + 0.2 * (same_errors - same_errors.mean())
    plain = fit_best_of_n(level, N, 20)  # all points equally sure: the registry's least squares
    table = {"n": np.array(N), "reward": gold.mean(axis=1)}
    law = fit("overoptimisation_best_of_n", table, loss="squared", intervals="delta")
    assert plain.point == pytest.approx([law.params[p] for p in ("R0", "alpha", "beta")], abs=1e-4)
    said = found.to_dict(peak_best_of_n)
    assert said["alpha"]["low"] < said["alpha"]["value"] < said["alpha"]["high"]
    assert said["share_of_draws_that_turn"] > 0.95 and 0 < said["peak_d"] < d[-1]
    assert said["peak_d_low"] < said["peak_d"] < said["peak_d_high"]


def test_intervals_cover_what_fifty_times_the_problems_say() -> None:
    truth = fit_best_of_n(judged(0.03, 10_000, 99), N, 2).point
    inside = np.zeros(3)
    for seed in range(25):
        said = fit_best_of_n(judged(0.03, 200, seed), N, 200).to_dict(peak_best_of_n)
        inside += [
            said[p]["low"] <= t <= said[p]["high"]
            for p, t in zip(("R0", "alpha", "beta"), truth, strict=True)
        ]
    assert (inside >= 20).all()  # of 25 at 95%: fewer happens one time in 1,000


def test_a_turn_over_is_told_from_a_curve_that_rises() -> None:
    down, up = turn_over(judged(0.03), N), turn_over(judged(0.0), N)
    assert down["fall"]["z"] > 4 and down["rise"]["z"] > 2 and max(down["best_n"]) < 64
    assert up["rise"]["z"] > 4 and up["fall"]["z"] < 2


def test_noise_is_no_turn_over() -> None:
    rng = np.random.default_rng(0)
    z = []
    for _ in range(120):
        right, proxy = rng.random((100, 64)) < 0.4, rng.normal(0, 1, (100, 64))
        z.append(turn_over(np.stack([best_of_k(right, proxy, k) for k in N]), N)["fall"]["z"])
    assert np.mean(np.array(z) > 2) < 0.09 and abs(np.mean(z)) < 0.3


def test_an_rl_curve_gives_back_its_law() -> None:
    rng = np.random.default_rng(0)
    kl = np.linspace(0, 9, 120)
    d = np.sqrt(kl)
    truth = 0.3 + 0.25 * d - 0.15 * d * np.log(np.maximum(d, 1e-12))
    found = fit_rl(truth + rng.normal(0, 0.01, 120), np.full(120, 0.01), kl, 200).to_dict(peak_rl)
    assert found["alpha"]["value"] == pytest.approx(0.25, abs=0.03)
    assert found["beta"]["value"] == pytest.approx(0.15, abs=0.03)
    assert found["peak_d"] == pytest.approx(math.exp(0.25 / 0.15 - 1), rel=0.15)


def test_peaks_are_where_the_slope_is_none() -> None:
    for peak, gain in (
        (peak_best_of_n, lambda d: 0.4 * d - 0.1 * d * d),
        (peak_rl, lambda d: 0.4 * d - 0.1 * d * np.log(d)),
    ):
        at = peak(0.4, 0.1)
        assert gain(at) > max(gain(at * 0.99), gain(at * 1.01))
    assert peak_best_of_n(0.4, -0.1) == math.inf and math.isnan(peak_best_of_n(-0.4, -0.1))
    assert peak_rl(0.4, 0.0) == math.inf


def test_the_distance_of_the_samples_is_at_most_the_bound_and_reaches_it_where_none_are_level() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(0, 1, (3, 4000))
    for n in (1, 2, 8):
        assert sample_distance(scores, n) == pytest.approx(np.full(3, distance(n)), rel=0.01, abs=1e-9)
    level = rng.integers(0, 2, (3, 4000)).astype(float)
    assert (sample_distance(level, 8) <= math.log(2) + 0.05).all()  # at worst the upper half is certain
    assert sample_distance(np.zeros((1, 10)), 4)[0] == 0.0

"""Counts per problem: the unbiased estimator under both ways of sampling, and expected histograms."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from flopwise.errors import FlopwiseError
from flopwise.laws.counts import Counts, check_ks


def by_hand(n: int, c: int, k: int) -> float:
    """Share of the subsets of size k that hold a right sample."""
    return float(np.mean([min(s) < c for s in itertools.combinations(range(n), k)]))


def test_pass_at_k_is_the_share_of_subsets():
    for n, c, k in itertools.product((1, 4, 7), range(8), range(1, 8)):
        if c <= n and k <= n:
            assert Counts.of(n, [c]).pass_at(k)[0] == pytest.approx(by_hand(n, c, k), abs=1e-12)


def test_it_is_exact_at_the_ends_and_stable_for_a_million_samples():
    found = Counts.of(1_000_000, [0, 1, 500_000, 1_000_000])
    assert found.pass_at(1_000_000).tolist() == [0.0, 1.0, 1.0, 1.0]
    assert found.pass_at(1)[1:] == pytest.approx([1e-6, 0.5, 1.0], abs=1e-9)
    assert found.pass_at(250_000)[1] == pytest.approx(0.25, rel=1e-8)
    beyond = found.pass_at(2_000_000)
    assert np.isnan(beyond[0]) and beyond[1] == 1.0 and found.solved_by(2_000_000)[0] == 0.0


def test_sampling_until_a_success_is_unbiased_where_the_naive_rate_is_not():
    rng = np.random.default_rng(0)
    p, limit = 0.3, 40
    for r in (1, 3):
        right = rng.random((20_000, limit)) < p
        nth = (right.cumsum(axis=1) == r).argmax(axis=1) + 1
        ended = right.sum(axis=1) >= r
        n = np.where(ended, nth, limit)
        found = Counts.of(n, np.where(ended, r, right.sum(axis=1)), ended)
        for k in (1, 2, 5):
            assert found.pass_at(k).mean() == pytest.approx(1 - (1 - p) ** k, abs=0.012)
        naive = (found.c / found.n).mean()
        assert naive > p + 0.05 and found.rates().mean() == pytest.approx(p, abs=0.012)


def test_adaptive_sampling_biases_the_pooled_rate_alone():
    p = np.repeat([0.5, 0.01], 2000)
    n = np.repeat([50, 2000], 2000)  # more samples where the problem is hard
    counts = Counts.of(n, np.random.default_rng(1).binomial(n, p))
    assert counts.rates().mean() == pytest.approx(p.mean(), abs=0.005)
    assert counts.c.sum() / counts.n.sum() < 0.1 * p.mean()


def test_the_expected_histogram_of_the_first_samples_is_the_mean_of_many_thinnings():
    counts = Counts.of(12, [0, 1, 5, 12])
    units, weight = counts.first(4)
    assert weight.sum(axis=1) == pytest.approx(np.ones(4)) and (units.n == 4).all()
    rng = np.random.default_rng(2)
    thinned = np.mean([counts.thinned(4, rng).c for _ in range(4000)], axis=0)
    assert weight @ units.c == pytest.approx(counts.c / 3) and thinned == pytest.approx(
        counts.c / 3, abs=0.05
    )
    assert weight @ units.solved_by(2) == pytest.approx(counts.pass_at(2))


def test_the_first_samples_of_problems_with_different_n_and_stops():
    counts = Counts.of([3, 9, 9], [0, 1, 2], [False, True, False])
    units, weight = counts.first(5)
    rows = [
        {(int(units.n[j]), int(units.c[j])): weight[i, j] for j in np.flatnonzero(weight[i])}
        for i in range(3)
    ]
    assert rows[0] == {(3, 0): 1.0}
    # Stopped at its only success, the ninth sample: none of the first five was right.
    assert rows[1] == pytest.approx({(5, 0): 1.0})
    assert rows[2][5, 2] == pytest.approx(10 / 36) and sum(rows[2].values()) == pytest.approx(1)
    different, member = counts.distinct()
    assert len(different) == 3 and (member.sum(axis=1) == 1).all()


def test_of_many_samples_one_order_stands_for_all():
    counts = Counts.of([100_000, 100_000, 50], [50_000, 0, 3])
    units, weight = counts.first(10_000)
    assert (weight.sum(axis=1) == 1).all() and len(units) == 3
    assert weight @ units.n == pytest.approx([10_000, 10_000, 50])
    assert weight @ units.c == pytest.approx([5000, 0, 3], abs=250)


@pytest.mark.parametrize(
    ("n", "c", "stopped", "message"),
    [
        ([10], [11], None, "problem 1 has n = 10, c = 11; c must lie between 0 and n"),
        ([10, 0], [1, 0], None, "problem 2 has n = 0, c = 0; needs at least 1 sample"),
        ([10], [-1], None, "c must lie between"),
        ([10], [1.5], None, "right samples c holds 1.5"),
        ([np.nan], [1], None, "samples n holds nan"),
        ([10], ["a"], None, "must be whole numbers"),
        ([[10]], [[1]], None, "has shape"),
        ([10], [0], [True], "cannot have stopped"),
        ([10], [1], [True, False], "'stopped' has shape"),
    ],
)
def test_bad_counts_are_refused_in_one_line(n, c, stopped, message):
    with pytest.raises(FlopwiseError, match=message) as e:
        Counts.of(n, c, stopped)
    assert "\n" not in str(e.value)


def test_bad_verdicts_thinnings_and_ks_are_refused():
    with pytest.raises(FlopwiseError, match="must be \\[problems, samples\\]"):
        Counts.judged(np.ones(3))
    with pytest.raises(FlopwiseError, match="20 samples asked"):
        Counts.of(10, [1, 2]).thinned(20, np.random.default_rng(0))
    for bad in (0, 1.5, np.inf, np.nan, 1e12, []):
        with pytest.raises(FlopwiseError, match="whole numbers from 1"):
            check_ks(bad)


@pytest.mark.parametrize("k", [1, 10, 25, 49, 50])
def test_variance_is_that_of_other_samples_of_the_same_problems(k):
    rng = np.random.default_rng(0)
    p = np.where(rng.random(200) < 0.4, 0.0, rng.beta(0.4, 4, 200))
    drawn = [Counts.of(50, rng.binomial(50, p)) for _ in range(400)]
    real = np.var([c.solved_by(k).sum() for c in drawn])
    told = np.mean([c.variance(k).sum() for c in drawn])
    assert 0.9 * real < told < 1.7 * real  # the jackknife may say too much, at large k


def test_variance_is_never_none_where_samples_could_have_failed():
    assert Counts.of([20, 20], [2, 3]).variance(20).min() > 0
    assert Counts.of(20, [0, 20]).variance(20) == pytest.approx([0, 0], abs=1e-20)
    assert Counts.of(20, [3]).variance(500) == pytest.approx(Counts.of(20, [3]).variance(20))
    once = Counts.of([1, 9], [1, 1], [True, True])  # sampled until solved
    assert np.isfinite(once.variance(4)).all()

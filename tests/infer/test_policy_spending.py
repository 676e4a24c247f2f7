"""Totals over prompts: greedy on hulls against brute force; difficulty and its posterior against truths."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from policy_worlds import beta_world, samples_of
from scipy import integrate, stats

from flopwise.errors import FlopwiseError
from flopwise.infer.policies import Beta, Difficulty, spend, spread
from flopwise.infer.policies.difficulty import coverage, parse
from flopwise.infer.policies.spending import hull


def best_of_all(curves, total):
    """The best total value of one option each, by trying all."""
    best = -np.inf
    for picks in product(*(range(len(c)) for c, _ in curves)):
        cost = sum(c[i] for (c, _), i in zip(curves, picks, strict=True))
        if cost <= total + 1e-12:
            best = max(best, sum(v[i] for (_, v), i in zip(curves, picks, strict=True)))
    return best


def concave(rng, K=5):
    return np.arange(1.0, K + 1), np.cumsum(np.sort(rng.random(K))[::-1])


@pytest.mark.parametrize("seed", range(15))
def test_greedy_is_exact_for_concave_curves_of_unit_steps(seed):
    rng = np.random.default_rng(seed)
    curves = [concave(rng) for _ in range(4)]
    for total in (4, 7, 11, 20, 99):
        made = spend(curves, total)
        assert made.value == pytest.approx(best_of_all(curves, total))
        assert made.bound == pytest.approx(made.value) and made.beneath == (0, 0.0)
        assert made.cost == sum(c[i] for (c, _), i in zip(curves, made.low, strict=True))


@pytest.mark.parametrize("seed", range(15))
def test_any_curves_are_bounded_and_short_by_less_than_a_step(seed):
    rng = np.random.default_rng(100 + seed)
    curves = [(np.sort(rng.random(4)) * 5, rng.random(4)) for _ in range(4)]
    least = sum(c[hull(c, v)[0]] for c, v in curves)
    for total in least + np.array([0.0, 0.7, 2.0, 5.0]):
        best = best_of_all(curves, total)
        whole, mixed = spend(curves, total), spend(curves, total, mix=True)
        assert whole.value <= best + 1e-12 <= whole.bound + 2e-12
        assert mixed.value == pytest.approx(mixed.bound) and mixed.cost <= total + 1e-9
        steps = [np.diff(v[hull(c, v)]).max(initial=0.0) for c, v in curves]
        assert whole.value >= whole.bound - max(steps) - 1e-12
        assert whole.cost <= total + 1e-9


def test_what_is_not_concave_is_told():
    # Nothing until the third sample, then everything: the second lies a half under the line to the third.
    made = spend([(np.array([1.0, 2.0, 3.0]), np.array([0.0, 0.0, 1.0]))], 2.0)
    assert made.beneath == (1, 0.5) and made.low.tolist() == [0] and made.value == 0.0 and made.bound == 0.5
    mixed = spend([(np.array([1.0, 2.0, 3.0]), np.array([0.0, 0.0, 1.0]))], 2.0, mix=True)
    assert (mixed.low[0], mixed.high[0], mixed.mix[0], mixed.value) == (0, 2, 0.5, 0.5) and mixed.price == 0.5


def test_weights_are_how_many_prompts_a_group_stands_for():
    easy, hard = (np.array([1.0, 4.0]), np.array([0.9, 1.0])), (np.array([1.0, 4.0]), np.array([0.1, 0.7]))
    made = spend([easy, hard], 4 * 3 + 1 * 1 + 0.0, np.array([1.0, 3.0]))
    assert made.low.tolist() == [0, 1] and made.value == pytest.approx(0.9 + 3 * 0.7)
    with pytest.raises(FlopwiseError, match="takes 4"):
        spend([easy, hard], 3.9, np.array([1.0, 3.0]))
    with pytest.raises(FlopwiseError, match="does not pay"):
        spend([easy], float("nan"))


@pytest.mark.parametrize("seed", range(5))
def test_samples_are_spread_as_brute_force_spreads_them(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.random(4) * 2 + 0.1, rng.random(4) * 5 + 0.1
    k = np.arange(10.0)
    curves = [(k, coverage(np.full(10, x), np.full(10, y), k)) for x, y in zip(a, b, strict=True)]
    for total in (0, 1, 5, 9):
        found = spread(a, b, np.ones(4), total)
        assert found.sum() == total
        reached = sum(v[i] for (_, v), i in zip(curves, found, strict=True))
        assert reached == pytest.approx(best_of_all(curves, total))
    assert spread(a, b, np.ones(4), 1e9, most=7).tolist() == [7] * 4
    assert (spread(a, b, np.ones(4), 6, minimum=1) >= 1).all()
    dear = spread(np.ones(2), np.ones(2), np.array([1.0, 10.0]), 60)
    assert dear[0] > dear[1] and dear @ [1.0, 10.0] <= 60
    with pytest.raises(FlopwiseError, match="does not pay for 2 samples"):
        spread(a, b, np.ones(4), 7, minimum=2)


def test_coverage_of_a_posterior_is_its_integral():
    for k in (0, 1, 7):
        expected = integrate.quad(lambda p, k=k: (1 - (1 - p) ** k) * stats.beta.pdf(p, 1.3, 4.0), 0, 1)[0]
        assert coverage(np.array([1.3]), np.array([4.0]), k)[0] == pytest.approx(expected, abs=1e-9)


def test_the_prior_of_chances_is_learned_from_few_samples_of_many_prompts():
    _, s = beta_world(P=3000, n=6, a=0.5, b=1.5, seed=1)
    prior = Beta.fit(s.correct)
    assert (prior.a, prior.b) == (pytest.approx(0.5, rel=0.12), pytest.approx(1.5, rel=0.12))
    a, b = prior.posterior(np.array([0, 6]), 6)
    total = prior.a + prior.b + 6
    assert a / (a + b) == pytest.approx([prior.a / total, (prior.a + 6) / total])


def test_a_posterior_spends_within_two_percent_of_the_known_optimum():
    """Total of 8 a prompt on 600 prompts; the optimum knows the prior from which chances were drawn."""
    p, s = beta_world(P=600, n=4, a=0.4, b=1.2, seed=2)
    right = s.correct.sum(axis=1)

    def solved(prior):
        k = spread(*prior.posterior(right, 4), np.ones(600), 600 * 8.0, most=10_000)
        assert k.sum() == 600 * 8
        return np.mean(1 - (1 - p) ** k)

    known, learned, uniform = solved(Beta(0.4, 1.2)), solved(Beta.fit(s.correct)), np.mean(1 - (1 - p) ** 8)
    assert learned == pytest.approx(known, rel=0.02)
    # What is expected under the known prior comes out, and is worth having.
    a, b = Beta(0.4, 1.2).posterior(right, 4)
    expected = coverage(a, b, spread(a, b, np.ones(600), 600 * 8.0)).mean()
    assert known == pytest.approx(expected, rel=0.02) and learned > uniform
    assert expected > coverage(a, b, 8).mean() + 0.005


def test_difficulty_by_each_signal():
    correct = np.array([[1, 1, 0], [0, 0, 0], [1, 0, 0]], dtype=bool)
    answers = [["a", "a", "b"], [None, "c", "d"], [None, None, None]]
    scores = {"reward": np.array([[1.0, 2.0, 3.0], [np.nan, np.nan, np.nan], [0.0, np.nan, 1.0]])}
    s = samples_of(correct, answers, scores, np.full((3, 3), 2.0), 5.0, {"reward": np.full((3, 3), 0.5)})
    assert Difficulty.of(s, "verifier").ease == pytest.approx([2 / 3, 0, 1 / 3])
    assert Difficulty.of(s, "agreement").ease == pytest.approx([2 / 3, 1 / 3, 0])
    by_score = Difficulty.of(s, "reward")
    assert by_score.ease.tolist() == [2.0, 0.5, 0.5]  # without a score: as the hardest
    # The prompt is read once, by whoever answers; samples and judge are paid for.
    assert by_score.cost.tolist() == [7.5] * 3 and Difficulty.of(s, "agreement").cost.tolist() == [6.0] * 3
    assert Difficulty.probe(np.array([1.0, 2.0]), 3.0).cost.tolist() == [3.0, 3.0]
    for bad, says in ((lambda: Difficulty.of(s, "taste"), "no score by 'taste'"),
                      (lambda: Difficulty.probe(np.array([1.0, np.nan])), "prompt 2 has no"),
                      (lambda: Difficulty.of(samples_of(correct), "agreement"), "no answers"),
                      (lambda: parse("agreement:0"), "agreement:4")):  # fmt: skip
        with pytest.raises(FlopwiseError, match=says):
            bad()
    assert parse("verifier:3") == ("verifier", 3) and parse("reward") == ("reward", None)


@pytest.mark.parametrize(
    ("values", "count"),
    [(np.arange(40.0), 4), (np.repeat([0.0, 1.0], [34, 6]), 2), (np.repeat([0.0, 1.0], [37, 3]), 1),
     (np.zeros(40), 1), (np.repeat(np.arange(5.0), 8), 4), (np.arange(9.0), 1)],
)  # fmt: skip
def test_bins_keep_equal_prompts_together_and_are_never_tiny(values, count):
    difficulty = Difficulty.probe(values)
    edges = difficulty.bins(np.arange(len(values)), 4)
    kind = np.searchsorted(edges, values, side="right")
    sizes = np.bincount(kind)
    assert len(sizes) == count and (sizes >= min(5, len(values))).all()
    assert len(set(zip(kind.tolist(), values.tolist(), strict=True))) == len(set(values.tolist()))

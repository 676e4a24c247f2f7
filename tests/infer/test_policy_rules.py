"""Rules that stop: replays equal enumeration over all orders, values equal plain dynamic programmes."""

from __future__ import annotations

from collections import Counter
from functools import cache
from itertools import permutations, product

import numpy as np
import pytest
from policy_worlds import beta_world, samples_of
from scipy import stats

from flopwise.errors import FlopwiseError
from flopwise.infer.policies.options import accepting, parallel, sizes, stopping
from flopwise.infer.policies.rules import (
    PRICES,
    Accept,
    BetaStop,
    ScoreValue,
    VotesValue,
    WindowStop,
    make_rule,
    rising,
)
from flopwise.infer.policies.walk import Shuffled, Votes, Walk


def walk_of(codes, right=None, scores=None, cost=None) -> Walk:
    codes = np.asarray(codes)
    right = np.zeros(codes.shape) if right is None else np.asarray(right, dtype=float)
    scores = {} if scores is None else {"reward": np.asarray(scores, dtype=float)}
    return Walk(codes, right, right, scores, np.ones(codes.shape) if cost is None else np.asarray(cost), 1.0)


def stopped_at(rule, walk) -> list[int]:
    """Samples taken in each row."""
    stops = rule.stops(walk)
    return np.where(stops.any(axis=1), stops.argmax(axis=1) + 1, stops.shape[1]).tolist()


def test_votes_are_counted_along_the_way():
    rng = np.random.default_rng(0)
    codes = rng.integers(-1, 4, (60, 9))
    truth = rng.random((60, 4))
    right = np.where(codes >= 0, np.take_along_axis(truth, np.maximum(codes, 0), 1), 0.0)
    votes = Votes.along(codes, right)
    for row in range(60):
        for t in range(9):
            counts = Counter(c for c in codes[row, : t + 1].tolist() if c >= 0)
            ranked = sorted([*counts.values(), 0, 0], reverse=True)
            assert (votes.top[row, t], votes.second[row, t]) == (ranked[0], ranked[1])
            assert votes.cast[row, t] == counts.total()
            leaders = [a for a, c in counts.items() if c == ranked[0]]
            expected = np.mean([truth[row, a] for a in leaders]) if leaders else 0.0
            assert votes.right[row, t] == pytest.approx(expected)


def test_beta_stops_where_the_leader_is_ahead_with_that_chance():
    # One answer k times: 1 - 2^-(k + 1), above .95 from the fourth on.
    assert stopped_at(BetaStop(0.95), walk_of([[0] * 8])) == [4]
    # After 0 0 1 0 0 0 0 0: seven to one, P(Beta(8, 2) > 1/2) = .98.
    row = [[0, 0, 1, 0, 0, 0, 0, 0]]
    evidence = BetaStop(0.95).evidence(walk_of(row))[0]
    assert evidence[-1] == pytest.approx(stats.beta.sf(0.5, 8, 2))
    assert evidence[2] == pytest.approx(stats.beta.sf(0.5, 3, 2))
    # Who abstains settles nothing, and nobody is ahead of nobody.
    assert stopped_at(BetaStop(0.95), walk_of([[-1, -1, -1, -1]])) == [4]
    assert BetaStop(0.6).evidence(walk_of([[-1, -1]])).tolist() == [[0.0, 0.0]]


def test_a_window_stops_at_its_end_if_all_of_it_agree():
    rows = [[0, 0, 0, 1], [0, 1, 1, 1], [1, 0, 2, 2], [-1, -1, 0, 0], [0, -1, 1, 2]]
    assert stopped_at(WindowStop(2), walk_of(rows)) == [2, 4, 4, 4, 4]
    assert stopped_at(WindowStop(3), walk_of(rows[:2])) == [3, 4]


def votes_worth(n: int, price: float):
    """Value of stopping and of going on, by recursion over counts of first, second, others."""

    @cache
    def stop(a, b):
        return 0.0 if a == b == 0 else float(stats.beta.sf(0.5, a + 1, b + 1))

    @cache
    def value(a, b, o):
        return stop(a, b) if a + b + o == n else max(stop(a, b), go_on(a, b, o))

    @cache
    def go_on(a, b, o):
        total = a + b + o + 3
        if a == 0:
            return (2 * value(1, 0, o) + (o + 1) * value(0, 0, o + 1)) / total - price
        second = value(max(a, b + 1), min(a, b + 1), o)
        other = second if b == 0 else value(a, b, o + 1)
        return ((a + 1) * value(a + 1, b, o) + (b + 1) * second + (o + 1) * other) / total - price

    return stop, go_on


@pytest.mark.parametrize("price", PRICES[[16, 22, 25]])
def test_votes_are_stopped_as_a_plain_dynamic_programme_says(price):
    n = 12
    stop, go_on = votes_worth(n, price)
    codes = np.random.default_rng(1).choice(4, p=[0.5, 0.3, 0.1, 0.1], size=(60, n))
    stops = VotesValue(0.999 * price).stops(walk_of(codes))
    for row in range(60):
        for t in range(1, n):
            first, second = sorted([*Counter(codes[row, :t].tolist()).values(), 0], reverse=True)[:2]
            gap = go_on(first, second, t - first - second) - stop(first, second)
            if abs(gap) > 1e-9:
                assert stops[row, t - 1] == (gap < 0)
    assert stops[:, -1].all() and 60 < stops.sum() < 60 * n


def test_dear_samples_are_worth_less_waiting_for():
    codes = np.tile([0, 1, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0], (3, 1))
    cost = np.ones((3, 12)) * np.array([[0.3], [1.0], [3.0]])
    took = stopped_at(VotesValue(0.02), walk_of(codes, cost=cost))
    assert took[0] > took[1] > took[2]


def test_best_of_n_stops_where_one_more_is_not_worth_its_price():
    base = tuple(np.linspace(0.005, 0.995, 100).tolist())
    rule = ScoreValue(0.02, "reward", spread=2.0, base=base)
    # E max(U - y, 0) = (1 - y)^2 / 2 for uniform U.
    evidence = rule.evidence(walk_of([[0] * 4], scores=[[0.2, 0.6, 0.5, 0.9]]))[0]
    best = np.array([0.2, 0.6, 0.6, 0.9])
    assert -evidence == pytest.approx(2 / (2 + np.arange(1, 5)) * (1 - best) ** 2 / 2, abs=2e-4)
    # It only ever falls, so that it never wants to go on again.
    many = rule.evidence(walk_of(np.zeros((50, 20), int), scores=np.random.default_rng(0).random((50, 20))))
    assert (np.diff(many, axis=1) >= 0).all()


def test_with_a_verifier_the_price_is_compared_with_the_next_success():
    """Under p ~ Beta(a, b) a sample after t wrong ones is right with chance a / (a + b + t)."""
    a, b, price = 0.6, 1.8, 0.08
    base = tuple([0.0] * 300 + [1.0] * 100)
    rule = ScoreValue(price, "reward", spread=a + b, base=base)
    assert a / (a + b) == 0.25
    wrong = stopped_at(rule, walk_of([[0] * 30], scores=[[0.0] * 30]))[0]
    assert wrong == next(t for t in range(1, 30) if a / (a + b + t) <= price)

    def worth(cap):
        """Expected accuracy less price per sample, stopping at the first right one or at the cap."""
        missed = np.cumprod(np.concatenate([[1.0], (b + np.arange(cap)) / (a + b + np.arange(cap))]))
        return 1 - missed[cap] - price * missed[:cap].sum()

    assert wrong == max(range(1, 30), key=worth)


def test_what_scores_are_worth_is_learned_by_isotonic_regression():
    _, s = beta_world(P=300, n=16, seed=4)
    rule = ScoreValue.fit(s.scores["reward"], s.correct, "reward")
    values = rule.value(s.scores["reward"])
    assert (np.diff(rule.value(np.linspace(-4, 5, 50))) >= 0).all()
    for low, high in ((0.0, 0.2), (0.2, 0.4), (0.4, 0.7), (0.7, 1.01)):
        inside = (values >= low) & (values < high)
        assert s.correct[inside].mean() == pytest.approx(values[inside].mean(), abs=0.02)
    assert rule.value(np.array([np.nan, -np.inf, np.inf])).tolist() == [0.0, 0.0, 1.0]
    # A Dirichlet process of concentration a + b has Beta(a, b) chances where values are verdicts.
    _, checked = beta_world(P=4000, n=16, a=0.5, b=1.5, seed=5)
    learned = ScoreValue.fit(checked.correct.astype(float), checked.correct, "verifier")
    assert learned.spread == pytest.approx(2.0, rel=0.1)


def test_rising_is_the_nearest_rising_sequence():
    rng = np.random.default_rng(2)
    y, w = rng.integers(0, 4, 4) * 1.0, rng.integers(1, 4, 4) * 1.0
    grid = [v for v in product(np.arange(0, 3.01, 0.5), repeat=4) if list(v) == sorted(v)]
    best = min(float(w @ (np.array(v) - y) ** 2) for v in grid)
    fitted = rising(y, w)
    assert (np.diff(fitted) >= 0).all() and float(w @ (fitted - y) ** 2) <= best + 1e-9


def every_order(rule, samples, cap):
    """Mean accuracy, cost and samples of a rule over all orders of one problem's samples, by trying them."""
    n = samples.n
    order = np.array(list(permutations(range(n))))
    codes, right = Shuffled(samples).codes[0], Shuffled(samples).right[0]
    score = {rule.judge: samples.score(rule.judge)[0][order]} if rule.judge else {}
    pays = samples.decode_flops[0] + samples.score_flops.get(rule.judge or "", np.zeros((1, n)))[0]
    walk = Walk(
        codes[order],
        right[order],
        samples.correct[0][order] * 1.0,
        score,
        pays[order],
        samples.decode_flops.mean(),
    )
    stops = rule.stops(walk)
    end = np.minimum(np.where(stops.any(axis=1), stops.argmax(axis=1), n - 1), cap - 1)
    rows = np.arange(len(order))
    found = walk.votes.right if rule.choice == "votes" else walk.right_of_best(rule.judge)
    return found[rows, end].mean(), walk.spent[rows, end].mean() + samples.prefill_flops[0], end.mean() + 1


def one_problem(seed):
    rng = np.random.default_rng(seed)
    correct = rng.random((1, 6)) < 0.4
    answers = [
        [None if rng.random() < 0.2 else ("right" if c else f"w{rng.integers(2)}") for c in correct[0]]
    ]
    scores = {"reward": np.round(rng.normal(size=(1, 6)) + correct, 1)}
    return samples_of(
        correct, answers, scores, rng.integers(1, 9, (1, 6)) * 1.0, 3.0, {"reward": np.full((1, 6), 0.5)}
    )


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("cap", [1, 3, 6])
def test_accepting_is_exact_over_all_orders(seed, cap):
    samples = one_problem(seed)
    for rule in (Accept(), Accept(0.4, "reward"), Accept(-9.0, "reward"), Accept(9.0, "reward")):
        found = accepting(samples, rule, [cap])[0]
        value, cost, taken = every_order(rule, samples, cap)
        assert found.value[0] == pytest.approx(value, abs=1e-12)
        assert found.cost[0] == pytest.approx(cost)
        assert found.samples[0] == pytest.approx(taken)


@pytest.mark.parametrize("rule", [BetaStop(0.8), WindowStop(2), VotesValue(0.05), ScoreValue(0.05, "reward")])
def test_random_orders_agree_with_all_orders(rule):
    samples = one_problem(3)
    found = {o.name: o for o in stopping(samples, [rule], [2, 6], orders=4000)}
    for cap in (2, 6):
        option = found[f"{rule.name} up to {cap}"]
        value, cost, taken = every_order(rule, samples, cap)
        error = max(float(np.sqrt(option.mc[0])), 1e-9)
        assert abs(option.value[0] - value) < 4 * error + 1e-9
        assert option.cost[0] == pytest.approx(cost, rel=0.03)
        assert option.samples[0] == pytest.approx(taken, rel=0.03)


def test_rounds_and_chunks_change_nothing_that_they_should_not(monkeypatch):
    _, samples = beta_world(P=30, n=8)
    plain = stopping(samples, [BetaStop(0.9)], [8], orders=16)[0]
    rounds = stopping(samples, [BetaStop(0.9)], [8], orders=16, every=4)[0]
    assert set(np.round(rounds.samples * 16) % 4) == {0.0} and (rounds.samples >= plain.samples).all()
    walked = stopping(samples, [Accept()], [8], orders=400, every=2)[0]
    exact = stopping(samples, [Accept()], [8])[0]
    assert walked.value == pytest.approx(exact.value)
    assert (walked.samples >= exact.samples - 0.5).all()
    monkeypatch.setattr("flopwise.infer.policies.walk.CELLS", 10 * 16 * 8)
    cut = stopping(samples, [BetaStop(0.9)], [8], orders=16)[0]
    assert cut.value.mean() == pytest.approx(plain.value.mean(), abs=0.05)


def test_a_rule_at_its_cap_is_uniform_sampling():
    _, samples = beta_world(P=40, n=8)
    never = stopping(samples, [BetaStop(0.9999)], [4], orders=400)[0]
    votes = parallel(samples, "self_consistency", [4])[0]
    assert never.samples.tolist() == [4.0] * 40
    assert never.value.mean() == pytest.approx(votes.value.mean(), abs=4 * np.sqrt(never.mc.sum()) / 40)
    assert sizes(1) == [1] and sizes(3) == [1, 2, 3]


@pytest.mark.parametrize(
    ("kind", "dial", "says"),
    [("beta", 1.0, "confidence is 1"), ("window", 2.5, "whole number"), ("votes", 0.0, "price is 0"),
     ("score", 2.0, "price is 2"), ("pandora", None, "must be one of beta")],
)  # fmt: skip
def test_settings_out_of_range_are_one_line(kind, dial, says):
    with pytest.raises(FlopwiseError, match=says):
        make_rule(kind, dial, "reward")

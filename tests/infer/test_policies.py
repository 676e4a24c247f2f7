"""Policies fitted on some problems and judged on others, on worlds whose truth is known."""

from __future__ import annotations

import json

import numpy as np
import pytest
from policy_worlds import beta_world, samples_of

from flopwise.errors import FlopwiseError
from flopwise.infer.policies import Difficulty, parallel, policies, stopping
from flopwise.infer.policies.comparing import Curve, compare, read_off, risen, weights
from flopwise.infer.policies.difficulty import coverage
from flopwise.infer.policies.fitted import by_posterior, cross_fit, fit
from flopwise.infer.policies.rounds import two_rounds
from flopwise.infer.policies.rules import Accept, rising
from flopwise.infer.policies.walk import Shuffled

A, B = 0.4, 1.2
VERIFIER = "best_of_n:verifier"


def curve_of(options) -> Curve:
    return Curve(
        "", np.stack([o.value for o in options], axis=1), np.stack([o.cost for o in options], axis=1)
    )


def accept_truth(cap) -> tuple[float, float]:
    """Mean accuracy and samples of stopping at the first right one of at most `cap`, for p ~ Beta(A, B)."""
    missed = [1 - float(coverage(np.array([A]), np.array([B]), t)[0]) for t in range(cap + 1)]
    return 1 - missed[cap], sum(missed[:cap])


def test_reading_off_curves():
    x, y = np.array([[1.0, 2.0, 4.0]]), np.array([[0.1, 0.3, 0.4]])
    for at, expected in ((1.0, 0.1), (3.0, 0.35), (9.0, 0.4), (0.5, np.nan)):
        assert read_off(x, y, np.array([at]))[0] == pytest.approx(expected, nan_ok=True)


def test_intervals_of_gain_and_saving_cover_the_truth():
    """Stopping at the first right answer against 8 samples each: 150 sets of 80 problems, nominal 90%."""
    caps, ks, budget = [1, 2, 4, 8, 16, 32], [1, 2, 4, 8, 16], 4.0
    values, costs = zip(*(accept_truth(c) for c in caps), strict=True)
    fixed = [float(coverage(np.array([A]), np.array([B]), k)[0]) for k in ks]
    gain = np.interp(budget, costs, values) - np.interp(budget, ks, fixed)
    saving = 1 - np.interp(np.interp(budget, ks, fixed), values, costs) / budget
    inside = np.zeros(2)
    for seed in range(150):
        _, s = beta_world(P=80, n=32, a=A, b=B, seed=seed)
        s = samples_of(s.correct)
        stop, plain = curve_of(stopping(s, [Accept()], caps)), curve_of(parallel(s, VERIFIER, ks))
        found = compare(stop, plain, budget, weights(80, 250, seed), level=0.9)
        for i, (name, true) in enumerate((("gain", gain), ("saving", saving))):
            inside[i] += found[name]["low"] <= true <= found[name]["high"]
    # Three standard errors of a share of 150.
    assert inside / 150 == pytest.approx([0.9, 0.9], abs=3 * np.sqrt(0.09 / 150))


def test_never_reached_is_no_number():
    low, high = np.full((30, 2), 0.2), np.tile([0.3, 0.4], (30, 1))
    cost = np.tile([1.0, 2.0], (30, 1))
    found = compare(Curve("", low, cost), Curve("", high, cost), 2.0, weights(30, 50))
    assert found["gain"]["value"] == pytest.approx(-0.2) and found["saving"]["value"] is None
    assert (
        compare(Curve("", high, cost), Curve("", low, cost), 2.0, weights(30, 50))["saving"]["value"] == 0.5
    )
    under = compare(Curve("", high, cost), Curve("", low, cost), 0.5, weights(30, 50))
    assert under["gain"]["value"] is None and under["accuracy"]["value"] is None


def test_cross_fitted_bins_come_within_two_percent_of_the_optimum():
    """Difficulty is known exactly; the optimum gives every prompt what its own chance calls for."""
    p, s = beta_world(P=500, n=32, a=A, b=B, seed=3)
    s = samples_of(s.correct)
    options = parallel(s, VERIFIER)
    budgets = np.array([4.0, 8.0, 12.0])
    value, cost = cross_fit(lambda train: options, s.P, budgets, Difficulty.probe(p), bins=10)
    assert cost.mean(axis=0) == pytest.approx(budgets, rel=0.05)
    sizes = np.array([int(o.samples[0]) for o in options])
    chances = 1 - (1 - p[:, None]) ** sizes
    for t, budget in enumerate(cost.mean(axis=0)):
        prices = np.geomspace(1e-5, 1, 400)
        taken = np.array([np.argmax(chances - price * sizes, axis=1) for price in prices])
        spent = sizes[taken].mean(axis=1)
        reached = chances[np.arange(500), taken].mean(axis=1)
        best = np.interp(budget, spent[::-1], reached[::-1])
        uniform = np.interp(budget, sizes, chances.mean(axis=0))
        assert value[:, t].mean() >= 0.98 * best and best > uniform + 0.01


def test_a_policy_is_learned_from_training_problems_alone():
    _, s = beta_world(P=60, n=8, seed=4)
    options = parallel(s, "self_consistency")
    train = np.arange(30)
    changed = [o.take(np.arange(60)) for o in options]
    for o in changed:
        o.value[30:] = np.random.default_rng(0).random(30)
    difficulty = Difficulty.probe(np.arange(60.0) % 7)
    one = fit(options, train, np.array([3.0]), difficulty)[0]
    other = fit(changed, train, np.array([3.0]), difficulty)[0]
    assert one.kinds == other.kinds and (one.edges == other.edges).all()
    _, cost = one.apply(options, difficulty)
    assert cost[train].mean() == pytest.approx(3.0) == one.spent


def test_difficulty_from_the_samples_that_are_scored_would_leak():
    """Prompts are all alike, so that no choice by difficulty can gain; on the same samples it seems to."""
    rng = np.random.default_rng(5)
    held, rest = samples_of(rng.random((800, 8)) < 0.3).split(2)
    budget, base = np.array([2.0]), 1 - 0.7**2
    options = parallel(rest, VERIFIER)
    honest, _ = cross_fit(
        lambda train: options, 800, budget, Difficulty.probe(Difficulty.of(held, "verifier").ease)
    )
    leaking, _ = cross_fit(lambda train: options, 800, budget, Difficulty.probe(rest.correct.mean(axis=1)))
    error = 3 * honest[:, 0].std() / np.sqrt(800)
    assert abs(honest.mean() - base) < error and leaking.mean() > base + error


def test_the_posterior_spends_exactly_what_it_may():
    _, s = beta_world(P=100, n=24, a=A, b=B, seed=6)
    held, rest = samples_of(s.correct).split(4)
    known = np.full(100, 4.0)
    value, cost = by_posterior(held, rest, np.array([8.0, 12.0]), known)
    assert cost.mean(axis=0) == pytest.approx([8.0, 12.0])
    assert value[:, 1].mean() > value[:, 0].mean() > rest.correct.mean()


@pytest.fixture(scope="module")
def made():
    _, s = beta_world(P=80, n=16, seed=7)
    return policies(s, each=6, orders=16, repeats=2)


def test_the_report_holds_what_it_says(made):
    json.dumps(made)
    assert made["problems"] == 80 and made["samples"] == 14 and made["unit"] == "samples"
    assert made["budget"] == 80 * 6 and made["difficulty"] == {"by": "agreement", "m": 2, "cost": 2.0}
    by = {row["name"]: row for row in made["policies"]}
    assert list(by) == ["adaptive", "by difficulty", "by difficulty, free", "both", "two rounds"]
    for row in by.values():
        assert row["accuracy"]["low"] <= row["accuracy"]["value"] <= row["accuracy"]["high"]
        assert row["gain"]["value"] == pytest.approx(
            row["accuracy"]["value"] - made["uniform"]["accuracy"]["value"]
        )
    assert sum(row["problems"] for row in made["table"]) == 80
    assert sum(row["problems"] * row["cost"] for row in made["table"]) / 80 == pytest.approx(4.0)
    for row in made["table"]:
        assert sum(part["share"] for part in row["do"]) == pytest.approx(1.0)
    assert "what reward costs is not known and not counted" in made["warnings"]
    for curve in made["curves"]:
        assert [p["budget"] for p in curve["points"]] == sorted(p["budget"] for p in curve["points"])
        assert all(0 <= p["accuracy"] <= 1 for p in curve["points"])
    # Paid difficulty is worse than free.
    assert by["by difficulty"]["accuracy"]["value"] < by["by difficulty, free"]["accuracy"]["value"]


def test_stopping_at_the_first_right_answer_saves_what_it_must():
    _, s = beta_world(P=120, n=32, a=A, b=B, seed=8)
    made = policies(samples_of(s.correct), each=8, by="verifier", m=2, repeats=2)
    by = {row["name"]: row for row in made["policies"]}
    assert made["strategies"] == [VERIFIER] and "by posterior" in by
    costs, values = zip(*(accept_truth(c)[::-1] for c in range(1, 31)), strict=True)
    true = 1 - np.interp(float(coverage(np.array([A]), np.array([B]), 8)[0]), values, costs) / 8
    assert by["adaptive"]["saving"]["low"] < true < by["adaptive"]["saving"]["high"] and true > 0.35
    assert by["adaptive"]["does"][0]["do"][0]["option"].startswith("accept:verifier up to")


@pytest.mark.parametrize(
    ("given", "says"),
    [({"budget": 3.0}, "less than one sample of each"), ({"budget": -1.0}, "must be above 0"),
     ({"budget": 9.0, "each": 2.0}, "not both"), ({"strategies": ["best_of_n:taste"]}, "no score by 'taste'"),
     ({"strategies": ["beam"]}, "cannot be replayed"), ({"m": 16}, "cannot be split"),
     ({"strategies": ["greedy"]}, "no greedy answers")],
)  # fmt: skip
def test_nonsense_is_one_line(given, says):
    _, s = beta_world(P=40, n=16)
    with pytest.raises(FlopwiseError, match=says):
        policies(s, **given)
    with pytest.raises(FlopwiseError, match="19 problems"):
        policies(s.take(np.arange(19)))


def test_curves_are_made_to_rise_as_by_pooling_neighbours():
    values = np.random.default_rng(0).random((50, 20))
    assert risen(values) == pytest.approx(np.stack([rising(row, np.ones(20)) for row in values]))


def test_a_second_round_goes_to_prompts_whose_first_answers_disagree():
    _, s = beta_world(P=150, n=16, a=2.0, b=2.0, seed=9)
    shuffled = Shuffled(s, 20)
    options, look = two_rounds(shuffled, ["self_consistency", VERIFIER], 3)
    assert look.by == "agreement" and len(look.ease) == 150 * 20
    assert set(np.round(look.ease * 3)) == {1.0, 2.0, 3.0}
    assert [o.name for o in options] == [f"self_consistency x{k}" for k in (3, 4, 6, 8, 12, 16)]
    # All samples of all orders are the plain vote, and what is looked at is among those that are paid.
    assert options[-1].value.mean() == pytest.approx(parallel(s, "self_consistency", [16])[0].value.mean())
    assert options[0].cost.tolist() == [3.0] * 3000
    value, cost = cross_fit(lambda train: options, 150, np.array([6.0]), look, orders=20)
    uniform = parallel(s, "self_consistency", [6])[0].value
    assert value.shape == (150, 1) and cost.mean() == pytest.approx(6.0, rel=0.05)
    assert value.mean() > uniform.mean()
    does = fit(options, np.arange(3000), np.array([6.0]), look)[0]
    taken = [options[k.low].samples[0] for k in does.kinds]
    assert taken[0] > taken[-1] == 3.0
    assert (
        two_rounds(shuffled, [VERIFIER], 3) is None and two_rounds(shuffled, ["self_consistency"], 16) is None
    )
    by_score, seen = two_rounds(Shuffled(samples_of(s.correct, scores=s.scores), 20), ["best_of_n:reward"], 2)
    assert seen.by == "reward" and by_score[0].name == "best_of_n:reward x2"


@pytest.mark.parametrize(
    "samples",
    [samples_of(np.ones((20, 8))), samples_of(np.zeros((20, 8)), [["x"] * 8] * 20), beta_world(P=20, n=2)[1],
     samples_of(np.eye(20, 8), scores={"reward": np.where(np.eye(20, 8) > 0, np.nan, 1.0)}),
     samples_of(np.eye(20, 8), [["x"] * 8] * 20, cost=np.zeros((20, 8)), prefill=1.0)],
    ids=["all right", "all wrong", "two samples", "no spread in scores", "samples for nothing"],
)  # fmt: skip
def test_degenerate_samples_give_numbers_or_none(samples):
    with np.errstate(all="raise", under="ignore"):
        made = policies(samples, repeats=1, orders=4)
    assert "NaN" not in json.dumps(made) and "Infinity" not in json.dumps(made)
    for row in made["policies"]:
        affordable = made["budget"] / made["problems"] >= 1 + made["difficulty"]["cost"]
        if row["name"] == "adaptive" or affordable:
            assert row["accuracy"]["value"] == pytest.approx(samples.correct.mean(), abs=0.5)

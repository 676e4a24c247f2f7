"""Which runs next: the update is Bayes' rule, the choice near the best, promises are kept."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from flopwise.errors import FlopwiseError
from flopwise.laws import fit, get
from flopwise.plan.next_belief import Evidence, belief, bends, knowledge
from flopwise.plan.next_candidates import from_table
from flopwise.plan.next_decision import regret, steer
from flopwise.plan.next_design import Belief, Knowledge, Noise, Option, Rivalry, choose
from flopwise.plan.next_runs import next_runs

TRUTH = {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658}


def table(N, D, seed=0, noise=0.004):
    N, D = np.asarray(N, dtype=float), np.asarray(D, dtype=float)
    scatter = np.exp(noise * np.random.default_rng(seed).normal(size=len(N)))
    return {"N": N, "D": D, "loss": get("chinchilla")(TRUTH, {"N": N, "D": D}) * scatter}


def grid(low, high, n):
    return (
        v.ravel() for v in np.meshgrid(np.geomspace(low[0], high[0], n), np.geomspace(low[1], high[1], n))
    )


@pytest.fixture(scope="module")
def small():
    N, D = grid((2e7, 4e8), (1e8, 4e9), 3)
    return fit("chinchilla", table(N, D), loss="log_squared", intervals="delta")


def random_belief(m=9, seed=0):
    G = np.random.default_rng(seed).normal(size=(4, m))
    return Belief((G.T @ G)[None], 1, Noise(0.3, 0.2))


def test_an_update_is_that_of_linear_regression():
    rng = np.random.default_rng(1)
    G, a = rng.normal(size=(5, 4)), rng.normal(size=4)
    prior = np.diag([1.0, 2.0, 0.5, 3.0])
    points = np.vstack([G, a])
    known = Belief((points @ prior @ points.T)[None], 1, Noise(0.1, 0.05))
    options = [Option((0, 1), 1.0, 0), Option((3,), 1.0, 1)]
    S = known.noise.of(options)
    J = G[[0, 1, 3]]
    posterior = np.linalg.inv(np.linalg.inv(prior) + J.T @ np.linalg.inv(S) @ J)
    assert known.given(options).variance == pytest.approx(float(a @ posterior @ a))
    assert S[0, 1] == pytest.approx(0.05) and S[0, 2] == 0 and S[2, 2] == pytest.approx(0.15)


def test_a_scan_is_what_each_run_alone_would_leave():
    known = random_belief()
    rival = Rivalry(np.arange(8.0), known.covariance[0, :8, :8], known.noise, 2.0)
    start = Knowledge((known,), (1.0,), (rival,)).given([Option((7,), 1.0, 9)])
    options = [Option((0,), 1.0, 0), Option((1, 2, 3), 1.0, 1), Option((4,), 1.0, 2)]
    alone = [start.given([o]).variance for o in options]
    assert start.falls(options) == pytest.approx(alone)


def test_the_choice_is_mostly_the_best_of_all_affordable_sets():
    over = []
    for seed in range(8):
        known = Knowledge((random_belief(11, seed),), (1.0,))
        costs = np.random.default_rng(seed + 50).uniform(1, 4, 10)
        options = [Option((i,), float(c), i) for i, c in enumerate(costs)]
        chosen = choose(known, options, 6.0)
        assert sum(o.cost for o in chosen) <= 6.0 + 1e-9
        best = min(
            known.given(s).variance
            for k in range(1, 7) for s in combinations(options, k) if sum(o.cost for o in s) <= 6.0
        )  # fmt: skip
        over.append(known.given(chosen).variance / best)
    assert sum(r < 1 + 1e-9 for r in over) >= 5 and sum(r < 1.1 for r in over) >= 7


def test_what_it_promises_is_what_refitting_gives(small):
    at = {"N": 1e9, "D": 2e10}
    made = next_runs(small, 1e19, at=at, bend=0.0)
    told = made.narrowing[0]
    assert made.spent <= 1e19 and told.low <= told.after <= told.high < told.before
    assert told.after < 0.5 * told.before and told.after < min(made.others.values())
    ours, errors = [], []
    old = table(small.problem.x["N"], small.problem.x["D"])
    N, D = (np.array([r[n] for r in made.runs]) for n in "ND")
    for seed in range(6):
        new = table(N, D, seed + 1)
        again = fit(
            "chinchilla",
            {n: np.concatenate([old[n], new[n]]) for n in old},
            loss="log_squared",
            intervals="delta",
        )
        p = again.predict(**at)
        ours.append(np.log(p.mean_high / p.mean_low) / 2)
        errors.append(
            np.log(p.value / get("chinchilla")(TRUTH, {n: np.array([v]) for n, v in at.items()})[0])
        )
    assert 0.5 < np.median(ours) / told.after < 2.0
    assert np.sqrt(np.mean(np.square(errors))) < told.after


def test_a_larger_budget_never_knows_less_and_nothing_is_over_it(small):
    after = []
    for budget in (3e17, 1e18, 3e18, 1e19):
        made = next_runs(small, budget, at={"N": 1e9, "D": 2e10})
        assert made.spent <= budget * (1 + 1e-9)
        assert made.spent == pytest.approx(sum(r["cost"] for r in made.runs))
        assert all(r["cost"] == pytest.approx(6 * r["N"] * r["D"]) for r in made.runs)
        after.append(made.narrowing[0].after)
    assert after == sorted(after, reverse=True)


def test_candidates_of_a_table_are_named_by_row_and_a_run_may_stop_early(small):
    N, D = np.repeat([3e7, 6e7, 3e8], 4), np.tile([5e8, 1e9, 4e9, 8e9], 3)
    named = {"N": N, "D": D, "model": np.repeat(["a", "b", "c"], 4), "price": 6 * N * D * 1.1}
    found = from_table([small], named, "price", "model")
    ends = {(o.group, len(o.rows)): o.cost for o in found.options(1e30)}
    assert ends[(0, 2)] == pytest.approx(1.1 * 6 * 3e7 * 1e9) and len(ends) == 12 and found.shared
    made = next_runs(small, 3e18, candidates=named, cost="price", cluster="model", at={"N": 1e9, "D": 2e10})
    assert made.spent <= 3e18 and made.runs
    for run in made.runs:
        assert run["cost"] == pytest.approx(named["price"][run["row"] - 1])
    models = [named["model"][r["row"] - 1] for r in made.runs]
    assert len(set(models)) == len(models)


def test_rows_of_one_run_are_less_than_as_many_runs(small):
    N, D = np.repeat(np.geomspace(2e7, 1e8, 4), 6), np.tile(np.geomspace(4e8, 4e9, 6), 4)
    runs = np.repeat(np.arange(4), 6)
    made = fit("chinchilla", table(N, D), loss="log_squared", intervals="delta", cluster=None)
    x, aim = {"N": np.array([5e7]), "D": np.array([1e9])}, {"N": np.array([1e9]), "D": np.array([2e10])}
    apart = belief(Evidence(made), x, aim).variance
    together = belief(Evidence(made, runs), x, aim).variance
    assert together > 1.2 * apart
    assert np.trace(Evidence(made, runs).spread(made.theta)) > np.trace(Evidence(made).spread(made.theta))


def test_runs_that_tell_laws_apart_are_preferred_where_laws_disagree(small):
    N, D = grid((2e7, 4e8), (1e8, 4e9), 3)
    both = [fit(n, table(N, D), intervals="delta") for n in ("chinchilla", "coupled")]
    made = next_runs(both, 3e18, at={"N": 1e9, "D": 2e10})
    (pair,) = made.between
    assert set(pair["laws"]) == {"chinchilla", "coupled"} and pair["apart"] > 0
    assert 0 <= pair["confused"] < 1
    x = {n: np.array([r[n] for r in made.runs]) for n in "ND"}
    alone = next_runs(both[0], 3e18, at={"N": 1e9, "D": 2e10})
    y = {n: np.array([r[n] for r in alone.runs]) for n in "ND"}
    aims = {"N": np.array([1e9]), "D": np.array([2e10])}

    def confused(x):
        known = knowledge([Evidence(f) for f in both], x, aims, [None, None], 0.002, 0)
        return known.rivalries[0].given([Option((i,), 1.0, i) for i in range(len(x["N"]))]).variance

    assert confused(x) <= confused(y) * 1.05


def test_a_form_that_bends_asks_for_runs_nearer_the_aim(small):
    def distance(bend):
        made = next_runs(small, 3e19, at={"N": 4e8, "D": 8e9}, bend=bend)
        away = [abs(np.log10(r["N"] / 4e8)) + abs(np.log10(r["D"] / 8e9)) for r in made.runs]
        return np.average(away, weights=[r["cost"] for r in made.runs])

    assert distance(0.02) < distance(0.0)
    K = bends({"N": np.array([1e6, 1e7, 1e9])}, {"N": np.array([1e8])}, 0.1)
    assert np.diag(K) == pytest.approx([0.02, 0.01, 0.01]) and K[0, 1] == pytest.approx(0.01) and K[0, 2] == 0


def test_the_regret_of_the_plan_falls_and_runs_for_the_plan_beat_chance(small):
    made = next_runs(small, 1e19, goal="plan", plan_budget=1e21, seed=1)
    worth = made.regret
    assert worth is not None and worth.low <= worth.after < 0.5 * worth.before
    assert made.aim["N"][0] * made.aim["D"][0] * 6 == pytest.approx(1e21)
    x = {n: np.array([r[n] for r in made.runs][-1:] * len(made.runs)) for n in "ND"}
    same = [Option((i,), 1.0, i) for i in range(len(made.runs))]
    assert regret(Evidence(small), x, same, 1e21, 0.0, 0.0, 1).after > worth.after


def test_the_optimum_moves_as_its_slope_says(small):
    from flopwise.laws.objective import named
    from flopwise.laws.optimum import optimum

    g = steer(Evidence(small), 1e21, 0.0, 0)[0]
    step = 0.02 * g / np.linalg.norm(g)
    budget = {n: v for n, v in named(small.form, small.theta + step).items()}
    N = optimum(small.form, small.params, 1e21, 0.0)[0]
    best = float(optimum(small.form, budget, 1e21, 0.0)[2][0])
    kept = float(small.form(budget, {"N": N, "D": 1e21 / 6 / N})[0])
    assert kept / best - 1 == pytest.approx(float(g @ step) ** 2, rel=0.1)


def test_a_law_of_one_variable_and_a_fit_of_a_file(tmp_path):
    C = np.geomspace(1e17, 1e19, 7)
    noisy = np.exp(0.004 * np.random.default_rng(0).normal(size=7))
    one = fit("loss = E + A / C^b", {"C": C, "loss": (1.7 + 3000 / C**0.2) * noisy}, intervals="delta")
    one.to_json(tmp_path / "fit.json")
    from flopwise.laws import Fit

    made = next_runs(Fit.from_json(tmp_path / "fit.json"), 2e19)
    assert made.runs and all(set(r) == {"C", "cost"} for r in made.runs)
    assert any("holds no runs" in note for note in made.notes)
    assert made.narrowing[0].after < made.narrowing[0].before


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"budget": -1.0}, "above 0"),
        ({"budget": 1e10}, "afford none of the candidates"),
        ({"budget": 1e18, "goal": "fun"}, "prediction or plan"),
        ({"budget": 1e18, "goal": "plan"}, "--plan-budget"),
        ({"budget": 1e18, "goal": "plan", "plan_budget": 1.0}, "must be above"),
        ({"budget": 1e18, "at": {"N": 1e9}}, "D is missing"),
        ({"budget": 1e18, "at": {"N": -1e9, "D": 1e9}}, "above 0"),
        ({"budget": 1e18, "candidates": {"N": [1e7]}}, "'D'"),
        ({"budget": 1e18, "grid": {"U": (1.0, 2.0, 3)}}, "variables are N, D"),
        ({"budget": 1e18, "bend": float("nan")}, "bend"),
    ],
)
def test_what_makes_no_sense_is_one_clear_line(small, given, says):
    with pytest.raises(FlopwiseError, match=says):
        next_runs(small, **given)


def test_laws_of_different_metrics_and_far_aims(small):
    other = fit("loss2 = E + A / C^b", {"C": np.geomspace(1, 9, 6), "loss2": 1 + 1 / np.geomspace(1, 9, 6)})
    with pytest.raises(FlopwiseError, match="different metrics"):
        next_runs([small, other], 1e18)
    far = next_runs(small, 1e18, at={"N": 1e12, "D": 1e13})
    assert any("times beyond the runs" in note for note in far.notes)

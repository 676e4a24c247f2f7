"""Thresholds of back-tests, what is held out at each; weights of comparisons against brute force."""

from __future__ import annotations

import numpy as np
import pytest

from flopwise.errors import FlopwiseError
from flopwise.laws import backtest, choose, compare, fit, get
from flopwise.laws.backtesting import APART, LEVELS, STEPS, _thresholds
from flopwise.laws.law import Law, Parameter

TRUTH = {"E": 1.8, "A": 480.0, "B": 2100.0, "alpha": 0.35, "beta": 0.37}


def grid(noise=0.005, seed=0, n=5):
    N, D = (v.ravel() for v in np.meshgrid(np.geomspace(1e7, 1e9, n), np.geomspace(1e9, 1e11, n)))
    clean = get("chinchilla")(TRUTH, {"N": N, "D": D})
    return {"N": N, "D": D, "loss": clean * np.exp(noise * np.random.default_rng(seed).normal(size=n * n))}


def continuous(n=40, noise=0.003, seed=0):
    C = np.sort(10 ** np.random.default_rng(seed).uniform(17, 21, n))
    loss = (1.7 + 1e3 * C**-0.17) * np.exp(noise * np.random.default_rng(seed + 1).normal(size=n))
    return {"C": C, "loss": loss}


def test_few_values_are_thresholds_themselves():
    scale = np.repeat([1.0, 2.0, 4.0, 8.0], 3)
    assert _thresholds(scale).tolist() == [4.0, 2.0, 1.0]
    assert _thresholds(np.array([3.0, 3.0])).size == 0
    # Values that differ by rounding alone are one step, of the largest of them.
    assert _thresholds(np.array([1.0, 2.0, 2.0 * (1 + 1e-9), 4.0])).tolist() == [2.0 * (1 + 1e-9), 1.0]
    assert _thresholds(np.array([0.0, 0.0, 1.0, 5.0])).tolist() == [1.0, 0.0]


def test_many_values_are_held_out_by_half_decades():
    scale = np.geomspace(1.0, 1e4, 50)
    made = _thresholds(scale)
    assert len(scale) > STEPS
    assert made[0] <= 1e4 / APART * (1 + 1e-9) and (np.diff(made) < 0).all()
    for i, threshold in enumerate(made):
        assert threshold <= 1e4 / APART ** (i + 1) * (1 + 1e-9)
        assert threshold * (scale[1] / scale[0]) > 1e4 / APART ** (i + 1), "the largest below"
    # Many values within less than one such step are steps of their own.
    close = np.linspace(1.0, 2.0, 30)
    assert _thresholds(close).tolist() == close[:-1][::-1].tolist()


def test_every_trial_is_the_fit_to_the_smaller_rows():
    table = grid()
    made = backtest("chinchilla", table, by="N")
    sizes = np.unique(table["N"])
    assert made.held_out == sizes[-1]
    assert [t.threshold for t in made.trials] == pytest.approx(sizes[:-1][::-1][: len(made.trials)])
    assert len(made.trials) + len(made.skipped) <= LEVELS
    for trial in made.trials:
        kept = table["N"] <= trial.threshold * 1.000001
        assert trial.n == kept.sum() == trial.fit.n
        assert trial.rows.tolist() == np.flatnonzero(~kept).tolist()
        alone = fit("chinchilla", {k: v[kept] for k, v in table.items()}, intervals="delta")
        assert trial.fit.params == pytest.approx(alone.params, rel=1e-6)
        p = alone.predict(N=table["N"][~kept], D=table["D"][~kept])
        assert trial.errors == pytest.approx(p.value / table["loss"][~kept] - 1, abs=1e-7)
        inside = (p.low <= table["loss"][~kept]) & (table["loss"][~kept] <= p.high)
        assert trial.inside.tolist() == inside.tolist()
        assert trial.distance == pytest.approx(table["N"][~kept] / trial.threshold)
        assert trial.rms == pytest.approx(np.sqrt(np.mean(trial.errors**2)))
    assert made.covered == pytest.approx(np.mean(np.concatenate([t.inside for t in made.trials])))
    # Two sizes are too few for the law: said, not hidden.
    assert made.skipped and "up to N =" in made.skipped[0]


def test_a_continuous_scale():
    table = continuous()
    made = backtest("loss = E + A / C^a", table)
    assert made.by == "C" and made.held_out == table["C"].max()
    assert made.trials[0].threshold <= table["C"].max() / APART
    assert len(made.trials) > 2
    assert made.trials[0].rms < 0.01
    only = backtest("loss = E + A / C^a", table, "largest_only")
    assert len(only.trials) == 1 and only.rms == pytest.approx(made.rms)
    shuffled = np.random.default_rng(0).permutation(40)
    again = backtest("loss = E + A / C^a", {k: v[shuffled] for k, v in table.items()})
    assert again.rms == pytest.approx(made.rms, rel=1e-6)
    rows = again.trials[0].rows
    assert (table["C"][shuffled][rows] > made.trials[0].threshold).all()


def test_the_truth_is_within_its_interval_at_every_distance():
    inside = []
    for seed in range(6):
        made = backtest("loss = E + A / C^a", continuous(seed=seed), loss="log_squared")
        inside.append(made.covered)
    assert 0.85 < np.mean(inside) <= 1.0


def test_held_parameters_cluster_and_loss_are_passed_on():
    table = grid() | {"run": np.arange(25) // 5}
    made = backtest("chinchilla", table, by="D", loss="squared", fixed={"E": 1.8}, cluster="run")
    assert made.fit.fixed == {"E": 1.8} and made.fit.loss == "squared" and made.fit.n_clusters == 4


def test_of_counts_the_share_is_predicted():
    rng = np.random.default_rng(0)
    C = np.repeat(np.geomspace(1e18, 1e22, 9), 2)
    n = np.full(18, 400)
    p = 1 / (1 + np.exp(-0.9 * (np.log10(C) - 20)))
    table = {"C": C, "n": n, "c": rng.binomial(n, p)}
    law = Law(
        name="rate",
        regime="own",
        formula="accuracy = sigmoid(a * (log10(C) - b))",
        source="",
        status="own",
        parameters=(Parameter("a", (0.1, 10.0)), Parameter("b", (15.0, 25.0))),
        span=(0.0, 1.0),
        scale="plain",
    ).from_shares()
    made = backtest(law, table)
    held = made.trials[0]
    assert held.rows.tolist() == [16, 17]
    assert held.errors == pytest.approx(held.fit.predict(C=C[16:]).value / (table["c"][16:] / n[16:]) - 1)
    assert made.rms < 0.1


def test_weights_make_the_average_that_errs_least():
    table = grid(0.004, seed=2)
    made = compare(["chinchilla", "kaplan", "loss = E + A / N^a"], table, by="N")
    w = made.weights
    assert sum(w.values()) == pytest.approx(1.0) and min(w.values()) >= 0 and set(w) == {t.law for t in made}
    shared = set.intersection(*({t.threshold for t in b.trials} for b in made))
    rows = [
        np.stack([next(t for t in b.trials if t.threshold == s).errors for b in made], axis=1)
        / np.sqrt(len(next(t for t in made[0].trials if t.threshold == s).errors))
        for s in shared
    ]
    E = np.concatenate(rows)

    def loss(v):
        return float(np.square(E @ v).sum())

    mine = loss(np.array([w[b.law] for b in made]))
    rng = np.random.default_rng(0)
    corners = np.vstack([np.eye(len(made)), rng.dirichlet(np.ones(len(made)), 3000)])
    assert mine <= min(loss(v) for v in corners) * (1 + 1e-3) + 1e-12
    assert made[0].rms <= made[-1].rms and made.verdict.startswith(f"{made[0].law} errs by")


def test_an_average_is_weighted_and_as_wide_as_any():
    table = grid(0.004, seed=2)
    laws = ["chinchilla", "coupled"]
    made = compare(laws, table, by="N")
    fits = [fit(law, table, intervals="delta") for law in laws]
    p = made.predict(fits, N=3e9, D=3e11)
    each = [f.predict(N=3e9, D=3e11) for f in fits]
    w = np.array([made.weights[f.law] for f in fits])
    kept = w > 0.01
    w = np.where(kept, w, 0) / w[kept].sum()
    assert p.value == pytest.approx(sum(a * q.value for a, q in zip(w, each, strict=True)))
    used = [q for q, k in zip(each, kept, strict=True) if k]
    assert p.low == pytest.approx(min(q.low for q in used))
    assert p.high == pytest.approx(max(q.high for q in used))
    with pytest.raises(FlopwiseError, match="none of these fits"):
        made.predict([fit("kaplan", table, intervals="delta")], N=1e9, D=1e10)


def test_a_clear_winner_and_a_tie():
    table = grid(0.0005, seed=1, n=6)
    made = compare(["chinchilla", "kaplan"], table, by="N")
    assert made.wins and made[0].law == "chinchilla" and made.verdict.endswith("chinchilla wins")
    assert made.weights["chinchilla"] > 0.5
    twin = get("chinchilla")
    same = Law(
        name="twin",
        regime=twin.regime,
        formula=twin.formula,
        parameters=twin.parameters,
        source="",
        status="own",
    )
    tie = compare([twin, same], table, by="N")
    assert not tie.wins and "no law wins" in tie.verdict
    one = compare(["chinchilla"], table)
    assert one.weights == {"chinchilla": 1.0} and "alone" in one.verdict


def test_progress_counts_laws():
    shares = []
    compare(["chinchilla", "kaplan"], grid(), progress=shares.append)
    assert shares == [0.5, 1.0]


def test_choose_tells_its_reasons_and_carries_the_error():
    table = grid(0.002)
    with_bad = choose(table, ["chinchilla", "rl_sigmoid", "kaplan"])
    assert with_bad.fit.law == "chinchilla"
    trial = next(t for t in with_bad.trials if t.law == "chinchilla")
    assert with_bad.fit.misfit == trial.rms
    assert any("rl_sigmoid was left out" in r for r in with_bad.reasons)
    p = with_bad.fit.predict(N=1e9, D=1e11)
    assert np.log(p.high / p.value) >= 1.95 * trial.rms


@pytest.mark.parametrize("columns", [{}, {"C": []}, {"C": [1e18], "loss": [2.0]}])
def test_tables_that_are_too_small_are_refused(columns):
    with pytest.raises(FlopwiseError) as e:
        backtest("loss = E + A / C^a", columns)
    assert "\n" not in str(e.value)
    with pytest.raises(FlopwiseError):
        compare(["loss = E + A / C^a"], columns)

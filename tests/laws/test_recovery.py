"""Every law of the catalogue is found again from its own values; what must not matter does not."""

from __future__ import annotations

import numpy as np
import pytest

from flopwise.laws import fit, get, laws, optimum
from flopwise.laws.law import REGIMES, STATUSES
from flopwise.laws.objective import Objective, searched

NAMES = [law.name for law in laws()]
VALUES = [name for name in NAMES if not get(name).from_counts]
"""Laws that are fitted to values; those of counts have no noise-free table."""
FORMULAS = [name for name in VALUES if get(name).function is None]


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("loss", ["log_huber", "log_squared", "squared"])
def test_noise_free_parameters_are_recovered(name, loss, exact):
    table, truth = exact(name)
    fitted = fit(name, table, loss=loss)
    assert fitted.status == "converged"
    assert fitted.objective < 1e-18 * fitted.problem.unit
    for parameter, value in truth.items():
        assert fitted.params[parameter] == pytest.approx(value, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_entries_are_complete(name):
    law = get(name)
    assert law.formula and law.latex and law.source and law.needs
    assert law.status in STATUSES
    assert law.regime in REGIMES
    assert set(law.linear) <= set(law.names)
    assert all(p.unit in ("", *law.columns) for p in law.parameters)
    assert all(law.unit(column) for column in law.columns)
    for published in law.published:
        assert set(published.values) <= set(law.names)
        assert published.source and published.status in STATUSES


@pytest.mark.parametrize("name", FORMULAS)
def test_derivatives_agree_with_differences(name, exact):
    table, truth = exact(name)
    law = get(name)
    problem = Objective(law, {v: table[v] for v in law.variables}, table[law.target], np.inf, law.scale)
    theta = searched(law, truth)[None] + 0.01
    _, J = problem.jacobian(theta)
    steps = 1e-6 * np.eye(theta.shape[1])
    by_hand = (problem.residuals(theta + steps) - problem.residuals(theta - steps)) / 2e-6
    assert J[0] == pytest.approx(by_hand, rel=1e-4, abs=1e-4 * np.abs(J).max())
    # The second derivative of half the sum of squares, by differences of its gradient.
    H = problem.local(theta, np.ones(1, bool)).curvature[0]
    ahead, back = (
        problem.local(theta + sign * steps, np.zeros(len(steps), bool)).gradient for sign in (1, -1)
    )
    assert pytest.approx((ahead - back) / 2e-6, rel=1e-4, abs=1e-5 * np.abs(H).max()) == H


@pytest.mark.parametrize("name", [name for name in FORMULAS if get(name).linear])
def test_linear_terms_add_up_to_the_law(name, exact):
    table, truth = exact(name)
    law = get(name)
    x = {v: table[v] for v in law.variables}
    tape = law.tape(0, "terms")
    *terms, rest = tape.run(tape.bind(x), truth)
    total = sum(truth[p] * term for p, term in zip(law.linear, terms, strict=True)) + rest
    assert total == pytest.approx(law(truth, x), rel=1e-9)


def test_unit_of_n_changes_only_a(ladder):
    table, _ = ladder()
    one = fit("chinchilla", table, cluster="run")
    other = fit("chinchilla", table | {"N": table["N"] / 1e3}, cluster="run")
    for name in ("E", "B", "alpha", "beta"):
        assert other.params[name] == pytest.approx(one.params[name], rel=1e-5)
    assert other.params["A"] == pytest.approx(one.params["A"] / 1e3 ** one.params["alpha"], rel=1e-4)
    assert other.objective == pytest.approx(one.objective, rel=1e-9)
    a, b = one.predict(N=4e5, D=3e6), other.predict(N=4e2, D=3e6)
    assert (b.value, b.low, b.high) == pytest.approx((a.value, a.low, a.high), rel=1e-5)


def test_order_of_rows_does_not_matter(ladder):
    table, _ = ladder(3)
    order = np.random.default_rng(0).permutation(15)
    one = fit("chinchilla", table, cluster="run")
    other = fit("chinchilla", {k: v[order] for k, v in table.items()}, cluster="run")
    assert other.params == pytest.approx(one.params, rel=1e-6)
    assert other.scatter == pytest.approx(one.scatter, rel=1e-6)


def test_seed_does_not_matter(ladder):
    table, _ = ladder(1)
    first, second = (fit("chinchilla", table, seed=s) for s in (0, 1))
    assert first.params == pytest.approx(second.params, rel=1e-5)


def test_optimum_spends_the_budget_where_the_slopes_agree(exact):
    table, p = exact("chinchilla", E=1.8, A=480.0, B=2100.0, alpha=0.35, beta=0.37)
    best = fit("chinchilla", table).optimal(1e21)
    assert pytest.approx(1e21, rel=1e-9) == 6 * best.N * best.D
    G = (p["alpha"] * p["A"] / (p["beta"] * p["B"])) ** (1 / (p["alpha"] + p["beta"]))
    assert pytest.approx(G * (1e21 / 6) ** (p["beta"] / (p["alpha"] + p["beta"])), rel=1e-3) == best.N
    low, high = best.intervals["N"]
    assert low <= best.N * 1.001 and high * 1.001 >= best.N


@pytest.mark.parametrize("name", ["chinchilla", "overtraining"])
def test_the_closed_form_of_the_optimum_is_the_numeric_one(name, exact, monkeypatch):
    _, p = exact(name)
    closed = optimum.optimum(get(name), p, 1e21, 0.0)
    monkeypatch.setattr(optimum, "CLOSED", {})
    numeric = optimum.optimum(get(name), p, 1e21, 0.0)
    assert numeric[0] == pytest.approx(closed[0], rel=1e-5)
    assert numeric[2] == pytest.approx(closed[2], rel=1e-12)


def test_a_demand_for_answers_moves_the_optimum_to_smaller_models(exact):
    table, _ = exact("chinchilla", E=1.8, A=480.0, B=2100.0, alpha=0.35, beta=0.37)
    fitted = fit("chinchilla", table)
    alone, served = fitted.optimal(1e21), fitted.optimal(1e21, demand=1e11)
    assert served.N < alone.N and served.loss > alone.loss
    assert pytest.approx(1e21, rel=1e-9) == 6 * served.N * served.D + 2 * served.N * 1e11
    frontier = fitted.frontier([1e20, 1e21])
    assert [a.C for a in frontier] == [1e20, 1e21] and frontier[1].N == alone.N

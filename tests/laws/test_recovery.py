"""Every law of the catalogue is found again from its own values; what must not matter does not."""

from __future__ import annotations

import numpy as np
import pytest

from flopwise.laws import fit, get, laws

NAMES = [law.name for law in laws()]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("loss", ["log_huber", "log_squared", "squared"])
def test_noise_free_parameters_are_recovered(name, loss, exact):
    table, truth = exact(name)
    fitted = fit(name, table, loss=loss)
    assert fitted.status == "converged"
    assert fitted.objective < 1e-18
    for parameter, value in truth.items():
        assert fitted.params[parameter] == pytest.approx(value, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_entries_are_complete(name):
    law = get(name)
    assert law.formula and law.source and law.needs
    assert law.status in ("checked", "summary", "unverified")
    assert law.regime in ("pretraining", "post-training", "test-time")
    assert set(law.linear) <= set(law.names)
    assert all(p.unit in ("", *law.variables) for p in law.parameters)


@pytest.mark.parametrize("name", [name for name in NAMES if get(name).terms])
def test_linear_terms_add_up_to_the_law(name, exact):
    table, truth = exact(name)
    law = get(name)
    x = {v: table[v] for v in law.variables}
    total = law.terms(truth, x) @ np.array([truth[p] for p in law.linear])
    assert total == pytest.approx(law.function(truth, x), rel=1e-12)


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

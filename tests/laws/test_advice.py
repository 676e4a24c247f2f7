"""Which run would tell most, which are missing, the verdict; the best split of compute in closed form."""

from __future__ import annotations

import re

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from flopwise.errors import FlopwiseError
from flopwise.laws import fit, get
from flopwise.laws.advice import missing_runs, next_run, slopes, verdict

TRUTH = {"E": 1.8, "A": 480.0, "B": 2100.0, "alpha": 0.35, "beta": 0.37}


def grid(noise=0.005, seed=0, n=4):
    N, D = (v.ravel() for v in np.meshgrid(np.geomspace(1e7, 1e9, n), np.geomspace(1e9, 1e11, n)))
    clean = get("chinchilla")(TRUTH, {"N": N, "D": D})
    return {"N": N, "D": D, "loss": clean * np.exp(noise * np.random.default_rng(seed).normal(size=n * n))}


def test_the_next_run_promises_what_a_refit_keeps():
    """The run is added, on the law, with the noise left as it is: the interval shrinks as was said."""
    table = grid()
    fitted = fit("chinchilla", table, loss="log_squared")
    made = next_run(fitted)
    assert set(made.run) == {"N", "D"} and made.cost <= 1.0
    assert made.cost == pytest.approx(made.run["N"] * made.run["D"] / (1e9 * 1e11))
    assert 6 * made.aim["N"] * made.aim["D"] == pytest.approx(10 * 6 * 1e9 * 1e11)
    assert made.after < made.before
    p = fitted.predict(**made.aim)
    assert made.before == pytest.approx(np.log(p.mean_high / p.mean_low) / 2, rel=1e-6)
    more = {
        n: np.append(v, fitted.predict(**made.run).value if n == "loss" else made.run[n])
        for n, v in table.items()
    }
    again = fit("chinchilla", more, loss="log_squared")
    q = again.predict(**made.aim)
    width = np.log(q.mean_high / q.mean_low) / 2
    # Same noise, one degree of freedom more.
    width *= fitted.scatter / again.scatter * fitted.t(0.95) / again.t(0.95)
    assert width == pytest.approx(made.after, rel=0.02)


def test_no_other_run_of_the_grid_would_tell_more():
    fitted = fit("chinchilla", grid(), loss="log_squared")
    made = next_run(fitted)
    rng = np.random.default_rng(0)
    N, D = 10 ** rng.uniform(7, 9, 200), 10 ** rng.uniform(9, 11, 200)
    J = slopes(fitted, {"N": N, "D": D})
    a = slopes(fitted, {n: np.array([v]) for n, v in made.aim.items()})[:, 0]
    V, s2 = fitted.covariance, fitted.scatter**2
    after = a @ V @ a - (a @ V @ J) ** 2 / (s2 + np.einsum("kn,km,mn->n", J, V, J))
    assert made.after <= fitted.t(0.95) * np.sqrt(after.min()) * 1.02


def test_slopes_are_derivatives_of_the_logarithm():
    fitted = fit("chinchilla", grid())
    x = {"N": np.array([1e8, 1e9]), "D": np.array([1e10, 1e12])}
    p = fitted.params
    L = fitted.predict(**x).value
    term = p["A"] / x["N"] ** p["alpha"] / L
    J = slopes(fitted, x)
    assert J[0] == pytest.approx(p["E"] / L, rel=1e-6)
    assert J[1] == pytest.approx(term, rel=1e-6)
    assert J[3] == pytest.approx(-term * p["alpha"] * np.log(x["N"]), rel=1e-6)


def test_a_law_of_one_variable_and_one_of_three():
    C = np.geomspace(1e18, 1e20, 12)
    loss = (1.7 + 1e3 * C**-0.2) * np.exp(0.003 * np.random.default_rng(0).normal(size=12))
    made = next_run(fit("loss = E + A / C^a", {"C": C, "loss": loss}))
    assert made.aim == {"C": pytest.approx(1e21)} and 1e18 * 0.999 <= made.run["C"] <= 1e20 * 1.001
    assert made.cost == pytest.approx(made.run["C"] / 1e20)
    three = {"N": C, "D": C[::-1].copy(), "U": np.roll(C, 3), "loss": loss}
    assert next_run(fit("loss = E + A / N^a + D^-b / U^b", three, intervals="delta")) is None


def test_missing_runs_fill_the_widest_gaps():
    text = missing_runs({"N": np.array([1e7, 1e8]), "D": np.array([1e9, 1e9])}, 3)
    runs = [(float(n), float(d)) for n, d in re.findall(r"N = (\S+), D = ([^\s,]+)", text)]
    assert text.startswith("3 runs, say ") and len(set(runs)) == 3
    assert not set(runs) & {(1e7, 1e9), (1e8, 1e9)}
    assert all(n * d <= 3 * 1e17 * 1.01 for n, d in runs)
    assert missing_runs({"N": np.array([1e7, 1e8])}, 5).endswith("and 2 more")
    assert missing_runs({"t": np.array([0.0, 1.0])}, 2) == "runs"


def test_verdicts():
    good = fit("chinchilla", grid(0.001), loss="log_squared")
    said = verdict(good, next_run(good))
    assert said.startswith("holds for what was fitted") and "flopwise backtest" in said
    bad = fit("chinchilla", grid(0.2), loss="log_squared")
    assert verdict(bad, next_run(bad)).startswith("not to be planned by: ")
    few = {name: v[:7] for name, v in grid(0.001).items()}
    said = verdict(fitted := fit("chinchilla", few), next_run(fitted))
    assert "7 points for 5 parameters" in said
    for made in (good, bad):
        assert "\n" not in verdict(made, None)


@pytest.mark.parametrize("C", [1e18, 1e21, 1e25])
def test_the_split_of_compute_is_hoffmanns_closed_form(C):
    fitted = fit("chinchilla", grid(0.0))
    best = fitted.optimal(C)
    p = TRUTH
    G = (p["alpha"] * p["A"] / (p["beta"] * p["B"])) ** (1 / (p["alpha"] + p["beta"]))
    N = G * (C / 6) ** (p["beta"] / (p["alpha"] + p["beta"]))
    D = (C / 6) ** (p["alpha"] / (p["alpha"] + p["beta"])) / G
    assert pytest.approx((N, D), rel=1e-4) == (best.N, best.D)
    assert best.loss == pytest.approx(get("chinchilla")(p, {"N": N, "D": D}), rel=1e-8)
    assert best.intervals["N"][0] <= best.N * 1.0001 and best.intervals["N"][1] >= best.N / 1.0001


@pytest.mark.parametrize("demand", [1e9, 1e11, 1e13])
def test_demand_moves_the_split_as_a_minimiser_says(demand):
    C = 1e22
    fitted = fit("chinchilla", grid(0.0))
    best = fitted.optimal(C, demand)
    assert 6 * best.N * best.D + 2 * best.N * demand == pytest.approx(C, rel=1e-9)

    def loss(log_n):
        N = np.exp(log_n)
        return float(get("chinchilla")(TRUTH, {"N": N, "D": (C - 2 * N * demand) / (6 * N)}))

    end = minimize_scalar(
        loss, bounds=(0, np.log(C / (6 + 2 * demand))), method="bounded", options={"xatol": 1e-12}
    )
    assert best.loss == pytest.approx(end.fun, rel=1e-8)
    assert pytest.approx(np.exp(end.x), rel=1e-3) == best.N
    assert best.N <= fitted.optimal(C).N * 1.0001, "who will be asked much should be smaller"


def test_intervals_of_the_split_cover_its_scatter():
    fitted = fit("chinchilla", grid(0.005), loss="log_squared")
    best = fitted.optimal(1e23, seed=1)
    low, high = best.intervals["N"]
    assert low < best.N < high
    truth = fit("chinchilla", grid(0.0)).optimal(1e23)
    assert low < truth.N < high
    narrow = fitted.optimal(1e23, level=0.5, seed=1).intervals["N"]
    assert low < narrow[0] < narrow[1] < high


@pytest.mark.parametrize("C", [0, -1, 5, np.nan, np.inf])
def test_budgets_that_buy_nothing_are_refused(C):
    with pytest.raises(FlopwiseError, match="C is"):
        fit("chinchilla", grid(0.0), intervals="delta").optimal(C)


def test_only_laws_of_n_and_d_have_a_split():
    C = np.geomspace(1e18, 1e20, 12)
    with pytest.raises(FlopwiseError, match="needs one in N and D"):
        fit("loss = E + A / C^a", {"C": C, "loss": 1.7 + 1e3 * C**-0.2}, intervals="delta").optimal(1e21)

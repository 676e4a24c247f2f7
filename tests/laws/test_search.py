"""What a search ends in is the minimum: against scipy's, in other units, with outliers and held parts."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import least_squares, minimize
from scipy.special import expit

from flopwise.errors import FlopwiseError
from flopwise.laws import fit, get, own
from flopwise.laws.law import Law, Parameter
from flopwise.laws.objective import searched

TRUTH = {"E": 1.8, "A": 480.0, "B": 2100.0, "alpha": 0.35, "beta": 0.37}


def grid(noise=0.005, seed=0, n=4, law="chinchilla", truth=None):
    N, D = (v.ravel() for v in np.meshgrid(np.geomspace(1e7, 1e9, n), np.geomspace(1e9, 1e11, n)))
    clean = get(law)(truth or TRUTH, {"N": N, "D": D})
    return {"N": N, "D": D, "loss": clean * np.exp(noise * np.random.default_rng(seed).normal(size=n * n))}


def residuals(theta, table, log=True):
    E, A, B = np.exp(theta[:3])
    alpha, beta = np.exp(theta[3:])
    made = E + A / table["N"] ** alpha + B / table["D"] ** beta
    return np.log(made) - np.log(table["loss"]) if log else made - table["loss"]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("loss", "log"), [("log_squared", True), ("squared", False)])
def test_squares_end_where_scipys_do(loss, log, seed):
    table = grid(seed=seed, noise=0.02)
    start = np.log([TRUTH[p] for p in ("E", "A", "B", "alpha", "beta")])
    end = least_squares(residuals, start, args=(table, log), xtol=1e-15, ftol=1e-15, gtol=1e-15)
    fitted = fit("chinchilla", table, loss=loss)
    assert fitted.objective == pytest.approx(2 * end.cost, rel=1e-9)
    assert fitted.params == pytest.approx(dict(zip(TRUTH, np.exp(end.x), strict=True)), rel=1e-4)


@pytest.mark.parametrize("delta", [1e-3, 3e-3, 0.1])
def test_hubers_loss_is_no_higher_than_where_scipy_ends(delta):
    table = grid(seed=5, noise=0.01)
    fitted = fit("chinchilla", table, delta=delta)
    start = np.log([TRUTH[p] for p in ("E", "A", "B", "alpha", "beta")])

    def huber(theta):
        size = np.abs(residuals(theta, table))
        return np.where(size < delta, size**2 / 2, delta * (size - delta / 2)).sum()

    end = minimize(
        huber,
        start,
        method="Nelder-Mead",
        options={"maxiter": 20_000, "maxfev": 20_000, "xatol": 1e-9, "fatol": 1e-14, "adaptive": True},
    )
    assert huber(fitted.theta) == pytest.approx(fitted.objective, rel=1e-9)
    assert fitted.objective <= end.fun * (1 + 1e-7)


def test_a_binomial_rate_has_scipys_likelihood_and_errors():
    rng = np.random.default_rng(3)
    C = np.geomspace(1e18, 1e22, 30)
    n = rng.integers(20, 200, 30)
    c = rng.binomial(n, expit(1.1 * (np.log10(C) - 20.2)))
    law = Law(
        name="rate",
        regime="own",
        formula="accuracy = sigmoid(a * (log10(C) - b))",
        source="",
        status="own",
        parameters=(Parameter("a", (0.1, 10.0)), Parameter("b", (15.0, 25.0))),
        span=(0.0, 1.0),
        scale="plain",
    )
    assert law.from_shares().counts == ("C", "n", "c")

    def nll(v):
        p = expit(np.exp(v[0]) * (np.log10(C) - np.exp(v[1])))
        return -(c * np.log(p) + (n - c) * np.log1p(-p)).sum()

    end = minimize(nll, np.log([1.0, 20.0]), method="BFGS", options={"gtol": 1e-8})
    fitted = fit(law, {"C": C, "n": n, "c": c}, loss="binomial", intervals="delta")
    assert fitted.objective == pytest.approx(end.fun, rel=1e-10)
    assert list(fitted.params.values()) == pytest.approx(np.exp(end.x), rel=1e-5)
    h = 1e-4
    H = np.empty((2, 2))
    for i, e in enumerate(np.eye(2) * h):
        for j, f in enumerate(np.eye(2) * h):
            at = [nll(fitted.theta + a * e + b * f) for a, b in ((1, 1), (1, -1), (-1, 1), (-1, -1))]
            H[i, j] = (at[0] - at[1] - at[2] + at[3]) / (4 * h * h)
    assert fitted.covariance == pytest.approx(np.linalg.inv(H), rel=1e-3)
    assert np.isinf(fitted.dof) and fitted.scale == "plain" and fitted.status == "converged"


def test_a_law_that_is_no_share_has_no_binomial_likelihood():
    with pytest.raises(FlopwiseError, match="no binomial likelihood"):
        fit("chinchilla", grid(), loss="binomial")
    with pytest.raises(FlopwiseError, match="no law of counts"):
        fit("chinchilla", grid(), loss="likelihood")


@pytest.mark.parametrize("loss", ["log_huber", "log_squared", "squared", "robust"])
@pytest.mark.parametrize("factor", [1e-8, 1e6])
def test_the_unit_of_the_loss_changes_only_factors(loss, factor):
    table = grid()
    one, other = (
        fit("chinchilla", table, loss=loss),
        fit("chinchilla", table | {"loss": table["loss"] * factor}, loss=loss),
    )
    scale = {"E": factor, "A": factor, "B": factor, "alpha": 1.0, "beta": 1.0}
    for p, s in scale.items():
        assert other.params[p] == pytest.approx(one.params[p] * s, rel=1e-4)
        assert other.interval(p) == pytest.approx([v * s for v in one.interval(p)], rel=1e-3)
    a, b = (f.predict(N=3e9, D=1e12) for f in (one, other))
    assert [b.value, b.low, b.high] == pytest.approx(np.multiply([a.value, a.low, a.high], factor), rel=1e-4)


@pytest.mark.parametrize("formula", ["chinchilla", "loss = E + A / N^alpha + B / D^beta"])
def test_billions_give_the_same_exponents_and_predictions(formula):
    table = grid()
    one = fit(formula, table)
    other = fit(formula, table | {"N": table["N"] / 1e9, "D": table["D"] / 1e9})
    for p in ("E", "alpha", "beta"):
        assert other.params[p] == pytest.approx(one.params[p], rel=1e-6)
    a, b = one.predict(N=3e9, D=1e12), other.predict(N=3.0, D=1e3)
    assert (b.value, b.low, b.high) == pytest.approx((a.value, a.low, a.high), rel=1e-6)
    assert b.extrapolation == pytest.approx(a.extrapolation)


@pytest.mark.parametrize("row", [0, 5, 10])
def test_one_wild_row_does_not_move_the_robust_losses(row):
    table = grid(noise=0.002)
    wild = table | {"loss": np.where(np.arange(16) == row, 3 * table["loss"], table["loss"])}
    without = {name: np.delete(v, row) for name, v in table.items()}
    alone = fit("chinchilla", without, loss="log_squared", intervals="delta")
    for loss in ("log_huber", "robust"):
        fitted = fit("chinchilla", wild, loss=loss, intervals="delta")
        assert fitted.predict(N=1e9, D=1e11).value == pytest.approx(
            alone.predict(N=1e9, D=1e11).value, rel=0.01
        )
        assert any(f"row {row + 1} (" in w for w in fitted.warnings)
    squares = fit("chinchilla", wild, loss="log_squared", intervals="delta")
    assert squares.scatter > 10 * alone.scatter


def test_held_parameters_stay_and_the_rest_is_the_minimum():
    table = grid(noise=0.02)
    fitted = fit("chinchilla", table, loss="log_squared", fixed={"E": 1.7, "alpha": 0.34})
    assert fitted.fixed == {"E": 1.7, "alpha": 0.34} and set(fitted.params) == {"A", "B", "beta"}

    def held(v):
        return residuals(np.array([np.log(1.7), v[0], v[1], np.log(0.34), v[2]]), table)

    end = least_squares(held, np.log([480.0, 2100.0, 0.37]), xtol=1e-15, ftol=1e-15, gtol=1e-15)
    assert fitted.objective == pytest.approx(2 * end.cost, rel=1e-9)
    assert fitted.dof == 13
    free = fit("chinchilla", table, loss="log_squared")
    assert fitted.objective >= free.objective
    at_best = fit("chinchilla", table, loss="log_squared", fixed={"E": free.params["E"]})
    assert at_best.objective == pytest.approx(free.objective, rel=1e-9)
    assert at_best.params["A"] == pytest.approx(free.params["A"], rel=1e-4)


@pytest.mark.parametrize(
    ("fixed", "message"),
    [
        ({"Q": 1.0}, "no parameter 'Q'"),
        ({"E": -1.0}, "E is -1"),
        ({"E": np.nan}, "E is nan"),
        (dict(TRUTH), "leave one free"),
    ],
)
def test_what_cannot_be_held_is_refused(fixed, message):
    with pytest.raises(FlopwiseError, match=message):
        fit("chinchilla", grid(), fixed=fixed)


def test_bounds_are_kept_and_told():
    x = np.geomspace(1, 100, 20)
    y = 0.5 * x**-0.3
    law = Law(
        name="floor",
        regime="own",
        formula="loss = E + A * x ^ -b",
        source="",
        status="own",
        parameters=(
            Parameter("E", (0.1, 1.0), bounds=(0.1, 2.0)),
            Parameter("A"),
            Parameter("b", (0.1, 1.0)),
        ),
    )
    fitted = fit(law, {"x": x, "loss": y}, intervals="delta")
    assert fitted.params["E"] == pytest.approx(0.1) and fitted.status == "at_bound"
    assert fitted.diagnostics["at_bounds"] == ["E"]
    held = fit(law, {"x": x, "loss": y}, fixed={"E": 0.1}, intervals="delta")
    assert fitted.objective == pytest.approx(held.objective, rel=1e-6)


def test_a_own_formula_finds_what_the_catalogues_does():
    table = grid()
    one, other = fit("chinchilla", table), fit("loss = E + A / N^alpha + B / D^beta", table)
    assert other.objective == pytest.approx(one.objective, rel=1e-9)
    assert other.params == pytest.approx(one.params, rel=1e-5)
    assert own("loss = E + A / N^alpha + B / D^beta").linear == ("E", "A", "B")


def test_many_rows_are_sampled_and_rows_are_named_as_in_the_table(monkeypatch):
    from flopwise.laws import fitting

    monkeypatch.setattr(fitting, "MOST", 60)
    rng = np.random.default_rng(0)
    D = rng.uniform(1e6, 1e9, 200)
    loss = (2 + 50 * D**-0.3) * np.exp(0.002 * rng.normal(size=200))
    loss[:] = np.where(np.arange(200) % 10 == 7, 3 * loss, loss)
    table = {"D": D, "loss": loss, "run": np.repeat(np.arange(40), 5)}
    fitted = fit("loss = E + A / D^b", table, intervals="delta")
    assert fitted.n == 60
    assert any("200 rows: fitted to 60 of them" in w for w in fitted.warnings)
    (far,) = [w for w in fitted.warnings if "far from the law" in w]
    rows = [int(part.split()[1]) for part in far.split("row ")[0:0]] or [
        int(v.split()[0]) for v in far.split("row ")[1:]
    ]
    assert rows and all(loss[r - 1] > 5 for r in rows)
    whole = fit("loss = E + A / D^b", table, cluster="run", intervals="delta")
    assert whole.n == 60 and whole.n_clusters == 12, "clusters stay whole"
    again = fit("loss = E + A / D^b", table, cluster="run", intervals="delta")
    assert again.params == whole.params


@pytest.mark.parametrize("loss", ["log_huber", "log_squared", "squared", "robust"])
def test_no_noise_at_all_leaves_narrow_finite_intervals(loss):
    fitted = fit("chinchilla", grid(noise=0.0), loss=loss)
    for p, value in TRUTH.items():
        low, high = fitted.interval(p)
        assert low == pytest.approx(value, rel=1e-6) and high == pytest.approx(value, rel=1e-6)
        assert low <= fitted.params[p] <= high
    p = fitted.predict(N=1e10, D=1e12)
    assert p.low <= p.value <= p.high and p.high - p.low < 1e-6


def test_parameters_as_searched_come_back():
    law = get("chinchilla")
    assert np.exp(searched(law, TRUTH)) == pytest.approx(list(TRUTH.values()))

"""Bootstrap and posterior against closed forms, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest

from flopwise.errors import FlopwiseError
from flopwise.laws import Fit, fit, get
from flopwise.laws.law import Law, Parameter

LINE = Law(
    name="line",
    regime="own",
    formula="y = a + b * x",
    source="",
    status="own",
    scale="plain",
    parameters=(
        Parameter("a", (-5.0, 5.0), log=False, bounds=(-np.inf, np.inf)),
        Parameter("b", (-5.0, 5.0), log=False, bounds=(-np.inf, np.inf)),
    ),
)


def line(n=60, noise=0.3):
    x = np.linspace(1.0, 9.0, n)
    return {"x": x, "y": 2.0 - 0.7 * x + noise * np.random.default_rng(0).normal(size=n)}


def covariance(table, clusters=None):
    """Of least squares: with resampled rows or clusters (no correction, as a bootstrap's)."""
    X = np.stack([np.ones_like(table["x"]), table["x"]], axis=1)
    inverse = np.linalg.inv(X.T @ X)
    r = table["y"] - X @ (inverse @ X.T @ table["y"])
    scores = X * r[:, None]
    if clusters is not None:
        scores = np.stack([scores[clusters == g].sum(axis=0) for g in np.unique(clusters)])
    return inverse @ (scores.T @ scores) @ inverse, (r @ r) / (len(r) - 2) * inverse


def test_a_bootstrap_of_a_straight_line_has_the_sandwichs_errors():
    table = line()
    fitted = fit(LINE, table, loss="squared", bootstrap=1000)
    errors = fitted.samples.std(axis=0, ddof=1)
    assert errors == pytest.approx(np.sqrt(np.diag(covariance(table)[0])), rel=0.1)
    assert fitted.samples.mean(axis=0) == pytest.approx(list(fitted.params.values()), abs=0.2 * errors.max())
    # Each draw is a weighted least squares of its own: none is far from the fit.
    assert np.abs(fitted.samples - fitted.theta).max() < 6 * errors.max()
    low, high = fitted.interval("b")
    assert (low, high) == pytest.approx(tuple(np.quantile(fitted.samples[:, 1], [0.025, 0.975])))


def test_a_bootstrap_of_clusters_keeps_them_whole():
    rng = np.random.default_rng(1)
    table = line(60)
    runs = np.repeat(np.arange(20), 3)
    table["y"] = table["y"] + rng.normal(0, 1.0, 20)[runs]
    fitted = fit(LINE, table | {"run": runs}, loss="squared", cluster="run", bootstrap=1000)
    errors = fitted.samples.std(axis=0, ddof=1)
    assert errors == pytest.approx(np.sqrt(np.diag(covariance(table, runs)[0])), rel=0.12)
    alone = fit(LINE, table, loss="squared", bootstrap=300)
    assert (errors > 1.2 * alone.samples.std(axis=0)).all()


def test_the_posterior_of_a_straight_line_is_normal_with_least_squares_covariance():
    table = line(14)
    fitted = fit(LINE, table, loss="squared", intervals="posterior", seed=3)
    _, V = covariance(table)
    assert np.cov(fitted.samples.T) == pytest.approx(V, rel=0.25)
    errors = np.sqrt(np.diag(V))
    assert np.abs(fitted.samples.mean(axis=0) - fitted.theta) == pytest.approx([0, 0], abs=0.2 * errors.max())
    centred = (fitted.samples - fitted.samples.mean(axis=0)) / fitted.samples.std(axis=0)
    assert (centred**4).mean(axis=0) == pytest.approx([3.0, 3.0], abs=0.7)
    assert 0.2 < fitted.diagnostics["posterior"]["accepted"] < 0.9


def test_the_posterior_of_a_rate_is_the_beta_distribution():
    """Flat in log p within bounds: a beta distribution with a prior of 1 / p."""
    from scipy import stats

    n, c = np.full(8, 25.0), np.array([5, 7, 4, 6, 8, 5, 6, 7.0])
    fitted = fit("binomial_rate", {"n": n, "c": c}, intervals="posterior")
    p = np.exp(fitted.samples[:, 0]) if get("binomial_rate").parameters[0].log else fitted.samples[:, 0]
    prior = 0 if get("binomial_rate").parameters[0].log else 1
    exact = stats.beta(c.sum() + prior, (n - c).sum() + 1)
    assert p.mean() == pytest.approx(exact.mean(), abs=0.2 * exact.std())
    assert p.std() == pytest.approx(exact.std(), rel=0.15)
    assert fitted.interval(fitted.form.names[0]) == pytest.approx(exact.interval(0.95), abs=0.4 * exact.std())


def test_draws_stay_within_bounds():
    x = np.geomspace(1, 100, 20)
    y = 2 * x**-0.3 * np.exp(0.02 * np.random.default_rng(1).normal(size=20))
    for intervals in ("posterior", "bootstrap"):
        fitted = fit(
            "loss = E + A / x^b",
            {"x": x, "loss": y},
            intervals=intervals,
            **({"bootstrap": 40} if intervals == "bootstrap" else {}),
        )
        assert np.isfinite(fitted.samples).all()
        p = fitted.predict(x=np.array([1.0, 1e3]))
        assert (p.low <= p.value).all() and (p.value <= p.high).all() and (p.low > 0).all()


def test_the_same_seed_draws_the_same():
    table = line()
    for more in ({"bootstrap": 50}, {"intervals": "posterior"}):
        one, same, other = (fit(LINE, table, loss="squared", seed=s, **more).samples for s in (1, 1, 2))
        assert (one == same).all() and not np.array_equal(one, other)


@pytest.mark.parametrize("more", [{"bootstrap": 40}, {"intervals": "posterior"}])
def test_draws_are_kept_in_a_file(more, tmp_path):
    x = np.geomspace(1, 100, 20)
    y = (0.3 + 2 * x**-0.3) * np.exp(0.02 * np.random.default_rng(1).normal(size=20))
    fitted = fit("loss = E + A / x^b", {"x": x, "loss": y}, **more)
    fitted.to_json(tmp_path / "fit.json")
    read = Fit.from_json(tmp_path / "fit.json")
    assert read.intervals == fitted.intervals
    assert np.array_equal(read.samples, fitted.samples)
    assert read.interval("b") == fitted.interval("b")
    assert read.predict(x=500.0) == fitted.predict(x=500.0)
    assert read.draws(5, seed=1) == fitted.draws(5, seed=1)


def test_progress_rises_to_one():
    for more in ({"bootstrap": 600}, {"intervals": "posterior"}):
        shares = []
        fit(LINE, line(20), loss="squared", progress=shares.append, **more)
        assert shares == sorted(shares) and shares[-1] == 1.0


def test_draws_of_a_t_have_its_covariance():
    fitted = fit(LINE, line(14), loss="squared")
    drawn = np.array([[s["a"], s["b"]] for s in fitted.draws(20_000, seed=0)])
    # Student's t with 12 degrees of freedom: variance 12 / 10 of its scale.
    assert np.cov(drawn.T) == pytest.approx(fitted.covariance * 12 / 10, rel=0.06)


@pytest.mark.parametrize("bootstrap", [-1, 1, 19, 100_001])
def test_too_few_or_too_many_refits_are_refused(bootstrap):
    with pytest.raises(FlopwiseError, match=f"bootstrap is {bootstrap}, must be 0 or from 20"):
        fit(LINE, line(20), loss="squared", bootstrap=bootstrap)

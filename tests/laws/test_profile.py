"""Intervals against closed forms: a straight line has exact ones, a bent law's are those of refits."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import least_squares

from flopwise.errors import FlopwiseError
from flopwise.laws import fit
from flopwise.laws.law import Law, Parameter
from flopwise.laws.profile import Profile
from flopwise.laws.uncertainty import efficiency, robust_scale, spread

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


def points(n=14, seed=0, noise=0.3):
    x = np.linspace(1.0, 9.0, n)
    return {"x": x, "y": 2.0 - 0.7 * x + noise * np.random.default_rng(seed).normal(size=n)}


def by_hand(table):
    """Ordinary least squares: estimates, standard errors, residual deviation."""
    X = np.stack([np.ones_like(table["x"]), table["x"]], axis=1)
    beta, rss = np.linalg.lstsq(X, table["y"], rcond=None)[:2]
    s2 = rss[0] / (len(X) - 2)
    V = s2 * np.linalg.inv(X.T @ X)
    return beta, V, np.sqrt(s2)


@pytest.mark.parametrize("level", [0.5, 0.8, 0.95, 0.99])
@pytest.mark.parametrize("method", ["delta", "profile"])
def test_a_straight_line_has_the_exact_t_intervals(method, level):
    table = points()
    fitted = fit(LINE, table, loss="squared", intervals=method)
    beta, V, s = by_hand(table)
    t = stats.t.ppf(0.5 + level / 2, 12)
    assert list(fitted.params.values()) == pytest.approx(beta, rel=1e-9)
    assert fitted.scatter == pytest.approx(s, rel=1e-9) and fitted.dof == 12
    # Between its points a profile is read off by straight lines, which it is here.
    for i, name in enumerate("ab"):
        half = t * np.sqrt(V[i, i])
        assert fitted.interval(name, level) == pytest.approx((beta[i] - half, beta[i] + half), rel=1e-6)


def test_a_straight_lines_predictions_have_the_exact_intervals():
    table = points()
    fitted = fit(LINE, table, loss="squared")
    beta, V, s = by_hand(table)
    at = np.array([0.5, 5.0, 20.0])
    p = fitted.predict(x=at)
    t = stats.t.ppf(0.975, 12)
    for i, x in enumerate(at):
        g = np.array([1.0, x])
        mean, run = t * np.sqrt(g @ V @ g), t * np.sqrt(g @ V @ g + s**2)
        assert p.value[i] == pytest.approx(g @ beta)
        assert (p.mean_low[i], p.mean_high[i]) == pytest.approx((g @ beta - mean, g @ beta + mean), rel=1e-6)
        assert (p.low[i], p.high[i]) == pytest.approx((g @ beta - run, g @ beta + run), rel=1e-6)


@pytest.mark.parametrize("factor", [1e-6, 1.0, 1e6])
def test_the_unit_of_a_straight_line_does_not_matter(factor):
    table = points()
    table["y"] = table["y"] * factor
    beta, V, _ = by_hand(table)
    fitted = fit(LINE, table, loss="squared")
    half = stats.t.ppf(0.975, 12) * np.sqrt(np.diag(V))
    for i, name in enumerate("ab"):
        for method in ("delta", "profile"):
            ends = fitted.interval(name, method=method)
            assert ends == pytest.approx((beta[i] - half[i], beta[i] + half[i]), rel=1e-5)


def test_many_points_have_standard_errors_that_noise_may_shape():
    """From 15 pieces beyond the parameters on: HC2 with Bell and McCaffrey's degrees of freedom."""
    rng = np.random.default_rng(1)
    x = np.linspace(1.0, 9.0, 60)
    table = {"x": x, "y": 2.0 - 0.7 * x + 0.05 * x**2 * rng.normal(size=60)}
    X = np.stack([np.ones(60), x], axis=1)
    inverse = np.linalg.inv(X.T @ X)
    r = table["y"] - X @ (inverse @ X.T @ table["y"])
    h = np.einsum("ni,ij,nj->n", X, inverse, X)
    V = inverse @ (X.T * r**2 / (1 - h)) @ X @ inverse
    # Degrees of freedom by their definition: (sum of eigenvalues)^2 over the sum of their squares.
    hat = np.eye(60) - X @ inverse @ X.T
    G = hat * (X @ inverse[:, 1] / np.sqrt(1 - h))
    values = np.linalg.eigvalsh(G.T @ G)
    dof = values.sum() ** 2 / (values**2).sum()
    fitted = fit(LINE, table, loss="squared")
    assert fitted.covariance == pytest.approx(V, rel=1e-6)
    half = stats.t.ppf(0.975, dof) * np.sqrt(V[1, 1])
    middle = fitted.params["b"]
    for method in ("delta", "profile"):
        assert fitted.interval("b", method=method) == pytest.approx((middle - half, middle + half), rel=1e-5)


def test_balanced_clusters_have_the_variance_of_their_means():
    """A mean of G clusters of m: by analysis of variance its variance is that of the cluster means over G."""
    mean = Law(
        name="mean",
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
    rng = np.random.default_rng(2)
    G, m = 8, 4
    x = np.tile(np.linspace(-1.0, 1.0, m), G)
    y = 3.0 + np.repeat(rng.normal(0, 0.5, G), m) + rng.normal(0, 0.1, G * m)
    fitted = fit(
        mean, {"x": x + 2.0, "y": y, "run": np.repeat(np.arange(G), m)}, loss="squared", cluster="run"
    )
    means = y.reshape(G, m).mean(axis=1)
    # a + 2 b is the mean at the middle of x.
    g = np.array([1.0, 2.0])
    assert g @ fitted.covariance @ g == pytest.approx(means.var(ddof=1) / G, rel=1e-6)
    assert fitted.dof == G - 1 and fitted.n_clusters == G


def test_a_bent_laws_profile_is_that_of_refits():
    x = np.geomspace(1, 1000, 14)
    y = (0.5 + 3.0 * x**-0.4) * np.exp(0.01 * np.random.default_rng(4).normal(size=14))
    fitted = fit("loss = E + A / x^b", {"x": x, "loss": y}, loss="log_squared")
    made = fitted.profile("b")
    s2 = fitted.scatter**2
    assert fitted.objective == pytest.approx(11 * s2)
    for value, z in zip(made.values[[1, 4, 9, 12]], made.z[[1, 4, 9, 12]], strict=True):

        def held(v, b=np.exp(value)):
            return np.log(np.exp(v[0]) + np.exp(v[1]) * x**-b) - np.log(y)

        end = least_squares(held, [np.log(0.5), np.log(3.0)], xtol=1e-15, ftol=1e-15, gtol=1e-15)
        rise = (2 * end.cost - fitted.objective) / s2
        assert abs(z) == pytest.approx(np.sqrt(rise), rel=1e-3, abs=1e-3)
    t = stats.t.ppf(0.975, 11)
    low, high = fitted.interval("b")
    assert low < fitted.params["b"] < high
    for end in (low, high):

        def at_end(v, b=end):
            return np.log(np.exp(v[0]) + np.exp(v[1]) * x**-b) - np.log(y)

        refit = least_squares(at_end, [np.log(0.5), np.log(3.0)], xtol=1e-15, ftol=1e-15, gtol=1e-15)
        assert np.sqrt((2 * refit.cost - fitted.objective) / s2) == pytest.approx(t, rel=0.02)


def test_an_interval_is_where_the_profile_passes_t():
    made = Profile(np.array([-2.0, -1.0, 0.0, 1.0, 3.0]), np.array([-3.0, -1.0, 0.0, 1.0, 2.0]), (-9.0, 9.0))
    assert made.interval(1.0) == (-1.0, 1.0)
    assert made.interval(2.0) == (-1.5, 3.0)
    assert made.interval(2.5) == (-1.75, 9.0) and made.open_ends(2.5) == (False, True)
    assert made.open_ends(5.0) == (True, True) and made.interval(5.0) == (-9.0, 9.0)


@pytest.mark.parametrize("seed", [1, 3])
def test_a_floor_at_zero_has_the_interval_of_refits(seed):
    """The best floor is none: its interval ends where refits with a floor are worse by t squared."""
    x = np.geomspace(1, 100, 14)
    y = 2 * x**-0.3 * np.exp(0.02 * np.random.default_rng(seed).normal(size=14))
    fitted = fit("loss = E + A / x^b", {"x": x, "loss": y}, loss="log_squared")
    low, high = fitted.interval("E")
    assert low < 1e-3 and 0.01 < high < 0.5

    def held(v, E):
        return np.log(E + np.exp(v[0] - np.exp(v[1]) * np.log(x))) - np.log(y)

    end = least_squares(held, [np.log(2.0), np.log(0.3)], args=(high,), xtol=1e-15, ftol=1e-15, gtol=1e-15)
    rise = (2 * end.cost - fitted.objective) / fitted.scatter**2
    assert np.sqrt(rise) == pytest.approx(stats.t.ppf(0.975, 11), rel=0.15)


def test_what_nothing_rules_out_is_told():
    fitted = fit(
        "loss = E + A / x^b",
        {
            "x": np.geomspace(1, 100, 14),
            "loss": 2.0 * np.exp(0.05 * np.random.default_rng(0).normal(size=14)),
        },
    )
    fitted.interval("b")
    assert any("not identified" in w or "told apart" in w or "do not see" in w for w in fitted.warnings)
    assert fitted.status == "at_bound"


@pytest.mark.parametrize("level", [0, 1, -1, 1.5, np.nan])
def test_levels_that_are_none_are_refused(level):
    fitted = fit(LINE, points(), loss="squared")
    for ask in (lambda: fitted.interval("a", level), lambda: fitted.predict(x=2.0, level=level)):
        with pytest.raises(FlopwiseError, match="between 0 and 1"):
            ask()


def test_higher_levels_are_wider():
    fitted = fit(LINE, points(), loss="squared")
    widths = [np.ptp(fitted.interval("b", level)) for level in (0.5, 0.8, 0.9, 0.95, 0.99, 0.999)]
    assert widths == sorted(widths)


def test_unknown_parameters_are_refused():
    with pytest.raises(FlopwiseError, match="no parameter 'c'; there are a, b"):
        fit(LINE, points(), loss="squared").interval("c")
    with pytest.raises(FlopwiseError, match="no bootstrap samples"):
        fit(LINE, points(), loss="squared").interval("a", method="bootstrap")


def test_scale_and_efficiency_of_normal_noise():
    r = np.random.default_rng(0).normal(0, 2.0, 20_001)
    assert robust_scale(r, 1) == pytest.approx(2.0, rel=0.02)
    assert robust_scale(np.where(np.arange(20_001) % 10 == 0, 1e9, r), 1) == pytest.approx(2.3, rel=0.1)
    # Known: the median costs pi / 2, Huber's 1.345 five per cent.
    assert efficiency(1e-9, 1.0) == pytest.approx(np.pi / 2, rel=1e-3)
    assert efficiency(1.345, 1.0) == pytest.approx(1 / 0.95, rel=1e-3)


def test_as_many_clusters_as_rows_are_no_clusters():
    rng = np.random.default_rng(0)
    J, r = rng.normal(size=(30, 2)), rng.normal(size=30)
    one, other = spread(J, r, None, np.inf), spread(J, r, np.arange(30), np.inf)
    assert one.covariance == pytest.approx(other.covariance) and one.dof == other.dof

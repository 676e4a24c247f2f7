"""Forms of coverage: gradients, quadrature against closed forms, recovery, stopping rules."""

from __future__ import annotations

import numpy as np
import pytest

from flopwise.laws.counts import Counts
from flopwise.laws.coverage_fit import fit_form
from flopwise.laws.coverage_forms import FORMS, ScaledBeta

ADAPTIVE = Counts.of([100, 100, 100, 20, 7, 3000], [0, 1, 60, 3, 0, 5])
STOPPED = Counts.of([1, 4, 50, 50, 9], [1, 1, 0, 1, 2], [True, True, False, True, False])
EVEN = Counts.of(100, [0, 1, 2, 30, 100])


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("units", [ADAPTIVE, STOPPED, EVEN], ids=["adaptive", "stopped", "even"])
def test_gradients_are_exact(name, units):
    form, h = FORMS[name], 1e-5
    prepared = form.prepare(units)
    for z in (*form.starts(units, np.ones(len(units))), np.array([-1.2, 0.6, 0.4])[: len(form.bounds)]):
        gradient = form.loglik(z, prepared)[1]
        for j, e in enumerate(np.eye(len(z)) * h):
            numeric = (form.loglik(z + e, prepared)[0] - form.loglik(z - e, prepared)[0]) / (2 * h)
            assert gradient[:, j] == pytest.approx(numeric, rel=1e-5, abs=1e-6)


class Unscaled(ScaledBeta):
    """The scaled beta at scale 1: a beta, by quadrature."""

    def log_scale(self, z):
        return np.zeros(len(z))


@pytest.mark.parametrize("a, b", [(0.02, 0.05), (0.3, 2.0), (1.0, 1.0), (5.0, 0.2), (15.0, 3000.0)])
def test_quadrature_agrees_with_the_closed_form_of_the_beta(a, b):
    z, ks = np.log([a, b]), np.array([1.0, 10.0, 1e3, 1e6])
    beta, same = FORMS["beta_binomial"], Unscaled()
    for n in (10, 100, 10_000):
        units = Counts.of(n, np.unique([0, 1, n // 3, n // 2, n - 1]))
        found = same.loglik(np.append(z, 0.0), same.prepare(units))[0]
        assert found == pytest.approx(beta.loglik(z, units)[0], rel=2e-5, abs=1e-5)
    found = same.log_missed(np.append(z, 0.0)[None, :], ks)
    assert np.exp(found) == pytest.approx(np.exp(beta.log_missed(z[None, :], ks)), abs=1e-5)


def test_kumaraswamy_and_scaled_beta_against_plain_sums():
    u = (np.arange(400_000) + 0.5) / 400_000
    p = (-np.expm1(np.log1p(-u) / 3.0)) ** (1 / 0.5)
    at = FORMS["kumaraswamy"].at({"a": 0.5, "b": 3.0}, [1, 30, 1e4])
    assert at == pytest.approx([np.mean(1 - (1 - p) ** k) for k in (1, 30, 1e4)], abs=1e-4)
    q = np.random.default_rng(0).beta(0.6, 1.5, 400_000)
    at = FORMS["scaled_beta"].at({"a": 0.6, "b": 1.5, "largest": 0.2}, [1, 30, 1e4])
    assert at == pytest.approx([np.mean(1 - (1 - 0.2 * q) ** k) for k in (1, 30, 1e4)], abs=2e-3)


def test_curves_rise_with_k_and_parameters_come_back():
    for form in FORMS.values():
        z = np.array([-0.5, 0.8, -0.3])[: len(form.bounds)]
        params = form.params(z)
        assert form.z(params) == pytest.approx(z)
        value = form.at(params, np.array([1, 2, 10, 1e3, 1e6]))
        assert (np.diff(value) > 0).all() and value[0] > 0 and value[-1] < 1
        assert isinstance(form.at(params, 5), float)


TRUTH = {
    "beta_binomial": {"a": 0.4, "b": 4.0}, "scaled_beta": {"a": 0.5, "b": 1.5, "largest": 0.3},
    "kumaraswamy": {"a": 0.5, "b": 4.0}, "zero_inflated": {"a": 0.8, "b": 4.0, "unsolvable": 0.4},
}  # fmt: skip


def chances(name: str, size: int, rng: np.random.Generator) -> np.ndarray:
    """Chances of success under the form of that name."""
    t = TRUTH[name]
    if name == "kumaraswamy":
        return (1 - (1 - rng.random(size)) ** (1 / t["b"])) ** (1 / t["a"])
    solvable = rng.random(size) >= t.get("unsolvable", 0.0)
    return t.get("largest", 1.0) * rng.beta(t["a"], t["b"], size) * solvable


@pytest.mark.parametrize("name", TRUTH)
@pytest.mark.parametrize("sampling", ["even", "adaptive", "stopped"])
def test_parameters_come_back_within_their_standard_errors(name, sampling):
    rng = np.random.default_rng(5)
    p = chances(name, 4000, rng)
    if sampling == "stopped":
        first = rng.geometric(np.maximum(p, 1e-12))
        counts = Counts.of(np.minimum(first, 400), first <= 400, first <= 400)
    else:
        # Adaptive: four hundred samples where the first 25 were all wrong.
        early = rng.binomial(25, p)
        n = np.full(4000, 100) if sampling == "even" else np.where(early > 0, 25, 400)
        counts = Counts.of(n, early + rng.binomial(n - 25, p))
    form = FORMS[name]
    units, member = counts.distinct()
    weight = member.sum(axis=0)
    found = fit_form(form, units, weight)
    assert found.converged
    away = (found.z - form.z(TRUTH[name])) / np.sqrt(np.diag(found.covariance(weight)))
    assert np.abs(away).max() < 3.5, (found.params, away)


def test_the_power_form_comes_back_from_first_successes_censored_at_the_limit():
    rng = np.random.default_rng(6)
    a, b, limit = 3.0, 0.4, 500
    first = np.ceil((rng.exponential(size=5000) / a) ** (-1 / b))  # P(first <= k) = exp(-a k^-b)
    counts = Counts.of(np.minimum(first, limit), first <= limit, first <= limit)
    units, member = counts.distinct()
    found = fit_form(FORMS["power"], units, member.sum(axis=0))
    away = (found.z - np.log([a, b])) / np.sqrt(np.diag(found.covariance(member.sum(axis=0))))
    assert np.abs(away).max() < 3.5
    naive = (counts.c / counts.n).mean()  # successes per attempt
    truth = np.exp(-a)
    assert found.form.at(found.params, 1) == pytest.approx(truth, rel=0.2) and naive > 2 * truth


def test_the_power_form_of_even_counts_is_near_the_curve():
    k = 2 ** np.arange(10)
    p = np.random.default_rng(3).beta(0.4, 8.0, 20_000)
    counts = Counts.of(512, np.random.default_rng(4).binomial(512, p))
    units, member = counts.distinct()
    found = fit_form(FORMS["power"], units, member.sum(axis=0))
    assert found.form.at(found.params, k) == pytest.approx([counts.pass_at(x).mean() for x in k], abs=0.02)

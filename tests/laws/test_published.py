"""Fits of published runs give the published laws."""

from __future__ import annotations

import numpy as np
import pytest

from flopwise.laws import backtest, fit


def only(table, kept):
    return {name: values[kept] for name, values in table.items()}


@pytest.fixture
def chinchilla_runs(published):
    table = published("chinchilla_epoch/runs.csv")
    return only(table, table["outlier"] == 0)


def test_chinchilla_refit(chinchilla_runs):
    # Besiroglu et al. 2024, arXiv 2404.10102: 240 runs of Hoffmann et al., sum of Huber with delta 1e-3.
    fitted = fit("chinchilla", chinchilla_runs, loss="log_huber", delta=1e-3)
    assert fitted.n == 240 and fitted.status == "converged"
    assert fitted.objective == pytest.approx(0.0010182740178, rel=1e-9)
    expected = {"E": 1.8172181, "A": 477.8259, "B": 2143.4174, "alpha": 0.3473105, "beta": 0.3671724}
    assert fitted.params == pytest.approx(expected, rel=1e-5)


def test_squares_of_the_loss_itself_give_another_law(chinchilla_runs):
    # The optimum of the residual sum of squares on the same 240 runs.
    fitted = fit("chinchilla", chinchilla_runs, loss="squared")
    assert fitted.objective == pytest.approx(0.0832038, rel=1e-5)
    for name, value in {"E": 1.88281, "alpha": 0.357615, "beta": 0.427621}.items():
        assert fitted.params[name] == pytest.approx(value, rel=1e-5)


def test_chinchilla_bootstrap_is_as_wide_as_published(chinchilla_runs):
    # Besiroglu et al. 2024: standard errors of 4,000 bootstraps, recomputed from their notebook.
    fitted = fit("chinchilla", chinchilla_runs, bootstrap=1000)
    assert fitted.diagnostics["bootstrap"] == {"draws": 1000, "not_converged": 0}
    errors = dict(zip(fitted.form.names, np.exp(fitted.samples).std(axis=0), strict=True))
    expected = {"E": 0.0257, "A": 124.5, "B": 1293.0, "alpha": 0.0154, "beta": 0.0206}
    assert errors == pytest.approx(expected, rel=0.1)


def test_chinchilla_profiles_agree_with_its_bootstrap(chinchilla_runs):
    fitted = fit("chinchilla", chinchilla_runs)
    for name, error in {"E": 0.0257, "alpha": 0.0154, "beta": 0.0206}.items():
        low, high = fitted.interval(name)
        assert low < fitted.params[name] < high
        assert (high - low) / 3.92 == pytest.approx(error, rel=0.35)
    assert any("the loss matters" in w for w in fitted.warnings)  # squares give another beta


def test_the_repetition_constants_are_not_identified(published):
    # Muennighoff et al. 2023, arXiv 2305.16264: base constants held, 182 runs.
    table = published("data_constrained_c4/runs.csv")
    runs = {name: table[name][table["in_fit"] == 1] for name in ("N", "D", "U", "loss")}
    held = {"A": np.exp(6.255414), "B": np.exp(7.3049974), "E": np.exp(0.6254804), "alpha": 0.3526596,
            "beta": 0.3526596}  # fmt: skip
    fitted = fit("data_constrained", runs, fixed=held)
    assert fitted.n == 182 and fitted.objective <= 0.0158047
    low, high = fitted.interval("RD")
    assert low < 10 and high > 1000
    for name, value in {"RD": 15.387756, "RN": 5.309743}.items():
        assert fitted.interval(name)[0] < value < fitted.interval(name)[1]
        assert any(w.startswith(f"{name} is") and "identified" in w for w in fitted.warnings)


def test_largest_chinchilla_runs_are_predicted(chinchilla_runs):
    table = chinchilla_runs | {"size": np.where(chinchilla_runs["N"] > 4e9, 2.0, 1.0)}
    trial = backtest("chinchilla", table, by="size")
    assert len(trial.errors) > 20 and trial.rms < 0.02


def test_reinforcement_curve_has_a_sigmoid_once_it_passed_the_middle(published):
    table = published("rl_qwen3_gsm8k/curves.csv")
    small = only(table, table["model"] == "Qwen3-0.6B-Base")
    curve = {"C": small["step"], "reward": small["gsm8k_acc"]}
    whole = fit("rl_sigmoid", curve, loss="squared")
    assert whole.status == "converged" and 0.6 < whole.params["A"] < 0.75
    # The first half: the end of the curve must lie inside what it says of the ceiling.
    half = fit("rl_sigmoid", only(curve, np.arange(len(small["step"])) < 9), loss="squared")
    assert half.status == "not_identified" or half.predict(C=curve["C"][-1]).high > curve["reward"][-1] - 0.05


def test_coverage_of_repeated_samples(published):
    table = published("monkeys_math_pythia/counts.csv")
    model = table["model"] == "Pythia 12B"
    n, c = table["n"][model], table["c"][model]
    ks = 2.0 ** np.arange(0, 13)
    # pass@k = 1 - C(n - c, k) / C(n, k), as a product over k draws.
    coverage = [
        np.mean(1 - np.prod([(n - c - i).clip(0) / (n - i) for i in range(int(k))], axis=0)) for k in ks
    ]
    seen = ks <= 256
    fitted = fit("coverage_power", {"k": ks[seen], "coverage": np.array(coverage)[seen]}, loss="squared")
    assert fitted.status == "converged"
    assert fitted.predict(k=4096.0).value == pytest.approx(coverage[-1], abs=0.06)


def test_overtraining_predicts_the_large_runs_from_small_ones(published):
    # Gadre et al. 2024, arXiv 2403.08540: RedPajama 1.84 + (212 M^.136 + 367 M^-.136) C^-.136 from five small
    # runs; 1.4B parameters at 640 tokens each are predicted to .71%, 6.9B at 20 to .73%.
    table = published("gadre_overtraining/runs.csv")
    table = only(table, table["dataset"] == "rpj") | {}
    runs = {"N": table["N"], "D": table["D"], "loss": table["loss_c4_val"]}
    fitted = fit("overtraining", only(runs, table["in_loss_fit"] == 1), loss="squared")
    assert fitted.params == pytest.approx({"E": 1.84, "a": 212, "b": 367, "eta": 0.136}, rel=4e-3)
    for name, error in (("rpj-open_lm_1b-32.0", 0.0071), ("rpj-open_lm_7b-1.0", 0.0073)):
        (i,) = np.flatnonzero(table["name"] == name)
        value = fitted.predict(N=runs["N"][i], D=runs["D"][i]).value
        assert abs(value / runs["loss"][i] - 1) == pytest.approx(error, abs=1e-4)


def test_overtrained_models_share_the_form(published):
    table = published("gadre_overtraining/runs.csv")
    kept = (table["dataset"] == "rpj") & (table["tokens_per_param_multiplier"] >= 1)
    runs = only({"N": table["N"], "D": table["D"], "loss": table["loss_c4_val"]}, kept)
    fitted = fit("chinchilla", runs)
    # Gadre et al. 2024, arXiv 2403.08540: equal exponents of .136 in C, that is .27 in N and D each.
    assert fitted.status == "converged"
    assert fitted.interval("alpha")[0] < 0.272 < fitted.interval("alpha")[1]
    assert fitted.interval("beta")[0] < 0.272 < fitted.interval("beta")[1]

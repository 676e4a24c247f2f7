"""Laws of downstream scores, post-training, test time: values by hand, identities, recovery, likelihoods."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest
from grids_other import GRIDS, mesh
from scipy import integrate, stats
from scipy.special import beta as beta_function
from scipy.special import expit, logsumexp

from flopwise.laws.forms.downstream import observational, sloth
from flopwise.laws.forms.posttraining import normal_maximum
from flopwise.laws.law import get
from flopwise.laws.objective import Objective, named, searched
from flopwise.laws.starts import minimise

# Values against code of its own: parameters (published where there are any), variables, the law in numpy.

BY_HAND = {
    "error_exponential": (
        {"eps": 0.857, "k": 2.21, "gamma": 0.715}, {"loss": [2.0, 2.5, 4.0]},
        lambda p, x: p["eps"] - p["k"] / np.e ** (p["gamma"] * x["loss"]),
    ),
    "task_sigmoid": (
        {"low": 0.26, "top": 0.99, "k": 12.8, "L0": 0.765}, {"loss": [0.6, 0.765, 1.0]},
        # a, x0, k, b of the authors' code: a / (1 + exp(-k (x - x0))) + b with a = low - top, b = top
        lambda p, x: (p["low"] - p["top"]) / (1 + np.exp(-p["k"] * (x["loss"] - p["L0"]))) + p["top"],
    ),
    "transfer_data": (
        {"k": 1.9e4, "alpha": 0.18, "beta": 0.38}, {"N": [4e7, 1e9], "D": [3e5, 1e7]},
        lambda p, x: np.exp(np.log(p["k"]) + p["alpha"] * np.log(x["D"]) + p["beta"] * np.log(x["N"])),
    ),
    "transfer": (
        {"Nc": 8.8e13, "r": 0.8, "Q": 40.0, "aD": 0.095, "alpha": 0.18, "beta": 0.38},
        {"N": [4e7, 1e9], "D": [3e5, 1e7]},
        lambda p, x: (
            (p["Nc"] / x["N"]) ** p["r"]
            + p["Q"] * (1e7 ** p["alpha"] * 1e8 ** p["beta"]) / (x["D"] ** p["alpha"] * x["N"] ** p["beta"])
        ) ** p["aD"],
    ),
    "finetune_joint": (
        {"E": 0.6, "A": 30.0, "alpha": 0.1, "beta": 0.12}, {"N": [1e9, 1.6e10], "D": [2e4, 2e6]},
        lambda p, x: p["E"] + p["A"] * x["N"] ** -p["alpha"] * x["D"] ** -p["beta"],
    ),
    "rectified": (
        {"E": 0.6, "B": 300.0, "Dl": 80.0, "beta": 0.5}, {"D": [0.0, 200.0, 1.6e6]},
        lambda p, x: p["B"] / (p["Dl"] + np.power(x["D"], p["beta"])) + p["E"],
    ),
    "distillation": (
        dict(get("distillation").published[0].values),
        {"N": [5e8, 2e9], "D": [2e10, 1e11], "teacher": [2.2, 1.9], "supervised": [2.5, 2.2]},
        lambda p, x: x["teacher"] + np.exp(
            -p["c0"] * np.log(x["teacher"])
            - p["c1"] * p["f1"] * np.log1p((x["teacher"] / x["supervised"] / p["d1"]) ** (1 / p["f1"]))
            + p["gamma"] * np.logaddexp(
                np.log(p["A"]) - p["alpha"] * np.log(x["N"]), np.log(p["B"]) - p["beta"] * np.log(x["D"])
            )
        ),
    ),
    "overoptimisation_rl": (
        {"alpha": 0.8, "beta": 0.2}, {"d": [0.5, 3.0, 10.0]},
        lambda p, x: x["d"] * (p["alpha"] - p["beta"] * np.log(x["d"])),
    ),
    "overoptimisation_size": (
        {"a0": 0.8, "a1": 0.05, "b0": 0.1, "b1": -0.01}, {"N": [3e6, 3e9], "d": [2.0, 5.0]},
        lambda p, x: (p["a0"] + p["a1"] * np.log(x["N"] / 1e9)) * x["d"]
        - (p["b0"] + p["b1"] * np.log(x["N"] / 1e9)) * x["d"] ** 2,
    ),
    "rl_sigmoid": (
        {"A": 0.645, "R0": 0.2, "Cmid": 2000.0, "B": 1.7}, {"C": [0.0, 500.0, 2000.0, 1e5]},
        lambda p, x: 0.2 + 0.445 * x["C"] ** 1.7 / (x["C"] ** 1.7 + 2000.0**1.7),
    ),
    "rl_power_size": (
        {"C0": 1e17, "r": 1.1, "kmax": 0.2, "N0": 3e9}, {"N": [5e8, 7e10], "C": [1e20, 1e21]},
        lambda p, x: np.exp(
            -p["kmax"] * x["N"] / (x["N"] + p["N0"]) * np.log(x["C"] / (p["C0"] * (x["N"] / 1e9) ** p["r"]))
        ),
    ),
    "rl_intrinsic": (
        {"Nc": 1e5, "Xc": 1e7, "aN": 0.4, "aX": 0.6}, {"N": [1e5, 1e7], "interactions": [1e7, 1e9]},
        lambda p, x: (
            (p["Nc"] / x["N"]) ** p["aN"] + (p["Xc"] / x["interactions"]) ** p["aX"]
        ) ** -(1 / (p["aN"] * p["aX"] / (p["aN"] + p["aX"]))),
    ),
    "game_elo": (
        dict(get("game_elo").published[0].values),
        {"C": [1e10, 1e13, 1e15, 1e18], "board": [3.0, 9.0, 9.0, 5.0]},
        lambda p, x: np.clip(
            np.maximum(570 - 270 * x["board"], 510 * np.log10(x["C"]) - 430 * x["board"] - 4400), None, 0
        ),
    ),
    "game_test_compute": (
        dict(get("game_test_compute").published[0].values), {"C": [1e15, 1e16], "elo": [-500.0, -500.0]},
        lambda p, x: 10 ** (-1.2 * np.log10(x["C"]) + 0.004 * x["elo"] + 29),
    ),
    "train_to_test_accuracy": (
        {"t1": -1.0, "t3": 2.0, "t4": 0.1, "N0": 2e8, "D0": 1e10, "alpha": 0.4, "beta": 0.5},
        {"N": [1e8, 1e9], "D": [1e10, 1e11], "k": [1.0, 64.0]},
        lambda p, x: _coverage(
            -1.0 - (p["N0"] / x["N"]) ** p["alpha"] - (p["D0"] / x["D"]) ** p["beta"],
            2.0 - 0.1 * ((p["N0"] / x["N"]) ** p["alpha"] + (p["D0"] / x["D"]) ** p["beta"]), x["k"],
        ),
    ),
    "joint_loss": (
        {"E": 0.1, "A": 40.0, "B": 50.0, "G": 2.0, "H": 0.7, "alpha": 0.3, "beta": 0.25, "gamma": 0.4,
         "delta": 0.5, "P0": 1e9},
        {"N": [1e8, 1e9], "D": [1e10, 1e11], "post": [0.0, 3e9], "k": [1.0, 16.0]},
        lambda p, x: 0.1 + 40 * x["N"] ** -0.3 + 50 * x["D"] ** -0.25 + 2 * x["k"] ** -0.4
        + 0.7 / np.sqrt(1 + x["post"] / 1e9),
    ),
    "joint_accuracy": (
        {"t1": -1.0, "t3": 2.0, "t4": 0.1, "N0": 2e8, "D0": 1e10, "alpha": 0.4, "beta": 0.5, "g": 0.5,
         "s": 0.2, "P0": 1e9},
        {"N": [1e8, 1e9], "D": [1e10, 1e11], "post": [0.0, 9e9], "k": [1.0, 64.0]},
        lambda p, x: _coverage(
            -1.0 - (2e8 / x["N"]) ** 0.4 - (1e10 / x["D"]) ** 0.5 + 0.5 * np.log1p(x["post"] / 1e9),
            2.0 - 0.1 * ((2e8 / x["N"]) ** 0.4 + (1e10 / x["D"]) ** 0.5) - 0.2 * np.log1p(x["post"] / 1e9),
            x["k"],
        ),
    ),
    "joint_saturating": (
        {"t1": -1.0, "t3": 2.0, "t4": 0.0, "N0": 2e8, "D0": 1e10, "alpha": 0.4, "beta": 0.5, "g": 2.0,
         "s": 0.0, "P0": 1e9},
        {"N": [1e8, 1e9], "D": [1e10, 1e11], "post": [0.0, 3e9], "k": [1.0, 64.0]},
        lambda p, x: _coverage(
            -1.0 - (2e8 / x["N"]) ** 0.4 - (1e10 / x["D"]) ** 0.5 + np.array([0.0, 1.5]),
            np.array([2.0, 2.0]), x["k"],
        ),
    ),
    "joint_logit": (
        {"t1": -2.0, "t3": 2.0, "t4": 0.1, "n": 0.3, "d": 0.4, "g": 0.5, "P0": 1e9},
        {"N": [1e8, 1e9], "D": [1e10, 1e11], "post": [0.0, 9e9], "k": [1.0, 64.0]},
        lambda p, x: _coverage(
            -2.0 + np.array([-0.3, 0.4 + 0.5]) * np.log(10), 2.0 + 0.1 * np.array([-0.3, 0.9]) * np.log(10),
            x["k"],
        ),
    ),
    "train_to_test": (
        {"t1": 2.0, "t2": 1.5, "t3": 1.0, "t4": -0.2}, {"loss": [2.0, 3.0], "k": [1.0, 100.0]},
        lambda p, x: _coverage(2.0 - 1.5 * x["loss"], 1.0 + 0.2 * x["loss"], x["k"]),
    ),
    "thinking_length": (
        {"top": 0.7, "b": 0.09, "T": 5e4}, {"tokens": [500.0, 5e4, 1e6]},
        lambda p, x: p["top"] + p["b"] * np.log(x["tokens"] / (x["tokens"] + p["T"])),
    ),
}  # fmt: skip


def _coverage(logit, log_size, k):
    """E 1 - (1 - p)^k over p ~ beta, by integration."""
    out = []
    for m, v, n in zip(expit(logit), np.exp(log_size), k, strict=True):
        density = stats.beta(m * v, (1 - m) * v)
        missed, _ = integrate.quad(lambda q, d=density, n=n: d.cdf(1 - q ** (1 / n)), 0.0, 1.0, limit=400)
        out.append(1 - missed)
    return np.array(out)


@pytest.mark.parametrize("name", BY_HAND)
def test_values_agree_with_a_calculation_by_hand(name):
    params, columns, by_hand = BY_HAND[name]
    x = {k: np.array(v) for k, v in columns.items()}
    assert get(name)(params, x) == pytest.approx(by_hand(params, x), rel=1e-8)


# Identities


def test_rectified_without_prelearning_is_the_power_law():
    x = {"D": np.geomspace(10.0, 1e6, 7)}
    law = get("rectified")({"E": 0.5, "B": 30.0, "Dl": 0.0, "beta": 0.4}, x)
    assert law == pytest.approx(0.5 + 30.0 * x["D"] ** -0.4)


def test_rectified_at_no_data_is_the_loss_before_tuning():
    assert get("rectified")({"E": 0.5, "B": 30.0, "Dl": 20.0, "beta": 0.4}, {"D": np.zeros(1)}) == 2.0


def test_kl_of_best_of_n_is_that_of_the_largest_of_n_uniform_draws():
    """n u^(n-1) against 1 on (0, 1): the distribution of the rank of the best, whatever the scores."""
    for n in (2, 5, 64):
        exact, _ = integrate.quad(lambda u, n=n: n * u ** (n - 1) * np.log(n * u ** (n - 1)), 1e-12, 1.0)
        assert get("best_of_n_kl")({"s": 1.0}, {"n": np.array([float(n)])})[0] == pytest.approx(
            exact, rel=1e-7
        )


def test_mean_of_the_largest_normal_is_exact():
    assert normal_maximum(1.0) == pytest.approx(0.0, abs=1e-12)
    assert normal_maximum(2.0) == pytest.approx(1 / np.sqrt(np.pi), rel=1e-12)
    assert normal_maximum(3.0) == pytest.approx(1.5 / np.sqrt(np.pi), rel=1e-12)
    for n in (1e3, 1e6):
        above, _ = integrate.quad(lambda x, n=n: -np.expm1(n * stats.norm.logcdf(x)), 0, 12, points=[3, 5])
        assert normal_maximum(n) == pytest.approx(above, rel=1e-9)
    gain = get("best_of_n_gain")({"R0": 0.5, "sigma": 2.0}, {"n": np.array([1.0, 2.0])})
    assert gain == pytest.approx([0.5, 0.5 + 2 / np.sqrt(np.pi)])


def test_both_forms_of_best_of_n_overoptimisation_agree():
    n = np.array([2.0, 16.0, 1000.0])
    d = np.sqrt(np.log(n) - (n - 1) / n)
    by_n = get("overoptimisation_best_of_n")({"R0": 1.0, "alpha": 0.7, "beta": 0.1}, {"n": n})
    assert by_n == pytest.approx(1.0 + get("overoptimisation_kl")({"alpha": 0.7, "beta": 0.1}, {"d": d}))


def test_the_frontier_of_intrinsic_performance_is_linear_in_compute():
    """The best I over all splits of compute grows as the compute, as the definition demands."""
    p = {"Nc": 1e5, "Xc": 1e7, "aN": 0.4, "aX": 0.7}
    N = np.geomspace(1e2, 1e12, 200001)
    best = [get("rl_intrinsic")(p, {"N": N, "interactions": C / N}).max() for C in (1e14, 1e16)]
    assert best[1] / best[0] == pytest.approx(100.0, rel=1e-6)


def test_ten_times_the_training_saves_fifteen_times_the_test_compute():
    law = get("game_test_compute")
    one, ten = law(law.published[0].values, {"C": np.array([1e15, 1e16]), "elo": np.array([-500.0, -500.0])})
    assert one / ten == pytest.approx(15.85, abs=0.01)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_resampling_with_a_verifier_is_what_enumeration_says(k):
    right, accepts_right, accepts_wrong = 0.3, 0.8, 0.1
    q = right * accepts_right + (1 - right) * accepts_wrong
    precision = right * accepts_right / q
    rejected_right = right * (1 - accepts_right) / (1 - q)
    # m of k accepted: one of them is given; none accepted: any.
    chance = sum(
        comb(k, m) * q**m * (1 - q) ** (k - m) * (precision if m else rejected_right) for m in range(k + 1)
    )
    law = get("verifier_resampling")(
        {"precision": precision, "p1": right, "q": q}, {"k": np.array([float(k)])}
    )
    assert law[0] == pytest.approx(chance)


def test_a_mixture_of_verified_problems_is_the_mean_of_its_parts():
    p = {"precision": 0.7, "p1": 0.2}
    for k in (1.0, 8.0):
        x = {"k": np.array([k])}
        mean, _ = integrate.quad(
            lambda q, x=x: stats.beta.pdf(q, 2.0, 5.0) * get("verifier_resampling")({**p, "q": q}, x)[0], 0, 1
        )
        assert get("verifier_mixture")({**p, "a": 2.0, "b": 5.0}, x)[0] == pytest.approx(mean)


def test_coverage_of_one_sample_is_the_mean_of_the_beta():
    assert get("beta_binomial")({"a": 0.4, "b": 3.0}, {"k": np.ones(1)})[0] == pytest.approx(0.4 / 3.4)
    ks = np.array([3.0, 50.0])
    by_hand = 1 - beta_function(0.4, 3.0 + ks) / beta_function(0.4, 3.0)
    assert get("beta_binomial")({"a": 0.4, "b": 3.0}, {"k": ks}) == pytest.approx(by_hand)


def test_loss_and_columns_give_the_same_train_to_test_law():
    """With L(N, D) put in as a column, the accuracy form is the law with a loss column."""
    p = {"t1": -1.0, "t3": 2.0, "t4": 0.3, "N0": 2e8, "D0": 1e10, "alpha": 0.4, "beta": 0.5}
    x = mesh(N=[1e8, 1e9], D=[1e10, 1e11], k=[1.0, 32.0])
    loss = (p["N0"] / x["N"]) ** 0.4 + (p["D0"] / x["D"]) ** 0.5
    other = get("train_to_test")({"t1": -1.0, "t2": 1.0, "t3": 2.0, "t4": 0.3}, {"loss": loss, "k": x["k"]})
    assert get("train_to_test_accuracy")(p, x) == pytest.approx(other)


def test_families_of_sloth_share_slopes():
    law = sloth(3)
    p = {"g": 0.25, "a1": -1.0, "a2": 0.0, "a3": 1.0, "b1": 0.5, "b2": 0.3, "b3": 0.02}
    x = {"N": np.full(3, 7e9), "D": np.full(3, 2e12)} | {f"F{i + 1}": np.eye(3)[i] for i in range(3)}
    for i, score in enumerate(law(p, x)):
        alone = get("sloth")({**p, "a": p[f"a{i + 1}"]}, {"N": x["N"][:1], "D": x["D"][:1]})
        assert score == pytest.approx(alone[0])
    assert set(law.variables) == {"N", "D", "F1", "F2", "F3"}


def test_observational_takes_any_number_of_measures():
    law = observational(2)
    x = {"S1": np.array([-1.0, 2.0]), "S2": np.array([0.5, 0.0])}
    p = {"g": 0.25, "r": 0.7, "b0": 0.1, "b1": 1.0, "b2": -0.5}
    assert law(p, x) == pytest.approx(0.25 + 0.7 * expit(0.1 + x["S1"] - 0.5 * x["S2"]))


def test_a_sigmoid_is_not_ready_before_its_middle():
    for name in ("rl_sigmoid", "rl_rollouts"):
        unready = get(name).unready
        assert "ceiling" in unready({"Cmid": 2e3}, {"C": (1.0, 1e3)})
        assert unready({"Cmid": 2e3}, {"C": (1.0, 1e4)}) == ""


# Recovery from noise-free tables

TRUTHS = {
    "error_exponential": {"eps": (0.7, 0.9), "k": (1, 2.5), "gamma": (0.5, 1)},
    "task_sigmoid": {"low": (0.2, 0.35), "top": (0.7, 1), "k": (2, 10), "L0": (0.6, 1.4)},
    "task_one_step": {"low": (0.2, 0.35), "top": (0.75, 1), "t": (1, 4), "N0": (0.5, 10), "D0": (0.5, 10)},
    "task_compute": {"low": (0.2, 0.35), "top": (0.75, 1), "C0": (0.1, 10), "b": (0.3, 0.9)},
    "task_nats": {"a": (5, 9), "b": (0.05, 0.12)},
    "observational_1": {"g": (0.1, 0.3), "r": (0.4, 0.7), "b0": (-1, 1), "b1": (0.5, 1.5)},
    "observational_3": {"g": (0.1, 0.3), "r": (0.4, 0.7), "b0": (-1, 1), "b1": (0.5, 1.5)},
    "sloth": {"g": (0.1, 0.3), "a": (-1, 1), "b1": (0.2, 1), "b2": (0.1, 0.8), "b3": (-0.1, 0.1)},
    "transfer": {"Nc": (20, 1000), "Q": (5, 50), "r": (0.5, 1), "aD": (0.07, 0.15)},
    "rectified": {"E": (0.3, 2), "B": (50, 2000), "Dl": (30, 1000), "beta": (0.4, 0.9)},
    "synthetic_rectified": {"E": (0.2, 0.5), "B": (50, 200), "Dl": (200, 1000), "beta": (0.5, 0.9)},
    "distillation": {
        "c0": (2, 3.2), "c1": (300, 700), "d1": (1.1, 1.5), "f1": (0.06, 0.15),
        "A": (1e3, 4e3), "B": (1e4, 5e4),
        "alpha": (0.28, 0.36), "beta": (0.45, 0.65), "gamma": (0.6, 0.9),
    },
    "rl_sigmoid": {"A": (0.5, 0.95), "R0": (0.05, 0.4), "Cmid": (0.2, 5), "B": (0.7, 3)},
    "rl_rollouts": {"n0": (2, 8), "nmax": (64, 1000), "Cmid": (0.2, 5), "B": (0.7, 3)},
    "rl_power": {"C0": (1e-3, 0.03), "k": (0.03, 0.3)},
    "rl_power_size": {"C0": (1e-4, 1e-2), "r": (0.8, 1.2), "kmax": (0.05, 0.3), "N0": (0.2, 5)},
    "game_elo": {
        "p0": (400, 700), "p1": (-320, -220), "i0": (200, 900), "i1": (400, 600), "i2": (-500, -350),
    },
    "game_test_compute": {"A": (1e27, 1e31), "b": (0.005, 0.012), "g": (1, 1.4)},
    "coverage_power": {"a": (1, 6), "b": (0.2, 0.8)},
    "train_to_test": {"t1": (0, 4), "t2": (1, 2.5), "t3": (0, 3), "t4": (-0.5, 0.5)},
    "train_to_test_accuracy": {
        "t1": (-2, 1), "t3": (0, 3), "t4": (-0.3, 0.3), "N0": (1, 50), "D0": (1, 50), "alpha": (0.15, 0.5),
        "beta": (0.15, 0.5),
    },
    "joint_loss": {
        "alpha": (0.15, 0.5), "beta": (0.15, 0.5), "gamma": (0.2, 0.8), "delta": (0.3, 1.0), "P0": (0.1, 3),
    },
    "joint_accuracy": {
        "t1": (-2, 1), "t3": (0, 3), "t4": (-0.3, 0.3), "N0": (1, 50), "D0": (1, 50), "alpha": (0.15, 0.5),
        "beta": (0.15, 0.5), "g": (0.2, 0.8), "s": (-0.3, 0.3), "P0": (0.1, 3),
    },
    "joint_saturating": {
        "t1": (-2, 1), "t3": (0, 3), "t4": (-0.3, 0.3), "N0": (1, 50), "D0": (1, 50), "alpha": (0.15, 0.5),
        "beta": (0.15, 0.5), "g": (0.5, 2.0), "s": (-0.3, 0.3), "P0": (0.1, 3),
    },
    "joint_logit": {
        "t1": (-2, 1), "t3": (0, 3), "t4": (-0.3, 0.3), "n": (0.1, 0.6), "d": (0.1, 0.6), "g": (0.1, 0.6),
        "P0": (0.1, 3),
    },
    "majority_vote": {"A": (0.5, 0.9), "p1": (0.1, 0.4), "r": (0.02, 0.3)},
    "majority_vote_power": {"A": (0.5, 0.9), "B": (0.1, 0.4), "b": (0.3, 1.2)},
    "verifier_resampling": {"precision": (0.5, 0.9), "p1": (0.1, 0.4), "q": (0.02, 0.3)},
    "verifier_mixture": {"precision": (0.5, 0.9), "p1": (0.1, 0.4), "a": (0.4, 2), "b": (1, 10)},
    "thinking_length": {"top": (0.5, 0.9), "b": (0.03, 0.1), "T": (0.3, 5)},
    "thinking_overlong": {"top": (0.5, 0.9), "b": (0.03, 0.1), "fall": (0.01, 0.1), "T": (0.3, 5)},
    "best_of_n_kl": {"s": (0.2, 0.9)},
}  # fmt: skip
"""Ranges of sensible values, in the parameter's own unit; else the middle third of the starting range."""


def _truth(law, x, seed):
    rng = np.random.default_rng(seed)
    out = {}
    for p in law.parameters:
        unit = np.exp(np.log(x[p.unit][x[p.unit] > 0]).mean()) if p.unit else 1.0
        low, high = p.start
        share = rng.uniform()
        if p.name in TRUTHS.get(law.name, {}):
            low, high = TRUTHS[law.name][p.name]
        else:
            share = (1 + share) / 3
        out[p.name] = unit * (low ** (1 - share) * high**share if p.log else low + share * (high - low))
    return out


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", GRIDS)
def test_noise_free_tables_give_the_parameters_back(name, seed):
    law, x = get(name), GRIDS[name]()
    truth = _truth(law, x, seed)
    y = np.broadcast_to(law(truth, x), len(next(iter(x.values()))))
    best = minimise(Objective(law, x, y, np.inf, law.scale), 100, 0)
    found = named(law, best.theta[0])
    for parameter, value in truth.items():
        assert found[parameter] == pytest.approx(value, rel=1e-6, abs=1e-9)


# Likelihoods of counts


def test_rows_of_a_likelihood_are_chances():
    """Over c from 0 to n the chances add up to one; each is scipy's."""
    n = 12.0
    c = np.arange(13.0)
    for name, params, exact in (
        ("binomial_rate", {"p": 0.3}, stats.binom(12, 0.3)),
        ("beta_binomial", {"a": 0.4, "b": 2.5}, stats.betabinom(12, 0.4, 2.5)),
    ):
        law = get(name)
        problem = Objective(law, {"n": np.full(13, n), "c": c}, np.zeros(13), np.inf, "nll")
        nll = problem.residuals(searched(law, params)[None])[0]
        assert nll == pytest.approx(-exact.logpmf(c))


MIXTURES = {
    "beta_binomial_unsolvable": {"a": 0.4, "b": 2.5, "u": 0.3},
    "scaled_beta": {"a": 0.4, "b": 2.5, "largest": 0.6},
    "kumaraswamy": {"a": 0.4, "b": 2.5},
}


@pytest.mark.parametrize("name", MIXTURES)
def test_mixtures_of_counts_are_distributions_and_cover_as_their_forms(name):
    """Chances of c = 0 to n add up to one; that of c = 0 is what n samples leave unsolved."""
    law, params, n = get(name), MIXTURES[name], 12
    problem = Objective(law, {"n": np.full(13, 12.0), "c": np.arange(13.0)}, np.zeros(13), np.inf, "nll")
    nll = problem.residuals(searched(law, params)[None])[0]
    assert logsumexp(-nll) == pytest.approx(0.0, abs=1e-6)
    coverage = law(params, {"k": np.array([1.0, float(n), 1000.0])})
    assert 1 - np.exp(-nll[0]) == pytest.approx(coverage[1], rel=1e-6)
    if name == "scaled_beta":
        assert coverage[0] == pytest.approx(0.6 * 0.4 / 2.9, rel=1e-6)
    if name == "kumaraswamy":
        assert coverage[0] == pytest.approx(2.5 * beta_function(1 + 1 / 0.4, 2.5), rel=1e-6)
    if name == "beta_binomial_unsolvable":
        assert coverage[0] == pytest.approx(0.7 * 0.4 / 2.9)


def test_mixtures_take_batches_of_parameters():
    for name in ("scaled_beta", "kumaraswamy"):
        law, p = get(name), MIXTURES[name]
        x = {"k": np.array([1.0, 30.0, 1.0])}
        batch = law({key: np.array([[v], [v / 2]]) for key, v in p.items()}, x)
        assert batch.shape == (2, 3)
        assert batch[0] == pytest.approx(law(p, x))
        assert batch[1] == pytest.approx(law({key: v / 2 for key, v in p.items()}, x))


COUNTS = {
    "binomial_rate": ({"p": 0.03}, 60),
    "beta_binomial": ({"a": 0.3, "b": 4.0}, 1500),
    "beta_binomial_unsolvable": ({"a": 0.8, "b": 4.0, "u": 0.3}, 1500),
    "scaled_beta": ({"a": 0.5, "b": 1.5, "largest": 0.4}, 1500),
    "kumaraswamy": ({"a": 0.5, "b": 3.0}, 800),
    "train_to_test_counts": (
        {"t1": -1.0, "t3": 1.5, "t4": 0.1, "N0": 3e8, "D0": 2e10, "alpha": 0.5, "beta": 0.6}, 120
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", COUNTS)
def test_simulated_counts_give_the_parameters_back_within_their_errors(name):
    params, problems = COUNTS[name]
    law, rng = get(name), np.random.default_rng(5)
    x = mesh(N=np.geomspace(1e8, 1e10, 4), D=np.geomspace(1e10, 1e12, 4), problem=np.arange(problems))
    if name == "train_to_test_counts":
        L = (params["N0"] / x["N"]) ** params["alpha"] + (params["D0"] / x["D"]) ** params["beta"]
        m, v = expit(params["t1"] - L), np.exp(params["t3"] - params["t4"] * L)
        chance = rng.beta(m * v, (1 - m) * v)
    elif name == "binomial_rate":
        x, chance = {}, np.full(problems, params["p"])
    elif name == "kumaraswamy":
        x, chance = {}, (1 - rng.uniform(size=problems) ** (1 / params["b"])) ** (1 / params["a"])
    else:
        x, chance = {}, rng.beta(params["a"], params["b"], problems) * params.get("largest", 1.0)
        chance *= rng.uniform(size=problems) >= params.get("u", 0.0)
    n = rng.choice([64, 256], len(chance)).astype(float)
    x = {key: values for key, values in x.items() if key != "problem"}
    x |= {"n": n, "c": rng.binomial(n.astype(int), chance).astype(float)}
    problem = Objective(law, x, np.zeros(len(n)), np.inf, "nll")
    best = minimise(problem, 30, 0)
    spread = np.sqrt(np.diag(np.linalg.inv(problem.local(best.theta[:1], np.ones(1, bool)).curvature[0])))
    off = (best.theta[0] - searched(law, params)) / spread
    assert np.abs(off).max() < 4
    assert spread.max() < 0.5

"""What others published of plans comes out of this one."""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from joint_tables import mesh

from flopwise.laws import Fit, fit, get
from flopwise.plan.frontier import plan
from flopwise.plan.response import Response
from flopwise.plan.setting import Demand, Setting
from flopwise.plan.solve import cheapest, optimise

DATA = Path(__file__).parents[3] / "shared" / "data"
SARDANA = {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.336, "beta": 0.283}
"""Hoffmann et al.'s constants with the exponents to three digits."""
HOFFMANN = {"E": 1.6934, "A": 406.4, "B": 410.7, "alpha": 0.33917084, "beta": 0.2849083}
BESIROGLU = {"E": 1.8172181, "A": 477.8259, "B": 2143.4174, "alpha": 0.3473105, "beta": 0.3671724}
CHINCHILLA = 5.76e23
"""FLOPs of Gopher's training, that Chinchilla's was given too."""


def law(params: dict[str, float]) -> Response:
    """A law with published parameters, as a fit."""
    x = mesh(N=np.logspace(7, 10.5, 6), D=np.logspace(9, 12, 6))
    f = fit("chinchilla", x | {"loss": get("chinchilla")(params, x)}, intervals="delta")
    assert f.params == pytest.approx(params, rel=1e-3)
    return Response(f)


def test_chinchilla_and_its_refit_disagree_on_tokens_per_parameter():
    """Hoffmann et al. 2022 (arXiv 2203.15556): exponents a = .46, b = .54 of approach 3, beside .50 and .49
    of the others; Besiroglu et al. 2024 (arXiv 2404.10102): the refit agrees with those, and with the 20
    tokens per parameter that Chinchilla (70B on 1.4T) was trained on, where the published constants ask for
    more."""
    published, refit = law(HOFFMANN), law(BESIROGLU)
    ratios, powers = [], []
    for response in (published, refit):
        a, b = (optimise(response, Setting(), C) for C in (CHINCHILLA, 10 * CHINCHILLA))
        ratios.append(a.D[0] / a.N[0])
        powers.append(np.log10(b.N[0] / a.N[0]))
    assert powers == pytest.approx([0.46, 0.51], abs=0.01)
    assert ratios[0] > 50 and ratios[1] == pytest.approx(20, rel=0.15)


@pytest.mark.parametrize(
    ("size", "tokens", "smaller", "more", "saved"),
    [
        # Figure 1: a 13B model and 2T tokens of inference; 7B on more data saves 1.7e22 FLOPs, 17%.
        (13e9, 2e12, 7e9, None, (1.7e22, 0.17)),
        # Section 3: the quality of a 7B model for 1e11 tokens: 6B on 1.18 times the data.
        (7e9, 1e11, 6e9, 1.18, None),
    ],
)
def test_a_lifetime_of_answers_asks_for_smaller_models_on_more_data(size, tokens, smaller, more, saved):
    """Sardana et al. 2024 (arXiv 2401.00448)."""
    response = law(SARDANA)
    p = response.fit.params
    N = size
    D = (p["beta"] * p["B"] / (p["alpha"] * p["A"]) * N ** p["alpha"]) ** (1 / p["beta"])
    loss = float(get("chinchilla")(p, {"N": np.array([N]), "D": np.array([D])})[0])
    usual = 6 * N * D + 2 * N * tokens
    budget, best = cheapest(response, Setting(Demand(tokens=tokens)), -loss, (usual / 10, usual))
    assert best.N[0] == pytest.approx(smaller, rel=0.02)
    if more is not None:
        assert best.D[0] / D == pytest.approx(more, abs=0.01)
    if saved is not None:
        assert usual - budget == pytest.approx(saved[0], rel=0.02)
        assert 1 - budget / usual == pytest.approx(saved[1], abs=0.005)
    # Its first-order condition (our reading of the paper's Lagrangian): eN / eD = 1 + T / (3 D).
    eN = p["alpha"] * p["A"] / best.N[0] ** p["alpha"]
    eD = p["beta"] * p["B"] / best.D[0] ** p["beta"]
    assert eN / eD == pytest.approx(1 + tokens / (3 * best.D[0]), rel=0.02)


@pytest.mark.parametrize(("R", "factor"), [(0.16, 257.75), (0.79, 63.4), (22.0, 15.773)])
def test_a_model_14_times_larger_or_as_many_flops_at_test_time(R, factor):
    """Snell et al. 2024 (arXiv 2408.03314): R, inference over pretraining tokens, .16, .79 and 22. FLOPs of a
    model M times larger pay for M + 3 (M - 1) / R times the answers of the small one: many where R is
    small."""
    M, N, D = 14.0, 3e9, 1e12
    setting = Setting(Demand(queries=1e9, answer_tokens=R * D / 1e9))
    large = setting.total(M * N, D, 0.0, 1.0)
    k = (large - setting.training(N, D)) / setting.answering(N, 1.0)
    assert setting.total(N, D, 0.0, k) == pytest.approx(large)
    assert k == pytest.approx(M + 3 * (M - 1) / R) == pytest.approx(factor, rel=1e-3)


@cache
def pythia() -> Fit:
    """Train-to-Test on GSM8K, checkpoints of 2e9 tokens and more."""
    path = DATA / "pythia_train_x_test" / "counts.csv"
    if not path.is_file():
        pytest.skip("published data pythia_train_x_test are not beside the project")
    groups: dict[tuple[float, float], list[float]] = {}
    with open(path, newline="") as f:
        for row in csv.DictReader(f):
            if row["benchmark"] == "GSM8K" and float(row["D"]) >= 2e9:
                share = float(row["c"]) / float(row["n"])
                groups.setdefault((float(row["N"]), float(row["D"])), []).append(share)
    rows = [
        (N, D, k, np.mean(1 - (1 - np.array(p)) ** k), f"{N}-{D}")
        for (N, D), p in groups.items() for k in (1, 4, 16, 64)
    ]  # fmt: skip
    names = ("N", "D", "k", "coverage", "run")
    table = {n: np.array(v) for n, v in zip(names, zip(*rows, strict=True), strict=True)}
    return fit("train_to_test_accuracy", table, loss="squared", cluster="run", intervals="delta", starts=20)


def test_samples_turn_to_small_and_over_trained_models():
    """Roberts et al. 2026 (arXiv 2604.01411): with the samples in the bill the best model is far smaller and
    trained far beyond 20 tokens per parameter. Here with their accuracy form on Pythia's samples."""
    f = pythia()
    asked = {"queries": 1e9, "prompt_tokens": 200, "answer_tokens": 300}
    one = plan(f, 1e22, **asked, samples_max=1).best
    many = plan(f, 1e22, **asked, samples_max=64).best
    assert many.samples > 4 and many.N < one.N / 2
    assert many.D / many.N > 100 and many.D / many.N > 3 * one.D / one.N
    assert many.accuracy > 5 * one.accuracy


def test_few_answers_are_better_sampled_many_better_trained():
    """Snell et al. 2024: test time wins where few tokens are answered for each one trained on, pretraining
    where many are. From the same small model and FLOPs, samples against a model 14 times larger."""
    response = Response(pythia())
    N, D, M = 2e8, 2e10, 14.0
    gains = []
    for R in (0.4, 2.0, 22.0):
        k = M + 3 * (M - 1) / R
        x = {"N": np.array([[N, M * N]]), "D": np.array([[D, D]]), "k": np.array([[k, 1.0]])}
        sampled, large = response.value(response.best(), x)[0]
        gains.append(float(sampled - large))
    assert gains[0] > gains[1] > gains[2]

"""Splits of a budget: the closed form of Hoffmann et al., brute force, and the shift that demand brings."""

from __future__ import annotations

import numpy as np
import pytest

from flopwise.errors import FlopwiseError
from flopwise.laws import fit, get
from flopwise.laws.optimum import optimum
from flopwise.plan.frontier import plan

PAPER = {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28}


def table(scatter: float = 0.0) -> dict[str, np.ndarray]:
    N, D = (v.ravel() for v in np.meshgrid(np.logspace(7, 9, 6), np.logspace(9, 11, 6)))
    loss = get("chinchilla")(PAPER, {"N": N, "D": D})
    return {"N": N, "D": D, "loss": loss * np.exp(scatter * np.random.default_rng(0).normal(size=len(N)))}


def test_closed_form_without_demand():
    a, b, A, B = (PAPER[k] for k in ("alpha", "beta", "A", "B"))
    for C in (1e18, 5.76e23):
        N, D, _ = (float(v[0]) for v in optimum(get("chinchilla"), PAPER, C, 0.0))
        G = (a * A / (b * B)) ** (1 / (a + b))
        assert pytest.approx(G * (C / 6) ** (b / (a + b)), rel=1e-3) == N
        assert pytest.approx(C, rel=1e-9) == 6 * N * D


def test_demand_against_brute_force():
    C, T = 1e22, 1e12
    N, D, loss = (float(v[0]) for v in optimum(get("chinchilla"), PAPER, C, T))
    Ns = np.logspace(6, np.log10(C / (2 * T)) - 1e-6, 200_001)
    losses = get("chinchilla")(PAPER, {"N": Ns, "D": (C - 2 * Ns * T) / (6 * Ns)})
    assert loss == pytest.approx(losses.min(), abs=1e-9) and pytest.approx(Ns[losses.argmin()], rel=1e-2) == N
    assert pytest.approx(C, rel=1e-9) == 6 * N * D + 2 * N * T


def test_demand_asks_for_a_smaller_longer_trained_model():
    f = fit("chinchilla", table(0.002))
    idle, busy = plan(f, 1e21), plan(f, 1e21, demand=1e12)
    assert busy.best.N < idle.best.N and busy.best.D / busy.best.N > idle.best.D / idle.best.N
    assert busy.best.train_flops + busy.best.inference_flops == pytest.approx(1e21, rel=1e-6)
    low, high = idle.best.intervals["N"]
    assert low < idle.best.N < high and idle.best.extrapolation > 1


def test_following_the_wrong_law_costs_something():
    t = table(0.002)
    made = plan([fit("chinchilla", t), fit("kaplan", t)], 1e21)
    assert [s.law for s in made.others] == ["kaplan"] and made.best.regret["kaplan"] > 0
    assert made.to_dict()["best"]["law"] == "chinchilla"


def test_bad_input_is_one_clear_line():
    f = fit("chinchilla", table())
    with pytest.raises(FlopwiseError, match="above 0"):
        plan(f, 0.0)
    with pytest.raises(FlopwiseError, match="leave nothing"):
        plan(f, 1e10, demand=1e12)
    with pytest.raises(FlopwiseError, match="no fit"):
        plan([], 1e20)

"""The solver against brute force: no split that a fine grid knows is better than the one it finds."""

from __future__ import annotations

import numpy as np
import pytest
from joint_tables import chinchilla, joint, mesh

from flopwise.plan.response import Response
from flopwise.plan.setting import Demand, Limits, Machine, Setting
from flopwise.plan.solve import cheapest, cheapest_draws, optimise

ASKED = Demand(queries=3e7, prompt_tokens=200, answer_tokens=400, samples_max=32)


def brute(response: Response, setting: Setting, budget: float, sizes: np.ndarray) -> float:
    """The best score over sizes, 100 shares and every number of samples."""
    best = -np.inf
    shares = np.concatenate([[0.0], 1 / (1 + np.exp(-np.linspace(-8, 8, 100)))])
    for k in range(1, int(setting.demand.samples_max) + 1):
        x = mesh(N=sizes, share=shares)
        left = np.minimum(budget - setting.answering(x["N"], k), setting.most_trained())
        tokens = left / (6 * x["N"])
        D = setting.sunk + (1 - x["share"]) * tokens
        ok = (D >= 1e8) & setting.fits(x["N"], k)
        at = setting.columns(
            response.variables, x["N"], np.maximum(D, 1), np.maximum(x["share"] * tokens, 0), k
        )
        best = max(best, float(np.where(ok, response.score(response.best(), at)[0], -np.inf).max()))
    return best


@pytest.mark.parametrize(
    "limits",
    [
        Limits(),
        Limits(memory=5e8),
        Limits(latency=0.2),
        Limits(data=5e10),
        Limits(base=(4e8, 5e10)),
        Limits(deadline=2 * 86400.0),
    ],
    ids=["free", "memory", "latency", "data", "base", "deadline"],
)
def test_nothing_beats_the_plan(limits):
    response, budget = Response(joint()), 1e21
    setting = Setting(ASKED, limits, Machine.of("h100"))
    found = optimise(response, setting, budget)
    sizes = np.array([limits.base[0]]) if limits.base else np.geomspace(1e7, 2e9, 80)
    score = float(found.score[0])
    best = brute(response, setting, budget, sizes)
    assert score >= best - 1e-5 and score <= best + 2e-3
    assert setting.total(found.N[0], found.D[0], found.post[0], found.k[0]) <= budget * (1 + 1e-9)
    assert setting.fits(found.N[0], found.k[0]) and found.k[0] == round(found.k[0])
    trained = setting.training(found.N[0], found.D[0]) + setting.tuning(found.N[0], found.post[0])
    assert trained <= setting.most_trained() * (1 + 1e-9)


def test_every_draw_gets_its_own_optimum():
    response, setting = Response(joint()), Setting(ASKED)
    draws = response.draws(8, 1)
    many = optimise(response, setting, 1e21, draws)
    sizes = np.geomspace(3e7, 2e9, 60)
    for i in range(8):
        alone = Response(joint())
        one = [{name: v[i : i + 1] for name, v in draws[0].items()}]
        x = mesh(N=sizes, share=1 / (1 + np.exp(-np.linspace(-4, 4, 60))), k=np.arange(1.0, 33.0, 2))
        left = 1e21 - setting.answering(x["N"], x["k"])
        tokens = np.maximum(left, 0) / (6 * x["N"])
        at = {"N": x["N"], "D": (1 - x["share"]) * tokens, "post": x["share"] * tokens, "k": x["k"]}
        score = np.where(left > 0, alone.score(one, {n: np.maximum(v, 1e-9) for n, v in at.items()})[0], -1)
        assert many.score[i] >= score.max() - 2e-3


def test_more_passes_are_not_forced_where_repetition_hurts():
    from flopwise.laws import fit, get

    x = mesh(N=(1e7, 1e8, 1e9), D=(1e9, 4e9, 2e10), U=(1e9, 5e9))
    x["U"] = np.minimum(x["U"], x["D"])
    truth = {
        "E": 1.7,
        "A": 400.0,
        "B": 400.0,
        "alpha": 0.34,
        "beta": 0.28,
        "P": 0.05,
        "delta": 1.0,
        "kappa": 0.5,
    }
    f = fit("repetition_penalty", x | {"loss": get("repetition_penalty")(truth, x)})
    response, setting = Response(f), Setting(limits=Limits(data=2e9))
    found = optimise(response, setting, 1e22)
    N, D = np.geomspace(1e7, 1e10, 150)[:, None], np.geomspace(1e8, 1e12, 150)[None]
    loss = get("repetition_penalty")(f.params, {"N": N, "D": D, "U": np.minimum(D, 2e9)})
    assert -found.score[0] <= np.where(6 * N * D <= 1e22, loss, np.inf).min() + 2e-3
    assert 6 * found.N[0] * found.D[0] < 0.9e22


def test_the_least_budget_is_the_least():
    response, setting = Response(joint()), Setting(ASKED)
    budget, points = cheapest(response, setting, 0.6, (1e18, 1e24))
    assert points.score[0] >= 0.6
    assert optimise(response, setting, budget * 0.99).score[0] < 0.6
    drawn = cheapest_draws(response, setting, 0.6, budget, response.draws(40, 0))
    low, high = np.quantile(drawn, [0.1, 0.9])
    assert low < budget < high
    assert cheapest(response, setting, 1.1, (1e18, 1e24)) is None


def test_a_plain_law_is_solved_in_closed_form():
    response = Response(chinchilla())
    p = response.fit.params
    found = optimise(response, Setting(), 1e21)
    G = (p["alpha"] * p["A"] / (p["beta"] * p["B"])) ** (1 / (p["alpha"] + p["beta"]))
    assert found.N[0] == pytest.approx(G * (1e21 / 6) ** (p["beta"] / (p["alpha"] + p["beta"])), rel=1e-9)
    # The solver that takes limits agrees where they do not bind.
    loose = optimise(response, Setting(limits=Limits(memory=1e15)), 1e21)
    assert loose.N[0] == pytest.approx(found.N[0], rel=0.02)
    assert loose.score[0] == pytest.approx(found.score[0], abs=1e-6)


def test_of_a_share_the_most_is_best():
    from flopwise.laws import fit

    x = mesh(N=np.logspace(7, 9.5, 5), D=np.logspace(9, 11.5, 5))
    y = 1 / (1 + (1e9 / x["N"]) ** 0.5 + (5e10 / x["D"]) ** 0.5)
    f = fit("accuracy = 1 / (1 + (A / N)^a + (B / D)^b)", x | {"accuracy": y}, loss="squared")
    found = optimise(Response(f), Setting(), 1e21)
    N = np.geomspace(1e6, 1e12, 20_001)
    best = (1 / (1 + (1e9 / N) ** 0.5 + (5e10 / (1e21 / 6 / N)) ** 0.5)).max()
    assert found.score[0] == pytest.approx(best, abs=1e-4)

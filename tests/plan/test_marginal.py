"""Marginal gains and exchange rates: equal at the optimum, and what the law itself says they are."""

from __future__ import annotations

import numpy as np
import pytest
from joint_tables import joint

from flopwise.errors import FlopwiseError
from flopwise.plan.marginal import exchange, marginal, value_at
from flopwise.plan.response import Response
from flopwise.plan.setting import Demand, Setting
from flopwise.plan.solve import optimise

SETTING = Setting(Demand(queries=3e8, prompt_tokens=200, answer_tokens=400, samples_max=64))


def test_at_the_optimum_every_law_brings_the_same():
    response = Response(joint())
    best = optimise(response, SETTING, 1e20)
    at = {"N": best.N[0], "D": best.D[0], "post": best.post[0], "k": best.k[0]}
    rows = marginal(response, SETTING, at)
    assert [r["law"] for r in rows] == ["pretraining", "pretraining", "post-training", "test time"]
    gains = np.array([r["per_flop"] for r in rows])
    assert 1 < best.k[0] < 64 and gains.max() / gains.min() < 1.25  # samples are whole numbers
    assert gains[:3].max() / gains[:3].min() < 1.05
    assert all(r["low"] < r["per_flop"] < r["high"] for r in rows)


def test_away_from_it_the_scarce_one_brings_more():
    response = Response(joint())
    rows = {r["how"]: r["per_flop"] for r in marginal(response, SETTING, {"N": 1.5e9, "D": 1e10, "k": 16})}
    assert rows["the same model on more tokens"] > 3 * rows["a larger model on the same tokens"]


def test_samples_are_worth_what_the_law_says():
    response, at = Response(joint()), {"N": 1e8, "D": 1e10, "post": 1e9}
    rows = exchange(response, SETTING, at, samples=(2, 4), seed=3)
    assert [r["of"] for r in rows] == ["2 samples", "4 samples", "post-training"]
    for row in rows[:2]:
        x = row["pretraining"]
        grown = at | {"N": at["N"] * x["value"] ** 0.5, "D": at["D"] * x["value"] ** 0.5, "k": 1.0}
        same = value_at(response, SETTING, response.best(), at | {"k": row["k"]})[0]
        assert value_at(response, SETTING, response.best(), grown)[0] == pytest.approx(same, abs=1e-6)
        assert 1 < x["low"] < x["value"] < (x["high"] or np.inf)
    assert rows[1]["pretraining"]["value"] > rows[0]["pretraining"]["value"]
    assert rows[2]["flops"] == pytest.approx(6 * 1e8 * 1e9)


def test_what_no_pretraining_reaches_has_no_rate():
    rows = exchange(Response(joint()), SETTING, {"N": 1.5e9, "D": 2e11, "post": 1e10}, samples=(64,))
    assert rows[0]["pretraining"]["value"] is None and rows[0]["pretraining"]["high"] is None


def test_a_point_needs_its_size():
    with pytest.raises(FlopwiseError, match="D is missing"):
        marginal(Response(joint()), SETTING, {"N": 1e9})
    with pytest.raises(FlopwiseError, match="k is 0"):
        exchange(Response(joint()), SETTING, {"N": 1e9, "D": 1e9, "k": 0})

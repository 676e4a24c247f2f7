"""The plan: never over budget, more budget never worse, sure only where the problems say so."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flopwise.errors import FlopwiseError
from flopwise.plan.allocate import Predicted, best, make_plan, options
from flopwise.plan.systems import System


def systems() -> list[System]:
    rng = np.random.default_rng(0)
    out = []
    for model, skill, cost in (("small", 0.2, 1e10), ("large", 0.4, 1e12)):
        chance = rng.beta(2 * skill, 2 * (1 - skill), 400)
        for strategy in ("verifier", "majority"):
            for n in (1, 4, 16):
                values = 1 - (1 - chance) ** n if strategy == "verifier" else chance
                out.append(System(model, model, strategy, n, values, cost, cost / 1e6 * n))
    return out


def test_everything_offered_is_affordable_and_the_best_comes_first():
    found = options(systems(), [], {}, questions=1e3, budget=2e12)
    assert all(o.total_flops <= 2e12 for o in found)
    top = best(found, checkable=True)
    assert (top.model, top.strategy, top.n) == ("large", "verifier", 16)
    assert top.low <= top.accuracy <= top.high and top.chance_best > 0.95
    assert best(found, checkable=False).strategy == "majority"


def test_many_questions_turn_to_the_smaller_model():
    few = make_plan(systems(), [], {}, budget=1e13, questions=1e3)
    many = make_plan(systems(), [], {}, budget=1e13, questions=1e8)
    assert few["checkable"]["model"] == "large" and many["checkable"]["model"] == "small"
    models = [row["checkable"] and row["checkable"]["model"] for row in few["by_questions"]]
    assert models[0] == "large" and "small" in models and models[-1] is None


@settings(max_examples=25, deadline=None)
@given(st.floats(1e10, 1e14), st.floats(1.0, 5.0), st.floats(0, 1e7))
def test_more_budget_never_plans_worse(budget, factor, questions):
    small = options(systems(), [], {}, questions, budget)
    large = options(systems(), [], {}, questions, budget * factor)
    for checkable in (True, False):
        a, b = best(small, checkable), best(large, checkable)
        assert a is None or (b is not None and b.accuracy >= a.accuracy)


def test_a_prediction_competes_with_its_uncertainty():
    sure = Predicted("new", "pretrain", "verifier", 1, np.full(300, 0.99), 1e12, 1e6)
    vague = Predicted("new", "pretrain", "verifier", 1, np.linspace(0.0, 1.0, 301), 1e12, 1e6)
    top = best(options(systems(), [sure], {}, 1e3, 2e12), True)
    assert (top.origin, top.model) == ("predicted", "new") and top.chance_best > 0.99
    option = next(o for o in options(systems(), [vague], {}, 1e3, 2e12) if o.origin == "predicted")
    assert option.low < 0.05 and option.high > 0.95 and option.chance_best < 0.6


def test_what_cannot_be_paid_is_one_clear_line():
    with pytest.raises(FlopwiseError, match=r"afford no known system .* cheapest needs"):
        make_plan(systems(), [], {}, budget=1.0, questions=1e3)
    with pytest.raises(FlopwiseError, match="above 0"):
        make_plan(systems(), [], {}, budget=-1.0, questions=1e3)

"""Forms are judged on held-out scale."""

from __future__ import annotations

import numpy as np
import pytest

from flopwise.errors import FlopwiseError
from flopwise.laws import backtest, choose, compare, get

FORMS = ["chinchilla", "coupled"]


def test_backtest_holds_out_the_largest_and_predicts_it(ladder):
    table, _ = ladder(0)
    trial = backtest("chinchilla", table, by="N", cluster="run")
    assert trial.held_out == 203232.0 and len(trial.errors) == 3 and trial.fit.n == 12
    assert trial.rms < 0.05
    fitted = trial.fit.predict(N=203232.0, D=749568.0)
    assert trial.errors[0] == pytest.approx(fitted.value / table["loss"][9] - 1)
    assert trial.inside[0] == (fitted.low <= table["loss"][9] <= fitted.high)


def test_compute_is_6nd_where_no_column_says(ladder):
    table, _ = ladder(0)
    trial = backtest("chinchilla", table)
    assert trial.held_out == pytest.approx(6 * 203232.0 * 3000320.0) and len(trial.errors) == 1


def test_the_true_form_is_chosen_and_carries_its_trial(ladder):
    truth = {"E": 1.6, "A": 14.0, "R": 400.0, "alpha": 0.45, "beta": 0.75, "k": 0.6}
    table, _ = ladder(0, between=0.0003, within=0.0001, law="coupled", params=truth)
    choice = choose(table, FORMS, cluster="run")
    assert choice.fit.law == "coupled"
    trial = next(t for t in choice.trials if t.law == "coupled")
    assert choice.fit.misfit == trial.rms > 0
    assert choice.to_dict()["chosen"] == "coupled" and "coupled is chosen" in choice.reasons[-2]


def test_the_simpler_form_wins_a_tie(ladder):
    table, _ = ladder(1, between=0.0, within=1e-9)
    assert choose(table, FORMS, cluster="run").fit.law == "chinchilla"


def test_compare_sorts_by_error_and_warns_of_what_it_leaves_out(ladder):
    table, _ = ladder(0)
    with pytest.warns(UserWarning, match="rl_sigmoid was left out"):
        trials = compare(["kaplan", "rl_sigmoid", "chinchilla"], table, by="N", cluster="run")
    assert {t.law for t in trials} == {"kaplan", "chinchilla"}
    assert trials[0].rms <= trials[1].rms


def test_own_laws_are_back_tested_too(exact):
    table, _ = exact("power")
    assert backtest(get("power"), table).rms < 1e-6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hold_out": "smallest"}, "must be 'largest'"),
        ({"by": "width"}, "no column 'width'"),
        ({"by": "one"}, "in every row"),
        ({"law": "nope"}, "unknown"),
    ],
)
def test_bad_backtests_are_refused(arguments, message, ladder):
    table = ladder()[0] | {"one": np.ones(15)}
    with pytest.raises(FlopwiseError, match=message):
        backtest(**{"law": "chinchilla", "table": table} | arguments)


def test_nothing_to_choose_from(ladder):
    few = {name: values[:4] for name, values in ladder()[0].items()}
    with pytest.raises(FlopwiseError, match="no candidate can be fitted"):
        choose(few, FORMS)
    with pytest.raises(FlopwiseError, match="no law can be fitted"):
        compare(FORMS, few)

"""Intervals cover what they claim, and fits say what they do not know."""

from __future__ import annotations

import json

import numpy as np
import pytest

from flopwise.errors import FlopwiseError
from flopwise.laws import Fit, fit, get


@pytest.mark.parametrize("between", [0.003, 0.01])
def test_a_wider_run_lies_in_its_interval(ladder, between):
    """Simulated ladders with noise shared by the branches of a trunk; the run is 1.33 times as wide."""
    rng = np.random.default_rng(0)
    N, D = 361216.0, 3000320.0
    inside = []
    for seed in range(20):
        table, truth = ladder(seed, between=between)
        run = get("chinchilla")(truth, {"N": N, "D": D}) * np.exp(rng.normal(0, between))
        p = fit("chinchilla", table, cluster="run", loss="log_squared", starts=30).predict(N=N, D=D)
        assert p.low < p.mean_low < p.value < p.mean_high < p.high
        inside.append(p.low <= run <= p.high)
    assert np.mean(inside) >= 0.9


def test_shared_noise_widens_intervals(ladder):
    table, _ = ladder(0, between=0.01, within=0.0005)
    apart, together = (fit("chinchilla", table, loss="log_squared", cluster=c) for c in (None, "run"))
    assert together.dof == 2 and apart.dof == 10
    assert together.scatter > 0.003
    widths = [np.ptp(f.interval("alpha")) for f in (apart, together)]
    assert widths[1] > 1.5 * widths[0]


def test_runs_that_the_law_uses_up_are_told(ladder):
    table, _ = ladder(0)
    three = {name: values[:9] for name, values in table.items()}
    fitted = fit("chinchilla", three, cluster="run")
    assert any("cannot be seen" in w for w in fitted.warnings)


def test_bootstrap_resamples_runs(ladder):
    table, _ = ladder(2)
    shares = []
    fitted = fit("chinchilla", table, cluster="run", loss="log_squared", bootstrap=30, progress=shares.append)
    assert fitted.samples.shape == (fitted.diagnostics["bootstrap"]["draws"], 5)
    assert shares[-1] == 1.0
    low, high = fitted.interval("alpha")
    assert low <= fitted.params["alpha"] * 1.05 and fitted.params["alpha"] <= high * 1.05
    again = fit("chinchilla", table, cluster="run", loss="log_squared", bootstrap=30)
    assert again.interval("alpha") == (low, high)
    assert any("bootstrap over 5" in w for w in fitted.warnings)


def test_a_file_gives_back_the_fit(ladder, tmp_path):
    table, _ = ladder(0)
    fitted = fit("chinchilla", table, cluster="run", bootstrap=20)
    fitted.misfit = 0.02
    path = tmp_path / "fit.json"
    fitted.to_json(path)
    read = Fit.from_json(path)
    assert read.predict(N=1e6, D=1e7) == fitted.predict(N=1e6, D=1e7)
    assert read.to_dict() == fitted.to_dict()
    written = json.loads(path.read_text())
    wanted = {"law", "params", "intervals", "objective", "loss", "n", "status", "diagnostics", "warnings"}
    assert wanted <= set(written)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"law": "chinchilla"}',
        '{"law": 3}',
        "\x00\xff",
        '{"law": "chinchilla", "params": []}',
    ],
)
def test_a_file_that_is_no_fit_is_refused(content, tmp_path):
    path = tmp_path / "fit.json"
    path.write_text(content)
    with pytest.raises(FlopwiseError) as e:
        Fit.from_json(path)
    assert "\n" not in str(e.value)


def test_misfit_keeps_intervals_from_being_narrower_than_the_trial(ladder):
    fitted = fit("chinchilla", ladder(0, 0, 1e-5)[0])
    fitted.misfit = 0.05
    p = fitted.predict(N=4e5, D=3e6)
    assert np.log(p.high / p.value) == pytest.approx(1.96 * 0.05, rel=1e-3)


def test_one_line_of_n_against_d_is_told(exact):
    N = np.geomspace(1e7, 1e10, 10)
    law = get("chinchilla")
    loss = law({"E": 1.8, "A": 480.0, "B": 2100.0, "alpha": 0.35, "beta": 0.37}, {"N": N, "D": 20 * N})
    fitted = fit("chinchilla", {"N": N, "D": 20 * N, "loss": loss * (1 + 1e-3 * np.sin(N))})
    assert any("one line" in w for w in fitted.warnings)


def test_no_ceiling_before_the_middle_of_a_curve():
    C = np.geomspace(1, 100, 12)
    law = get("rl_sigmoid")
    reward = law({"A": 0.6, "R0": 0.1, "Cmid": 400.0, "B": 2.0}, {"C": C})
    fitted = fit("rl_sigmoid", {"C": C, "reward": reward}, loss="squared")
    assert fitted.status == "not_identified"
    assert fitted.predict(C=90.0).value == pytest.approx(law(fitted.params, {"C": np.array(90.0)}))
    with pytest.raises(FlopwiseError, match="before its middle"):
        fitted.predict(C=1000.0)


def test_a_curve_may_start_at_zero():
    C = np.concatenate([[0.0], np.geomspace(1, 1000, 15)])
    reward = get("rl_sigmoid")({"A": 0.6, "R0": 0.1, "Cmid": 40.0, "B": 2.0}, {"C": C})
    fitted = fit("rl_sigmoid", {"C": C, "reward": reward})
    assert fitted.params["A"] == pytest.approx(0.6)
    assert fitted.predict(C=0.0).value == pytest.approx(0.1)
    assert fitted.predict(C=1e9).high <= 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"N": None}, "no column 'N'"),
        ({"loss": np.r_[np.nan, np.ones(14)]}, "row 1"),
        ({"loss": np.r_[np.ones(14), -1.0]}, "row 15, must be above 0"),
        ({"loss": np.array(["1.0"] * 3 + ["<b>x</b>"] + ["2"] * 11)}, "row 4"),
        ({"N": np.zeros(15)}, "row 1"),
        ({"N": np.full(15, 1e6), "D": np.geomspace(1e6, 1e8, 15)}, "N is 1e\\+06 in every row"),
        ({"N": np.repeat([1e6, 2e6], [7, 8]), "D": np.tile([1e8, 2e8], 8)[:15]}, "only 4 different"),
        ({"loss": np.ones(3)}, "differ in length"),
    ],
)
def test_bad_tables_are_refused_in_one_line(change, message, ladder):
    table = {name: v for name, v in (ladder()[0] | change).items() if v is not None}
    with pytest.raises(FlopwiseError, match=message) as e:
        fit("chinchilla", table)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"law": "chinchila"}, "did you mean 'chinchilla'"),
        ({"loss": "mse"}, "log_huber, log_squared, squared"),
        ({"delta": 0.0}, "delta is 0.0"),
        ({"bootstrap": 3}, "from 20"),
        ({"cluster": "rum"}, "did you mean 'run'"),
        ({"target": "lss"}, "did you mean 'loss'"),
    ],
)
def test_bad_arguments_are_refused(arguments, message, ladder):
    with pytest.raises(FlopwiseError, match=message):
        fit(**{"law": "chinchilla", "table": ladder()[0]} | arguments)


def test_too_few_points_are_refused(ladder):
    few = {name: values[:5] for name, values in ladder()[0].items()}
    with pytest.raises(FlopwiseError, match="at least 6 points, there are 5"):
        fit("chinchilla", few)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"N": 1e9}, "D is missing"),
        ({"N": 0, "D": 1e9}, "N is 0"),
        ({"N": "x", "D": 1e9}, "N is x"),
        ({"N": 1e9, "D": 1e9, "k": 2}, "has no k"),
        ({"N": [1e9, 2e9], "D": [1e9, 2e9, 3e9]}, "lengths differ"),
        ({"N": 1e9, "D": 1e9, "level": 95}, "level is 95"),
    ],
)
def test_bad_predictions_are_refused(values, message, ladder):
    with pytest.raises(FlopwiseError, match=message):
        fit("chinchilla", ladder()[0], starts=20).predict(**values)


def test_predictions_broadcast_and_say_how_far_beyond(ladder):
    fitted = fit("chinchilla", ladder()[0])
    line = fitted.predict(N=1e5, D=np.array([1e6, 2e6]))
    assert line.value.shape == line.low.shape == (2,) and line.extrapolation == 1.0
    assert fitted.predict(N=2032320.0, D=1e6).extrapolation == pytest.approx(10.0)
    assert fitted.predict(N=2473.6, D=1e6).extrapolation == pytest.approx(10.0)

"""The commands of the laws on their own app: from a file to a prediction, and what they refuse."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from flopwise.cli import laws as group
from flopwise.cli.shared import Bar, number
from flopwise.errors import FlopwiseError

TRUTH = {"E": 1.8, "A": 480.0, "B": 2100.0, "alpha": 0.35, "beta": 0.37}


@pytest.fixture
def invoke():
    app = typer.Typer()
    app.callback()(lambda: None)
    group.register(app)
    return lambda *args: CliRunner().invoke(app, list(map(str, args)))


@pytest.fixture
def table(tmp_path):
    """A grid of runs without noise, under names of one's own."""
    N, D = (v.ravel() for v in np.meshgrid(np.geomspace(1e7, 1e9, 4), np.geomspace(1e9, 1e11, 4)))
    loss = TRUTH["E"] + TRUTH["A"] * N ** -TRUTH["alpha"] + TRUTH["B"] * D ** -TRUTH["beta"]
    lines = [
        f"{n!r},{d!r},{y!r},ok,r{n:.0f}"
        for n, d, y in zip(N.tolist(), D.tolist(), loss.tolist(), strict=True)
    ]
    path = tmp_path / "runs.csv"
    path.write_text("\n".join(["params,tokens,val_loss,note,run", *lines, "1e9,1e11,99,bad,x"]))
    return path


MAP = ("--map", "N=params,D=tokens,loss=val_loss", "--where", "note = 'ok'")


def test_from_a_file_to_a_prediction(invoke, table, tmp_path):
    out = tmp_path / "fit.json"
    result = invoke("fit", table, "--law", "chinchilla", *MAP, "--out", out, "--json")
    fitted = json.loads(result.stdout)
    wanted = {"law", "params", "intervals", "objective", "loss", "n", "status", "diagnostics", "warnings"}
    assert wanted <= set(fitted) and fitted["n"] == 16 and fitted["status"] == "converged"
    assert fitted["params"] == pytest.approx(TRUTH, rel=1e-5)
    made = json.loads(invoke("predict", out, "N=7B", "D=1.4T", "--json").stdout)
    expected = TRUTH["E"] + TRUTH["A"] * 7e9 ** -TRUTH["alpha"] + TRUTH["B"] * 1.4e12 ** -TRUTH["beta"]
    assert made["value"] == pytest.approx(expected, rel=1e-6) and made["extrapolation"] == pytest.approx(14)
    best = json.loads(invoke("predict", out, "C=5.76e23", "--json").stdout)
    assert 6 * best["N"] * best["D"] == pytest.approx(5.76e23) and set(best["intervals"]) == {
        "N",
        "D",
        "loss",
    }
    assert "tokens per parameter" in invoke("predict", out, "C=5.76e23").stdout
    assert "7 times beyond" in invoke("predict", out, "N=7e9", "D=1e11", "--level", "0.8").stdout


def test_tables_for_people(invoke, table):
    shown = invoke(
        "fit", table, "--law", "chinchilla", *MAP, "--cluster", "run", "--loss", "log_squared"
    ).stdout
    assert "loss = E + A / N^alpha" in shown and "alpha" in shown and "16 points of 4 runs" in shown
    shown = invoke("backtest", table, "--law", "chinchilla", *MAP).stdout
    assert "chinchilla" in shown and "held out first: C = 6e+20" in shown
    shown = invoke("compare", table, "--laws", "kaplan,chinchilla", "--by", "N", *MAP).stdout
    assert shown.index("chinchilla") < shown.index("kaplan")


def test_compare_takes_every_law_that_applies(invoke, table):
    made = json.loads(invoke("compare", table, *MAP, "--by", "N", "--json").stdout)
    trials = made["laws"]
    assert made["verdict"].startswith(trials[0]["law"])
    assert sum(t["weight"] for t in trials) == pytest.approx(1.0)
    assert {"chinchilla", "coupled", "kaplan"} <= {t["law"] for t in trials}
    assert not {"rl_sigmoid", "power"} & {t["law"] for t in trials}
    assert [t["rms"] for t in trials] == sorted(t["rms"] for t in trials)
    (alone,) = [json.loads(invoke("backtest", table, *MAP, "--by", "N", "--law", "kaplan", "--json").stdout)]
    assert alone["law"] == "kaplan" and len(alone["errors"]) == 4


def test_bootstrap_intervals(invoke, table):
    result = invoke("fit", table, "--law", "chinchilla", *MAP, "--bootstrap", "20", "--json")
    assert json.loads(result.stdout)["diagnostics"]["bootstrap"]["draws"] == 20


def test_the_catalogue(invoke):
    rows = json.loads(invoke("laws", "--json").stdout)
    assert {"chinchilla", "rl_sigmoid", "coverage_power"} <= {row["name"] for row in rows}
    assert set(rows[0]) >= {"name", "regime", "formula", "variables", "target", "source", "status"}
    assert "Hoffmann" in invoke("laws").stdout


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("fit", "missing.csv", "--law", "chinchilla"), "does not exist"),
        (("fit", "{table}", "--law", "chinchila", *MAP), "did you mean 'chinchilla'"),
        (("fit", "{table}", "--law", "chinchilla"), "--map"),
        (("fit", "{table}", "--law", "chinchilla", "--map", "N=parms"), "did you mean 'params'"),
        (("fit", "{table}", "--law", "chinchilla", "--map", "N"), "NAME=VALUE"),
        (
            ("fit", "{table}", "--law", "chinchilla", "--map", "N=note,D=tokens,loss=val_loss"),
            "'ok' in row 1",
        ),
        (("fit", "{table}", "--law", "chinchilla", *MAP[:3], "note = "), "where"),
        (("fit", "{table}", "--law", "chinchilla", *MAP[:3], "params > 1e99"), "no rows"),
        (("fit", "{table}", "--law", "chinchilla", *MAP[:3], "params < 2e7"), "at least 6 points"),
        (("fit", "{table}", "--law", "chinchilla", *MAP, "--loss", "mae"), "log_huber, log_squared, squared"),
        (("predict", "missing.json", "N=1"), "flopwise fit"),
        (("predict", "{table}", "N=1"), "not a fit"),
        (("backtest", "{table}", "--law", "chinchilla", *MAP, "--by", "width"), "width"),
        (("compare", "{table}"), "are those of no law"),
        (("compare", "{table}", "--laws", "nope", *MAP), "unknown"),
    ],
)
def test_refusals_are_one_line(invoke, table, args, message):
    error = invoke(*(a.replace("{table}", str(table)) for a in args)).exception
    assert isinstance(error, FlopwiseError) and message in str(error) and "\n" not in str(error)


@pytest.mark.parametrize("text", ["", "x", "-1", "0", "nan", "inf", "1e999", "7Q", "1.2.3", "1e", "[red]7"])
def test_numbers_that_are_none_are_refused(text):
    with pytest.raises(FlopwiseError, match="must be a number above 0"):
        number(text, "N")


def test_numbers_as_people_write_them():
    given = ("7e9", "7B", "1.4T", "350m", "10k", "750_000", "5.76E+23")
    assert [number(t, "N") for t in given] == [7e9, 7e9, 1.4e12, 3.5e8, 1e4, 7.5e5, 5.76e23]


def test_the_bar_shows_time_left_only_for_what_takes_long(capsys):
    bar = Bar("fit")
    bar(0.5)
    assert capsys.readouterr().err == ""
    bar.started -= 60
    bar.shown -= 60
    bar(0.5)
    assert "fit 50%, 1:00 left" in capsys.readouterr().err


def test_a_csv_is_fitted_without_torch(table):
    """In a process where torch cannot be imported, from reading the file to the prediction."""
    code = f"""
import sys
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers"):
            raise ImportError(name)
sys.meta_path.insert(0, NoTorch())
import flopwise as fw
assert not {{"scipy", "numpy", "duckdb", "pandas", "matplotlib"}} & set(sys.modules)
names = dict(N="params", D="tokens", loss="val_loss")
table = fw.read_table({str(table)!r}, rename=names, where="note = 'ok'")
fit = fw.fit("chinchilla", table)
fit.optimal(1e20)
fw.compare(["chinchilla", "kaplan"], table)
assert "scipy.stats" not in sys.modules, "a second of start-up"
print(fit.predict(N=7e9, D=1.4e12).value)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 1.8 < float(done.stdout) < 2.2


@pytest.mark.parametrize(
    "first",
    [
        "import flopwise as fw",
        "import flopwise.laws, flopwise as fw",
        "from flopwise.laws import fit; import flopwise as fw",
        "from flopwise import laws; import flopwise as fw; assert laws is fw.laws",
        "import flopwise as fw; fw.fit",
    ],
)
def test_laws_is_package_and_catalogue_in_any_order_of_import(first):
    code = f"""
{first}
assert "chinchilla" in [law.name for law in fw.laws()]
assert {{law.regime for law in fw.laws("post-training")}} == {{"post-training"}}
assert fw.laws.laws and fw.fit and fw.backtest and fw.compare
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def curve(tmp_path):
    """Loss against compute, under a name that no law knows."""
    path = tmp_path / "curve.csv"
    C = np.geomspace(1e18, 1e21, 16)
    loss = (1.7 + 1e3 * C**-0.2) * np.exp(0.002 * np.random.default_rng(0).normal(size=16))
    lines = [f"{c!r},{y!r}" for c, y in zip(C.tolist(), loss.tolist(), strict=True)]
    path.write_text("\n".join(["compute,loss", *lines]))
    return path


FORMULA = "loss = E + A / compute^b"


def test_a_formula_from_table_to_prediction(invoke, curve, tmp_path):
    out = tmp_path / "own.json"
    fitted = json.loads(invoke("fit", curve, "--law", FORMULA, "--out", out, "--json").stdout)
    assert set(fitted["params"]) == {"E", "A", "b"} and fitted["law"] == FORMULA
    p = fitted["params"]
    made = json.loads(invoke("predict", out, "compute=1e22", "--json").stdout)
    assert made["value"] == pytest.approx(p["E"] + p["A"] / 1e22 ** p["b"], rel=1e-9)
    assert made["low"] < made["mean_low"] < made["value"] < made["mean_high"] < made["high"]
    shown = invoke("predict", out, "compute=1e22", "--level", "0.8").stdout
    assert shown.startswith("loss ") and "10 times beyond" in shown
    trials = json.loads(invoke("backtest", curve, "--law", FORMULA, "--json").stdout)
    assert trials["by"] == "compute" and trials["rms"] < 0.02
    assert [t["threshold"] for t in trials["trials"]] == sorted(
        (t["threshold"] for t in trials["trials"]), reverse=True
    )


def test_held_parameters_are_shown_and_kept(invoke, table, tmp_path):
    out = tmp_path / "fit.json"
    result = invoke("fit", table, "--law", "chinchilla", *MAP, "--fix", "E=1.8,alpha=0.35", "--out", out)
    assert result.exception is None
    shown = [line.split() for line in result.stdout.splitlines()]
    assert ["E", "1.8", "held"] in shown and ["alpha", "0.35", "held"] in shown
    kept = json.loads(out.read_text())
    assert kept["fixed"] == {"E": 1.8, "alpha": 0.35} and set(kept["params"]) == {"A", "B", "beta"}
    assert kept["params"]["beta"] == pytest.approx(TRUTH["beta"], rel=1e-4)
    made = json.loads(invoke("predict", out, "N=7B", "D=1.4T", "--json").stdout)
    assert 1.8 < made["value"] < 2.2
    held = json.loads(
        invoke("backtest", table, "--law", "chinchilla", *MAP, "--by", "N", "--fix", "E=1.8", "--json").stdout
    )
    assert held["fit"]["fixed"] == {"E": 1.8}


def test_without_a_law_the_best_simple_one_is_chosen(invoke, table, tmp_path):
    made = json.loads(invoke("fit", table, *MAP, "--json").stdout)
    assert made["law"] in {"chinchilla", "overtraining", "coupled", "kaplan"}
    assert any("is chosen" in reason for reason in made["chosen_because"])
    assert {"verdict", "next_run"} <= set(made)
    few = tmp_path / "few.csv"
    few.write_text("N,D,loss\n1e7,1e9,4.5\n2e7,1e9,4.2\n")
    error = invoke("fit", few).exception
    assert isinstance(error, FlopwiseError) and "points, there are 2" in str(error)


def test_demand_makes_the_best_model_smaller(invoke, table, tmp_path):
    out = tmp_path / "fit.json"
    invoke("fit", table, "--law", "chinchilla", *MAP, "--out", out, "--intervals", "delta")
    one = json.loads(invoke("predict", out, "C=1e22", "--json").stdout)
    much = json.loads(invoke("predict", out, "C=1e22", "--demand", "10T", "--json").stdout)
    assert much["N"] < one["N"]
    assert 6 * much["N"] * much["D"] + 2 * much["N"] * 1e13 == pytest.approx(1e22, rel=1e-6)


@pytest.mark.parametrize("name", ["chinchilla", "rl_sigmoid", "beta_binomial"])
def test_all_about_a_law(invoke, name):
    from flopwise.laws import get

    law = get(name)
    shown = invoke("laws", name).stdout
    assert law.formula in shown and law.source in shown and "flopwise fit TABLE --law " + name in shown
    entry = json.loads(invoke("laws", name, "--json").stdout)
    assert entry["parameters"] == list(law.names) and entry["columns"] == list(law.columns)


def test_regimes_part_the_catalogue(invoke):
    rows = [
        json.loads(invoke("laws", "--regime", r, "--json").stdout)
        for r in ("pretraining", "post-training", "test-time")
    ]
    every = json.loads(invoke("laws", "--json").stdout)
    assert sum(len(r) for r in rows) == len(every)


def test_json_is_json_without_nan_or_infinity(invoke, table, curve):
    def strict(text):
        return json.loads(text, parse_constant=lambda c: pytest.fail(f"{c} is no JSON"))

    strict(invoke("fit", table, "--law", "chinchilla", *MAP, "--loss", "robust", "--json").stdout)
    strict(invoke("fit", curve, "--law", FORMULA, "--intervals", "posterior", "--json").stdout)
    strict(invoke("compare", table, "--laws", "chinchilla,kaplan", *MAP, "--json").stdout)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ("fit", "{table}", "--law", "loss = __import__('os').system('touch executed')", *MAP),
            "not understood",
        ),
        (("fit", "{table}", "--law", "loss = E +", *MAP), "cannot be read"),
        (("fit", "{table}", "--law", "", *MAP), "unknown"),
        (("fit", "{table}", "--law", "chinchilla", *MAP, "--fix", "E=much"), "E=much: must be a number"),
        (("fit", "{table}", "--law", "chinchilla", *MAP, "--fix", "Q=1"), "no parameter 'Q'"),
        (("fit", "{table}", "--law", "chinchilla", *MAP, "--fix", "E=-1"), "E is -1"),
        (("fit", "{table}", "--law", "chinchilla", *MAP, "--delta", "0"), "delta is 0"),
        (("fit", "{table}", "--law", "chinchilla", *MAP, "--delta", "nan"), "delta is nan"),
        (("fit", "{table}", "--law", "chinchilla", *MAP, "--bootstrap", "5"), "from 20"),
        (("fit", "{table}", "--law", "chinchilla", *MAP, "--intervals", "wide"), "profile, delta, bootstrap"),
        (("fit", "{table}", "--law", "chinchilla", *MAP, "--cluster", "seed"), "no column 'seed'"),
        (("fit", "{table}", "--law", "chinchilla", *MAP, "--loss", "binomial"), "no binomial likelihood"),
        (("fit", "{table}", "--law", "chinchilla", *MAP, "--plot", "fit.bmp"), "must end in"),
        (("backtest", "{table}", "--law", "chinchilla", *MAP, "--by", "note"), "'ok' in row 1"),
        (("laws", "chinchila"), "did you mean 'chinchilla'"),
        (("laws", "--regime", "pre"), "there are pretraining"),
    ],
)
def test_more_refusals_are_one_line(invoke, table, args, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    error = invoke(*(a.replace("{table}", str(table)) for a in args)).exception
    assert isinstance(error, FlopwiseError) and message in str(error) and "\n" not in str(error)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("N=7B",), "D is missing"),
        (("N=7B", "D=1.4T", "k=2"), "has no k"),
        (("N=7B", "N=8B"), "given twice"),
        (("N=seven", "D=1.4T"), "must be a number"),
        (("N=7B", "D=1.4T", "--level", "1"), "level is 1"),
        (("N=7B", "D=1.4T", "--level", "nan"), "level is nan"),
        (("C=5",), "C is 5"),
        (("C=1e22", "--demand", "much"), "demand is 'much'"),
        (("C=1e22", "--demand", "1e30"), "must be a number of FLOPs above"),
    ],
)
def test_bad_predictions_are_one_line(invoke, table, values, message, tmp_path):
    out = tmp_path / "fit.json"
    invoke("fit", table, "--law", "chinchilla", *MAP, "--out", out, "--intervals", "delta")
    error = invoke("predict", out, *values).exception
    assert isinstance(error, FlopwiseError) and message in str(error) and "\n" not in str(error)

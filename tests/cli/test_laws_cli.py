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
    assert "L = E + A / N^alpha" in shown and "alpha" in shown and "16 points of 4 runs" in shown
    shown = invoke("backtest", table, "--law", "chinchilla", *MAP).stdout
    assert "chinchilla" in shown and "held out: C = 6e+20" in shown
    shown = invoke("compare", table, "--laws", "kaplan,chinchilla", "--by", "N", *MAP).stdout
    assert shown.index("chinchilla") < shown.index("kaplan")


def test_compare_takes_every_law_that_applies(invoke, table):
    trials = json.loads(invoke("compare", table, *MAP, "--by", "N", "--json").stdout)
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
        (("compare", "{table}"), "columns of no law"),
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

"""`flopwise isoflop`: from a file to budgets, power laws and bias, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from flopwise.cli import isoflop as group
from flopwise.errors import FlopwiseError
from flopwise.laws import get
from flopwise.laws.isoflop_bias import optimal_size

LAW = {"E": 1.7, "A": 400.0, "B": 500.0, "alpha": 0.3, "beta": 0.3}


@pytest.fixture
def invoke():
    app = typer.Typer()
    app.callback()(lambda: None)
    group.register(app)
    return lambda *args: CliRunner().invoke(app, list(map(str, args)))


def write(path, columns):
    rows = [",".join(columns), *(",".join(map(repr, row)) for row in zip(*columns.values(), strict=True))]
    path.write_text("\n".join(rows))
    return path


@pytest.fixture
def table(tmp_path):
    """Five budgets of seven sizes at three learning rates, under names of one's own."""
    C = np.repeat(np.geomspace(1e18, 1e22, 5), 21)
    N = np.array([optimal_size(LAW, c) for c in C]) * np.tile(np.repeat(np.geomspace(1 / 8, 8, 7), 3), 5)
    lr = np.tile([1e-3, 2e-3, 4e-3], 35)
    loss = get("chinchilla")(LAW, {"N": N, "D": C / (6 * N)}) + 0.2 * np.log(lr / 2e-3) ** 2
    columns = {"params": N, "D": C / (6 * N), "C": C, "val": loss, "lr": lr}
    return write(tmp_path / "runs.csv", {name: v.tolist() for name, v in columns.items()})


MAP = ("--map", "N=params,loss=val")


def test_budgets_laws_and_bias_as_json(invoke, table):
    args = ("isoflop", table, *MAP, "--best-over", "lr", "--at", "1e24", "--at", "5e21", "--json")
    made = json.loads(invoke(*args).stdout)
    assert len(made["budgets"]) == 5 and made["budgets"][0]["n"] == 7
    assert made["laws"]["weighted"]["N"]["exponents"]["C"] == pytest.approx(0.5, abs=1e-6)
    assert made["bias"]["true"] == pytest.approx(0.5, abs=1e-4) and made["warnings"] == []
    assert [row["C"] for row in made["at"]] == [1e24, 5e21]
    first = made["at"][0]["N"]
    assert first["value"] == pytest.approx(optimal_size(LAW, 1e24), rel=1e-4)
    assert first["interval"][0] < first["value"] < first["interval"][1]


def test_tables_for_people(invoke, table):
    shown = invoke("isoflop", table, *MAP, "--where", "lr < 0.0015", "--at", "1e24").stdout
    assert "parabola of log loss in log N; column C, as they are: 5 budgets of 35 runs" in shown
    assert "N = " in shown and "C^0.5" in shown and "weighted" in shown and "plain" in shown
    assert "at C = 1e+24: N " in shown and "bias: on noise-free losses" in shown
    shown = invoke("isoflop", table, *MAP, "--method", "akima", "--no-bias").stdout
    assert "Akima" in shown and "bias:" not in shown and "mind: runs of one size" in shown
    assert "mind:" not in invoke("isoflop", table, *MAP, "--no-bias", "--repeats", "min").stdout


def test_the_envelope_of_training_curves(invoke, tmp_path):
    N, D = (v.ravel() for v in np.meshgrid(np.geomspace(3e7, 3e10, 12), np.geomspace(3e8, 3e13, 40)))
    columns = {"N": N, "D": D, "loss": get("chinchilla")(LAW, {"N": N, "D": D}), "model": N}
    path = write(tmp_path / "curves.csv", {name: v.tolist() for name, v in columns.items()})
    args = ("isoflop", path, "--method", "envelope", "--run", "model", "--at", "1e21")
    made = json.loads(invoke(*args, "--json").stdout)
    assert made["laws"]["N"]["exponents"]["C"] == pytest.approx(0.5, abs=0.01) and made["runs"] == 12
    shown = invoke(*args).stdout
    assert "envelope of 12 training curves, 8 of them" in shown and "mind: checkpoints" in shown


@pytest.mark.parametrize(
    ("args", "match"),
    [
        (("--method", "spline"), "there are parabola, akima, envelope"),
        (("--at", "much"), "--at in FLOPs is 'much'"), (("--at", "5T tokens"), "must be a number of FLOP"),
        (("--method", "envelope"), "no column 'run'"), (("--best-over", "rate"), "no column 'rate'"),
        (("--where", "C < 5e19", "--at", "1e24", "--repeats", "min"), "--at needs power laws"),
        (("--window", "0.5"), "window is 0.5"),
    ],
)  # fmt: skip
def test_bad_input_is_told_in_one_line(invoke, table, args, match):
    error = invoke("isoflop", table, *MAP, *args).exception
    assert isinstance(error, FlopwiseError) and match in str(error) and "\n" not in str(error)


def test_the_command_is_among_flopwise_s(table):
    words = [sys.executable, "-c", "from flopwise.cli import main; main()", "isoflop", str(table)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 2 and "no column 'N'" in done.stderr and done.stderr.count("\n") == 1
